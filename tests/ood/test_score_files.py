"""Files of detectors: what they hold, and what is refused that is no whole file of one."""

import io
import json
import pathlib
import zipfile

import numpy as np
import processes
import pytest
from small_detectors import (
    DETECTORS,
    MODEL,
    MOVING,
    OTHER,
    X,
    Y,
    features_of,
    fitted,
    model_of,
    refused,
)

from tfuq import ood
from tfuq._files.reading import hash_of, json_text


def write_all(folder, names=DETECTORS):
    """A file of each detector, with its threshold, by its name."""
    paths = {name: folder / f"{number}.npz" for number, name in enumerate(names)}
    for name, path in paths.items():
        fitted(name).threshold_at(0.8, X, confidence=0.7)
        fitted(name).save(path)
    return paths


def test_saved_and_loaded(tmp_path):
    for name, path in write_all(tmp_path).items():
        detector = fitted(name)
        loaded = ood.load_detector(path, model_of(name))
        assert type(loaded) is type(detector)
        assert loaded.get_config() == detector.get_config()
        assert loaded.threshold == detector.threshold
        np.testing.assert_array_equal(loaded.score(OTHER), detector.score(OTHER))
        np.testing.assert_array_equal(loaded.detect(OTHER), detector.detect(OTHER))
        if name not in MOVING:  # which keep no scores of their own data
            assert loaded.threshold_at(0.6) == detector.threshold_at(0.6)
        refused("model", ood.load_detector(path).score, OTHER)
        type(detector).load(path)
        other = ood.MaxLogit if name != "MaxLogit" else ood.KNN
        refused("path", other.load, path)
    assert len(list(tmp_path.iterdir())) == len(DETECTORS)  # nothing is left beside them


NUMPY_ARGUMENTS = {
    "KNN": {"k": np.int64(5)},
    "Energy": {"temperature": np.float32(2)},
    "ODIN": {"temperature": np.float32(10), "epsilon": np.float32(0.5)},
    "ReAct": {"percentile": np.int32(80)},
    "ViM": {"dim": np.int64(4)},
    "GradNorm": {"temperature": np.float32(2)},
    "GEN": {"gamma": np.float32(0.5), "top": np.int64(2)},
    "NNGuide": {"k": np.int64(5)},
    "ASH": {"percentile": np.int64(50)},
    "SCALE": {"percentile": np.float32(50)},
    "DICE": {"percentile": np.float32(50)},
    "Gram": {"powers": np.array([1, 2]), "validation": np.float32(0.1), "seed": np.int64(1)},
    "Mahalanobis": {"epsilon": np.int64(0), "shrinkage": np.float32(0.5)},
    "RelativeMahalanobis": {"shrinkage": np.float32(0.5)},
    "MutualInformation": {"num_samples": np.int64(3), "seed": np.int64(1)},
}


@pytest.mark.slow
def test_arguments_that_are_numpy_scalars_are_saved(tmp_path):
    for name, options in NUMPY_ARGUMENTS.items():
        detector = getattr(ood, name)(**options, from_logits=np.True_).fit(model_of(name), X, Y)
        detector.save(tmp_path / "numpy.npz")
        loaded = ood.load_detector(tmp_path / "numpy.npz", model_of(name))
        assert loaded.get_config() == detector.get_config()
        np.testing.assert_array_equal(loaded.score(OTHER), detector.score(OTHER))
    norms = np.exp(np.random.default_rng(0).normal(size=(40, 3)))
    counts = dict.fromkeys(("hidden_units", "epochs", "patience", "seed"), np.int64(1))
    detector = ood.GradientDetector(**counts).fit_features(norms, 3 * norms)
    detector.save(tmp_path / "numpy.npz")
    assert ood.load_detector(tmp_path / "numpy.npz").get_config() == detector.get_config()


def test_json_takes_numbers_of_numpy_and_nothing_else():
    """All headers and manifests of tfuq are written by this one function."""
    numbers = {"a": np.int64(5), "b": [np.float32(0.5), np.True_]}
    assert json.loads(json_text(numbers)) == {"a": 5, "b": [0.5, True]}
    assert hash_of(numbers) == hash_of({"a": 5, "b": [0.5, True]})
    with pytest.raises(TypeError, match="JSON"):
        json_text({"a": object()})
    package = pathlib.Path(ood.__file__).parents[1]
    own = ("_files/reading.py", "_models/fingerprint.py", "report/_filling.py", "cli/__init__.py")
    own += ("export/_server_files.py",)  # quotes texts of other formats
    own += ("serving/served_model.py", "serving/connections.py")  # which do without tfuq
    for path in package.rglob("*.py"):
        is_own = path.relative_to(package).as_posix() in own
        assert is_own or "json.dumps(" not in path.read_text(), path


def test_files_hold_numbers_and_json(tmp_path):
    for path in write_all(tmp_path).values():
        with np.load(path, allow_pickle=False) as file:
            kinds = {key: file[key].dtype.kind for key in file.files}
            json.loads(str(file["header"]))
        assert kinds.pop("header") == "U" and set(kinds.values()) <= {"f"}


LOAD = """
import sys
import keras
import numpy as np
import tfuq
model = keras.models.load_model("model.keras")
for path in sys.argv[1:]:
    detector = tfuq.ood.load_detector(path, model)
    np.savez(path + ".found", detector.score(np.load("x.npy")), detector.detect(np.load("x.npy")))
assert "small_detectors" not in sys.modules  # which holds those that were fitted
"""


@pytest.mark.slow
def test_loaded_in_a_new_process(tmp_path):
    names = [name for name in DETECTORS if name != "MutualInformation"]  # its model is no file
    MODEL.save(tmp_path / "model.keras")
    np.save(tmp_path / "x.npy", OTHER)
    paths = write_all(tmp_path, names)
    done = processes.run(LOAD, *[path.name for path in paths.values()], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name, path in paths.items():
        scores, flags = np.load(f"{path}.found.npz").values()
        np.testing.assert_allclose(scores, fitted(name).score(OTHER), rtol=1e-3, atol=1e-4)
        np.testing.assert_array_equal(flags, fitted(name).detect(OTHER))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The bytes of one file."""
    path = tmp_path_factory.mktemp("file") / "detector.npz"
    fitted("Mahalanobis").save(path)
    return path.read_bytes()


@pytest.fixture
def loads(tmp_path):
    """`loads(content)`: the detector of these bytes."""

    def load(content):
        (tmp_path / "other.npz").write_bytes(content)
        return ood.load_detector(tmp_path / "other.npz")

    return load


def rewritten(content, header=None, save=np.savez, **arrays):
    """The file with other entries of the header, and other arrays; None takes one away."""
    with np.load(io.BytesIO(content)) as old:
        found = dict(old)
    header = json.loads(str(found.pop("header"))) | (header or {})
    found |= {name.replace("__", "/"): array for name, array in arrays.items()}
    found = {name: array for name, array in found.items() if array is not None}
    new = io.BytesIO()
    save(new, header=np.array(json.dumps(header)), **found)
    return new.getvalue()


def test_a_file_written_again_loads(file, loads):
    found = loads(rewritten(file)).score_features(features_of("Mahalanobis", OTHER))
    np.testing.assert_array_equal(found, fitted("Mahalanobis").score(OTHER))


def test_damaged_files(file, loads, tmp_path):
    for cut in (0, 1, 100, len(file) // 2, len(file) - 1):
        refused("path", loads, file[:cut])
    for content in (b"no detector", json.dumps({"format": 1}).encode()):
        refused("path", loads, content)
    for path in (tmp_path / "not there.npz", tmp_path):
        refused("path", ood.load_detector, path)


def test_bytes_that_flipped(file, loads):
    """Each is noticed, or says nothing of the detector."""
    expected = fitted("Mahalanobis").score(OTHER)
    rng = np.random.default_rng(0)
    for place in rng.permutation(len(file))[:300]:
        changed = bytearray(file)
        changed[place] ^= 1 << rng.integers(8)
        try:
            found = loads(bytes(changed))
        except ValueError as error:
            assert str(error).startswith("Argument `path` must be a whole file")
        else:
            features = features_of("Mahalanobis", OTHER)
            np.testing.assert_array_equal(found.score_features(features), expected)


FOREIGN = {
    "another version": {"header": {"format": 2}},
    "another class": {"header": {"class": "tfuq>VBLLDense"}},
    "no class": {"header": {"class": "os.system"}},
    "another detector": {"header": {"class": "tfuq>KNN", "config": {}}},
    "another argument": {"header": {"config": {"depth": 1}}},
    "a bad argument": {"header": {"config": {"epsilon": -1}}},
    "other widths": {"header": {"widths": [5]}},
    "widths that are none": {"header": {"widths": [0]}},
    "a threshold of fewer numbers": {"header": {"threshold": [1.0, 2.0]}},
    "a threshold that is none": {"header": {"threshold": [float("nan")] * 5 + [3]}},
    "an array less": {"state__means_0": None},
    "an array more": {"state__rest": np.zeros(3)},
    "an array of another shape": {"state__means_0": np.zeros((3, 5))},
    "NaN": {"state__means_0": np.full((3, 6), np.nan)},
    "integers": {"state__means_0": np.zeros((3, 6), int)},
    "objects": {"state__means_0": np.array([[None] * 6] * 3)},
    "scores of two axes": {"fit_scores": np.zeros((40, 1))},
    "compressed": {"save": np.savez_compressed},
}


@pytest.mark.parametrize("case", FOREIGN)
def test_foreign_files(case, file, loads):
    refused("path", loads, rewritten(file, **FOREIGN[case]))


def test_nothing_larger_than_the_file(file, loads):
    """An array that claims a size which is not there is not made."""
    changed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(file)) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if "means" in name:
                wanted = b"(3, 6), }" + 11 * b" "
                assert wanted in content
                content = content.replace(wanted, b"(99999999999, 99), }")
            new.writestr(name, content)
    with pytest.raises(ValueError, match="not of the size of its shape"):
        loads(changed.getvalue())


def test_not_fitted_is_not_saved(tmp_path):
    for name, make in DETECTORS.items():
        if make()._shapes():
            refused("detector", make().save, tmp_path / f"{name}.npz")
    assert not list(tmp_path.iterdir())
