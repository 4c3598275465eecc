"""MCSoftmaxDenseFA and MCSigmoidDenseFA: values, edward2's faults, options and errors.

What every layer must do (models, saving, export, precision, strategies) is in tests/contract.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfuq.layers import MCSigmoidDenseFA, MCSoftmaxDenseFA

FEATURES = 5
HEADS = {"softmax": MCSoftmaxDenseFA, "sigmoid": MCSigmoidDenseFA}
REFERENCE_SAMPLES = 10**6


def inputs(rows=2, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, FEATURES)).astype("float32")


def built(head):
    """The head, built, with random biases so that no part of it is at its start."""
    head.build((None, FEATURES))
    rng = np.random.default_rng(1)
    for weight in head.trainable_weights:
        if weight.name.endswith("bias"):
            weight.assign(0.5 * rng.normal(size=weight.shape))
    return head


def reference_moments(distribution, links, batch=50_000):
    """Mean and variance of each link of samples of a distribution: {key: (mean, variance)}."""

    @tf.function
    def sums(seed):
        samples = distribution.sample(batch, seed=seed)
        probs = [link(samples) for link in links.values()]
        return [(tf.reduce_sum(p, 0), tf.reduce_sum(tf.square(p), 0)) for p in probs]

    totals = None
    for index in range(REFERENCE_SAMPLES // batch):
        more = np.array(sums(tf.constant([index, 11])), "float64")
        totals = more if totals is None else totals + more
    means = totals / REFERENCE_SAMPLES
    return {
        key: (first, second - first**2) for key, (first, second) in zip(links, means, strict=True)
    }


@pytest.mark.slow_cases("1-True-10")
@pytest.mark.slow_cases("0-False-2", "6-True-2", "1-False-3")
@pytest.mark.slow_product
@pytest.mark.slow_cases("*True-100", "*-False-100")
@pytest.mark.parametrize("classes", [2, 3, 10, 100])
@pytest.mark.parametrize(
    "factors, efficient", [(0, False), (1, False), (1, True), (6, False), (6, True)]
)
def test_probabilities_agree_with_samples_of_the_distribution(classes, factors, efficient):
    """Against 10^6 samples of `logit_distribution`, drawn by TFP.

    Tolerance: six standard deviations of the difference of two means of independent samples. The
    Sobol points of the layer are at least as accurate as independent ones. Per probability a
    correct layer fails about 2 seeds in 1e9; over the 4,000 probabilities here, 1 in 1e5.
    """
    samples = 2**13
    options = dict(num_factors=factors, parameter_efficient=efficient, test_mc_samples=samples)
    template = built(MCSoftmaxDenseFA(classes, **options))
    x = inputs(rows=1 if classes == 100 else 2)
    functions = {"softmax": tf.nn.softmax, "sigmoid": tf.sigmoid}
    cases = {
        (name, temperature): lambda u, f=function, t=temperature: f(u / t)
        for name, function in functions.items()
        for temperature in (0.3, 1.0, 3.0)
    }
    reference = reference_moments(template.logit_distribution(x), cases)
    for (name, temperature), (mean, variance) in reference.items():
        head = HEADS[name](classes, temperature=temperature, **options)
        head.build((None, FEATURES))
        head.set_weights(template.get_weights())
        # 1e-6 for the rounding of float32.
        tolerance = 6 * np.sqrt(variance * (1 / samples + 1 / REFERENCE_SAMPLES)) + 1e-6
        error = np.abs(head(x).probs - mean)
        assert (error <= tolerance).all(), (name, temperature, (error / tolerance).max())


@pytest.mark.slow_cases("False-iid-MCSoftmaxDenseFA")
@pytest.mark.slow_cases("*-antithetic-*")
@pytest.mark.slow_cases("True-*", "*MCSigmoidDenseFA")
@pytest.mark.parametrize("head", [MCSoftmaxDenseFA, MCSigmoidDenseFA])
@pytest.mark.parametrize("sampling", ["sobol", "antithetic", "iid"])
@pytest.mark.parametrize("efficient", [False, True])
def test_training_samples_are_unbiased(head, sampling, efficient):
    """Mean over 1,500 steps of 4 samples, against 2^15 fixed points.

    Six standard errors: a correct layer fails one probability in 5e8.
    """
    options = dict(parameter_efficient=efficient, sampling=sampling, seed=2)
    layer = built(head(4, 3, train_mc_samples=4, test_mc_samples=2**15, **options))
    x = inputs(3)
    step = tf.function(lambda: layer(x, training=True).probs)
    draws = np.stack([step() for _ in range(1500)])
    error = np.abs(draws.mean(axis=0) - layer(x).probs)
    assert (error <= 6 * draws.std(axis=0) / np.sqrt(len(draws)) + 1e-4).all()


def test_predictive_variance_is_that_of_the_samples():
    layer = built(MCSoftmaxDenseFA(3, 2, compute_pred_variance=True, test_mc_samples=2**13))
    x = inputs()
    mean, variance = reference_moments(layer.logit_distribution(x), {0: tf.nn.softmax})[0]
    output = layer(x)
    np.testing.assert_allclose(output.probs, mean, atol=0.01)
    np.testing.assert_allclose(output.predictive_variance, variance, rtol=0.05)


def test_predictive_variance_is_empty_unless_asked_for():
    assert built(MCSoftmaxDenseFA(3, 2))(inputs()).predictive_variance.shape == (2, 0)


@pytest.mark.parametrize("factors, efficient", [(0, False), (2, False), (2, True)])
def test_covariance_is_that_of_the_distribution(factors, efficient):
    layer = built(MCSoftmaxDenseFA(4, factors, parameter_efficient=efficient))
    x = np.stack([inputs(3, seed) for seed in range(2)])  # (2, 3, features)
    covariance = layer.covariance(x)
    distribution = layer.logit_distribution(x)
    assert covariance.shape == (2, 3, 4, 4)
    np.testing.assert_allclose(covariance, distribution.covariance(), rtol=1e-5, atol=1e-6)
    assert distribution.batch_shape == (2, 3)
    assert (np.linalg.eigvalsh(covariance) > 0).all()


def test_mean_of_the_logits_is_affine_in_the_input():
    # edward2's parameter-efficient noise has a bias, so that its mean is not mu.
    layer = built(MCSoftmaxDenseFA(4, 2, parameter_efficient=True))
    x = inputs()
    expected = x @ layer.loc_kernel.numpy() + layer.loc_bias.numpy()
    np.testing.assert_allclose(layer.logit_distribution(x).mean(), expected, rtol=1e-5)
    assert {w.name for w in layer.weights if w.name.startswith("factor")} == {"factor_loadings"}


def test_scale_has_its_floor():
    layer = built(MCSoftmaxDenseFA(3, 0))
    layer.scale_bias.assign([-100.0] * 3)
    layer.scale_kernel.assign(tf.zeros_like(layer.scale_kernel))
    np.testing.assert_allclose(tf.linalg.diag_part(layer.covariance(inputs())), 1e-6, rtol=1e-3)


def test_softmax_logits_are_log_probabilities():
    output = built(MCSoftmaxDenseFA(4, 2))(inputs())
    np.testing.assert_array_equal(output.logits, output.log_probs)
    np.testing.assert_allclose(np.sum(output.probs, axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(tf.nn.softmax(output.logits), output.probs, rtol=1e-5)


def test_sigmoid_logits_are_the_inverse_sigmoid():
    output = built(MCSigmoidDenseFA(4, 2))(inputs())
    np.testing.assert_allclose(tf.sigmoid(output.logits), output.probs, rtol=1e-5)
    np.testing.assert_allclose(tf.exp(output.log_probs), output.probs, rtol=1e-5)


@pytest.mark.parametrize("head", [MCSoftmaxDenseFA, MCSigmoidDenseFA])
def test_gradients_live_below_edward2s_clip(head):
    layer = head(3, 1, logits_only=True)
    layer.build((None, FEATURES))
    layer.loc_bias.assign([0.0, -60.0, -300.0])
    x = tf.zeros((1, FEATURES))
    with tf.GradientTape() as tape:
        rare = tf.reduce_sum(layer(x)[:, 1:])
    gradient = tape.gradient(rare, layer.loc_bias.value)
    np.testing.assert_allclose(gradient[1:], [1.0, 1.0], rtol=1e-3)


def test_eps_clips_probs_alone():
    layer = built(MCSoftmaxDenseFA(2, 0, eps=1e-3))
    layer.loc_bias.assign([0.0, -60.0])
    output = layer(inputs())
    np.testing.assert_allclose(output.probs[:, 1], 1e-3)
    assert (output.log_probs.numpy()[:, 1] < -40).all()


def test_factor_noise_and_diagonal_noise_differ_with_a_seed():
    # In edward2, a seed and num_factors == num_classes make them the same draws.
    layer = built(MCSoftmaxDenseFA(6, 6, seed=5, sampling="iid"))
    for points in (layer._test_points(), layer._train_points(tf.constant([1, 2]))):
        assert not np.allclose(points[:, :6], points[:, 6:])
        correlation = np.corrcoef(points.numpy().T)[:6, 6:]
        # Six standard errors at 256 points: fails one pair in 5e8.
        assert np.abs(correlation).max() < 6 / 16


def test_training_is_false_by_default():
    layer = built(MCSoftmaxDenseFA(3, 2, logits_only=True))
    x = inputs()
    np.testing.assert_array_equal(layer(x), layer(x))
    np.testing.assert_array_equal(layer(x), layer(x, training=False))
    assert not np.allclose(layer(x, training=True), layer(x, training=True))


def test_resample_draws_fresh_samples_at_inference():
    layer = built(MCSoftmaxDenseFA(3, 2, resample=True, test_mc_samples=16, logits_only=True))
    x = inputs()
    assert not np.allclose(layer(x), layer(x))


def test_seed_fixes_the_samples_of_training():
    x = inputs()
    first, second = (built(MCSoftmaxDenseFA(3, 2, seed=9, logits_only=True)) for _ in range(2))
    second.set_weights(first.get_weights())
    for _ in range(2):
        np.testing.assert_array_equal(first(x, training=True), second(x, training=True))


@pytest.mark.parametrize("efficient", [False, True])
def test_sharing_samples_across_the_batch(efficient):
    x = np.repeat(inputs(1), 8, axis=0)
    shared, own = (
        built(
            MCSoftmaxDenseFA(
                4,
                2,
                parameter_efficient=efficient,
                share_samples_across_batch=share,
                train_mc_samples=6,
                logits_only=True,
            )
        )(x, training=True).numpy()
        for share in (True, False)
    )
    np.testing.assert_allclose(shared, np.repeat(shared[:1], 8, axis=0), rtol=1e-5)
    assert len(np.unique(own.round(4), axis=0)) > 4


def test_more_samples_are_closer():
    layers = {n: built(MCSoftmaxDenseFA(6, 3, test_mc_samples=n, seed=3)) for n in (8, 256, 2**14)}
    x = inputs(20)
    logits = {}
    for number, layer in layers.items():
        layer.set_weights(layers[8].get_weights())
        logits[number] = layer(x).logits.numpy()
    errors = [np.abs(logits[n] - logits[2**14]).mean() for n in (8, 256)]
    assert errors[1] < errors[0] / 4


def test_temperature_is_learned_within_its_bounds():
    layer = built(
        MCSoftmaxDenseFA(
            3,
            2,
            temperature=1.5,
            tune_temperature=True,
            temperature_lower_bound=0.5,
            temperature_upper_bound=2.0,
        )
    )
    np.testing.assert_allclose(layer.current_temperature(), 1.5, rtol=1e-6)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(layer(inputs(), training=True).logits[:, 0])
    assert abs(tape.gradient(loss, layer.temperature_logit.value)) > 0
    for logit, temperature in ((-50.0, 0.5), (50.0, 2.0)):
        layer.temperature_logit.assign(logit)
        np.testing.assert_allclose(layer.current_temperature(), temperature, rtol=1e-6)


def test_tuned_temperature_equals_the_constant_one():
    constant = built(MCSoftmaxDenseFA(3, 2, temperature=0.7, logits_only=True))
    tuned = built(MCSoftmaxDenseFA(3, 2, temperature=0.7, tune_temperature=True, logits_only=True))
    tuned.set_weights([*constant.get_weights(), tuned.temperature_logit.numpy()])
    np.testing.assert_allclose(tuned(inputs()), constant(inputs()), rtol=1e-5)


@pytest.mark.parametrize("head", [MCSoftmaxDenseFA, MCSigmoidDenseFA])
def test_segmentation_equals_pixel_by_pixel(head):
    layer = built(head(3, 2, logits_only=True))
    images = np.random.default_rng(0).normal(size=(2, 4, 6, FEATURES)).astype("float32")
    logits = layer(images)
    assert logits.shape == (2, 4, 6, 3)
    pixels = layer(images.reshape(-1, FEATURES))
    np.testing.assert_allclose(logits, np.reshape(pixels, logits.shape), rtol=1e-5, atol=1e-6)


def test_options_reach_the_weights():
    layer = MCSoftmaxDenseFA(
        3,
        2,
        kernel_initializer="zeros",
        bias_initializer="ones",
        kernel_regularizer=keras.regularizers.L2(0.1),
        bias_regularizer="l1",
        kernel_constraint="non_neg",
        bias_constraint="unit_norm",
    )
    layer.build((None, FEATURES))
    for weight in layer.weights:
        kernel = weight.name.endswith("kernel")
        assert (weight.numpy() == (0 if kernel else 1)).all()
        assert isinstance(
            weight.regularizer, keras.regularizers.L2 if kernel else keras.regularizers.L1
        )
        assert isinstance(
            weight.constraint, keras.constraints.NonNeg if kernel else keras.constraints.UnitNorm
        )
    restored = MCSoftmaxDenseFA.from_config(layer.get_config())
    assert restored.get_config() == layer.get_config()


def test_nan_input_is_never_a_confident_answer():
    x = inputs(3)
    x[1, 0] = np.nan
    probs = built(MCSoftmaxDenseFA(3, 2))(x).probs.numpy()
    assert np.isnan(probs[1]).all()
    assert np.isfinite(probs[[0, 2]]).all()


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("num_classes", dict(num_classes=0)),
        ("num_classes", dict(num_classes=2.5)),
        ("num_factors", dict(num_factors=-1)),
        ("temperature", dict(temperature=0)),
        ("temperature", dict(temperature=float("nan"))),
        ("train_mc_samples", dict(train_mc_samples=0)),
        ("test_mc_samples", dict(test_mc_samples=0)),
        ("temperature_lower_bound", dict(temperature_lower_bound=2.0, temperature_upper_bound=1.0)),
        ("temperature_lower_bound", dict(temperature_lower_bound=0.0)),
        ("sampling", dict(sampling="halton")),
        ("eps", dict(eps=1.5)),
        ("seed", dict(seed=-3)),
        ("temperature_upper_bound", dict(temperature_upper_bound=None, tune_temperature=True)),
        *((flag, {flag: 1}) for flag in ("logits_only", "resample", "tune_temperature")),
        *((flag, {flag: "no"}) for flag in ("parameter_efficient", "compute_pred_variance")),
        ("share_samples_across_batch", dict(share_samples_across_batch=None)),
    ],
)
def test_bad_arguments_are_refused(name, arguments):
    with pytest.raises(ValueError, match=rf"`{name}` must be .* Received: {name}="):
        MCSoftmaxDenseFA(**{"num_classes": 3, "num_factors": 2, **arguments})


# --- As edward2's own tests call it -----------------------------------------------------------


def test_bounds_may_be_none_where_the_temperature_is_not_tuned():
    head = MCSoftmaxDenseFA(3, 2, temperature_lower_bound=None, temperature_upper_bound=None)
    assert np.isfinite(head(inputs(3)).probs).all()
    assert type(head).from_config(head.get_config()).temperature_upper_bound is None


@pytest.mark.parametrize("training", [False, True])
def test_seed_of_a_call(training):
    head = MCSoftmaxDenseFA(3, 2, train_mc_samples=8, test_mc_samples=8)
    x = inputs(3)
    one, again = (head(x, training=training, seed=7).probs for _ in range(2))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - head(x, training=training, seed=8).probs).max() > 1e-4
    assert np.abs(one - head(x, training=training).probs).max() > 1e-4
    with pytest.raises(ValueError, match=r"`seed` must be .* Received: seed=-1"):
        head(x, seed=-1)


def test_dtype_is_the_11th_argument():
    defaults = (1.0, False, 8, 8, False, False, True, 0.0)
    assert MCSoftmaxDenseFA(3, 2, *defaults, "float64").dtype == "float64"
    assert MCSigmoidDenseFA(3, 2, *defaults, "float64").dtype == "float64"


def test_sigmoid_names_its_own_argument():
    with pytest.raises(ValueError, match=r"`num_outputs` must be .* Received: num_outputs=0"):
        MCSigmoidDenseFA(0)


def test_unknown_features_are_refused():
    with pytest.raises(ValueError, match=r"last dimension .* Received: input_shape"):
        MCSoftmaxDenseFA(3, 2).build((None, None))
