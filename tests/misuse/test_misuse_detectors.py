"""Rows of the misuse table for detectors and explanations: right, or refused; never silent."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl
from models import CLASSES, IMAGES, LABELS, RNG, made

from tfuq import interpret, ood, plots, report, selective
from tfuq.ensembles import DeepEnsemble
from tfuq.selective import RejectionRule


def per_pixel(kind, **options):
    inputs = keras.Input((6, 6, 1))
    model = keras.Model(inputs, kl.Conv2D(3, 1, activation="softmax")(inputs))
    return getattr(ood, kind)(**options).fit(model, IMAGES)


def fit(kind, name, labels=None, **options):
    return getattr(ood, kind)(**options).fit(made(name), IMAGES, labels)


DATASET = tf.data.Dataset.from_tensor_slices((IMAGES, CLASSES)).batch(8)
PROBS = np.full((len(IMAGES), 3), 1 / 3)


def grouped():
    keys = np.arange(len(IMAGES)) % 2
    return selective.ConformalPredictor.fit(PROBS, CLASSES, alpha=0.4, groups=keys)


def weighted():
    return selective.ConformalPredictor.fit(
        PROBS, CLASSES, alpha=0.4, weights=np.linspace(1, 2, len(PROBS))
    )


def answers(name):
    return made(name).predict(IMAGES, verbose=0).argmax(-1)


def ruled(kind):
    model = made("soft-max")
    detector = getattr(ood, kind)().fit(model, IMAGES)
    data = IMAGES, CLASSES
    return RejectionRule.fit_model(model, data, score=detector, target_coverage=0.5)


def combined_on_its_own_rows():
    rows = RNG.normal(size=(400, 2))
    names = {"a": "given", "b": "given"}
    features = {"a": rows[:, 0], "b": rows[:, 1]}
    scores = selective.CombinedScore(names).fit_features(features).score_features(features)
    probs = np.tile([[0.3, 0.7]], (400, 1))
    RejectionRule.fit(probs, np.arange(400) % 2, scores, target_coverage=0.5)


def of_array():
    scores = np.arange(len(CLASSES)) + 10.0 * (CLASSES != 0)
    return RejectionRule.fit(PROBS, CLASSES, scores, target_coverage=0.5)


def best_on_its_own_rows():
    rng = np.random.default_rng(0)
    probs, labels = rng.dirichlet(np.ones(3), size=300), rng.integers(3, size=300)
    found = selective.best_score(probs, labels, ["margin", "predictive_entropy"], resamples=10)
    RejectionRule.fit(probs, labels, score=found.best, target_coverage=0.5)


# What was done, and what the error has to name.
REFUSED = {
    "one class of a relative distance": (
        lambda: fit("RelativeMahalanobis", "soft-max", 0 * CLASSES),
        "two classes",
    ),
    "several labels at once for one class each": (
        lambda: fit("Mahalanobis", "soft-max", LABELS | np.array([1, 1, 0])),
        "one class for each example",
    ),
    "labels whose energies nobody asked to join": (
        lambda: fit("Energy", "three sigmoids"),
        "multi_label=True",
    ),
    "a soft-max of labels for a linear layer": (
        lambda: fit("GradNorm", "three sigmoids"),
        "exclude one another",
    ),
    "classes called labels": (
        lambda: fit("MaxLogit", "soft-max", multi_label=True),
        "multi_label. must be False",
    ),
    "a flag that is none": (lambda: ood.Energy(multi_label=1), "True or False"),
    "a dimension that units do not take up": (
        lambda: ood.ViM(dim=3).fit_features(
            np.pad(RNG.normal(size=(30, 2)), ((0, 0), (0, 4))), head=(np.ones((6, 3)), None)
        ),
        "dim",
    ),
    "neighbours of pixels": (lambda: per_pixel("KNN", k=2), "one prediction per example"),
    "patterns without labels": (lambda: fit("SHE", "soft-max"), "`y` must be given"),
    "patterns of classes that the model has not": (
        lambda: fit("SHE", "soft-max", CLASSES + 1),
        "classes from 0 to 2.*labels from 1 to 3",
    ),
    "patterns without a right prediction": (
        lambda: fit("SHE", "soft-max", (answers("soft-max") + 1) % 3),
        "no right prediction of",
    ),
    "more neighbours than examples": (
        lambda: fit("NNGuide", "soft-max", k=len(IMAGES) + 1),
        "`k` must not be above the number of examples",
    ),
    "a pair without its logits": (
        lambda: ood.NNGuide(k=2).fit_features(np.ones((9, 4))),
        r"pair: features \(n, d\), and logits",
    ),
    "a confidence below 0": (
        lambda: ood.NNGuide(k=2).fit_features((np.ones((9, 4)), np.full((9, 3), -50.0))),
        "take `KNN`.*log-sum-exp of -48.9",
    ),
    "boundaries of labels": (lambda: fit("FDBD", "three sigmoids"), "exclude one another"),
    "boundaries between classes of the same weights": (
        lambda: ood.FDBD().fit_features(RNG.normal(size=(9, 4)), head=(np.ones((4, 3)), None)),
        r"the same weights for the classes.*\[0, 1, 2\]",
    ),
    "all activations removed": (
        lambda: ood.ASH(percentile=100),
        "values above that percentile are kept",
    ),
    **{
        f"a fraction for a percentile: {kind.__name__}": (
            lambda kind=kind: kind(percentile=0.9),
            "must be in percent, as 90.*percentile=0.9",
        )
        for kind in (ood.ReAct, ood.ASH, ood.SCALE, ood.DICE)
    },
    "a variant in capitals": (lambda: ood.ASH(variant="ASH-S"), "`variant` must be"),
    "shaped features of a layer that is not there": (
        lambda: fit("SCALE", "soft-max", layer="no"),
        "`layer` must name",
    ),
    "features of a network that go on somewhere": (
        lambda: ood.ASH().fit_features(np.ones((9, 4))).score_features(np.ones((9, 4))),
        "`head` must be given",
    ),
    "weights of which none matters more": (
        lambda: ood.DICE().fit_features(np.ones((9, 4)), head=(np.ones((4, 3)), None)),
        "`percentile` must leave some weights",
    ),
    "tuning what has nothing to tune": (
        lambda: ood.tune(ood.MaxLogit(), made("soft-max"), IMAGES, x_val=IMAGES),
        "a grid of their own have",
    ),
    "tuning on the rows that were fitted": (
        lambda: ood.tune(ood.KNN(), made("soft-max"), IMAGES, x_val=IMAGES),
        "`x_val` must hold rows that are not in `x`.*24 rows",
    ),
    "tuning on what cannot be corrupted": (
        lambda: ood.tune(
            ood.KNN(), made("soft-max"), IMAGES[:2], x_val=np.zeros((20, 9), "float32")
        ),
        "`x_ood` must be given",
    ),
    "tuning on a handful": (
        lambda: ood.tune(ood.KNN(), made("soft-max"), IMAGES[:9], x_val=IMAGES[9:19]),
        "at least 20 rows",
    ),
    "an argument that a detector has not": (
        lambda: ood.tune(
            ood.KNN(), made("soft-max"), IMAGES[:2], x_val=IMAGES[2:], grid={"K": (1, 2)}
        ),
        "arguments of a KNN",
    ),
    "gradients at the last layer": (
        lambda: ood.GAIA(layers=[made("soft-max").layers[-1].name]).fit(made("soft-max"), IMAGES),
        "`layers` must name layers before the last",
    ),
    "Gram matrices without labels": (lambda: fit("Gram", "soft-max"), "`y` must be given"),
    "Gram matrices without logits": (
        lambda: ood.Gram().fit_features([np.ones((9, 4))], np.zeros(9)),
        "last logits",
    ),
    "one layer in place of a list": (lambda: ood.Gram(layers="conv"), "must be a list of names"),
    "a power of 0": (lambda: ood.GEN(gamma=0), "`gamma` must be"),
    "none of the probabilities": (lambda: ood.GEN(top=0), "`top` must be"),
    "parts of a single prediction": (
        lambda: fit("Energy", "soft-max").score_each(IMAGES),
        "take `score`",
    ),
    "a detector as the score of arrays": (
        lambda: RejectionRule.fit(PROBS, CLASSES, fit("Energy", "soft-max"), target_coverage=0.5),
        "detector.score",
    ),
    "a rule of a detector without it": (
        lambda: ruled("Energy").append_to(made("soft-max")),
        "`detector` must be the fitted Energy",
    ),
    "a rule of a detector with another": (
        lambda: ruled("Energy").append_to(made("soft-max"), detector=fit("Entropy", "soft-max")),
        "Received: a Entropy",
    ),
    "a detector that is not fitted as a score": (
        lambda: RejectionRule.fit_model(
            made("soft-max"), (IMAGES, CLASSES), score=ood.KNN(), target_coverage=0.5
        ),
        "must be fitted",
    ),
    "a rule of a detector on others' predictions": (
        lambda: ruled("Energy").accept(PROBS),
        "`score` must be the scores",
    ),
    "a head fitted to a model without errors": (
        lambda: selective.ErrorPredictor().fit(made("soft-max"), IMAGES, answers("soft-max")),
        "at least 10 answers wrong",
    ),
    "scores of their own beside a dataset": (
        lambda: RejectionRule.fit_model(
            made("soft-max"), DATASET, score=np.zeros(len(IMAGES)), target_coverage=0.5
        ),
        "in another order",
    ),
    "a combination of a combination": (lambda: ood.SIRC(ood.SIRC(ood.Energy())), "no SIRC"),
    "a combination of one score": (lambda: selective.CombinedScore(["margin"]), "two scores"),
    "arrays as parts of a combination": (
        lambda: selective.CombinedScore({"a": "margin", "b": np.zeros(9)}),
        "for a 'given' one",
    ),
    "a list of scores instead of their combination": (
        lambda: RejectionRule.fit(PROBS, CLASSES, ["margin", "confidence"], target_coverage=0.5),
        "CombinedScore",
    ),
    "a report of a detector's rule without its scores": (
        lambda: report.to_markdown((PROBS, CLASSES), rule=of_array()),
        "`score` must be the scores of these examples",
    ),
    "a picture of a detector's rule without its scores": (
        lambda: plots.risk_coverage(PROBS, CLASSES, rule=of_array()),
        "`score` must be the scores of these predictions",
    ),
    "groups of a detector's rule without its scores": (
        lambda: selective.subgroup_report(of_array(), PROBS, CLASSES, CLASSES),
        "`score` must be the scores",
    ),
    "scores of numbers in a model": (
        lambda: selective.RegressionRule("given", 0.5).transform(np.zeros((3, 2), "float32")),
        "which does not compute them",
    ),
    "a monitor of several promises": (
        lambda: RejectionRule.fit(
            np.tile([[0.9, 0.1], [0.2, 0.8]], (200, 1)),
            np.tile([0, 1], 200),
            loss={"error": 0.3, "recall of 1": 0.6},
        ).monitor(),
        "watch a rule of each",
    ),
    "the best score's own rows": (lambda: best_on_its_own_rows(), "must come from other rows"),
    "a combination fitted to the rows of the rule": (
        lambda: combined_on_its_own_rows(),
        "must come from other rows",
    ),
    "a group that no set was fitted to": (
        lambda: grouped().predict_set(PROBS[:1], ["C"]),
        "`groups` must hold groups",
    ),
    "sets by group without the groups": (
        lambda: grouped().predict_set(PROBS[:1]),
        "`groups` must name",
    ),
    "a promise of examples that count by halves": (
        lambda: RejectionRule.fit(
            PROBS, CLASSES, target_risk=0.5, sample_weight=np.full(len(PROBS), 0.5)
        ),
        "mask of 0 and 1",
    ),
    "labels that are all void": (
        lambda: RejectionRule.fit(
            PROBS, np.full(len(PROBS), 255), target_risk=0.5, ignore_class=255
        ),
        "must leave known labels",
    ),
    "void labels of which nobody speaks": (
        lambda: RejectionRule.fit(PROBS, np.full(len(PROBS), 255), target_risk=0.5),
        "Received: labels=255",
    ),
    "weighted sets without the weights of new examples": (
        lambda: weighted().predict_set(PROBS[:1]),
        "`weights` must hold the weight",
    ),
    "weights of new examples that nothing asks for": (
        lambda: grouped().predict_set(PROBS[:1], ["1"], weights=[1.0]),
        "`weights` must be None",
    ),
    "a threshold for each label of single classes": (
        lambda: RejectionRule.fit(PROBS, CLASSES, target_coverage=0.5, by="label"),
        "unless multi_label=True",
    ),
    "a loss of a class that nobody has": (
        lambda: RejectionRule.fit(PROBS, CLASSES, loss={"error": 0.5, "recall of 9": 0.5}),
        "labels hold. Received: loss=9",
    ),
    "a percentage as one of several targets": (
        lambda: RejectionRule.fit(PROBS, CLASSES, loss={"error": 10}),
        "in .0, 1.. Received: loss=10",
    ),
    "declared thresholds in per cent": (
        lambda: RejectionRule.fit(PROBS, CLASSES, target_risk=0.5, thresholds=[70, 80]),
        "in the unit of the score.*none of these",
    ),
    "declared thresholds in no order": (
        lambda: RejectionRule.fit(PROBS, CLASSES, target_risk=0.5, thresholds=[0.5, 0.9, 0.7]),
        "ascending or descending.*Received: thresholds=.0.5, 0.9, 0.7",
    ),
    "declared thresholds in per cent, of several losses": (
        lambda: RejectionRule.fit(PROBS, CLASSES, loss={"error": 0.5}, thresholds=[70, 80]),
        "in the unit of the score.*none of these",
    ),
    "declared thresholds of a coverage": (
        lambda: RejectionRule.fit(PROBS, CLASSES, target_coverage=0.5, thresholds=[0.5]),
        "works only with `target_risk`.*with target_risk=None",
    ),
    "a class beside a loss of errors": (
        lambda: RejectionRule.fit(PROBS, CLASSES, target_risk=0.5, positive_class=2),
        "`positive_class` must be left out.*positive_class=2 with loss='error'",
    ),
    "a class beside a loss that names its own": (
        lambda: RejectionRule.fit(
            PROBS, CLASSES, loss="recall of 1", target_risk=0.5, positive_class=0
        ),
        "`positive_class` must be left out.*positive_class=0 with loss='recall of 1'",
    ),
    "a class beside no loss in a report by group": (
        lambda: selective.subgroup_report(None, PROBS, CLASSES, CLASSES, positive_class=2),
        "`positive_class` must be left out",
    ),
    "groups that nothing goes by": (
        lambda: RejectionRule.fit(PROBS, CLASSES, target_coverage=0.5, by="class", groups=CLASSES),
        "`groups` must be None.*Received: groups with by='class'",
    ),
    "groups of more examples than are calibrated and ruled": (
        lambda: RejectionRule.fit(
            PROBS,
            CLASSES,
            target_coverage=0.5,
            by="group",
            groups=np.tile(CLASSES, 2),
            calibration=selective.TemperatureScaling(),
        ),
        "`groups` and `weights` must hold one for each",
    ),
    "a number as void among names": (
        lambda: RejectionRule.fit(
            PROBS,
            np.array(["a", "b", "c"])[CLASSES % 3],
            target_coverage=0.5,
            class_names=["a", "b", "c"],
            ignore_class=2,
        ),
        "`ignore_class` must be of the kind of the labels.*ignore_class=2 with labels of <U1",
    ),
    "a name as void among numbers": (
        lambda: RejectionRule.fit(PROBS, CLASSES, target_coverage=0.5, ignore_class="void"),
        "`ignore_class` must be of the kind of the labels",
    ),
    "sets of weighted examples in a report": (
        lambda: report.to_markdown((PROBS, CLASSES), sets=weighted()),
        "`sets` must not be weighted by example",
    ),
    "weighted sets in a report by group": (
        lambda: selective.subgroup_report(weighted(), PROBS, CLASSES, CLASSES),
        "`rule` must not be weighted by example",
    ),
    "several losses and a target beside them": (
        lambda: RejectionRule.fit(PROBS, CLASSES, loss={"error": 0.5}, target_risk=0.1),
        "must be None for several",
    ),
    "a loss by a name that nobody knows": (
        lambda: RejectionRule.fit(PROBS, CLASSES, loss="recall of melanoma", target_risk=0.1),
        "names are known by `class_names`",
    ),
    "gradients of the members of an ensemble, in a list": (
        lambda: ood.GradientFeatures([made("soft-max")]),
        "or a DeepEnsemble",
    ),
    "an entropy's map of an ensemble": (
        lambda: interpret.grad_cam(
            DeepEnsemble.from_models([made("soft-max")]), IMAGES, target="predictive_entropy"
        ),
        "'class' or 'probability' for an ensemble",
    ),
    "a map of what an ensemble sees while hidden": (
        lambda: interpret.occlusion(DeepEnsemble.from_models([made("soft-max")]), IMAGES, 2),
        "each of its `members`",
    ),
    "a norm by another name": (
        lambda: ood.GradientFeatures(made("soft-max"), norm="L1"),
        "norm",
    ),
}


@pytest.mark.parametrize("mistake", REFUSED, ids=lambda part: part.replace(" ", "_"))
def test_refused(mistake, counts):
    call, named = REFUSED[mistake]
    with pytest.raises(ValueError, match=named):
        call()
    counts("misuse rows, refused")


def test_an_ordinary_label_is_told(counts):
    with pytest.warns(UserWarning, match="ordinary label"):
        ood.GradientFeatures(made("soft-max"), [0, 0, 1])
    counts("misuse rows, right")


@pytest.mark.parametrize("kind", ["MaxSoftmax", "Energy", "KNN"])
def test_an_ensemble_of_one_is_its_member(kind, counts):
    options = {"k": 3} if kind == "KNN" else {}
    whole = getattr(ood, kind)(**options).fit(DeepEnsemble.from_models([made("soft-max")]), IMAGES)
    expected = fit(kind, "soft-max", **options).score(IMAGES)
    np.testing.assert_allclose(whole.score(IMAGES), expected, rtol=1e-4, atol=1e-6)
    counts("misuse rows, right")


def test_numbers_of_numpy_are_numbers(tmp_path, counts):
    detector = fit("KNN", "soft-max", k=np.int64(3))
    detector.save(tmp_path / "knn.npz")
    assert ood.load_detector(tmp_path / "knn.npz").k == 3
    counts("misuse rows, right")
