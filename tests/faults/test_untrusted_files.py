"""Loading runs no code, and takes no memory on the word of a file."""

import argparse
import ast
import io
import json
import os
import pathlib
import pickle
import pickletools
import re
import struct
import sys
import zipfile

import h5py
import keras
import numpy as np
import pytest
from artifacts import ARTIFACTS, files_of, network

from tfuq._files.reading import open_arrays
from tfuq.callbacks import SnapshotEnsemble
from tfuq.cli._inputs import load_model
from tfuq.datasets import from_npz
from tfuq.ensembles import DeepEnsemble
from tfuq.ood import load_detector
from tfuq.selective import ConformalPredictor, RejectionRule, TemperatureScaling

PACKAGE = pathlib.Path(__file__).parents[2] / "tfuq"
SOURCES = sorted(PACKAGE.rglob("*.py"))
MARKER = "TFUQ_TEST_MARKER"  # names the file that foreign code would write


# --- No pickle ----------------------------------------------------------------------------------

UNSAFE_MODULES = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "jsonpickle"}
UNSAFE_CALLS = {"eval", "exec", "system", "popen", "enable_unsafe_deserialization", "unsafe_load"}
UNSAFE_ARGUMENTS = {"allow_pickle": True, "safe_mode": False, "shell": True}


def unsafe(source):
    """What a source does that could run the code of a file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (n.name for n in node.names if n.name.split(".")[0] in UNSAFE_MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in (
            UNSAFE_MODULES
        ):
            yield node.module
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", None))
            if name in UNSAFE_CALLS:
                yield name
            for word in node.keywords:
                value = getattr(word.value, "value", ...)  # what is computed may be anything
                if word.arg in UNSAFE_ARGUMENTS and value in (..., UNSAFE_ARGUMENTS[word.arg]):
                    yield f"{word.arg}={value}"


def test_no_source_runs_what_it_reads():
    found = {path.name: list(unsafe(path.read_text(encoding="utf-8"))) for path in SOURCES}
    assert {name: things for name, things in found.items() if things} == {}
    for source in (
        "import pickle",
        "from dill import load",
        "eval(text)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "keras.models.load_model(path, safe_mode=False)",
        "import os\nos.system(text)",
    ):
        assert len(list(unsafe(source))) == 1, source


def pickles(content):
    """Whether bytes hold a whole pickle, of the protocols that have a header."""
    for match in re.finditer(rb"\x80[\x02-\x05]", content):
        try:
            last = list(pickletools.genops(io.BytesIO(content[match.start() :])))[-1]
        except Exception:
            continue
        if last[0].name == "STOP":
            return True
    return False


def members(content, name):
    """The parts of a file, of archives in it too, by their names."""
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for info in archive.infolist():
                yield from members(archive.read(info), f"{name}/{info.filename}")
    else:
        yield name, content


def check_plain(name, content):
    """Asserts that a file is text, numbers or one of the formats that hold nothing else."""
    suffix = pathlib.PurePath(name).suffix
    if suffix == ".npy":
        array = np.load(io.BytesIO(content), allow_pickle=False)
        assert array.dtype.kind in "biufU", name
    elif suffix == ".h5":
        with h5py.File(io.BytesIO(content)) as file:
            kinds = []
            file.visititems(
                lambda _, item: kinds.append(item.dtype.kind) if hasattr(item, "dtype") else None
            )
            assert kinds and set(kinds) <= set("biuf"), (name, kinds)
    elif suffix == ".json":
        json.loads(content)
    elif suffix in (".csv", ".html"):
        content.decode("utf-8")
    elif suffix == ".parquet":
        assert content[:4] == content[-4:] == b"PAR1", name
    elif suffix == ".tfrecord":
        length = struct.unpack("<Q", content[:8])[0]
        assert 0 < length < len(content), name
    elif suffix == ".tflite":
        assert content[4:8] == b"TFL3", name
    else:  # of a SavedModel
        is_saved_model = suffix in (".pb", ".index") or "variables.data-" in name
        assert is_saved_model, f"{name}: a kind of file that this test does not know"


@pytest.mark.parametrize("name", ARTIFACTS)
def test_artifacts_hold_no_code(name, tmp_path, counts):
    ARTIFACTS[name].write(tmp_path / name, 0)
    for file in files_of(tmp_path / name):
        for part, content in members(file.read_bytes(), file.name):
            check_plain(part, content)
            assert not pickles(content), part
            assert b"c__builtin__" not in content and b"cbuiltins" not in content, part
            counts("parts of artifacts opened")


def test_pickles_are_found():
    for protocol in range(2, 6):
        assert pickles(b"before" + pickle.dumps({"a": [1, 2]}, protocol) + b"behind")
    assert not pickles(b"\x80 is not one")


# --- Foreign models -----------------------------------------------------------------------------


def lambda_layer():
    """As Keras writes a Lambda: marshalled code, which would write the marker."""
    code = f"lambda x: (open(__import__('os').environ[{MARKER!r}], 'w').close(), x)[1]"
    layer = keras.layers.Lambda(eval(code), output_shape=(4,))
    return keras.saving.serialize_keras_object(layer)


def foreign_class(kind, module, **config):
    described = {"module": module, "class_name": kind, "config": config, "registered_name": kind}
    return {**described, "build_config": {"input_shape": [None, 4]}}


def function(name, module):
    return {"module": module, "class_name": "function", "config": name, "registered_name": name}


def dense(**config):
    layer = keras.saving.serialize_keras_object(keras.layers.Dense(4, name="odd"))
    return {**layer, "config": {**layer["config"], **config}}


FOREIGN = {
    "lambda": lambda_layer,
    "class of a module that is not imported": lambda: foreign_class("Evil", "tfuq_test_evil"),
    "class of the standard library": lambda: foreign_class("Popen", "subprocess", args="true"),
    "class of a module of tests": lambda: foreign_class("Foreign", __name__, name="f"),
    "class of tfuq that is none of Keras": lambda: foreign_class("DeepEnsemble", "tfuq.ensembles"),
    "function as activation": lambda: dense(activation=function("system", "os")),
    "function of Keras": lambda: dense(activation=function("get_file", "keras.utils")),
    "function of this module": lambda: dense(activation=function("evil", __name__)),
    "initializer that is a foreign class": lambda: dense(
        kernel_initializer=foreign_class("Popen", "subprocess", args="true")
    ),
    "lambda in a wrapper": lambda: {
        **foreign_class("TimeDistributed", "keras.layers"),
        "config": {"layer": lambda_layer()},
        "registered_name": None,
    },
    "saved model on the disk": lambda: foreign_class(
        "TFSMLayer", "keras.layers", filepath="/tmp/none", call_endpoint="serve"
    ),
}


class Foreign(keras.layers.Layer):
    """Not registered."""

    def __init__(self, **kwargs):
        evil()
        super().__init__(**kwargs)


def evil(x=None):
    open(os.environ[MARKER], "w").close()
    return x


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """What would be there if foreign code had run; a module that can be imported does that."""
    monkeypatch.setenv(MARKER, str(tmp_path / "marker"))
    (tmp_path / "tfuq_test_evil.py").write_text(
        f"import os\nopen(os.environ[{MARKER!r}], 'w').close()\nclass Evil: pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / "marker"


def with_layer(path, layer):
    """Puts a layer into the configuration of a `.keras` file, in front of the others."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(parts["config.json"])
    config["config"]["layers"].insert(1, layer)
    parts["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


def refused(call, *args):
    with pytest.raises(ValueError) as caught:
        call(*args)
    assert "must" in str(caught.value) and "Received: " in str(caught.value), caught.value
    return str(caught.value)


@pytest.mark.parametrize("case", FOREIGN)
def test_foreign_models_are_refused(case, marker, tmp_path, counts):
    """Whatever way they come: as a file, in an ensemble, to the command line."""
    model, ensemble = tmp_path / "model.keras", tmp_path / "ensemble"
    network().save(model)
    DeepEnsemble.from_models([network(), network(1)]).save(ensemble)
    layer = FOREIGN[case]()
    for path in (model, ensemble / "member_000.keras"):
        with_layer(path, layer)
    assert "altered" in refused(DeepEnsemble.load, ensemble)
    manifest = json.loads((ensemble / "ensemble.json").read_text())
    for name in ("sha256", "files"):  # as who makes such files would
        del manifest[name]
    (ensemble / "ensemble.json").write_text(json.dumps(manifest))
    ways = [
        (DeepEnsemble.load, ensemble),
        (DeepEnsemble.from_checkpoints, [model]),
        (by_command, model),
        (by_command, ensemble),
    ]
    for way, path in ways:
        refused(way, path)
    assert not marker.exists()
    assert "tfuq_test_evil" not in sys.modules
    counts("foreign files refused", len(ways) + 1)


def by_command(path):
    return load_model(argparse.Namespace(model=str(path), trust=False))


def test_what_is_registered_is_loaded(tmp_path):
    """The same ways are open to a class that is."""

    @keras.saving.register_keras_serializable("tfuq_test")
    class Registered(keras.layers.Dense):
        pass

    model = keras.Sequential([keras.Input((4,)), Registered(3, activation="softmax")])
    model.save(tmp_path / "model.keras")
    for way, path in ((by_command, str), (DeepEnsemble.from_checkpoints, lambda path: [path])):
        found = way(path(tmp_path / "model.keras"))
        found = found.members[0] if isinstance(found, DeepEnsemble) else found
        np.testing.assert_array_equal(found.layers[0].kernel, model.layers[0].kernel)


@pytest.mark.parametrize("name", ["../member_000.keras", "/etc/passwd", "member_000.h5", 7, None])
def test_members_lie_in_the_folder(name, tmp_path):
    DeepEnsemble.from_models([network()]).save(tmp_path / "ensemble")
    manifest = {"format": 1, "members": [name], "seed": 0, "fits": 0}
    (tmp_path / "ensemble" / "ensemble.json").write_text(json.dumps(manifest))
    refused(DeepEnsemble.load, tmp_path / "ensemble")


@pytest.mark.parametrize("kind", ["external", "virtual", "nowhere", "soft"])
def test_weights_lie_in_their_file(kind, tmp_path, counts):
    """HDF5 can point to other files, and claim what it does not hold."""
    (tmp_path / "secret").write_bytes(bytes(10**6))
    ARTIFACTS["snapshots"].write(tmp_path / "snapshots", 0)
    (file,) = (tmp_path / "snapshots").glob("*.h5")
    with h5py.File(file, "a") as store:
        place = "layers/dense/vars/0"
        del store[place]
        if kind == "external":
            external = [(str(tmp_path / "secret"), 0, 9600)]
            store.create_dataset(place, (4, 600), "float32", external=external)
        elif kind == "virtual":
            layout = h5py.VirtualLayout((4, 600), "float32")
            layout[:] = h5py.VirtualSource(str(tmp_path / "secret"), "x", (4, 600))
            store.create_virtual_dataset(place, layout)
        elif kind == "nowhere":
            store.create_dataset(place, (10**6, 10**6), "float32", chunks=(100, 100))
        else:
            store[place] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/x")
            with h5py.File(tmp_path / "other.h5", "w") as other:
                other["x"] = np.zeros((4, 600), "float32")
    manifest = json.loads((tmp_path / "snapshots/snapshots.json").read_text())
    del manifest["sha256"], manifest["files"]
    (tmp_path / "snapshots/snapshots.json").write_text(json.dumps(manifest))
    refused(SnapshotEnsemble.load, tmp_path / "snapshots", network)
    counts("foreign files refused")


# --- Sizes --------------------------------------------------------------------------------------


def huge_text(path):
    """A file of a gigabyte that takes no room on the disk."""
    with open(path, "wb") as file:
        file.truncate(2**30)


def deep_text(path):
    path.write_text("[" * 10**6 + "]" * 10**6)


def bomb(path, name="x"):
    """A few megabytes that decompress to a gigabyte of zeros."""
    header = io.BytesIO()
    described = {"descr": "<f4", "fortran_order": False, "shape": (2**28,)}
    np.lib.format.write_array_header_1_0(header, described)
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(f"{name}.npy", "w", force_zip64=True) as file,
    ):
        file.write(header.getvalue())
        block = bytes(2**24)
        for _ in range(2**6):
            file.write(block)
    assert path.stat().st_size < 2**26


def claim(path, name="x"):
    """A small archive whose array says that it is of 4 TB."""
    header = io.BytesIO()
    described = {"descr": "<f4", "fortran_order": False, "shape": (10**9, 10**3)}
    np.lib.format.write_array_header_1_0(header, described)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.npy", header.getvalue() + bytes(64))
        archive.writestr("y.npy", header.getvalue())


def lone_claim(path):
    """No archive at all, but an array that says that it is of 4 TB."""
    header = io.BytesIO()
    described = {"descr": "<f4", "fortran_order": False, "shape": (10**9, 10**3)}
    np.lib.format.write_array_header_1_0(header, described)
    path.write_bytes(header.getvalue())


def long_header(path):
    with zipfile.ZipFile(path, "w") as archive:
        text = b"[" * 60_000
        start = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text))
        archive.writestr("x.npy", start + text)
        archive.writestr("y.npy", start + text)


def large_config(path):
    """A model whose configuration decompresses to 200 MB."""
    network().save(path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            text = content + b" " * 2 * 10**8 if name == "config.json" else content
            archive.writestr(name, text)


def in_folder(name, write):
    """`write`, on a file of an artifact that is else whole."""

    def damage(path):
        artifact, file = name.split("/")
        ARTIFACTS[artifact].write(path, 0)
        write(path / file)

    return damage


OVERSIZED = {
    "rule.json of 1 GB": (huge_text, "rule.json"),
    "rule.json, deep": (deep_text, "rule.json"),
    "ensemble.json of 1 GB": (in_folder("ensemble/ensemble.json", huge_text), "ensemble"),
    "ensemble.json, deep": (in_folder("ensemble/ensemble.json", deep_text), "ensemble"),
    "snapshots.json of 1 GB": (in_folder("snapshots/snapshots.json", huge_text), "snapshots"),
    "manifest.json of 1 GB": (
        in_folder("scores.tfrecord/_manifest.json", huge_text),
        "scores.tfrecord",
    ),
    "manifest.json, deep": (
        in_folder("scores.tfrecord/_manifest.json", deep_text),
        "scores.tfrecord",
    ),
    "backup.npz that claims": (in_folder("backup/backup.npz", claim), "backup"),
    "detector.npz, a bomb": (bomb, "detector.npz"),
    "detector.npz that claims": (claim, "detector.npz"),
    "detector.npz, no archive": (lone_claim, "detector.npz"),
    "data.npz, a bomb": (bomb, "data.npz"),
    "data.npz that claims": (claim, "data.npz"),
    "data.npz, no archive": (lone_claim, "data.npz"),
    "data.npz with a long header": (long_header, "data.npz"),
    "model.keras of much text": (large_config, "model.keras"),
    "model.keras of 1 GB": (huge_text, "model.keras"),
}
MOST = 300 * 2**20  # bytes that a refusal may take, for files that claim at least a gigabyte


def peak():
    """The most memory that this process has had, in bytes."""
    text = pathlib.Path("/proc/self/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) * 1024


@pytest.mark.slow_cases("detector.npz, a bomb")
@pytest.mark.parametrize("case", OVERSIZED)
def test_sizes_are_checked_before_memory_is_taken(case, tmp_path, counts):
    write, name = OVERSIZED[case]
    path = tmp_path / name
    write(path)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = peak()
    with pytest.raises((ValueError, OSError)) as caught:
        ARTIFACTS[name].read(path)
    assert path.name in str(caught.value)
    assert peak() - before < MOST, f"{(peak() - before) / 2**20:.0f} MB"
    counts("oversized files refused")


@pytest.mark.slow
def test_large_data_are_loaded(tmp_path):
    """Compressed images, as many sets come, and more than what is small."""
    x = np.random.default_rng(0).integers(256, size=(1200, 256, 8), dtype="uint8")
    x = np.repeat(x, 32, axis=-1)
    np.savez_compressed(tmp_path / "data.npz", x=x, y=np.arange(1200))
    with open_arrays(tmp_path / "data.npz") as arrays:
        np.testing.assert_array_equal(arrays["x"], x)
    assert from_npz(tmp_path / "data.npz", None).cardinality() == 1200


# --- What coverage-guided fuzzing found -----------------------------------------------------------


def test_lists_of_classes_that_are_none_are_refused():
    probs, labels = np.full((30, 3), 1 / 3), np.arange(30) % 3
    probs[np.arange(30), labels] += 0.2
    probs /= probs.sum(-1, keepdims=True)
    for fitted in (
        RejectionRule.fit(probs, labels, target_coverage=0.5),
        ConformalPredictor.fit(probs, labels, alpha=0.2),
    ):
        for name in ("classes", "unseen_classes"):
            config = {**fitted.get_config()}
            config["fitted_to"] = {**config["fitted_to"], name: None}
            with pytest.raises(ValueError, match=f"list of `?{name.split('_')[0]}"):
                type(fitted)(**config)


def test_a_calibration_without_sketches_calibrates():
    told = {"rows": "30-0123456789abcdef", "examples": 30, "sketches": {}}
    found = TemperatureScaling(2.0, fitted_to=told)([[0.9, 0.1]])
    np.testing.assert_allclose(found, [[0.75, 0.25]], rtol=1e-6)


def test_a_header_of_numbers_that_are_no_characters_is_refused(tmp_path):
    path = tmp_path / "detector.npz"
    header = np.array("{}ab").reshape(1).view("uint32").copy()
    header[3] = 0x110000
    np.savez(path, header=header.view("U4").reshape(()), scores=np.ones(3, "float32"))
    with pytest.raises(ValueError, match="the header is not text"):
        load_detector(path)
