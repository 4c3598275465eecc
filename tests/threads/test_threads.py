"""What eight threads are told at once is what one alone is told, to the bit.

All of it starts untraced, so that the threads also trace at once, and switch as often as they can.
A thread that gets into another one's draw, seed or watched layer gives other numbers, or an error.
"""

import concurrent.futures
import sys
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfuq
from tfuq.layers import DenseVariational, MCDropout, MCSoftmaxDenseFA, VBLLDense
from tfuq.predictive import (
    predict_uncertainty,
    sample_predictions,
    score_dataset,
    test_time_augmentation,
)
from tfuq.selective import ConformalPredictor, RejectionRule, TemperatureScaling

THREADS = 8
RNG = np.random.default_rng(0)
INPUTS = [RNG.normal(size=(5 + number % 3, 6)).astype("float32") for number in range(THREADS)]
IMAGES = [RNG.random((3 + number % 3, 8, 8, 1)).astype("float32") for number in range(THREADS)]
FIT = RNG.normal(size=(40, 6)).astype("float32")
LABELS = np.arange(40) % 3


@pytest.fixture(autouse=True)
def threads_switch_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def at_once(function, inputs):
    """`function(input)` of each input, all in threads of their own that start together."""
    barrier = threading.Barrier(len(inputs))

    def started(given):
        barrier.wait()
        return function(given)

    with concurrent.futures.ThreadPoolExecutor(len(inputs)) as pool:
        return list(pool.map(started, inputs))


def arrays_of(found):
    """All numbers of an answer, in an order that is always the same."""
    if hasattr(found, "_asdict"):
        found = found._asdict()
    return [np.asarray(leaf) for leaf in keras.tree.flatten(found)]


def check(make, inputs, rounds=1):
    """Raises AssertionError unless threads are told what one alone is told, by an object like it.

    Also of the same object: what it has traced among the threads is what it keeps.
    """
    alone = make()
    expected = [arrays_of(alone(given)) for given in inputs]
    for _ in range(rounds):
        function = make()
        found = [arrays_of(answer) for answer in at_once(function, inputs)]
        found.append(arrays_of(function(inputs[0])))
        for answer, right in zip(found, [*expected, expected[0]], strict=True):
            for one, other in zip(answer, right, strict=True):
                np.testing.assert_array_equal(one, other)


HEADS = {
    "MCSoftmaxDenseFA": lambda: [MCSoftmaxDenseFA(3, 2, test_mc_samples=20, logits_only=True)],
    "VBLLDense": lambda: [VBLLDense(3, kl_weight=0.1)],
    "DenseVariational": lambda: [DenseVariational(3, kl_weight=0.1)],
    "MCDropout": lambda: [MCDropout(0.5, seed=1), layers.Dense(3)],
}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("DenseVariational", "MCDropout")]
RANDOM = ["VBLLDense", *SLOW]


def network(head="VBLLDense", activation=None):
    keras.utils.set_random_seed(1)
    parts = [layers.Dense(8, "relu", name="hidden"), *HEADS[head]()]
    parts += [layers.Activation(activation)] if activation else []
    return keras.Sequential([keras.Input((6,)), *parts])


def plain():
    keras.utils.set_random_seed(1)
    parts = [layers.Dense(8, "relu", name="hidden"), layers.Dense(3, "softmax")]
    return keras.Sequential([keras.Input((6,)), *parts])


def picture_network():
    keras.utils.set_random_seed(1)
    conv = layers.Conv2D(4, 3, activation="relu", name="conv")
    parts = [conv, layers.GlobalAveragePooling2D(), layers.Dense(3, "softmax")]
    return keras.Sequential([keras.Input((8, 8, 1)), *parts])


@pytest.mark.slow_cases("VBLLDense")
@pytest.mark.slow_cases("DenseVariational", "MCDropout", "MCSoftmaxDenseFA")
@pytest.mark.parametrize("head", HEADS)
def test_predictions(head):
    def make():
        model = network(head)
        return lambda x: (model(x), model.predict_on_batch(x))

    check(make, INPUTS)


@pytest.mark.slow_cases("VBLLDense")
@pytest.mark.parametrize("head", RANDOM)
def test_draws(head):
    def make():
        model = network(head)

        def ask(x):
            told = {"num_samples": 4, "from_logits": True}
            whole = predict_uncertainty(model, x, **told)
            return whole, sample_predictions(model, x, **told), model(x)

        return ask

    check(make, INPUTS)


@pytest.mark.slow
def test_draws_of_other_seeds():
    """Each thread has a seed of its own: nobody gets the draw of another."""

    def make():
        model = network("MCDropout")
        options = {"num_samples": 2, "from_logits": True}
        return lambda seed: sample_predictions(model, FIT, seed=seed, **options)

    check(make, list(range(THREADS)))


@pytest.mark.slow_cases("ODIN", "ViM")
@pytest.mark.parametrize(
    "kind",
    [
        *("KNN", "ODIN", "ViM"),  # of features, of gradients, of features and the head
        *(
            pytest.param(kind, marks=pytest.mark.slow)
            for kind in ("MaxSoftmax", "Energy", "Mahalanobis", "ReAct", "GradNorm")
        ),
    ],
)
def test_detectors_beside_predictions(kind):
    """A detector watches layers while others call the model, or trace it for the first time."""
    options = {"KNN": {"k": 3}, "ViM": {"dim": 4}}.get(kind, {})

    def make():
        fitted = getattr(tfuq.ood, kind)(**options).fit(plain(), FIT, LABELS)
        model = plain()
        detector = fitted
        detector.model = model

        def ask(x):
            return model.predict_on_batch(x), detector.score(x), tf.function(lambda x: model(x))(x)

        return ask

    check(make, INPUTS)


@pytest.mark.slow
def test_gradient_features_beside_predictions():
    def make():
        model = plain()
        features = tfuq.ood.GradientFeatures(model)
        return lambda x: (tf.function(lambda x: model(x))(x), features(x))

    check(make, [x[:5] for x in INPUTS])


@pytest.mark.slow
@pytest.mark.parametrize(
    "explain",
    [
        "grad_cam",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("guided_backpropagation", "occlusion")),
    ],
)
def test_explanations_beside_predictions(explain):
    options = {"patch": 4} if explain == "occlusion" else {}

    def make():
        model = picture_network()
        function = getattr(tfuq.interpret, explain)
        return lambda x: (
            function(model, x, class_index=0, **options),
            tf.function(lambda x: model(x))(x),
        )

    check(make, IMAGES)


@pytest.mark.slow
def test_augmentation():
    """Seeds, global ones as well, are put back one after the other."""

    def make():
        model = picture_network()
        keras.utils.set_random_seed(2)
        augment = keras.Sequential([layers.RandomFlip(), layers.RandomRotation(0.2)])
        return lambda x: test_time_augmentation(model, x, augment, num_samples=3, seed=4)

    def global_numbers():
        state = np.random.get_state()[1]  # noqa: NPY002
        return state.tolist(), keras.random.uniform((2,)).numpy().tolist()

    def of_functions():
        model = picture_network()

        def noisy(images):
            return images + np.random.normal(size=images.shape)  # noqa: NPY002

        return lambda x: test_time_augmentation(model, x, noisy, num_samples=3, seed=4)

    check(make, IMAGES)
    keras.utils.set_random_seed(5)
    expected = global_numbers()
    keras.utils.set_random_seed(5)
    function = of_functions()
    keras.utils.set_random_seed(5)
    found = at_once(function, IMAGES)
    assert global_numbers() == expected
    for x, stack in zip(IMAGES, found, strict=True):
        np.testing.assert_array_equal(stack, function(x))


def test_ensembles():
    def make():
        ensemble = tfuq.ensembles.DeepEnsemble.from_models([network("VBLLDense"), plain()])
        return lambda x: ensemble.predict(x)

    check(make, INPUTS)


@pytest.mark.slow
def test_rules_and_all_that_is_fitted():
    rng = np.random.default_rng(0)
    probs = rng.dirichlet([1, 1, 1], 200)
    labels = np.array([rng.choice(3, p=p) for p in probs])
    rule = RejectionRule.fit(probs, labels, target_coverage=0.6)
    sets = ConformalPredictor.fit(probs, labels, "aps", alpha=0.2)
    scaling = TemperatureScaling().fit(probs, labels)
    given = [rng.dirichlet([1, 1, 1], 50 + number) for number in range(THREADS)]

    def make():
        whole = rule.append_to(plain())

        def ask(new):
            graph = whole.predict_on_batch(np.resize(new, (9, 6)).astype("float32"))
            return rule.accept(new), sets.predict_set(new), scaling.transform(new), graph

        return ask

    check(make, given)


@pytest.mark.slow_cases("VBLLDense")
@pytest.mark.parametrize("head", RANDOM)
def test_exports(head, tmp_path):
    model = network(head)
    rule = RejectionRule("mutual_information", 0.1)
    detector = tfuq.ood.MaxSoftmax().fit(plain(), FIT)
    tfuq.export.export(model, tmp_path / "m", rule=rule, num_samples=4, from_logits=True)
    del detector

    def make():
        module = tf.saved_model.load(str(tmp_path / "m"))
        return lambda x: dict(module.serve(x))

    check(make, INPUTS)


@pytest.mark.slow
def test_files_of_scores(tmp_path):
    """Each thread writes a file of its own, from one model."""
    models = []

    def make():
        models.append(network("MCDropout"))
        model, folder = models[-1], tmp_path / str(len(models))
        numbers = iter(range(100))

        def ask(x):
            path = folder / str(next(numbers))
            score_dataset(model, x, path, num_samples=3, from_logits=True, verbose=0)
            return tfuq.predictive.read_scores(path)

        return ask

    check(make, INPUTS)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["VBLLDense", "DenseVariational", "MCDropout"])
def test_everything_at_length(head, counts):
    """Unlike things at once, on one model, again and again."""

    def make():
        model = network(head, "softmax")
        detector = tfuq.ood.MaxSoftmax().fit(model, FIT)
        energy = tfuq.ood.Mahalanobis("hidden").fit(model, FIT, LABELS)
        ensemble = tfuq.ensembles.DeepEnsemble.from_models([model, network(head, "softmax")])
        asks = [
            lambda x: model.predict_on_batch(x),
            lambda x: predict_uncertainty(model, x, num_samples=3),
            lambda x: detector.score(x),
            lambda x: sample_predictions(model, x, num_samples=3, seed=7),
            lambda x: energy.score(x),
            lambda x: ensemble.predict(x),
            lambda x: tf.function(lambda x: model(x))(x),
            lambda x: tfuq.ood.Energy().fit(model, FIT).score(x),
        ]
        return lambda pair: asks[pair[0]](pair[1])

    rounds = 15
    check(make, list(enumerate(INPUTS)), rounds)
    counts("threads at once", rounds * THREADS)
