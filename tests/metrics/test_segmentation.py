"""The Dice score, against scikit-learn's F1 and closed forms, and as a streaming metric."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import f1_score

from tfuq import metrics

RNG = np.random.default_rng(0)
IMAGES = 6
BINARY = RNG.random((IMAGES, 4, 5, 1))
MASKS = RNG.integers(2, size=(IMAGES, 4, 5))
PROBS = RNG.dirichlet(np.ones(3), size=(IMAGES, 4, 5))
CLASSES = RNG.integers(3, size=(IMAGES, 4, 5))
RATERS = RNG.integers(2, size=(IMAGES, 4, 5, 3))
LABELS = RNG.integers(2, size=PROBS.shape)
WEIGHT = RNG.integers(0, 3, size=IMAGES).astype(float)
PIXEL_WEIGHT = RNG.integers(0, 3, size=MASKS.shape).astype(float)
LEFT, RIGHT = np.array([[[1, 1, 0, 0]]]), np.array([[[0, 0, 1, 1]]])
NOTHING = np.zeros((1, 1, 4), int)


def certain(mask):
    """Probabilities 0 and 1 of a binary mask."""
    return mask[..., None].astype(float)


def f1(y_true, y_pred, weight=None):
    weight = None if weight is None else weight.ravel()
    options = {"sample_weight": weight, "zero_division": 1.0}
    return f1_score(y_true.ravel(), y_pred.ravel(), **options)


def mean_of_prediction(y_true, y_pred):
    """A loss, because a model must have one."""
    return keras.ops.mean(y_pred, axis=(1, 2, 3))


def feed(metric, y_true, y_pred, weight=None):
    """The result after batches of several sizes, an empty one among them."""
    for rows in np.split(np.arange(IMAGES), [1, 4, 4]):
        metric.update_state(y_true[rows], y_pred[rows], None if weight is None else weight[rows])
    return np.asarray(metric.result())


# --- Against scikit-learn ----------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [None, 0.2])
def test_binary_dice_is_f1_of_each_image_or_of_all_pixels(threshold):
    predicted = BINARY[..., 0] > (threshold or 0.5)
    each = [f1(t, p) for t, p in zip(MASKS, predicted, strict=True)]
    ours = metrics.dice_score(MASKS, BINARY, threshold=threshold)
    assert ours == pytest.approx(np.mean(each), abs=1e-12)
    pooled = metrics.dice_score(MASKS, BINARY, threshold=threshold, aggregate="pool")
    assert pooled == pytest.approx(f1(MASKS, predicted), abs=1e-12)
    assert pooled != pytest.approx(ours, abs=1e-3)


@pytest.mark.parametrize("average", [None, "macro", "micro"])
@pytest.mark.parametrize("chosen", [None, [1, 2]])
def test_multi_class_dice_is_f1_of_pixels(average, chosen):
    predicted = PROBS.argmax(-1)
    expected = f1_score(CLASSES.ravel(), predicted.ravel(), average=average, labels=chosen)
    options = {"aggregate": "pool", "average": average, "target_class_ids": chosen}
    for y_true in (CLASSES, CLASSES[..., None], np.eye(3)[CLASSES]):
        ours = metrics.dice_score(y_true, PROBS, **options)
        np.testing.assert_allclose(ours, expected, atol=1e-12)


@pytest.mark.parametrize("average", [None, "macro", "micro"])
def test_multi_class_dice_per_image(average):
    pairs = zip(CLASSES, PROBS.argmax(-1), strict=True)
    each = [f1_score(t.ravel(), p.ravel(), average=average, labels=[0, 1, 2]) for t, p in pairs]
    ours = metrics.dice_score(CLASSES, PROBS, average=average)
    np.testing.assert_allclose(ours, np.mean(each, axis=0), atol=1e-12)


@pytest.mark.parametrize("average", [None, "macro", "micro"])
def test_multi_label_dice_is_f1_of_each_label(average):
    expected = f1_score(LABELS.reshape(-1, 3), PROBS.reshape(-1, 3) > 0.3, average=average)
    options = {"aggregate": "pool", "threshold": 0.3, "multi_label": True}
    ours = metrics.dice_score(LABELS, PROBS, average=average, **options)
    np.testing.assert_allclose(ours, expected, atol=1e-12)


def test_threshold_cuts_each_class_of_many():
    expected = f1_score(np.eye(3)[CLASSES].reshape(-1, 3), PROBS.reshape(-1, 3) > 0.3, average=None)
    ours = metrics.dice_score(CLASSES, PROBS, threshold=0.3, aggregate="pool", average=None)
    np.testing.assert_allclose(ours, expected, atol=1e-12)


def test_weights_of_pixels_and_of_images():
    predicted = BINARY[..., 0] > 0.5
    pooled = metrics.dice_score(MASKS, BINARY, aggregate="pool", sample_weight=PIXEL_WEIGHT)
    assert pooled == pytest.approx(f1(MASKS, predicted, PIXEL_WEIGHT), abs=1e-12)
    each = [f1(*image) for image in zip(MASKS, predicted, PIXEL_WEIGHT, strict=True)]
    for scale in (1, np.arange(1, IMAGES + 1)[:, None, None]):  # each image counts as 1
        ours = metrics.dice_score(MASKS, BINARY, sample_weight=PIXEL_WEIGHT * scale)
        assert ours == pytest.approx(np.mean(each), abs=1e-12)
    each = [f1(*image) for image in zip(MASKS, predicted, strict=True)]
    for weight in (WEIGHT, WEIGHT[:, None]):
        ours = metrics.dice_score(MASKS, BINARY, sample_weight=weight)
        assert ours == pytest.approx(np.average(each, weights=WEIGHT), abs=1e-12)


def test_an_image_whose_pixels_have_no_weight_does_not_count():
    weight = np.ones_like(MASKS)
    weight[0] = 0
    ours = metrics.dice_score(MASKS, BINARY, sample_weight=weight)
    assert ours == pytest.approx(metrics.dice_score(MASKS[1:], BINARY[1:]), abs=1e-12)


# --- Closed forms ------------------------------------------------------------------------------


def test_same_half_and_disjoint_masks():
    assert metrics.dice_score(LEFT, certain(LEFT)) == 1.0
    assert metrics.dice_score(LEFT, certain(RIGHT)) == 0.0
    assert metrics.dice_score(LEFT, certain(np.array([[[0, 1, 1, 0]]]))) == 0.5
    assert metrics.dice_score(LEFT, certain(np.array([[[1, 0, 0, 0]]]))) == pytest.approx(2 / 3)


def test_soft_dice_is_its_formula():
    p, t = BINARY[..., 0], MASKS
    axes = (1, 2)
    each = 2 * (p * t).sum(axes) / (p + t).sum(axes)
    assert metrics.dice_score(t, BINARY, soft=True) == pytest.approx(each.mean(), abs=1e-12)
    pooled = 2 * (p * t).sum() / (p + t).sum()
    ours = metrics.dice_score(t, BINARY, soft=True, aggregate="pool")
    assert ours == pytest.approx(pooled, abs=1e-12)
    logits = np.log(BINARY / (1 - BINARY))
    ours = metrics.dice_score(t, logits, soft=True, aggregate="pool", from_logits=True)
    assert ours == pytest.approx(pooled, abs=1e-12)


@pytest.mark.parametrize("empty, expected", [(1.0, 1.0), (0.0, 0.0), (0.25, 0.25), (None, np.nan)])
@pytest.mark.parametrize("aggregate", ["image", "pool"])
def test_empty_masks_have_the_stated_value(empty, expected, aggregate):
    data, options = (NOTHING, certain(NOTHING)), {"aggregate": aggregate, "empty": empty}
    np.testing.assert_equal(metrics.dice_score(*data, **options), expected)
    metric = metrics.DiceScore(**options)
    metric.update_state(*data)
    np.testing.assert_equal(float(metric.result()), expected)


def test_one_empty_mask_among_others():
    truth = np.concatenate([LEFT, NOTHING, NOTHING])
    probs = certain(np.concatenate([[[[0, 1, 1, 0]]], NOTHING, RIGHT]))
    assert metrics.dice_score(truth, probs) == pytest.approx((0.5 + 1 + 0) / 3)
    assert metrics.dice_score(truth, probs, empty=None) == pytest.approx(0.25)
    assert metrics.dice_score(truth, probs, aggregate="pool") == pytest.approx(2 / 6)


def test_a_class_that_nobody_sees_counts_as_empty_or_not_at_all():
    probs = np.eye(3)[LEFT]  # class 2 is nowhere
    wrong = np.eye(3)[RIGHT]
    options = {"average": None}
    np.testing.assert_array_equal(metrics.dice_score(LEFT, wrong, **options), [0, 0, 1])
    none = metrics.dice_score(LEFT, probs, empty=None, **options)
    np.testing.assert_array_equal(none, [1, 1, np.nan])
    assert metrics.dice_score(LEFT, wrong, empty=None) == 0.0
    assert metrics.dice_score(LEFT, wrong) == pytest.approx(1 / 3)


# --- Ignored pixels and raters -----------------------------------------------------------------


@pytest.mark.parametrize("ignore_class", [255, -1])
@pytest.mark.parametrize("aggregate", ["image", "pool"])
def test_ignored_pixels_are_those_without_weight(ignore_class, aggregate):
    void = PIXEL_WEIGHT == 0
    options = {"aggregate": aggregate, "average": None}
    expected = metrics.dice_score(CLASSES, PROBS, sample_weight=1.0 - void, **options)
    holed = np.where(void, ignore_class, CLASSES)
    ours = metrics.dice_score(holed, PROBS, ignore_class=ignore_class, **options)
    np.testing.assert_allclose(ours, expected, atol=1e-12)
    streamed = feed(metrics.DiceScore(ignore_class=ignore_class, **options), holed, PROBS)
    np.testing.assert_allclose(streamed, expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"`y_true` must hold only classes 0 to 2"):
        metrics.dice_score(holed, PROBS)


def test_a_class_can_be_ignored_in_one_hot_masks_too():
    sparse = metrics.dice_score(CLASSES, PROBS, ignore_class=2)
    one_hot = metrics.dice_score(np.eye(3)[CLASSES], PROBS, ignore_class=2)
    assert sparse == one_hot
    assert sparse != metrics.dice_score(CLASSES, PROBS)


def test_missing_labels_can_be_ignored():
    missing = LABELS.copy()
    missing[..., 1] = -1
    options = {"multi_label": True, "ignore_class": -1}
    ours = metrics.dice_score(missing, PROBS, average=None, **options)
    expected = metrics.dice_score(LABELS, PROBS, average=None, multi_label=True)
    np.testing.assert_allclose(ours, [expected[0], np.nan, expected[2]])
    assert metrics.dice_score(missing, PROBS, **options) == pytest.approx(expected[[0, 2]].mean())


@pytest.mark.parametrize("aggregate", ["image", "pool"])
@pytest.mark.parametrize("axis", [-1, 3, 1])
def test_raters_are_averaged(aggregate, axis):
    each = [metrics.dice_score(RATERS[..., k], BINARY, aggregate=aggregate) for k in range(3)]
    y_true = np.moveaxis(RATERS, -1, axis)
    options = {"aggregate": aggregate, "raters_axis": axis}
    ours = metrics.dice_score(y_true, BINARY, **options)
    assert ours == pytest.approx(np.mean(each), abs=1e-12)
    streamed = feed(metrics.DiceScore(**options), y_true, BINARY)
    assert float(streamed) == pytest.approx(np.mean(each), abs=1e-6)


def test_a_rater_who_saw_nothing_of_an_image_is_left_out_there():
    holed = RATERS.copy()
    holed[0, ..., 1] = -1
    options = {"raters_axis": -1, "ignore_class": -1}
    each = [metrics.dice_score(RATERS[..., k], BINARY) for k in (0, 2)]
    each.insert(1, metrics.dice_score(RATERS[1:, ..., 1], BINARY[1:]))
    ours = metrics.dice_score(holed, BINARY, **options)
    assert ours == pytest.approx(np.mean(each), abs=1e-12)


def test_one_hot_and_labelled_masks_may_have_raters():
    three = np.stack([CLASSES, CLASSES[::-1]], axis=1)
    expected = metrics.dice_score(three, PROBS, raters_axis=1, average=None)
    ours = metrics.dice_score(np.eye(3)[three], PROBS, raters_axis=1, average=None)
    np.testing.assert_array_equal(ours, expected)
    labels = np.stack([LABELS, LABELS[::-1]], axis=-1)
    each = [metrics.dice_score(x, PROBS, multi_label=True) for x in (LABELS, LABELS[::-1])]
    ours = metrics.dice_score(labels, PROBS, multi_label=True, raters_axis=-1)
    assert ours == pytest.approx(np.mean(each), abs=1e-12)


# --- Streaming ---------------------------------------------------------------------------------

CASES = {
    "binary": (MASKS, BINARY, {}),
    "pool": (MASKS, BINARY, {"aggregate": "pool", "threshold": 0.3}),
    "soft": (CLASSES, PROBS, {"soft": True, "average": "micro"}),
    "classes": (CLASSES, PROBS, {"empty": None, "target_class_ids": [2]}),
    "each class": (CLASSES, PROBS, {"average": None, "aggregate": "pool"}),
    "labels": (LABELS, PROBS, {"multi_label": True, "threshold": 0.3}),
    "logits": (MASKS, 4 * BINARY - 2, {"from_logits": True}),
    "raters": (RATERS, BINARY, {"raters_axis": -1}),
}


@pytest.mark.slow_product
@pytest.mark.parametrize("weight", [None, WEIGHT, PIXEL_WEIGHT], ids=["none", "images", "pixels"])
@pytest.mark.parametrize("case", CASES)
def test_stream_says_what_the_function_says(case, weight):
    y_true, y_pred, options = CASES[case]
    y_pred = y_pred.astype("float32")
    expected = metrics.dice_score(y_true, y_pred, sample_weight=weight, **options)
    ours = feed(metrics.DiceScore(**options), y_true, y_pred, weight)
    np.testing.assert_allclose(ours, expected, atol=1e-6)


@pytest.mark.slow
def test_a_model_of_masks_reports_it():
    model = keras.Sequential([keras.Input((4, 5, 1)), keras.layers.Activation("linear")])
    metric = metrics.DiceScore(raters_axis=-1, ignore_class=-1)
    model.compile(loss=mean_of_prediction, metrics=[metric], jit_compile=False)
    y_pred, holed = BINARY.astype("float32"), RATERS.copy()
    holed[0, 0] = -1
    ours = model.evaluate(y_pred, holed, 4, verbose=0, return_dict=True)["dice_score"]
    expected = metrics.dice_score(holed, y_pred, raters_axis=-1, ignore_class=-1)
    assert ours == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_raters_stream_under_xla():
    metric = metrics.DiceScore(raters_axis=-1, ignore_class=-1)
    update = tf.function(lambda *rows: metric.update_state(*rows), jit_compile=True)
    y_pred, holed = BINARY.astype("float32"), RATERS.copy()
    holed[0, 0] = -1
    for _ in range(2):
        update(tf.constant(holed), tf.constant(y_pred))
    expected = metrics.dice_score(holed, y_pred, raters_axis=-1, ignore_class=-1)
    assert float(metric.result()) == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_images_of_unknown_size_stream_in_a_graph():
    metric = metrics.DiceScore()
    signature = [tf.TensorSpec([None, None, None]), tf.TensorSpec([None, None, None, 1])]
    update = tf.function(lambda *rows: metric.update_state(*rows), input_signature=signature)
    for rows in (slice(0, 2), slice(2, 2), slice(2, 6)):
        update(MASKS[rows].astype("float32"), BINARY[rows].astype("float32"))
    update(MASKS[:1, :3, :2].astype("float32"), BINARY[:1, :3, :2].astype("float32"))
    parts = (
        metrics.dice_score(MASKS, BINARY),
        metrics.dice_score(MASKS[:1, :3, :2], BINARY[:1, :3, :2]),
    )
    assert float(metric.result()) == pytest.approx((6 * parts[0] + parts[1]) / 7, abs=1e-6)


def test_masked_steps_do_not_count():
    y_pred = tf.constant(BINARY[..., 0, :], "float32")  # (images, steps, 1)
    mask = PIXEL_WEIGHT[..., 0] > 0
    y_pred._keras_mask = tf.constant(mask)  # as Keras marks the outputs of a layer
    metric = metrics.DiceScore()
    metric.update_state(MASKS[..., 0], y_pred)
    expected = metrics.dice_score(MASKS[..., 0], y_pred, sample_weight=mask)
    assert float(metric.result()) == pytest.approx(expected, abs=1e-6)
    assert expected != metrics.dice_score(MASKS[..., 0], y_pred)


def test_a_pixel_that_cannot_be_judged_makes_it_nan_until_reset():
    metric = metrics.DiceScore()
    broken = BINARY.copy()
    broken[0, 0, 0] = np.nan
    metric.update_state(MASKS, broken)
    metric.update_state(MASKS, BINARY)
    assert np.isnan(metric.result())
    metric.reset_state()
    metric.update_state(MASKS, BINARY)
    assert np.isfinite(metric.result())
    with pytest.raises(ValueError, match="`y_pred` must hold no NaN"):
        metrics.dice_score(MASKS, broken)


def test_another_number_of_classes_or_raters_is_refused():
    metric = metrics.DiceScore(raters_axis=-1)
    metric.update_state(RATERS, BINARY)
    with pytest.raises(ValueError, match=r"as before, \(3, 1\). Received: \(2, 1\)"):
        metric.update_state(RATERS[..., :2], BINARY)


def test_config_is_plain_and_complete():
    options = {
        "aggregate": "pool",
        "average": None,
        "threshold": np.float64(0.4),
        "empty": None,
        "target_class_ids": (np.int64(0), 2),
        "ignore_class": np.int32(-1),
        "raters_axis": -1,
        "multi_label": True,
    }
    metric = metrics.DiceScore(**options)
    config = json.loads(json.dumps(metric.get_config()))
    assert config.items() >= {**options, "target_class_ids": [0, 2], "soft": False}.items()
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(metric))
    assert again.get_config() == config
    assert metric._direction == "up"


# --- Bad input ---------------------------------------------------------------------------------

BAD = [
    ("aggregate", {"aggregate": "all"}),
    ("average", {"average": "weighted"}),
    ("soft", {"soft": 1}),
    ("threshold", {"threshold": 1.5}),
    ("threshold", {"threshold": 0.5, "soft": True}),
    ("empty", {"empty": np.nan}),
    ("target_class_ids", {"target_class_ids": []}),
    ("target_class_ids", {"target_class_ids": [0, 0]}),
    ("target_class_ids", {"target_class_ids": [-1]}),
    ("target_class_ids", {"target_class_ids": 1}),
    ("target_class_ids", {"target_class_ids": [[0]]}),
    ("target_class_ids", {"target_class_ids": [True]}),
    ("ignore_class", {"ignore_class": 0.5}),
    ("raters_axis", {"raters_axis": True}),
    ("multi_label", {"multi_label": "yes"}),
]


@pytest.mark.parametrize("name, options", BAD)
def test_bad_options_raise(name, options):
    for call in (
        lambda: metrics.dice_score(MASKS, BINARY, **options),
        lambda: metrics.DiceScore(**options),
    ):
        with pytest.raises(ValueError, match=f"Argument `{name}` must .*Received: {name}="):
            call()


@pytest.mark.parametrize("axis", [0, -4, 4, -5])
def test_raters_axis_out_of_range_raises(axis):
    with pytest.raises(ValueError, match=rf"`raters_axis` must .*Received: raters_axis={axis} "):
        metrics.dice_score(RATERS, BINARY, raters_axis=axis)
    with pytest.raises(ValueError, match=r"`raters_axis` must .*Received: raters_axis=-1 "):
        metrics.dice_score(RATERS[..., :0], BINARY, raters_axis=-1)


@pytest.mark.parametrize("function", [metrics.dice_score, metrics.DiceScore().update_state])
def test_shapes_that_do_not_fit_raise(function):
    with pytest.raises(ValueError, match=r"Argument `y_true` must .*Received: y_true of shape"):
        function(RATERS, BINARY)
    with pytest.raises(
        ValueError, match=r"Argument `sample_weight` must .*Received: sample_weight"
    ):
        function(MASKS, BINARY, sample_weight=np.ones(5))


def test_a_class_beyond_the_last_raises():
    with pytest.raises(ValueError, match=r"`target_class_ids` must be below .* 3. Received"):
        metrics.dice_score(CLASSES, PROBS, target_class_ids=[3])
