"""Evaluation of a model on generated images whose mixture of classes is known."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np

from tfuq._arguments import ArrayLike, Output, check_choice, check_integer, shown, to_float64, told
from tfuq._files.tables import markdown_table
from tfuq._math.bins import width_index
from tfuq._models.batches import batches
from tfuq._models.meaning import reading_of
from tfuq._predictions.probabilities import are_inside, both_classes, sum_to_one


@told
class SyntheticEvaluation(NamedTuple):
    """How posteriors of generated images follow their mixing ratios, for one or several models.

    Fields:
        mixing: Mean mixing ratio of each class, `(classes,)`.
        estimates: Mean posterior of each class, `(models, classes)`.
        correlation: Pearson's, over images, of ratio and posterior of each class, `(models,
            classes)`; NaN where one of them is constant.
        deviation: Mean over images and classes of |posterior - ratio|, `(models,)`.
        kl_divergence: Of each image, `(models, images)`, in nats: sum_c m_c log(m_c / p_c) of ratio
            m and posterior p; 0 if they agree.
        counts: Images of which the ratio of a class is in each bin, `(classes, bins)`; bins are of
            equal width over [0, 1].
        bin_mixing: Mean ratio of these, `(classes, bins)`; NaN where there are none.
        bin_estimates: Mean posterior of these, `(models, classes, bins)`.

    Example:

    ```python
    import numpy as np
    from tfuq.preprocessing import evaluate_synthetic

    share = np.linspace(0, 1, 11)  # of class 1; here the image is its own answer
    found = evaluate_synthetic(lambda x: np.stack([1 - x, x], -1), share, share, n_bins=2)
    print(found.estimates, found.counts[1], found.bin_estimates[0, 1])  # ... [5 6] [0.2 0.75]
    print(found.to_markdown())
    ```

    See also: `tfuq.preprocessing.evaluate_synthetic`.
    """

    mixing: np.ndarray
    estimates: np.ndarray
    correlation: np.ndarray
    deviation: np.ndarray
    kl_divergence: np.ndarray
    counts: np.ndarray
    bin_mixing: np.ndarray
    bin_estimates: np.ndarray

    def to_markdown(self, table: str = "models") -> str:
        """A table in Markdown.

        Args:
            table: `"models"` for mean posteriors, correlation (mean over classes), deviation and KL
                divergence (mean over images) of each model, after table 5.10 of Mishra (2020);
                `"ratio"` for ratio and posterior, averaged over models, in each bin of each class.

        Returns:
            A string.

        Raises:
            ValueError: If there is no such table.
        """
        check_choice("table", table, ("models", "ratio"))
        return _markdown(*(self._models() if table == "models" else self._ratio()))

    def _models(self):
        classes = [f"class {number}" for number in range(len(self.mixing))]
        means = self.correlation.mean(axis=1), self.deviation, self.kl_divergence.mean(axis=1)
        rows = np.column_stack([self.estimates, *means])
        lines = [["mixing", *self.mixing, "", "", ""]]
        lines += [[f"model {number}", *row] for number, row in enumerate(rows)]
        if len(rows) > 1:
            lines += [["mean", *rows.mean(axis=0)], ["std", *rows.std(axis=0, ddof=1)]]
        return ["", *classes, "correlation", "deviation", "KL"], lines

    def _ratio(self):
        estimates = self.bin_estimates.mean(axis=0)
        lines = [
            [str(number), str(self.counts[number, i]), self.bin_mixing[number, i], row[i]]
            for number, row in enumerate(estimates)
            for i in np.flatnonzero(self.counts[number])
        ]
        return ["class", "images", "ratio", "posterior"], lines


def evaluate_synthetic(
    model: Any,
    images: ArrayLike,
    mixing: ArrayLike | None = None,
    *,
    n_bins: int = 10,
    batch_size: int = 128,
    output: Output | None = None,
    from_logits: bool | None = None,
    verbose: int = 0,
) -> SyntheticEvaluation:
    """Tests whether a model's posteriors follow the mixing ratios of generated images.

    Mishra (2020, section 5.7) tests that before generated images augment training data: images that
    a generative model mixed from several classes in a known ratio should, on average, get that
    ratio as their posterior, and the same one from each training of the model. If they do not, they
    would bias what learns from them.

    Args:
        model: A Keras model; or a function from a batch of images to probabilities; or a list of
            several, such as trainings of one model. Probabilities are `(n, classes)`, or `(n, 1)`
            of class 1.
        images: What the models take: arrays, or a `tf.data.Dataset` or `keras.utils.PyDataset` of
            batches of images and mixing ratios.
        mixing: Mixing ratios, for arrays: `(n, classes)`, each row with sum 1; or `(n,)` of class
            1, of two classes.
        n_bins: Number of bins of the ratio.
        batch_size: Images at a time, for arrays.
        output: Which output, when the model has several: an index, a key or a function of them.
        from_logits: Whether outputs of Keras models are logits. By default what their compiled loss
            says, or else what the outputs look like.
        verbose: 1 shows a progress bar for each model.

    Returns:
        `SyntheticEvaluation`. Posteriors of 0 count as the smallest number of float32 in the KL
        divergence, which they would make infinite.

    Raises:
        ValueError: If ratios are missing or none, outputs are no probabilities of as many classes,
            or an argument is out of its range.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.preprocessing import evaluate_synthetic

    generated, mixing = np.random.rand(20, 8, 8, 3), np.random.rand(20)  # acne, blister
    layers = [keras.layers.Flatten(), keras.layers.Dense(1, activation="sigmoid")]
    trainings = [keras.Sequential([keras.Input((8, 8, 3)), *layers])]
    print(evaluate_synthetic(trainings, generated, mixing).to_markdown())
    ```

    References:
        Mishra, "Rapid and Robust Learning for Homogeneous Image Data", 2020.

    See also: `tfuq.preprocessing.SyntheticEvaluation`, `tfuq.datasets.smote`.
    """
    check_integer("n_bins", n_bins, 1)
    models = model if isinstance(model, (list, tuple)) else [model]
    if not models:
        raise ValueError("Argument `model` must hold at least one model. Received: model=[]")
    data = images if mixing is None else (images, mixing)
    reading = reading_of(output, from_logits, None)
    answers = [_answers(each, data, reading, batch_size, verbose) for each in models]
    ratios = answers[0][1]
    for each in answers:
        if each[0].shape != ratios.shape or not np.array_equal(each[1], ratios):
            raise ValueError(
                "Argument `mixing` must have a column for each class, and be the same for all "
                f"models. Received: ratios {ratios.shape} and posteriors {each[0].shape}"
            )
    return _compared(np.stack([probs for probs, _ in answers]), ratios, n_bins)


def _compared(probs, mixing, n_bins):
    """The evaluation of posteriors `(models, n, classes)` and ratios `(n, classes)`."""
    index = np.asarray(width_index(mixing.ravel(), n_bins)).reshape(mixing.shape)
    member = index[..., None] == np.arange(n_bins)  # (n, classes, bins)
    counts = member.sum(axis=0)
    whole = np.where(counts > 0, counts, np.nan)
    ratio = np.where(mixing > 0, mixing, 1.0)
    surprise = np.log(ratio) - np.log(np.maximum(probs, np.finfo("float32").tiny))
    return SyntheticEvaluation(
        mixing.mean(axis=0),
        probs.mean(axis=1),
        _correlation(probs, mixing),
        np.abs(probs - mixing).mean(axis=(1, 2)),
        np.maximum((mixing * surprise).sum(axis=-1), 0.0),  # it is, but for rounding
        counts,
        np.einsum("nc,ncb->cb", mixing, member) / whole,
        np.einsum("mnc,ncb->mcb", probs, member) / whole,
    )


def _correlation(probs, mixing):
    one, other = (each - each.mean(axis=-2, keepdims=True) for each in (probs, mixing))
    size = np.sqrt((one**2).sum(axis=-2) * (other**2).sum(axis=-2))
    constant = (np.ptp(probs, axis=-2) == 0) | (np.ptp(mixing, axis=-2) == 0)
    return (one * other).sum(axis=-2) / np.where(constant, np.nan, size)


# --- Posteriors and ratios --------------------------------------------------------------------


def _answers(model, data, reading, batch_size, verbose):
    """Posteriors and ratios `(n, classes)` of all images."""
    is_keras = isinstance(model, keras.Model)
    if not is_keras and not callable(model):
        raise ValueError(
            "Argument `model` must be a Keras model, a function from images to probabilities, or a "
            f"list of these. Received: model={shown(model)}"
        )
    rows = []
    for batch, ratios, _ in batches(data, batch_size, verbose, "images"):
        if ratios is None:
            raise ValueError(
                "Argument `mixing` must hold the ratios of the images, or `images` pairs. "
                "Received: no ratios"
            )
        if not is_keras:
            probs = model(batch)
        else:
            reading = reading if rows else reading.known(model, batch)
            probs = reading.checked(reading.probs(model, batch))
        rows.append((_checked_rows("model", probs), _checked_rows("mixing", ratios)))
    return tuple(np.concatenate(part) for part in zip(*rows, strict=True))


def _checked_rows(name, values):
    """Probabilities `(n, classes)`, or a ValueError; those of class 1 alone are completed."""
    values = to_float64(name, values)
    if values.ndim == 1 or (values.ndim == 2 and values.shape[1] == 1):
        values = np.asarray(both_classes(values.reshape(-1)))
    expected = "give probabilities (n, classes) with sum 1, or (n,) of class 1"
    if values.ndim != 2:
        raise ValueError(f"Argument `{name}` must {expected}. Received: shape {values.shape}")
    wrong = ~np.asarray(are_inside(values) & sum_to_one(values))
    if wrong.any():
        raise ValueError(f"Argument `{name}` must {expected}. Received: {values[wrong][0]} in it")
    return np.clip(values, 0.0, 1.0)


def _markdown(header, rows):
    cells = [[each if isinstance(each, str) else f"{each:.4f}" for each in row] for row in rows]
    return markdown_table(header, cells)
