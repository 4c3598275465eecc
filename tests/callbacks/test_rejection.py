"""What the evaluator says is what `rejection_table` says, and everybody in the list hears it."""

import csv
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfuq.callbacks import RejectionEvaluator
from tfuq.callbacks._rejection_table import FIELDS, format_table
from tfuq.callbacks.rejection import confidence_of
from tfuq.layers import MCSoftmaxDenseFA
from tfuq.metrics import rejection_table

THRESHOLDS = (0.4, 0.6, 0.8)
DEFAULTS = (0.5, 0.6, 0.7, 0.8, 0.9)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 4)).astype("float32")
Y = RNG.integers(3, size=64)
PROBS = RNG.dirichlet(np.ones(3), size=64).astype("float32")
WEIGHT = RNG.uniform(0.1, 2, size=64).astype("float32")


def passing(*shape, activation=None):
    """A model that returns its input, so that predictions are known."""
    return keras.Sequential([keras.Input(shape), keras.layers.Activation(activation)])


def classifier(learning_rate=0.1, eager=True):
    """Not traced, unless that matters: it is quicker for so few steps."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "softmax")])
    optimizer = keras.optimizers.SGD(learning_rate)
    model.compile(optimizer, "sparse_categorical_crossentropy", run_eagerly=eager)
    return model


def fit(model, *callbacks, epochs=3, verbose=0, **kwargs):
    return model.fit(
        X, Y, batch_size=64, epochs=epochs, callbacks=list(callbacks), verbose=verbose, **kwargs
    )


def quiet(**kwargs):
    return RejectionEvaluator((X, Y), THRESHOLDS, **{"verbose": 0, "log": "all", **kwargs})


def known(*args, **kwargs):
    """An evaluator of models that only pass probabilities on, and so do not say what they are."""
    return RejectionEvaluator(*args, **{"from_logits": False, "log": "all", **kwargs})


def assert_same_tables(found, expected):
    for field in FIELDS:
        np.testing.assert_allclose(found[field], expected[field], rtol=1e-12, err_msg=field)


# --- Without training --------------------------------------------------------------------------


def test_by_hand():
    """Confidences 0.9 right, 0.8 wrong, 0.7 right, with weights 1, 2, 1."""
    probs = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
    data = (probs, np.array([0, 0, 0]), np.array([1.0, 2.0, 1.0]))
    table = known(data, (0.75, 0.85, 0.95), n_bins=1).evaluate(passing(2))
    np.testing.assert_allclose(table["accuracy"], [1 / 3, 1, np.nan])
    np.testing.assert_allclose(table["coverage"], [3 / 4, 1 / 4, 0])
    np.testing.assert_allclose(table["rejection_rate"], [1 / 4, 3 / 4, 1])
    np.testing.assert_allclose(table["risk"], [2 / 3, 0, np.nan], atol=1e-12)
    np.testing.assert_allclose(table["ece"], [2.5 / 3 - 1 / 3, 0.1, np.nan], rtol=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["arrays", "dataset"])
def test_agrees_with_the_function(kind, weighted):
    arrays = (PROBS, Y, WEIGHT) if weighted else (PROBS, Y)
    data = arrays
    if kind == "dataset":
        data = tf.data.Dataset.from_tensor_slices(arrays).shuffle(64).batch(10)
    found = known(data, THRESHOLDS, n_bins=7).evaluate(passing(3))
    weight = WEIGHT if weighted else None
    assert_same_tables(found, rejection_table(Y, PROBS, THRESHOLDS, n_bins=7, sample_weight=weight))


@pytest.mark.parametrize(
    ("y_true", "scores", "activation"),
    [
        (Y, np.log(PROBS), "softmax"),
        (Y % 2, RNG.normal(size=(64, 1)).astype("float32"), "sigmoid"),
        (RNG.integers(3, size=(2, 4, 8)), np.log(PROBS).reshape(2, 4, 8, 3), "softmax"),
        (RNG.integers(2, size=(64, 3)), RNG.normal(size=(64, 3)), "sigmoid"),
    ],
    ids=["classes", "binary", "pixels", "labels"],
)
def test_logits_and_shapes(y_true, scores, activation):
    shape = scores.shape[1:]
    kind = {"multi_label": y_true.shape == scores.shape}
    logits = RejectionEvaluator((scores, y_true), from_logits=True, **kind)
    from_logits = logits.evaluate(passing(*shape))
    model = passing(*shape, activation=activation)
    from_probs = RejectionEvaluator((scores, y_true), **kind).evaluate(model)
    for field in ("coverage", "accuracy"):
        np.testing.assert_allclose(from_logits[field], from_probs[field])
    probs = model.predict(scores, verbose=0)
    assert_same_tables(from_probs, rejection_table(y_true, probs, DEFAULTS, **kind))


def test_logits_taken_for_probabilities_are_refused_with_advice():
    with pytest.raises(ValueError, match=r"`y_pred` must .*from_logits=True"):
        known((3 * X[:, :3], Y)).evaluate(passing(3))


@pytest.mark.parametrize(
    ("y_true", "y_pred", "message"),
    [
        (Y + 1, PROBS, "Argument `y_true` must .*Received: y_true=3"),
        (Y, np.where(np.arange(64)[:, None] == 5, np.nan, PROBS), "Argument `y_pred` must .*NaN"),
    ],
    ids=["labels", "nan"],
)
def test_what_cannot_be_judged_raises(y_true, y_pred, message):
    with pytest.raises(ValueError, match=message):
        known((y_pred, y_true)).evaluate(passing(3))


def margin(probs):
    """Difference of the two largest probabilities."""
    second, first = np.sort(probs, axis=-1)[..., -2:].T
    return first - second


@pytest.mark.parametrize("from_logits", [False, True])
def test_score_of_the_users_own(from_logits):
    scores = np.log(PROBS) if from_logits else PROBS
    evaluator = RejectionEvaluator((scores, Y), (0.1, 0.5), margin, from_logits=from_logits)
    found = evaluator.evaluate(passing(3))
    expected = rejection_table(Y, PROBS, (0.1, 0.5), confidence=margin(PROBS))
    np.testing.assert_allclose(found["coverage"], expected["coverage"])
    np.testing.assert_allclose(found["accuracy"], expected["accuracy"])
    assert found["coverage"][0] != rejection_table(Y, PROBS, (0.1,))["coverage"][0]


@pytest.mark.parametrize(
    ("y_pred", "kind", "shape"),
    [
        (RNG.normal(size=(9, 1)), {"from_logits": True}, (9,)),
        (RNG.normal(size=9), {"from_logits": True}, (9,)),
        (RNG.normal(size=(9, 3)), {"from_logits": True, "multi_label": True}, (9, 3)),
        (RNG.normal(size=(2, 5, 3)), {"from_logits": True}, (2, 5)),
    ],
)
def test_score_sees_probabilities_of_each_kind(y_pred, kind, shape):
    confidence = confidence_of(lambda probs: probs.max() * np.ones(shape), y_pred, **kind)
    assert confidence.shape == shape
    squash = keras.ops.softmax if y_pred.shape[-1] == 3 and len(kind) == 1 else keras.ops.sigmoid
    np.testing.assert_allclose(confidence, np.max(squash(y_pred)))


@pytest.mark.parametrize(
    "score",
    [
        lambda probs: probs[:5, 0],
        lambda probs: probs,
        lambda probs: np.nan * probs[:, 0],
        lambda probs: -probs[:, 0],
    ],
)
def test_score_that_gives_no_confidences_raises(score):
    with pytest.raises(ValueError, match="Argument `score` must"):
        known((PROBS, Y), score=score).evaluate(passing(3))


def test_output_is_chosen():
    x = keras.Input((3,))
    model = keras.Model(x, [keras.layers.Rescaling(0.5)(x), x])
    found = known((PROBS, Y), THRESHOLDS, output=1).evaluate(model)
    assert_same_tables(found, rejection_table(Y, PROBS, THRESHOLDS))


def test_another_model_is_another_answer():
    evaluator = RejectionEvaluator((X, Y), THRESHOLDS)
    tables = [evaluator.evaluate(model) for model in (classifier(), classifier())]
    assert not np.array_equal(tables[0]["coverage"], tables[1]["coverage"])


# --- What an output means ----------------------------------------------------------------------


def dense(units=3, activation=None, loss=None):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(units, activation)])
    if loss is not None:
        model.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=True)
    return model


LOGITS = {"from_logits": True}
DECLARED = {
    "loss of logits": (3, None, keras.losses.SparseCategoricalCrossentropy(**LOGITS), Y, LOGITS),
    "soft-max": (3, "softmax", None, Y, {}),
    "one sigmoid": (1, "sigmoid", None, Y % 2, {}),
    "three sigmoids": (3, "sigmoid", None, np.eye(3)[Y], {"multi_label": True}),
    "three logits": (
        3,
        None,
        keras.losses.BinaryCrossentropy(**LOGITS),
        np.eye(3)[Y],
        {"multi_label": True, **LOGITS},
    ),
}


@pytest.mark.parametrize("name", DECLARED)
def test_the_model_says_what_its_output_means(name):
    *parts, y, kind = DECLARED[name]
    model = dense(*parts)
    expected = rejection_table(y, model.predict(X, verbose=0), THRESHOLDS, **kind)
    assert_same_tables(RejectionEvaluator((X, y), THRESHOLDS).evaluate(model), expected)
    assert_same_tables(RejectionEvaluator((X, y), THRESHOLDS, **kind).evaluate(model), expected)


def test_what_is_said_wins_over_the_loss_and_compiling_anew_is_noticed():
    model = dense(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    evaluator = RejectionEvaluator((X, Y), THRESHOLDS)
    evaluator.evaluate(model)
    with pytest.raises(ValueError, match="from_logits=True"):
        RejectionEvaluator((X, Y), from_logits=False).evaluate(model)
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="Argument `from_logits` must be given"):
        evaluator.evaluate(model)


def test_a_model_that_nobody_declares_is_refused():
    with pytest.raises(ValueError, match="Argument `from_logits` must be"):
        RejectionEvaluator((X, Y)).evaluate(dense())


class Counting(keras.callbacks.Callback):
    """How many batches were trained."""

    batches = 0

    def on_train_batch_end(self, batch, logs=None):
        self.batches += 1


EXCLUSIVE = keras.losses.SparseCategoricalCrossentropy
AT_THE_DOOR = {
    "labels from 1 to 3": ({}, (X, Y + 1), {}, "`y_true` must hold only classes 0 to 2"),
    "only the last label is none": ({}, (X, np.r_[Y[:-1], 7]), {}, "`y_true` must hold only"),
    "labels of two columns": ({}, (X, np.ones((64, 2))), {}, "`y_true` must have shape"),
    "logits said to be probabilities": (
        {"loss": EXCLUSIVE(from_logits=True)},
        (9 * X, Y),
        {"from_logits": False},
        "from_logits=True",
    ),
    "nobody says what they are": ({"loss": "mse"}, (X, Y), {}, "`from_logits` must be given"),
    "a score of the user's that is none": (
        {},
        (X, Y),
        {"score": lambda probs: 2 + probs[:, 0]},
        "`score` must give",
    ),
    "a score of many networks": (
        {},
        (X, Y),
        {"score": "mutual_information"},
        "`score` must be one of",
    ),
}


@pytest.mark.parametrize("name", AT_THE_DOOR)
def test_what_cannot_be_judged_stops_training_before_the_first_batch(name):
    made, data, kwargs, message = AT_THE_DOOR[name]
    model = dense(3, None if made else "softmax", **(made or {"loss": EXCLUSIVE()}))
    y = Y if made.get("loss") != "mse" else np.eye(3)[Y]
    counting = Counting()
    callbacks = [counting, RejectionEvaluator(data, verbose=0, **kwargs)]
    with pytest.raises(ValueError, match=message):
        model.fit(X, y, callbacks=callbacks, verbose=0)
    assert counting.batches == 0


# --- What is traced, and what is left alone ----------------------------------------------------


class Counted(keras.layers.Layer):
    """Counts how often Python runs its call, that is, how often it is traced."""

    calls = 0

    def call(self, x):
        Counted.calls += 1
        return x


def test_traced_once_in_a_training_and_follows_the_weights():
    model = keras.Sequential([keras.Input((4,)), Counted(), keras.layers.Dense(3, "softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=False)
    counts = []
    count = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: counts.append(Counted.calls))
    evaluator = quiet()
    history = fit(model, evaluator, count, epochs=4).history
    assert len(set(counts[1:])) == 1
    assert len(set(history["val_ece_at_0.4"])) == 4
    last = {field: [history[f"val_{field}_at_{t:g}"][-1] for t in THRESHOLDS] for field in FIELDS}
    assert_same_tables(last, rejection_table(Y, model.predict(X, verbose=0), THRESHOLDS))


def test_the_model_is_left_as_it_was(tmp_path):
    model = classifier()
    paths = [variable.path for variable in model.variables]
    config = json.dumps(model.get_config())
    quiet().evaluate(model)
    assert [variable.path for variable in model.variables] == paths
    assert json.dumps(model.get_config()) == config
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.predict(X, verbose=0), model.predict(X, verbose=0))


def test_the_first_look_leaves_the_seeds_of_a_sampling_head_as_they_were():
    head = MCSoftmaxDenseFA(3, 2, train_mc_samples=4, logits_only=True, seed=3)
    model = keras.Sequential([keras.Input((4,)), head])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = [variable.numpy() for variable in model.variables]
    evaluator = quiet()
    evaluator.set_model(model)
    evaluator.on_train_begin()
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    with pytest.raises(ValueError, match="Nothing to show yet"):
        evaluator.table()


# --- In training: who hears it -----------------------------------------------------------------

NAMES = [f"val_{field}_at_{t}" for field in FIELDS for t in ("0.4", "0.6", "0.8")]


def test_history_of_fit_and_csv_logger(tmp_path):
    evaluator = quiet()
    logger = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    history = fit(classifier(eager=False), evaluator, logger).history
    with open(tmp_path / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    for name in NAMES:
        assert history[name] == evaluator.history[name]
        np.testing.assert_array_equal([float(row[name]) for row in rows], history[name])


def test_prefix_is_the_users():
    history = fit(classifier(), quiet(prefix="test_"), epochs=1).history
    assert set(history) == {"loss", *(name.replace("val_", "test_") for name in NAMES)}


@pytest.mark.slow
def test_tensorboard(tmp_path):
    evaluator = quiet()
    fit(classifier(), evaluator, keras.callbacks.TensorBoard(tmp_path))
    found = {}
    for path in (tmp_path / "validation").iterdir():
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                found.setdefault(value.tag, []).append(float(tf.make_ndarray(value.tensor)))
    name = "coverage_at_0.6"
    np.testing.assert_allclose(found[f"epoch_{name}"], evaluator.history[f"val_{name}"], rtol=1e-6)
    assert len(found[f"epoch_{name}"]) == 3


def test_early_stopping():
    stop = keras.callbacks.EarlyStopping("val_coverage_at_0.6", mode="max", patience=1)
    history = fit(classifier(learning_rate=0.0), quiet(), stop, epochs=9).history
    assert len(history["loss"]) == 2


def test_model_checkpoint_keeps_the_best(tmp_path):
    evaluator = quiet()
    keep = keras.callbacks.ModelCheckpoint(
        tmp_path / "best.keras", "val_ece_at_0.4", mode="min", save_best_only=True
    )
    model = classifier(learning_rate=3.0)
    fit(model, evaluator, keep, epochs=6)
    best = keras.models.load_model(tmp_path / "best.keras")
    errors = evaluator.history["val_ece_at_0.4"]
    assert errors[-1] != min(errors)  # or it would not show whether the best was kept
    np.testing.assert_allclose(evaluator.evaluate(best)["ece"][0], min(errors))


@pytest.mark.slow
def test_progress_bar_before_it_stays_short(capsys):
    fit(classifier(), keras.callbacks.ProgbarLogger(), quiet(), verbose=2)
    assert "_at_" not in capsys.readouterr().out
    fit(classifier(), quiet(), verbose=2)
    assert "val_coverage_at_0.6" in capsys.readouterr().out


# --- In training: when -------------------------------------------------------------------------


def test_every_keeps_the_first_and_the_last_and_repeats_in_between():
    evaluator = quiet(every=3)
    history = fit(classifier(), evaluator, epochs=6).history
    assert evaluator.history["epoch"] == [0, 3, 5]
    a, b, c = evaluator.history["val_ece_at_0.4"]
    assert len({a, b, c}) == 3
    assert history["val_ece_at_0.4"] == [a, a, a, b, b, c]


def test_few_figures_go_into_logs_and_all_into_the_history(capsys):
    evaluator = quiet(log="few")
    history = fit(classifier(), evaluator, verbose=2).history
    few = {"val_accuracy_at_0.6", "val_coverage_at_0.6"}
    assert {name for name in history if "_at_" in name} == few
    assert set(evaluator.history) == {"epoch", *NAMES}
    out = capsys.readouterr().out
    assert "val_coverage_at_0.6" in out and out.count("_at_") == 2 * len(history["loss"])
    chosen = quiet(log=("val_risk_at_0.4",))
    history = fit(classifier(), chosen).history
    assert [name for name in history if "_at_" in name] == ["val_risk_at_0.4"]


@pytest.mark.parametrize("log", ["some", ("val_risk_at_0.5",), ("risk",), 3])
def test_names_of_logs_are_known(log):
    with pytest.raises(ValueError, match=r"`log` must be 'few', 'all' or names such as"):
        quiet(log=log)


def test_training_stopped_at_a_skipped_epoch_is_evaluated_at_its_end():
    class StopAt(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 1

        def on_train_end(self, logs=None):
            self.logs = dict(logs)

    first, second = quiet(every=5), StopAt()
    fit(classifier(), first, second, epochs=9)
    assert first.history["epoch"] == [0, 1]
    assert second.logs["val_ece_at_0.4"] == first.history["val_ece_at_0.4"][1]
    assert second.logs["val_ece_at_0.4"] != first.history["val_ece_at_0.4"][0]

    second, first = StopAt(), quiet(every=5)
    fit(classifier(), second, first, epochs=9)
    assert first.history["epoch"] == [0, 1]


def test_second_training_goes_on():
    evaluator, model = quiet(every=2), classifier()
    fit(model, evaluator, epochs=2)
    fit(model, evaluator, epochs=5, initial_epoch=2)
    assert evaluator.history["epoch"] == [0, 1, 2, 4]


def test_no_epoch_is_no_evaluation(capsys):
    evaluator = quiet(verbose=1)
    fit(classifier(), evaluator, epochs=2, initial_epoch=2)
    assert evaluator.history["epoch"] == []
    assert capsys.readouterr().out == ""


# --- What is shown and kept --------------------------------------------------------------------


@pytest.mark.slow_cases("1-1")
@pytest.mark.parametrize(("verbose", "tables"), [(0, 0), (1, 1), (2, 3)])
def test_verbose(verbose, tables, capsys):
    evaluator = quiet(verbose=verbose)
    fit(classifier(), evaluator)
    out = capsys.readouterr().out
    assert out.count("threshold | accuracy") == tables
    assert ("Rejection after epoch 3" in out) is (tables > 0)
    assert (evaluator.table() in out) is (tables > 0)


def test_nothing_accepted_is_nan_and_said():
    evaluator = RejectionEvaluator((X, Y), (0.3, 1.0), log="all", verbose=0)
    history = fit(classifier(), evaluator, epochs=1).history
    assert history["val_coverage_at_1"] == [0.0]
    assert history["val_rejection_rate_at_1"] == [1.0]
    for field in ("accuracy", "risk", "ece"):
        assert np.isnan(history[f"val_{field}_at_1"]).all()
        assert np.isfinite(history[f"val_{field}_at_0.3"]).all()
    assert evaluator.table().endswith("\n-: nothing was accepted at 1")


def test_table_as_text():
    table = {
        "accuracy": np.array([0.75, np.nan]),
        "coverage": np.array([1.0, 0.0]),
        "rejection_rate": np.array([0.0, 1.0]),
        "risk": np.array([0.25, np.nan]),
        "ece": np.array([0.03125, np.nan]),
    }
    assert format_table((0.5, 0.95), table).split("\n") == [
        "threshold | accuracy | coverage | rejected |   risk |    ECE",
        "----------+----------+----------+----------+--------+-------",
        "      0.5 |   0.7500 |   1.0000 |   0.0000 | 0.2500 | 0.0312",
        "     0.95 |        - |   0.0000 |   1.0000 |      - |      -",
        "-: nothing was accepted at 0.95",
    ]


def test_history_is_plain_and_to_csv_holds_it(tmp_path):
    evaluator = RejectionEvaluator((X, Y), (0.4, 1.0), every=2, log="all", verbose=0)
    fit(classifier(), evaluator, epochs=4)
    assert type(evaluator.history) is dict
    json.dumps(evaluator.history)
    evaluator.to_csv(tmp_path / "rejection.csv")
    with open(tmp_path / "rejection.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(evaluator.history)
    for name, column in evaluator.history.items():
        np.testing.assert_array_equal([float(row[name]) for row in rows], column)


# --- Arguments ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("thresholds", ()),
        ("thresholds", (0.5, 1.01)),
        ("thresholds", (-0.1,)),
        ("thresholds", (0.5, np.nan)),
        ("thresholds", ("0.5",)),
        ("thresholds", "0.5"),
        ("thresholds", 0.5),
        ("thresholds", (0.7, 0.7)),
        ("score", "max_logit"),
        ("score", None),
        ("score", ["max_probability"]),
        ("every", 0),
        ("every", 1.5),
        ("n_bins", 0),
        ("from_logits", "auto"),
        ("multi_label", "no"),
        ("batch_size", 0),
        ("prefix", None),
        ("verbose", 3),
        ("validation_data", (X, Y[:-1])),
        ("validation_data", (X[:0], Y[:0])),
        ("validation_data", X),
    ],
)
def test_bad_argument_raises(argument, value):
    kwargs = {"validation_data": (X, Y), argument: value}
    with pytest.raises(ValueError, match=rf"Argument `{argument}` must .*Received: "):
        RejectionEvaluator(**kwargs)


def test_batch_size_is_for_arrays():
    assert RejectionEvaluator((X, Y), batch_size=5).evaluate(classifier())
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)
    with pytest.raises(ValueError, match="Argument `batch_size` must be None"):
        RejectionEvaluator(data, batch_size=5)


@pytest.mark.parametrize("model", [None, keras.layers.Dense(3)])
def test_evaluate_needs_a_model(model):
    with pytest.raises(ValueError, match=r"Argument `model` must be a Keras model.*Received: "):
        quiet().evaluate(model)


def test_table_before_any_evaluation_raises():
    with pytest.raises(ValueError, match="evaluate"):
        quiet().table()
