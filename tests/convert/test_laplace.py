"""laplace_head: laplace-torch, brute force, draws; priors; what is refused.

`fixtures/make_laplace.py` wrote what laplace-torch answers. What every layer must do (models,
saving, precision, strategies) is in tests/contract, misuse by entry point in tests/misuse.
"""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import special

from tfuq import convert, export, predictive
from tfuq.convert._curvature import CURVATURES
from tfuq.convert._evidence import ConstantNoise, evidence
from tfuq.layers import (
    LastLayerLaplace,
    LastLayerLaplaceRegression,
    MCDropout,
    MCSoftmaxDenseFA,
    NormalDense,
    QuantileDense,
    VBLLDense,
)

STRUCTURES = ("diagonal", "kfac", "full")
FIXTURE = np.load(pathlib.Path(__file__).parents[1] / "fixtures/laplace.npz")
PRECISION, NOISE = 1.7, 0.6  # as in `make_laplace.py`
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def theirs(task, structure, name):
    return FIXTURE[f"{task}/{structure}/{name}"]


def data(task):
    return FIXTURE[f"{task}/x"].astype("float32"), FIXTURE[f"{task}/y"]


def trained(task):
    """A Dense with the weights of their last layer, on the features that it takes."""
    kernel, bias = FIXTURE[f"{task}/kernel"], FIXTURE[f"{task}/bias"]
    model = keras.Sequential([keras.Input((len(kernel),)), keras.layers.Dense(len(bias))])
    model.set_weights([kernel, bias])
    model.compile(loss=CROSS_ENTROPY if task == "classification" else "mse")
    return model


def laplace(task, structure, prior=PRECISION**-0.5, **options):
    return convert.laplace_head(trained(task), data(task), structure, prior, **options)


def curvature(task, structure):
    """Sums over the rows, by hand."""
    x, _ = data(task)
    kernel, bias = FIXTURE[f"{task}/kernel"], FIXTURE[f"{task}/bias"]
    outputs = x.astype("float64") @ kernel + bias
    is_classes = task == "classification"
    found = CURVATURES[structure](*kernel.shape, True, is_classes)
    probs = special.softmax(outputs, axis=-1) if is_classes else None
    diagonal = probs if is_classes else np.ones_like(outputs)
    for rows in np.array_split(np.arange(len(x)), 3):  # in batches
        outer = probs[rows] if is_classes else None
        found.add(x[rows].astype("float64"), diagonal[rows], outer, np.ones(len(rows)))
    return found, kernel, bias, outputs


def in_their_order(matrix, features, units):
    """A matrix of all weights, unit by unit with the bias last, in the order of laplace-torch."""
    order = np.arange(units * (features + 1)).reshape(units, features + 1)
    order = np.concatenate([order[:, :-1].ravel(), order[:, -1]])
    return matrix[np.ix_(order, order)]


def covariance_of(head):
    """Of all weights of a head, unit by unit with the bias last, from what is in its weights."""
    features, units = head.kernel.shape
    found = {w.name: np.asarray(w, "float64") for w in head.non_trainable_weights}
    if head.structure == "diagonal":
        return np.diag(found["scale"].T.ravel() ** 2)
    if head.structure == "full":
        root = found["covariance_root"].reshape(units * (features + 1), -1)
        return root @ root.T
    whole = np.zeros((units, features + 1) * 2)
    root = np.einsum(
        "ui,fj,ji->ufij", found["basis_units"], found["basis_features"], found["scale"]
    )
    whole[:, :-1, :, :-1] = np.einsum("ufij,vgij->ufvg", root, root)
    of_bias = found["basis_units"] * found["bias_scale"]
    whole[:, -1, :, -1] = of_bias @ of_bias.T
    return whole.reshape(units * (features + 1), -1)


# --- laplace-torch -------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_curvature_is_theirs(structure, task):
    found, kernel, *_ = curvature(task, structure)
    spread = found.gaussian().spread(1.0)
    head = LastLayerLaplace(max(2, kernel.shape[1]), structure)
    head.build((None, len(kernel)))
    for name, value in spread.items():
        getattr(head, name).assign(value)
    hessian = np.linalg.inv(covariance_of(head)) - np.eye(kernel.size + kernel.shape[1])
    expected = theirs(task, structure, "hessian")
    np.testing.assert_allclose(in_their_order(hessian, *kernel.shape), expected, atol=3e-4)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_covariance_of_weights_is_theirs(structure):
    head = laplace("classification", structure).layers[-1]
    found = in_their_order(covariance_of(head), *head.kernel.shape)
    expected = theirs("classification", structure, "covariance")
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_marginal_likelihood_of_classes_is_theirs(structure):
    found = laplace("classification", structure).layers[-1]
    expected = theirs("classification", structure, "evidence")
    np.testing.assert_allclose(found.log_marginal_likelihood, expected, rtol=1e-6)


@pytest.mark.parametrize("task", ["regression", "number"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_marginal_likelihood_of_numbers_is_theirs(structure, task):
    found, kernel, bias, outputs = curvature(task, structure)
    residuals = np.sum((FIXTURE[f"{task}/y"] - outputs) ** 2, axis=0)
    precisions = np.full(len(bias), NOISE**-2)
    likelihood = ConstantNoise(len(outputs), residuals).value(precisions)
    squares = np.sum(kernel**2) + np.sum(bias**2)
    values = found.gaussian().eigenvalues(precisions)
    value = evidence(likelihood, squares, values, PRECISION)
    np.testing.assert_allclose(value, theirs(task, structure, "evidence"), rtol=1e-6)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_probit_predictions_are_theirs(structure):
    model = laplace("classification", structure)
    probs = special.softmax(model.predict(data("classification")[0], verbose=0), axis=-1)
    np.testing.assert_allclose(probs, theirs("classification", structure, "probit"), atol=2e-6)


@pytest.mark.parametrize("task", ["regression", "number"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_variances_of_numbers_are_theirs(structure, task):
    """At the noise that they were given."""
    found, kernel, *_ = curvature(task, structure)
    x = data(task)[0].astype("float64")
    variance = found.gaussian().variance(x, PRECISION, np.full(kernel.shape[1], NOISE**-2))
    expected = np.diagonal(theirs(task, structure, "variance"), axis1=1, axis2=2)
    np.testing.assert_allclose(variance, expected, rtol=1e-5)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_prior_of_largest_evidence_is_theirs(structure):
    found = laplace("classification", structure, "marginal likelihood").layers[-1].prior_scale
    precision = theirs("classification", structure, "best")[0]
    np.testing.assert_allclose(found, precision**-0.5, rtol=1e-3)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_prior_and_noise_of_largest_evidence_are_theirs(structure):
    head = laplace("number", structure, "marginal likelihood").layers[-1]
    precision, noise = theirs("number", structure, "best")
    sigma = np.asarray(tf.nn.softplus(head.noise_rho)) + head.min_scale
    np.testing.assert_allclose(head.prior_scale, precision**-0.5, rtol=1e-3)
    np.testing.assert_allclose(sigma, [noise], rtol=1e-3)


# --- Brute force ---------------------------------------------------------------------------------


def network(last=None, loss=CROSS_ENTROPY, seed=0):
    keras.utils.set_random_seed(seed)
    last = keras.layers.Dense(3) if last is None else last
    layers = [keras.layers.Dense(6, "tanh", name="body"), last]
    model = keras.Sequential([keras.Input((4,)), *layers])
    model.compile(keras.optimizers.Adam(0.05), loss)
    return model


def examples(count=50, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 4)).astype("float32")
    return x, np.argmax(x[:, :3] + 0.5 * rng.normal(size=(count, 3)), axis=-1)


def hessian_by_tape(features, labels, kernel, bias, loss_of):
    """Second derivatives of the summed loss in all weights, unit by unit with the bias last."""
    weights = tf.Variable(np.concatenate([kernel, bias[None]]).T, dtype="float64")
    x = tf.constant(np.pad(features, [(0, 0), (0, 1)], constant_values=1.0), "float64")
    with tf.GradientTape(persistent=True) as outer:
        with tf.GradientTape() as inner:
            loss = tf.reduce_sum(loss_of(labels, tf.matmul(x, weights, transpose_b=True)))
        gradient = tf.reshape(inner.gradient(loss, weights), [-1])
    found = outer.jacobian(gradient, weights, experimental_use_pfor=False)
    return found.numpy().reshape(weights.shape.num_elements(), -1)


LABELS_LOSS = keras.losses.BinaryCrossentropy(from_logits=True)


@pytest.mark.parametrize("several", [False, True])
def test_full_curvature_is_the_hessian_of_the_loss(several):
    x, y = examples()
    if several:
        y = np.stack([y == 1, x[:, 0] > 0, x[:, 1] > 1], axis=-1).astype("float32")
    model = network(loss=LABELS_LOSS if several else CROSS_ENTROPY)
    head = convert.laplace_head(model, (x, y), "full", 2.0).layers[-1]
    features = model.layers[0](x).numpy()
    loss_of = tf.nn.sigmoid_cross_entropy_with_logits if several else _sparse
    kernel, bias = model.layers[-1].get_weights()
    labels = y.astype("float64") if several else y
    hessian = hessian_by_tape(features, labels, kernel, bias, loss_of)
    expected = np.linalg.inv(hessian + 0.25 * np.eye(len(hessian)))
    np.testing.assert_allclose(covariance_of(head), expected, atol=1e-5)


def _sparse(labels, logits):
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)


def test_numbers_of_a_normal_head_have_the_curvature_of_their_means():
    x, _ = examples()
    y = (x[:, :2] + 0.3 * x[:, 2:] ** 2).astype("float32")
    head = NormalDense(2)
    model = network(head, head.negative_log_likelihood())
    model.fit(x, y, epochs=3, verbose=0)
    before = model.predict(x, verbose=0)
    bayesian = convert.laplace_head(model, (x, y), "full", 1.5)
    after = bayesian.predict(x, verbose=0)
    np.testing.assert_allclose(after[:, :4], before, atol=1e-5)  # means and noise are as they were
    sigma = before[:, 2:]
    features = np.pad(model.layers[0](x), [(0, 0), (0, 1)], constant_values=1.0)
    for unit in range(2):
        precision = (features / sigma[:, unit : unit + 1] ** 2).T @ features + np.eye(7) / 1.5**2
        variance = np.einsum("nf,fg,ng->n", features, np.linalg.inv(precision), features)
        np.testing.assert_allclose(after[:, 4 + unit], np.sqrt(variance), rtol=1e-3)


@pytest.mark.slow_cases("diagonal", "full")
@pytest.mark.parametrize("structure", STRUCTURES)
def test_draws_have_the_covariance_of_the_outputs(structure):
    """6 standard errors of a covariance of 4,000 draws: a correct head fails once in 10^7 here."""
    x, y = examples()
    model = convert.laplace_head(network(), (x, y), structure, 1.0)
    head, rows = model.layers[-1], x[:2]
    draws = predictive.sample_predictions(model, rows, num_samples=4000)
    logs = np.log(draws) - np.log(draws).mean(axis=-1, keepdims=True)  # logits but for their mean
    joint = head.output_distribution(model.layers[1](rows))
    centre = np.eye(3) - 1 / 3
    for row in range(2):
        expected = centre @ joint.covariance().numpy()[row] @ centre
        mean = centre @ joint.mean().numpy()[row]
        sizes = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
        assert np.all(np.abs(np.cov(logs[:, row].T) - expected) < 6 * sizes * (2 / 4000) ** 0.5)
        deviation = np.sqrt(np.diag(expected) / 4000)
        assert np.all(np.abs(logs[:, row].mean(axis=0) - mean) < 6 * deviation)


def test_one_draw_is_one_network():
    x, y = examples()
    model = convert.laplace_head(network(), (x, y), "kfac", 1.0)
    whole = predictive.sample_predictions(model, x, 3, batch_size=50)
    parts = predictive.sample_predictions(model, x, 3, batch_size=7)
    np.testing.assert_allclose(whole, parts, atol=1e-6)


def test_without_a_bias():
    x, y = examples()
    model = network(keras.layers.Dense(3, use_bias=False))
    for structure in STRUCTURES:
        head = convert.laplace_head(model, (x, y), structure, 1.0).layers[-1]
        assert not head.use_bias and len(head.trainable_weights) == 1
    x64 = model.layers[0](x).numpy().astype("float64")
    probs = special.softmax(model.predict(x, verbose=0).astype("float64"), axis=-1)
    curvature = sum(
        np.kron(np.diag(p) - np.outer(p, p), np.outer(row, row))
        for p, row in zip(probs, x64, strict=True)
    )
    expected = np.linalg.inv(curvature + np.eye(18))
    root = np.asarray(head.covariance_root, "float64").reshape(18, 18)
    np.testing.assert_allclose(root @ root.T, expected, atol=1e-5)


# --- Data ----------------------------------------------------------------------------------------


@pytest.mark.slow_cases("diagonal", "full")
@pytest.mark.parametrize("structure", STRUCTURES)
def test_batches_weights_and_kinds_of_data_change_nothing(structure):
    x, y = examples(30)
    model = network()
    whole = convert.laplace_head(model, (x, y), structure, 1.0)
    twice = np.concatenate([x, x[:10]]), np.concatenate([y, y[:10]])
    weight = np.where(np.arange(30) < 10, 2.0, 1.0)
    doubled = convert.laplace_head(model, twice, structure, 1.0)
    others = {
        "in batches": (whole, (x, y), {"batch_size": 7}),
        "dataset": (whole, tf.data.Dataset.from_tensor_slices((x, y)).batch(11), {}),
        "one-hot": (whole, (x, np.eye(3)[y]), {}),
        "weights": (doubled, (x, y, weight), {}),
    }
    for name, (expected, given, options) in others.items():
        found = convert.laplace_head(model, given, structure, 1.0, **options)
        outputs = found.predict(x, verbose=0), expected.predict(x, verbose=0)
        np.testing.assert_allclose(*outputs, atol=1e-5, err_msg=name)
    assert doubled.layers[-1].examples == 40


def test_pixels_are_rows():
    rng = np.random.default_rng(0)
    x, y = rng.random((6, 4, 4, 2)).astype("float32"), rng.integers(3, size=(6, 4, 4))
    keras.utils.set_random_seed(0)
    body, last = keras.layers.Conv2D(5, 3, padding="same"), keras.layers.Conv2D(3, 1)
    model = keras.Sequential([keras.Input((4, 4, 2)), body, last])
    model.compile(loss=CROSS_ENTROPY)
    found = convert.laplace_head(model, (x, y), "full", 1.0)
    flat = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)])
    flat.set_weights([last.kernel[0, 0], last.bias])
    flat.compile(loss=CROSS_ENTROPY)
    features = np.asarray(body(x)).reshape(-1, 5)
    expected = convert.laplace_head(flat, (features, y.ravel()), "full", 1.0)
    np.testing.assert_allclose(
        found.predict(x, verbose=0).reshape(-1, 3), expected.predict(features, verbose=0), atol=1e-5
    )
    assert found.layers[-1].examples == 6


def test_a_thousand_classes_in_flat_memory():
    """The curvature of 1,000 classes is that of one batch of them, however many come."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(1000)])
    model.compile(loss=CROSS_ENTROPY)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 16)).astype("float32"), rng.integers(1000, size=64)
    for structure, count in (("kfac", 16**2 + 1000**2 + 17 * 1000), ("diagonal", 17 * 1000)):
        head = convert.laplace_head(model, (x, y), structure, 1.0).layers[-1]
        assert sum(w.numpy().size for w in head.non_trainable_weights) == count
    with pytest.raises(ValueError, match=r"17,000 weights .* takes 1\.1 GiB. Use 'kfac'"):
        convert.laplace_head(model, (x, y), "full")


# --- The prior -----------------------------------------------------------------------------------


@pytest.mark.dear
def test_cross_validation_takes_the_likeliest_of_rows_left_out():
    model, (x, y) = network(), examples(60)
    model.fit(x, y, epochs=30, verbose=0)
    new = examples(400, seed=1)
    found = convert.laplace_head(
        model, (x, y), prior="cross-validation", validation_data=new
    ).layers[-1]
    losses = {}
    for scale in (0.3, 0.7, 1.0, 1.4, 3.0):
        other = convert.laplace_head(model, (x, y), prior=scale * found.prior_scale)
        other.compile(loss=CROSS_ENTROPY)
        losses[scale] = other.evaluate(*new, verbose=0)
    assert min(losses, key=losses.get) == 1.0, losses


def left_out_loss(model, x, y, inside, prior):
    """Of the rows `inside`, under the weights of one step of Newton's method on the others."""
    features = np.pad(model.layers[0](x), [(0, 0), (0, 1)], constant_values=1.0)
    weights = np.concatenate([model.layers[-1].kernel, model.layers[-1].bias[None]])
    residuals = np.eye(3)[y] - special.softmax(features @ weights, axis=-1)
    gradient = features[~inside].T @ residuals[~inside] - weights / prior**2
    features = features[inside]
    head = convert.laplace_head(model, (x[~inside], y[~inside]), "full", prior).layers[-1]
    covariance = covariance_of(head)
    weights = weights + (covariance @ gradient.T.ravel()).reshape(3, -1).T
    jacobian = np.einsum("uv,nf->nuvf", np.eye(3), features).reshape(-1, 3, weights.size)
    variance = np.einsum("nup,pq,nuq->nu", jacobian, covariance, jacobian)
    logits = features @ weights / np.sqrt(1 + np.pi / 8 * variance)
    return -special.log_softmax(logits, axis=-1)[np.arange(inside.sum()), y[inside]].sum()


@pytest.mark.parametrize("structure", STRUCTURES)
def test_covariance_times_weights(structure):
    head = laplace("classification", structure).layers[-1]
    found = curvature("classification", structure)[0].gaussian()
    weights = np.random.default_rng(0).normal(size=(5, 3))
    expected = (covariance_of(head) @ weights.T.ravel()).reshape(3, 5).T
    np.testing.assert_allclose(found.applied(weights, PRECISION), expected, atol=1e-5)


@pytest.mark.dear
def test_folds_leave_rows_out():
    model, (x, y) = network(), examples(60)
    model.fit(x, y, epochs=30, verbose=0)
    found = convert.laplace_head(model, (x, y), "full", "cross-validation", batch_size=13)
    losses = {}
    for scale in (0.7, 1.0, 1.4):
        prior, folds = scale * found.layers[-1].prior_scale, np.arange(60) % 5
        losses[scale] = sum(left_out_loss(model, x, y, folds == f, prior) for f in range(5))
    assert min(losses, key=losses.get) == 1.0, losses


def test_cross_validation_is_the_same_whatever_the_batches():
    model, (x, y) = network(), examples(600)
    found = [
        convert.laplace_head(model, (x, y), "kfac", "cross-validation", batch_size=size)
        for size in (50, 600)  # read in three blocks, and in one
    ]
    scales = [each.layers[-1].prior_scale for each in found]
    np.testing.assert_allclose(*scales, rtol=1e-6)


# --- What a model with the head does -------------------------------------------------------------


def test_the_trained_network_stays():
    model, (x, y) = network(), examples()
    before, predicted = model.get_weights(), model.predict(x, verbose=0)
    bayesian = convert.laplace_head(model, (x, y))
    for old, new in zip(before, bayesian.get_weights()[: len(before)], strict=True):
        np.testing.assert_array_equal(old, new)
    model.fit(x, y, verbose=0)  # training one does not train the other
    mean = bayesian.layers[-1].mean_logits(bayesian.layers[1](x))
    np.testing.assert_allclose(mean, predicted, atol=1e-6)
    report = convert.report(bayesian)
    assert list(report.converted.values()) == [("Dense", "LastLayerLaplace")]


def test_training_on_is_refused():
    model, (x, y) = network(), examples()
    bayesian = convert.laplace_head(model, (x, y))
    bayesian.compile("adam", CROSS_ENTROPY)
    with pytest.raises(ValueError, match=r"`training` must be False .* filled from 50 examples"):
        bayesian.fit(x, y, verbose=0)
    again = convert.laplace_head(bayesian, (x, y), "diagonal")  # of the same means
    assert again.layers[-1].structure == "diagonal"


@pytest.mark.slow_cases("diagonal", "full")
@pytest.mark.parametrize("structure", STRUCTURES)
def test_saved_and_loaded(structure, tmp_path):
    x, y = examples()
    model = convert.laplace_head(network(), (x, y), structure)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
    head, other = model.layers[-1], loaded.layers[-1]
    assert (
        (head.examples, head.prior_scale)
        == (other.examples, other.prior_scale)
        == (
            50,
            other.prior_scale,
        )
    )
    assert other.log_marginal_likelihood == head.log_marginal_likelihood
    draws = [predictive.sample_predictions(each, x, 3) for each in (model, loaded)]
    np.testing.assert_array_equal(*draws)


@pytest.mark.slow_cases("probit", "mean")
@pytest.mark.parametrize("predictive_way", ["fixed_samples", "probit", "mean"])
def test_exported(predictive_way, tmp_path):
    x, y = examples()
    model = convert.laplace_head(network(), (x, y))
    count = 4 if predictive_way == "fixed_samples" else None
    export.export(model, tmp_path / "served", num_samples=count, predictive=predictive_way)
    served = tf.saved_model.load(tmp_path / "served").signatures["serving_default"]
    found = served(tf.constant(x))["probabilities"]
    if predictive_way == "fixed_samples":
        expected = predictive.predict_uncertainty(model, x, 4).probs
    else:
        head, features = model.layers[-1], model.layers[1](x)
        mean = head.mean_logits(features).numpy()
        expected = special.softmax(mean if predictive_way == "mean" else model(x).numpy(), axis=-1)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_numbers_in_closed_form_are_the_mixture_of_draws():
    """Means and variances of 2,000 draws: within 6 standard errors, once in 10^7 here."""
    x, _ = examples()
    y = (x[:, :1] + 0.3 * x[:, 1:2] ** 2).astype("float32")
    model = network(keras.layers.Dense(1), "mse")
    model.fit(x, y, epochs=5, verbose=0)
    bayesian = convert.laplace_head(model, (x, y))
    assert isinstance(bayesian.layers[-1], LastLayerLaplaceRegression)
    closed = predictive.predict_uncertainty(bayesian, x[:3])
    np.testing.assert_allclose(closed.mean, model.predict(x[:3], verbose=0), atol=1e-6)
    draws = predictive.sample_predictions(bayesian, x[:3], 2000)
    means = draws[..., :1]
    error = 6 * closed.epistemic_std / 2000**0.5
    assert np.all(np.abs(means.mean(axis=0) - closed.mean) < error)
    ratio = means.var(axis=0) / closed.epistemic_std**2
    assert np.all(np.abs(ratio - 1) < 6 * (2 / 2000) ** 0.5)


def test_dropout_in_the_body_takes_part_in_draws_alone():
    x, y = examples()
    layers = [keras.layers.Dense(6, "tanh"), MCDropout(0.3), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    model.compile(loss=CROSS_ENTROPY)
    bayesian = convert.laplace_head(model, (x, y))
    assert predictive.sample_predictions(bayesian, x, 2).shape == (2, 50, 3)


def test_soft_max_and_nested_models():
    x, y = examples()
    inside = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3), keras.layers.Softmax()])
    body = keras.layers.Dense(6, "tanh")
    nested = keras.Sequential([keras.Input((4,)), body, inside])
    plain = network()
    plain.set_weights(nested.get_weights())
    expected = convert.laplace_head(plain, (x, y), "full", 1.0).predict(x, verbose=0)
    found = convert.laplace_head(nested, (x, y), "full", 1.0).predict(x, verbose=0)
    np.testing.assert_allclose(found, expected, atol=1e-5)


# --- What is refused -----------------------------------------------------------------------------


def shuffled(x, y):
    return tf.data.Dataset.from_tensor_slices((x, y)).shuffle(60).batch(16)


def zeros():
    return network(keras.layers.Dense(3, kernel_initializer="zeros"), "mse")


def two_outputs():
    inputs = keras.Input((4,))
    return keras.Model(inputs, [keras.layers.Dense(3)(inputs), keras.layers.Dense(2)(inputs)])


X, Y = examples()
REFUSED = {
    "structure": (r"`structure` must be one of 'diagonal'", lambda: (network(), (X, Y), "kron")),
    "prior": (
        r"`prior` must be one of .*'marginal likelihood'.*'evidence'",
        lambda: (network(), (X, Y), "kfac", "evidence"),
    ),
    "prior of 0": (r"`prior` must be .*Received: prior=0", lambda: (network(), (X, Y), "kfac", 0)),
    "no labels": (r"`data` must hold labels: \(x, y\)", lambda: (network(), X)),
    "labels out of range": (r"labels from 0 to 2", lambda: (network(), (X, Y + 1))),
    "labels of another shape": (
        r"Received: labels of the shape \(32, 2\)",
        lambda: (network(), (X, np.eye(3)[Y][:, :2])),
    ),
    "labels that are no shares": (
        r"labels in \[0, 1\]",
        lambda: (network(), (X, 2 * np.eye(3)[Y])),
    ),
    "NaN": (r"hold finite inputs", lambda: (network(), (X * np.nan, Y))),
    "weights": (r"weights of at least 0", lambda: (network(), (X, Y, -np.ones(50)))),
    "no weights": (r"sum is above 0.*sum to \[0", lambda: (network(), (X, Y, np.zeros(50)))),
    "a head of its own": (
        r"without a posterior or label noise of its own.*VBLLDense",
        lambda: (network(VBLLDense(3, kl_weight=0.1)), (X, Y)),
    ),
    "a noisy head": (
        r"without a posterior or label noise of its own.*MCSoftmaxDenseFA",
        lambda: (network(MCSoftmaxDenseFA(3, 2, logits_only=True)), (X, Y)),
    ),
    "an activation": (
        r"must end in a linear layer.*differ by",
        lambda: (network(keras.layers.Dense(3, "relu")), (X, Y)),
    ),
    "nobody says what it is": (
        r"`from_logits` must be True",
        lambda: (network(loss=None), (X, Y)),
    ),
    "quantiles": (
        r"Received: .*QuantileDense",
        lambda: (network(QuantileDense(1), None), (X, X[:, :1])),
    ),
    "numbers of another shape": (
        r"labels of the shape \(32, 3\)",
        lambda: (network(loss="mse"), (X, X[:, :2])),
    ),
    "numbers that are predicted exactly": (
        r"does not predict exactly",
        lambda: (zeros(), (X, np.zeros((50, 3)))),
    ),
    "what is no number, behind the first batch": (
        r"Received: NaN or infinity in the batch from example 32 on",
        lambda: (network(), (np.r_[X[:49], np.nan * X[49:]], Y)),
    ),
    "two outputs": (r"Received: a model with 2 outputs", lambda: (two_outputs(), (X, Y))),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    message, arguments = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        convert.laplace_head(*arguments())


def test_folds_of_shuffled_data_are_refused():
    with pytest.raises(ValueError, match=r"come in the same order each time"):
        convert.laplace_head(network(), shuffled(X, Y), prior="cross-validation")


def test_validation_data_without_cross_validation_are_refused():
    with pytest.raises(ValueError, match=r"unless prior='cross-validation'"):
        convert.laplace_head(network(), (X, Y), validation_data=(X, Y))


def test_an_end_of_the_search_is_told():
    model = network(keras.layers.Dense(3, kernel_initializer="zeros"))
    with pytest.warns(UserWarning, match=r"at an end of the prior scales .* prior_scale=0\.001"):
        convert.laplace_head(model, (X, Y))
