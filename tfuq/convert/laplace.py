"""Laplace approximation of the last layer of a trained model."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from tfuq._arguments import Data, check_choice, check_positive, shown
from tfuq._models.batches import batches
from tfuq._models.changes import watched
from tfuq._random.draws import TakesDraws
from tfuq.convert import _laplace_tasks as tasks
from tfuq.convert._copies import check_graph, cloned
from tfuq.convert._curvature import CURVATURES
from tfuq.convert._evidence import HIGHEST, LOWEST, STEPS, best_precision, evidence, warn_of_end
from tfuq.convert._report import told
from tfuq.convert.head import layer_at_end, with_head
from tfuq.layers.heads import Head
from tfuq.layers.last_layer_laplace import LaplaceLastLayer
from tfuq.layers.ways import predicting

FOLDS = 5
BLOCK = 256  # rows that are left out at a time
PRIORS = ("marginal likelihood", "cross-validation")
SAME = 1e-3  # how far the head may be from the layer whose place it took; of half precision more


def laplace_head(
    model: keras.Model,
    data: Data,
    structure: str = "kfac",
    prior: str = "marginal likelihood",
    *,
    validation_data: Data | None = None,
    from_logits: bool | None = None,
    multi_label: bool | None = None,
    batch_size: int = 32,
    verbose: int = 0,
) -> keras.Model:
    """A copy of a trained model whose last layer has the posterior of a Laplace approximation.

    Nothing is trained: the weights stay, and become the means of a Gaussian. Its covariance is the
    inverse of the loss's curvature, summed over the data in one pass, plus the prior's. The copy
    ends in a `tfuq.layers.LastLayerLaplace`, for a regression in a `LastLayerLaplaceRegression`,
    and returns logits, or the parameters of a normal distribution. Memory holds the curvature,
    whatever the number of examples.

    Formula: see `LastLayerLaplace`. With h_i the eigenvalues of the curvature H,

    ```
    log p(y) = log p(y | theta) - |theta|^2 / (2 prior_scale^2)
               - sum_i log(1 + h_i prior_scale^2) / 2
    ```

    is the marginal likelihood. The scale of the prior maximizes it and, for a regression's `Dense`,
    so does the noise of each number (MacKay 1992).

    Args:
        model: A functional or `Sequential` Keras model with one output, from a `Dense` or a 1x1
            convolution, perhaps with an activation, or from a `NormalDense`. The layer, the
            compiled loss, or the arguments below say what the output is.
        data: `(x, y)` or `(x, y, sample_weight)` arrays, a `tf.data.Dataset` or a
            `keras.utils.PyDataset`: the training data, in the order of the epoch, once. A weight
            counts an example that many times.
        structure: `"kfac"`: Kronecker factors, `features^2 + units^2` numbers, also for 1,000
            classes. `"diagonal"`: only the variances. `"full"`: the exact covariance of all
            weights, of at most 8,192.
        prior: `"marginal likelihood"`; `"cross-validation"`, by the mean log-likelihood of held-out
            rows, from `validation_data` or from five folds of `data` (a second pass); or a number
            above 0, the standard deviation of each weight. The weights have seen the folds, so each
            fold is predicted by weights one Newton step further on the other folds, with the prior
            in question; the other layers keep theirs.
        validation_data: For `"cross-validation"`: data like `data` that the network was not trained
            on. This is better than folds.
        from_logits, multi_label: What the output is, if neither layer nor loss says it.
        batch_size: Examples at a time, where `data` are arrays.
        verbose: 1 shows a progress bar.

    Returns:
        A model of the same names, not compiled; the other layers are copies. Its last layer has the
        attributes `prior_scale`, `log_marginal_likelihood` and `examples`.

    Raises:
        ValueError: If an argument is not as described; if the model cannot be taken apart, or its
            head is no linear layer, or is random itself; if `"full"` is too large; if labels do not
            fit, or features are not finite; if data come in another order in the second pass.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.convert import laplace_head

    x, y = np.random.rand(64, 8), np.random.randint(3, size=64)
    layers = [keras.layers.Dense(16, activation="relu"), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((8,)), *layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss)
    model.fit(x, y, verbose=0)
    bayesian = laplace_head(model, (x, y), structure="kfac", prior=1.0)
    print(bayesian.predict(x, verbose=0).shape)  # (64, 3)
    ```

    References:
        - Daxberger et al.: "Laplace Redux - Effortless Bayesian Deep Learning", NeurIPS 2021.

    See also: `tfuq.layers.LastLayerLaplace`, `tfuq.convert.replace_head`, `tfuq.layers.VBLLDense`.
    """
    check_choice("structure", structure, tuple(CURVATURES))
    _check_prior(prior, validation_data)
    old = _checked_head(model)
    task = tasks.task_of(model, old, from_logits, multi_label)
    copy = cloned(model, lambda layer: None)[0]
    head = task.head(structure, old.name)
    copy = with_head(copy, 0, head)[0]
    task.start(head, old)
    reader = _Reader(model, copy, head, task, batch_size, verbose)
    folds = FOLDS if prior == "cross-validation" and validation_data is None else 1
    tallies = reader.tallies(data, CURVATURES[structure], folds)
    whole = sum(tallies[1:], tallies[0])
    squares = sum(float(np.sum(np.square(w, dtype="float64"))) for w in task.means(head))
    gaussian, likelihood = whole.curvature.gaussian(), whole.likelihood()
    if prior == "marginal likelihood":
        precision = best_precision(likelihood, squares, gaussian)
    elif prior == "cross-validation":
        precision = _cross_validated(reader, data, tallies, whole, validation_data)
    else:
        precision = float(prior) ** -2
    noise = likelihood.noise(gaussian, precision)
    task.fill(head, gaussian.spread(precision, noise), noise)
    head.prior_scale = precision**-0.5
    head.examples = whole.examples
    head.log_marginal_likelihood = float(
        evidence(likelihood.value(noise), squares, gaussian.eigenvalues(noise), precision)
    )
    return told(copy, "laplace_head", {old.name: (type(old).__name__, type(head).__name__)}, {})


def _check_prior(prior, validation_data):
    if isinstance(prior, str) or prior is None:
        if prior not in PRIORS:
            raise ValueError(
                f"Argument `prior` must be one of {shown(PRIORS)} or a number above 0, the "
                f"standard deviation of each weight. Received: prior={shown(prior)}"
            )
    else:
        check_positive("prior", prior)
    if validation_data is not None and prior != "cross-validation":
        raise ValueError(
            "Argument `validation_data` must be None unless prior='cross-validation'. "
            f"Received: validation_data with prior={shown(prior)}"
        )


def _checked_head(model):
    """The last layer, if it is one that a Laplace approximation can be made of."""
    check_graph(model)
    if len(model.outputs) != 1:
        raise ValueError(
            "Argument `model` must have one output: pass the part that leads to it, "
            f"`keras.Model(model.input, output)`. Received: a model with {len(model.outputs)} "
            "outputs"
        )
    old = layer_at_end(model)
    if isinstance(old, (Head, TakesDraws)) and not isinstance(old, LaplaceLastLayer):
        raise ValueError(
            "Argument `model` must end in a layer without a posterior or label noise of its own, "
            "such as Dense. "
            f"Received: a model that ends in {shown(old)}"
        )
    return old


class _Tally:
    """Sums over rows: of the curvature, and of what the likelihood needs."""

    def __init__(self, curvature, task):
        self.curvature, self.task = curvature, task
        self.examples, self.sums, self.seen, self.gradient = 0, task.no_sums(), 0.0, 0.0

    def add(self, rows):
        self.curvature.add(rows.x, rows.diagonal, rows.outer, rows.weight)
        self.sums = [total + more for total, more in zip(self.sums, rows.sums(), strict=True)]
        self.seen = self.seen + rows.checksum()
        self.gradient = self.gradient + rows.gradient()

    def likelihood(self):
        return self.task.likelihood(self.sums)

    def _joined(self, other, curvature, sign):
        found = _Tally(curvature, self.task)
        found.examples = self.examples + sign * other.examples
        found.sums = [a + sign * b for a, b in zip(self.sums, other.sums, strict=True)]
        found.seen = self.seen + sign * other.seen
        found.gradient = self.gradient + sign * other.gradient
        return found

    def __add__(self, other):
        return self._joined(other, self.curvature.joined(other.curvature), 1)

    def without(self, other):
        return self._joined(other, self.curvature.without(other.curvature), -1)


class _Reader:
    """Reads data by the copy of a model: what the head takes, its outputs, and labels."""

    def __init__(self, model, copy, head, task, batch_size, verbose):
        self.model, self.copy, self.head, self.task = model, copy, head, task
        self.batch_size, self.verbose = batch_size, verbose
        self._is_compared = False
        self._outputs = tf.function(self._forward, autograph=False, reduce_retracing=True)

    def _forward(self, x):
        kept = []

        def keep(call, inputs, *args, **kwargs):
            kept.append(inputs)
            return call(inputs, *args, **kwargs)

        with watched(self.head, keep), predicting("mean"):
            self.copy(x, training=False)
        if len(kept) != 1:
            raise ValueError(
                "Argument `model` must call its last layer once. "
                f"Received: {self.head.name!r}, which is called {len(kept)} times"
            )
        return tf.cast(kept[0], "float32"), self.task.outputs(self.head, kept[0])

    def rows(self, data, name):
        """Of each batch its `Rows`, and the number of the example of each row."""
        start = 0
        for x, y, weight in batches(
            data, self.batch_size, self.verbose, name, model=self.model, finite=True
        ):
            features, outputs = self._outputs(x)
            rows = self.task.rows(features.numpy(), outputs, y, weight, name)
            if not self._is_compared:
                self._compare(x, outputs)
            examples, positions = features.shape[0], int(np.prod(features.shape[1:-1]))
            yield rows, np.repeat(np.arange(start, start + examples), positions)
            start += examples

    def _compare(self, x, outputs):
        """Raises ValueError if the copy with the head is another function than the model."""
        with predicting("mean"):
            expected = self.task.said_by(self.model, x)
        found = self.task.comparable(outputs)
        dtypes = {layer.compute_dtype for layer in self.model._flatten_layers()}
        tolerance = SAME if dtypes <= {"float32", "float64"} else 30 * SAME
        difference = float(tf.reduce_max(tf.abs(found - tf.reshape(expected, found.shape))))
        size = max(1.0, float(tf.reduce_max(tf.abs(expected))))
        if not difference <= tolerance * size:
            raise ValueError(
                "Argument `model` must end in a linear layer, such as Dense without an activation "
                "or with a soft-max or sigmoid. Received: a model whose predictions differ by "
                f"{difference:.3g} from what its last weights make of the features"
            )
        self._is_compared = True

    def tallies(self, data, curvature, folds):
        """A tally of each fold: every `folds`-th example."""
        shape = (self.head.kernel.shape[0], self.task.units)
        made = [curvature(*shape, self.head.use_bias, self.task.coupled) for _ in range(folds)]
        tallies = [_Tally(each, self.task) for each in made]
        count, weights = 0, np.zeros(folds)
        for rows, numbers in self.rows(data, "data"):
            weights += np.bincount(numbers % folds, rows.weight, folds)
            for fold, tally in enumerate(tallies):
                inside = numbers % folds == fold
                if inside.any():
                    tally.add(rows.where(inside))
                    tally.examples += len(np.unique(numbers[inside]))
            count = numbers[-1] + 1
        if count < folds:
            raise ValueError(
                f"Argument `data` must hold at least {folds} examples for the folds of "
                f"prior='cross-validation'. Received: {count}"
            )
        left = weights.sum() - weights if folds > 1 else weights
        if not np.all(left > 0):
            raise ValueError(
                "Argument `data` must hold weights whose sum is above 0, for "
                "prior='cross-validation' also where one of the folds is left out. "
                f"Received: {count} examples with weights that sum to {weights} in the folds"
            )
        return tallies


def _in_blocks(batches_of_rows):
    """Rows of several batches at once: steps of Newton's method take longer than few rows."""
    kept = []
    for each in batches_of_rows:
        kept.append(each)
        if sum(len(numbers) for _, numbers in kept) >= BLOCK:
            yield _joined(kept)
            kept = []
    if kept:
        yield _joined(kept)


def _joined(kept):
    rows, numbers = zip(*kept, strict=True)
    return tasks.joined(rows), np.concatenate(numbers)


def _cross_validated(reader, data, tallies, whole, validation_data):
    """The precision of the prior under which rows that were left out are likeliest."""
    scales = np.geomspace(LOWEST, HIGHEST, STEPS)
    if validation_data is None:
        fitted = [whole.without(tally) for tally in tallies]
        found, name = data, "data"
    else:
        fitted, found, name = [whole], validation_data, "validation_data"
    parts = [(each.curvature.gaussian(), each.likelihood()) for each in fitted]
    totals, seen = np.zeros(STEPS), np.zeros(len(parts))
    weights = np.concatenate([np.atleast_2d(w) for w in reader.task.means(reader.head)])
    for rows, numbers in _in_blocks(reader.rows(found, name)):
        for fold, (gaussian, likelihood) in enumerate(parts):
            chosen = rows.where(numbers % len(parts) == fold)
            seen[fold] += chosen.checksum()
            for step, scale in enumerate(scales if len(chosen.x) else ()):
                inside, noise = chosen, likelihood.noise(gaussian, scale**-2)
                variance = gaussian.variance(chosen.x, scale**-2, noise)
                if validation_data is None:
                    step_of = fitted[fold].gradient * noise - scale**-2 * weights
                    inside = chosen.moved(gaussian.applied(step_of, scale**-2, noise))
                totals[step] += inside.log_predictive(variance, noise)
    before = np.array([tally.seen for tally in tallies])
    if validation_data is None and not np.allclose(seen, before, rtol=1e-5, atol=1e-6):
        raise ValueError(
            "Argument `data` must come in the same order each time for prior='cross-validation', "
            "which takes two passes: pass arrays, or a dataset that is not shuffled anew. "
            f"Received: {shown(data)}, whose folds have changed"
        )
    step = int(np.argmax(totals))
    if step in (0, STEPS - 1):
        warn_of_end("the likelihood of rows that were left out", scales[step])
    return scales[step] ** -2
