"""Files of an earlier tfuq are loaded, and answer as they did when they were written.

`fixtures/make_saved.py` wrote them and their answers, `saved_files.py` says how they are asked.
"""

import fnmatch
import json
import pathlib
import re
import zipfile

import keras
import numpy as np
import pytest
import saved_files

# One worker has all, so that what they share is loaded once.
pytestmark = pytest.mark.xdist_group("saved_files")

SAVED = pathlib.Path(__file__).parent / "fixtures/saved"
with np.load(SAVED / "answers.npz") as file:
    ARRAYS = dict(file)
GIVEN = {key.removeprefix("given/"): ARRAYS[key] for key in ARRAYS if key.startswith("given/")}
NAMES = sorted({"/".join(key.split("/")[:2]) for key in ARRAYS if key.count("/") > 1})

# Classes that were registered with Keras after the files were written, and are in none of them:
# named here knowingly, until `make_saved.py` writes files of them.
ADDED_LATER = frozenset(
    f"tfuq>{name}"
    for name in (
        "ASH",
        "AUSE",
        "AdaptiveConformal",
        "BatchEnsembleConv2D",
        "BatchEnsembleDense",
        "BetaCalibration",
        "BetaNLLLoss",
        "CRPS",
        "CRPSLoss",
        "CombinedScore",
        "ConformalRegressor",
        "Conv3DVariational",
        "CovariateShift",
        "DepthwiseConv1DVariational",
        "DepthwiseConv2DVariational",
        "DetectorLayer",
        "DICE",
        "DirichletCalibration",
        "EinsumDenseVariational",
        "EnergyMarginLoss",
        "EvidentialDense",
        "EvidentialLoss",
        "ExGrad",
        "FDBD",
        "GRUVariational",
        "Gram",
        "GEN",
        "GAIA",
        "IVON",
        "IntervalScore",
        "KLMatching",
        "LSTMVariational",
        "LaplaceDense",
        "LogitNormLoss",
        "LastLayerLaplace",
        "LastLayerLaplaceRegression",
        "MCGRU",
        "MCGaussianDropout",
        "MCLSTM",
        "MCMultiHeadAttention",
        "MCSigmoidDenseXL",
        "MCSimpleRNN",
        "MCSoftmaxDenseXL",
        "MaskRiskControl",
        "MeanIntervalWidth",
        "MixtureDense",
        "ErrorPredictor",
        "Monitor",
        "SNGPDense",
        "SWAGMoments",
        "VBLLGenerativeDense",
        "SpectralBound",
        "MultiHeadAttentionVariational",
        "MultivariateNormalDense",
        "NNGuide",
        "NegativeLogLikelihoodLoss",
        "NormalDense",
        "NumberNegativeLogLikelihood",
        "OfMean",
        "OutlierExposureLoss",
        "PinballLoss",
        "PredictionIntervalCoverage",
        "QuantileCalibrationError",
        "QuantileDense",
        "RegressionRule",
        "SCALE",
        "SHE",
        "SIRC",
        "SeparableConv1DVariational",
        "SeparableConv2DVariational",
        "Sharpness",
        "SimpleRNNVariational",
        "StudentTDense",
        "VBLLRegression",
        "VennAbersCalibration",
    )
)

# How far an answer may be from the one that was saved, relative to the largest number in it; the
# first pattern that fits counts. 0 is equal to the bit. What is not a float always has to be.
READ = 0.0  # what the file holds
COMPUTED = None  # by the same operations: 0 on a machine like the one that wrote it, else CLOSE
CLOSE = 1e-6
TOLERANCES = {
    "models/*/weights": READ,
    "optimizers/*/state": READ,
    "optimizers/*/factors": READ,
    "detectors/*/threshold": READ,
    "detectors/*/scores": CLOSE,  # one formula for arrays and graphs, one entropy: 1e-16 apart
    "detectors/*/of_features": CLOSE,
    "ensembles/*/weights_*": READ,
    "snapshots/*/weights_*": READ,
    # Normals are made of random integers now: roundings apart from TensorFlow's own.
    "models/*/predicted*": CLOSE,
    "models/*/trained*": CLOSE,
    "backups/sparse/*": CLOSE,
    # Of labels the mean over them first, then over examples; KL terms in closed form, at once.
    "models/*/losses": CLOSE,
    "*": COMPUTED,
}


# Where the probe tells another processor, which rounds products in bfloat16 otherwise and sums in
# another order: isotonic steps stretch that.
ELSEWHERE = {"models/*/half/*": 2**-7, "appended/isotonic.keras/predicted/*": 1e-4}

# Words that have another name since; the old ones are read.
RENAMED = {"fitted/rule_risk.json/config": ('"score": "entropy"', '"score": "predictive_entropy"')}
# Answers that later versions changed knowingly: CHANGELOG says why. They have to be there, of the
# same shape, and finite.
CHANGED = (
    "detectors/MutualInformation.npz/scores",  # draws of VBLLDense are draws of its weights
    "detectors/MutualInformation.npz/detected",
    "ensembles/drawn/predicted",
    "models/pictures.keras/trained/*",  # salt is as white as the images are
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return saved_files.copy_of(SAVED, tmp_path_factory.mktemp("saved"))


@pytest.fixture(scope="module")
def allowed():
    """What `COMPUTED` allows here."""
    return 0.0 if np.array_equal(saved_files.probe(), ARRAYS["probe"]) else CLOSE


def tolerance_of(name, allowed):
    for pattern, tolerance in ELSEWHERE.items() if allowed else ():
        if fnmatch.fnmatchcase(name, pattern):
            return tolerance
    found = next(t for pattern, t in TOLERANCES.items() if fnmatch.fnmatchcase(name, pattern))
    return allowed if found is COMPUTED else found


def without_later(found, expected):
    """A configuration without the arguments of later versions, which have to change nothing."""
    found, known = json.loads(found), json.loads(expected)
    later = {key: value for key, value in found.items() if key not in known}
    assert not any(later.values()), later
    return json.dumps({key: found[key] for key in found.keys() & known}, sort_keys=True)


def assert_answers(name, found, expected, allowed):
    found, tolerance = np.asarray(found), tolerance_of(name, allowed)
    if name in RENAMED:
        assert RENAMED[name][0] in str(expected)
        expected = np.asarray(str(expected).replace(*RENAMED[name]))
    if name.endswith("/config"):
        found = np.asarray(without_later(str(found), str(expected)))
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape), name
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in CHANGED):
        assert np.isfinite(found).all(), name
    elif tolerance == 0 or expected.dtype.kind != "f":
        np.testing.assert_array_equal(found, expected, err_msg=name)
    else:
        known = np.abs(expected[np.isfinite(expected)])
        atol = tolerance * max(1.0, known.max(initial=0.0))
        np.testing.assert_allclose(found, expected, rtol=0, atol=atol, err_msg=name)


@pytest.mark.every_case
@pytest.mark.parametrize("name", NAMES)
def test_answers_as_when_it_was_written(name, saved, allowed):
    expected = {key: array for key, array in ARRAYS.items() if key.startswith(f"{name}/")}
    if name.startswith("scores/"):  # how many rows a call added, and what it added to old ones
        expected = {} if "begun" in name else expected
        expected.pop(f"{name}/scored", None)
    found = saved_files.ask(saved, name, GIVEN)
    found = {f"{name}/{answer}": array for answer, array in found.items()}
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        assert_answers(key, found[key], array, allowed)


# --- What there is --------------------------------------------------------------------------------


def registered_in(path):
    """The names of classes in an archive, which may hold them in UTF-32."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            content = archive.read(member).replace(b"\0", b"")
            yield from map(bytes.decode, re.findall(rb"tfuq>\w+", content))


def test_each_registered_class_is_in_a_file():
    files = [path for path in SAVED.rglob("*") if path.suffix in (".keras", ".npz")]
    there = {name for path in files if path.name != "answers.npz" for name in registered_in(path)}
    now = {name for name in keras.saving.get_custom_objects() if name.startswith("tfuq>")}
    assert there <= now, "a file has a class that is no longer known"
    assert now - there == ADDED_LATER


def test_each_file_is_asked():
    entries = {path for kind in saved_files.ASK for path in (SAVED / kind).iterdir()}
    beside = {p for p in entries if p.suffix == ".json" and p.with_suffix("") in entries}
    names = {path.relative_to(SAVED).as_posix() for path in entries - beside}
    assert names == {*NAMES}
