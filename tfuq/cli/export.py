"""Command `tfuq export`: a model with its uncertainty and decisions, for other programs."""

import pathlib

from tfuq import export as exporting
from tfuq._files.reading import DAMAGE, read_json
from tfuq.cli._inputs import (
    existing,
    interval_options,
    load_calibration,
    load_model,
    load_ood,
    load_rule,
    prediction_options,
)
from tfuq.cli._stderr import progress
from tfuq.export.loading import size_of
from tfuq.export.signing import private_key, sign, signature_of

FORMATS = {".tflite": exporting.export_litert, ".onnx": exporting.export_onnx}
_OTHERS = (".keras", ".h5", ".hdf5", ".pb", ".zip", ".json", ".xml", ".pt", ".pth", ".lite")


def run(arguments):
    """Writes the folder, or the file and what is known of it."""
    out = pathlib.Path(arguments.out)
    if out.suffix.lower() in _OTHERS:
        raise ValueError(
            f"OUT must be a folder, for a SavedModel, or end in {' or '.join(FORMATS)}. "
            f"Received: {out}"
        )
    write, options = FORMATS.get(out.suffix.lower(), exporting.export), {}
    if arguments.weights is not None:
        if write is not exporting.export_litert:
            raise ValueError(f"--weights needs an OUT that ends in .tflite. Received: {out}")
        options = {"weights": arguments.weights}
    rule, calibration = load_rule(arguments.rule), load_calibration(arguments.calibration)
    model = load_model(arguments)
    if hasattr(model, "signatures"):
        raise ValueError(
            "MODEL must not be a SavedModel, which is exported already. Received: "
            f"{arguments.model}"
        )
    if arguments.sign is not None:
        private_key(existing("--sign", arguments.sign))  # before hours of work, not after
    progress(f"exporting {arguments.model}")
    write(
        model,
        out,
        rule=rule,
        ood=load_ood(arguments.ood, model),
        calibration=calibration,
        monitor=arguments.monitor and existing("--monitor", arguments.monitor),
        card=_card(arguments.card),
        overwrite=arguments.overwrite,
        **options,
        **prediction_options(arguments),
        **interval_options(arguments),
    )
    signature_of(out).unlink(missing_ok=True)  # that of a model which was there before
    if arguments.sign is not None:
        sign(out, arguments.sign)
    return {"wrote": str(arguments.out), **size_of(out)}, True


def _card(path):
    """What a JSON file says for the model card."""
    if path is None:
        return None
    try:
        return read_json(existing("--card", path))
    except DAMAGE as error:
        raise ValueError(f"--card must be a JSON object. Received: {path} ({error})") from error


def text_of(figures):
    """The figures for a person."""
    return f"wrote {figures['wrote']}: {figures['files']} files, {figures['bytes']} bytes"
