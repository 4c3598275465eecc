"""What the uncertainty of an export costs in size and time, of each family of keras.applications.

    python benchmarks/export_sizes.py --json benchmarks/export_sizes.json
    python benchmarks/export_sizes.py --json benchmarks/export_sizes.json --report  # the table

The smallest network of each family, with random weights, for small images, ends in a plain `Dense`
or in a `VBLLDense` of which an export draws 30 samples, and goes into a SavedModel, a LiteRT file
and an ONNX file: the plain one as Keras, TensorFlow's converter and tf2onnx write it, the other by
`tfuq.export`, with all that it tells. Both answer one image at a time in turns, on one thread, in a
process of the family's own; a ratio is the median of the rounds' ratios of processor time. What
cannot be converted is recorded with the converter's own words. Families that are in the JSON are
not run again, unless `--again` is given.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from evidence.marked import markdown, write_table

import tfuq
from tfuq.export._runtimes import ONNX, LiteRT

FAMILIES = {  # the smallest of each file of keras.applications
    "ConvNeXt": "ConvNeXtTiny",
    "DenseNet": "DenseNet121",
    "EfficientNet": "EfficientNetB0",
    "EfficientNetV2": "EfficientNetV2B0",
    "Inception-ResNet": "InceptionResNetV2",
    "Inception": "InceptionV3",
    "MobileNet": "MobileNet",
    "MobileNetV2": "MobileNetV2",
    "MobileNetV3": "MobileNetV3Small",
    "NASNet": "NASNetMobile",
    "ResNet": "ResNet50",
    "ResNetV2": "ResNet50V2",
    "VGG16": "VGG16",
    "VGG19": "VGG19",
    "Xception": "Xception",
}
SHAPE, CLASSES, SAMPLES = (96, 96, 3), 10, 30
FORMATS = ("SavedModel", "LiteRT", "ONNX")
ROUNDS, LEAST_MS = 9, 60  # of each contestant in a round
PAGE, PLACE = "docs/reliability.md", "export sizes"


def networks(family):
    """The plain network and the one with a VBLL head, on one trunk of random weights."""
    keras.utils.set_random_seed(0)
    make = getattr(keras.applications, FAMILIES[family])
    trunk = make(include_top=False, weights=None, input_shape=SHAPE, pooling="avg")
    heads = keras.layers.Dense(CLASSES), tfuq.layers.VBLLDense(CLASSES, kl_weight=1e-4)
    return [keras.Model(trunk.inputs[0], head(trunk.output)) for head in heads]


# --- Exports ----------------------------------------------------------------------------------


def plain_saved_model(model, path):
    model.export(path, verbose=False)


def plain_litert(model, path):
    with tempfile.TemporaryDirectory() as folder:
        model.export(folder, verbose=False)
        path.write_bytes(tf.lite.TFLiteConverter.from_saved_model(folder).convert())


def plain_onnx(model, path):
    import tf2onnx

    spec = tf.TensorSpec((None, *SHAPE), "float32", "inputs")
    call = tf.function(lambda inputs: model(inputs, training=False), input_signature=[spec])
    tf2onnx.convert.from_function(call, [spec], opset=18, output_path=str(path))


PLAIN = dict(zip(FORMATS, (plain_saved_model, plain_litert, plain_onnx), strict=True))
OURS = {
    "SavedModel": tfuq.export.export,
    "LiteRT": tfuq.export.export_litert,
    "ONNX": tfuq.export.export_onnx,
}


def runner(form, path):
    """A function of images, and what it was made of."""
    if form == "SavedModel":
        model = tf.saved_model.load(str(path))
        return lambda x: model.serve(tf.constant(x))
    model = {"LiteRT": LiteRT, "ONNX": ONNX}[form](path)
    return lambda x: model({model.inputs[0]: x})


def megabytes(path):
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


# --- Figures ----------------------------------------------------------------------------------


def spent(function, x):
    """Milliseconds of a call by the clock and of the processor, of as many as take `LEAST_MS`."""
    starts, calls = (time.perf_counter(), time.process_time()), 0
    while time.perf_counter() - starts[0] < LEAST_MS / 1e3:
        function(x)
        calls += 1
    ends = time.perf_counter(), time.process_time()
    return [(end - start) / calls * 1e3 for start, end in zip(starts, ends, strict=True)]


def of_format(form, plain, ours, folder, x, expected):
    """Sizes, times and agreement of one format; or which of the two cannot be had, and why."""
    paths, runs = (folder / f"{form} plain", folder / f"{form} ours"), []
    for name, path, write in (
        ("plain", paths[0], lambda path: PLAIN[form](plain, path)),
        ("tfuq", paths[1], lambda path: OURS[form](ours, path, num_samples=SAMPLES, **LOGITS)),
    ):
        try:
            write(path)
            runs.append(runner(form, path))
            runs[-1](x[:1])  # some files are written and cannot be loaded, or run
        except Exception as error:  # what a converter cannot do it says in many ways
            said = " ".join(str(error).replace(f"{folder}/", "").split())[:300]
            return {"failed": name, "says": f"{type(error).__name__}: {said}"}
    run_plain, run_ours = runs
    difference = float(np.abs(np.asarray(run_ours(x)["probabilities"]) - expected).max())
    one = x[:1]
    rounds = [(spent(run_plain, one), spent(run_ours, one)) for _ in range(ROUNDS)]
    return {
        "mb": [round(megabytes(path), 3) for path in paths],
        "ms": [round(statistics.median(both[i][0] for both in rounds), 2) for i in (0, 1)],
        "times": round(statistics.median(own[1] / other[1] for other, own in rounds), 3),
        "difference": difference,
    }


LOGITS = {"from_logits": True}


def of_family(family):
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    plain, ours = networks(family)
    x = np.random.default_rng(0).uniform(-1, 1, size=(8, *SHAPE)).astype("float32")
    expected = tfuq.predictive.predict_uncertainty(ours, x, SAMPLES, **LOGITS).probs
    found = {"network": FAMILIES[family], "parameters": plain.count_params(), "formats": {}}
    with tempfile.TemporaryDirectory() as folder:
        for form in FORMATS:
            arguments = form, plain, ours, pathlib.Path(folder), x, expected
            found["formats"][form] = of_format(*arguments)
    return found


def asked(family):
    """`of_family` in a process of its own, whose memory goes with it."""
    command = [sys.executable, __file__, "--family", family]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3000)
    if done.returncode:
        raise RuntimeError(f"{family}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def cell(figures):
    if "failed" in figures:
        return f"{figures['failed']} fails"
    (before, after), times = figures["mb"], figures["times"]
    return f"{before:.1f} {after - before:+.2f}; {times:.2f}; {figures['difference']:.0e}"


def table(found):
    """The table of the page."""
    rows = [
        [each["network"], f"{each['parameters'] / 1e6:.1f}"]
        + [cell(each["formats"][form]) for form in FORMATS]
        for each in found["families"].values()
    ]
    failed = [
        f"{each['network']}, {form} ({figures['failed']}): {figures['says']}"
        for each in found["families"].values()
        for form, figures in each["formats"].items()
        if "failed" in figures
    ]
    said = "".join(f"\n- {line}" for line in failed)
    missing = [name for name in FAMILIES if name not in found["families"]]
    rest = f" Not run yet: {', '.join(missing)}." if missing else ""
    height, width, _ = found["shape"]
    return (
        markdown(["network", "parameters, millions", *FORMATS], rows)
        + "\nMB of the plain file, and what the file of `tfuq.export` has more; how many times the "
        "plain file's time an image takes; the largest difference of a probability from Python. "
        f"Images of {height} x {width}, {found['samples']} samples of a `VBLLDense`.{rest}\n"
        + (f"\nWhat fails, in the words of the converter:\n{said}\n" if failed else "")
    )


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=pathlib.Path, help="where the figures go, or are")
    parser.add_argument("--again", action="store_true", help="also what is in the JSON")
    parser.add_argument("--report", action="store_true", help=f"write the table into {PAGE}")
    parser.add_argument("--family", choices=FAMILIES, help="in this process, onto stdout")
    options = parser.parse_args(arguments)
    if options.family:
        print(json.dumps(of_family(options.family)))
        return
    found = {"shape": SHAPE, "samples": SAMPLES, "families": {}}
    if options.json is not None and options.json.is_file() and not options.again:
        found = json.loads(options.json.read_text(encoding="utf-8"))
    if options.report:
        write_table(PAGE, PLACE, table(found))
        return
    for family in FAMILIES:
        if family in found["families"]:
            continue
        found["families"][family] = asked(family)
        print(family, json.dumps(found["families"][family]), flush=True)
        if options.json is not None:
            options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
