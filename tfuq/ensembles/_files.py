"""Files of an ensemble: its folder, checkpoints, a SavedModel of all members."""

from __future__ import annotations

import pathlib
import re
import warnings
from typing import Any

import keras

from tfuq._arguments import Output, PathLike, Self, check_integer, shown
from tfuq._files.reading import (
    DAMAGE,
    check_fields,
    check_fingerprint,
    check_weights,
    fingerprint,
    json_text,
    load_keras,
    read_json,
    sealed,
    unsealed,
)
from tfuq._files.writing import folder_written_whole
from tfuq._models.meaning import reading_of, readings_of
from tfuq._models.member_graphs import mean_of_members, member_probs
from tfuq._models.outputs import input_spec
from tfuq._models.train_step import build_optimizer, rebuild_optimizer
from tfuq._random.global_state import seeded
from tfuq._version import __version__
from tfuq.ensembles._checks import check_built, check_members
from tfuq.ensembles.processes import write_model
from tfuq.layers.sparse_bayes import sparse_bayes_layers

_MANIFEST = "ensemble.json"
_MEMBER = re.compile(r"member_\d{3,}\.keras")
_FORMAT = 1


def read_checkpoint(argument, path, build_model=None):
    """The model of a `.keras` file, or that of `build_model` with weights from a `.weights.h5`."""
    if not path.is_file():
        raise ValueError(
            f"Argument `{argument}` must lead to existing files. Received: no file {str(path)!r}"
        )
    if path.suffix == ".keras":
        return load_keras(path, f"A model of `{argument}`")
    if not path.name.endswith(".weights.h5"):
        raise ValueError(
            f"Argument `paths` must name .keras or .weights.h5 files. Received: {str(path)!r}"
        )
    if build_model is None:
        raise ValueError(
            "Argument `build_model` must be a function that makes the model of these weights. "
            f"Received: build_model=None with {str(path)!r}"
        )
    with seeded(0):
        model = build_model()
    check_members([model], "build_model")
    check_built([model], "load weights")
    if getattr(model, "optimizer", None) is not None:
        build_optimizer(model)  # what the file may hold of it is loaded too
    try:
        check_weights(path)
        if sparse_bayes_layers(model):
            _make_room(model, path)
        model.load_weights(path)
    except DAMAGE as error:
        raise ValueError(
            f"Argument `{argument}` must name complete files of weights of the model that "
            f"`build_model` makes: restore the file, or leave it out. Received: {str(path)!r} "
            f"({type(error).__name__}: {error})"
        ) from error
    return model


def _make_room(model, path):
    """Gives sparse Bayesian layers the numbers of random weights that the file has.

    Files of before and after a selection over the whole network differ in these, and so does the
    state of an optimizer.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the optimizer, which does not fit yet
        model.load_weights(path, skip_mismatch=True)
    if getattr(model, "optimizer", None) is not None:
        rebuild_optimizer(model.optimizer, model.trainable_variables)


# --- The folder -------------------------------------------------------------------------------


def check_replaceable(folder):
    """Raises ValueError if `folder` holds something else than an ensemble."""
    is_ensemble = folder.is_dir() and (folder / _MANIFEST).is_file()
    is_empty = folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not is_ensemble and not is_empty:
        raise ValueError(
            "Argument `folder` must be new, empty or an ensemble's. "
            f"Received: folder={str(folder)!r}, which holds something else"
        )


def write_members(folder, members, seed, fits):
    """Writes a `.keras` file for each member, and the manifest that names them."""
    names = [f"member_{number:03d}.keras" for number in range(len(members))]
    for name, member in zip(names, members, strict=True):
        write_model(member, folder / name)
    manifest = {"tfuq": __version__, "format": _FORMAT, "members": names}
    manifest |= {"seed": seed, "fits": fits}
    manifest["files"] = {name: fingerprint(folder / name) for name in names}
    text = json_text(sealed(manifest), indent=2)
    (folder / _MANIFEST).write_text(text, encoding="utf-8")


def read_members(folder):
    """The models, the seed and the number of fits that `write_members` wrote."""
    manifest = _read_manifest(folder)
    for name, written in manifest["files"].items():
        _check_member_file(folder, name, written)
    models = [read_checkpoint("folder", folder / name) for name in manifest["members"]]
    return models, manifest["seed"], manifest["fits"]


def _read_manifest(folder):
    path = folder / _MANIFEST
    if not path.is_file():
        found = f"without {_MANIFEST}" if folder.is_dir() else "which is no folder"
        raise ValueError(
            "Argument `folder` must be what `DeepEnsemble.save` wrote. "
            f"Received: folder={str(folder)!r}, {found}"
        )
    try:
        manifest = unsealed(read_json(path))
        if manifest["format"] != _FORMAT:
            raise ValueError(f"format {shown(manifest['format'])} instead of {_FORMAT}")
        check_fields(manifest, ("tfuq", "format", "members", "seed", "fits", "files"))
        names, files = manifest["members"], dict(manifest.get("files", {}))
        if not names or not all(_MEMBER.fullmatch(name) for name in names):
            raise ValueError(f"members {shown(names)}")  # so no name leads elsewhere
        if files and set(files) != set(names):
            raise ValueError(f"members {shown(names)} and files {sorted(files)}")
        check_integer("seed", manifest["seed"], 0)
        check_integer("fits", manifest["fits"], 0)
        return {**manifest, "files": files}
    except DAMAGE as error:
        raise ValueError(
            f"Argument `folder` must hold a {_MANIFEST} as `DeepEnsemble.save` of this version "
            "wrote it: restore it, or load the members by `DeepEnsemble.from_checkpoints`. "
            f"Received: folder={str(folder)!r} ({type(error).__name__}: {error})"
        ) from error


def _check_member_file(folder, name, written):
    try:
        check_fingerprint(folder / name, written)
    except DAMAGE as error:
        raise ValueError(
            "Argument `folder` must hold the files of its members as they were written: restore "
            "the file, or load the others by `DeepEnsemble.from_checkpoints`. Received: "
            f"{str(folder / name)!r} ({type(error).__name__}: {error})"
        ) from error


# --- A SavedModel -----------------------------------------------------------------------------


def write_graph(path, members, reading, input_signature, verbose, forward=None):
    """Writes a SavedModel whose `serve` gives the probabilities of all members and their mean."""
    readings = readings_of(members, reading)
    spec = input_spec(members[0]) if input_signature is None else input_signature

    def serve(inputs):
        stack = member_probs(members, readings, inputs, forward)
        return {"members": stack, "probabilities": mean_of_members(stack)}

    archive = keras.export.ExportArchive()
    for member in members:
        archive.track(member)
    archive.add_endpoint("serve", serve, [spec])
    archive.write_out(str(path), verbose=verbose)


# --- What an ensemble has of them ------------------------------------------------------------


class EnsembleFiles:
    """Ensembles that are saved, loaded and exported."""

    def save(self, folder: PathLike) -> None:
        """Writes the ensemble as one folder: `ensemble.json` and a `.keras` file per member.

        The folder gets its name when it is complete: nobody reads half an ensemble. An ensemble
        that is there already is replaced.

        Args:
            folder: Path of the folder.

        Raises:
            ValueError: If a member is not built, or the path holds something else.
        """
        folder = pathlib.Path(folder)
        check_built(self._members, "be saved")
        check_replaceable(folder)
        with folder_written_whole(folder) as new:
            write_members(new, self._members, self.seed, self._fits)

    @classmethod
    def load(cls, folder: PathLike) -> Self:
        """Reads what `save` wrote, in Keras' safe mode.

        Own classes have to be registered with Keras, or stand in a
        `keras.saving.custom_object_scope` around this call.

        Args:
            folder: Path of the folder.

        Returns:
            `DeepEnsemble`. Its `build_model` is None.

        Raises:
            ValueError: If there is no such folder, it holds something else, or a file is damaged
                or of another version.
        """
        models, seed, fits = read_members(pathlib.Path(folder))
        ensemble = cls.from_models(models, seed=seed)
        ensemble._fits = fits
        return ensemble

    def export(
        self,
        path: PathLike,
        *,
        input_signature: Any = None,
        output: Output | None = None,
        from_logits: bool | None = None,
        multi_label: bool | None = None,
        verbose: int | str = False,
    ) -> None:
        """Writes the ensemble as one SavedModel, which plain TensorFlow loads.

        Its `serve` takes a batch of any size and returns a dict: `"members"`, probabilities
        `(members, batch, ..., classes)`, and `"probabilities"`, their mean.

        Args:
            path: Folder of the SavedModel.
            input_signature: `tf.TensorSpec`, or a structure of these as the models take it. By
                default the inputs of the first member, if that is functional or `Sequential`.
            output: Which output, as for `predict`.
            from_logits: As for `predict`.
            multi_label: Whether each entry of the last axis is a binary prediction of its own.
            verbose: Whether to print what is written.

        Raises:
            ValueError: If a member is not built, the inputs are not known, or nothing says whether
                the outputs are logits.
        """
        check_built(self._members, "be exported")
        reading = reading_of(output, from_logits, multi_label)
        write_graph(path, self._members, reading, input_signature, verbose, self.forward)
