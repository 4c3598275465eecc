"""A head that predicts which answers are wrong, fitted to the errors on held-out rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfuq._arguments import Data, Output, check_integer, register
from tfuq._math.logistic_regression import logistic_regression
from tfuq._models.feature_arrays import check_labels, check_pair
from tfuq._predictions.probabilities import entropy_of_logits, probabilities
from tfuq._predictions.scores import LEAST
from tfuq.ood.feature_detector import FeatureDetector
from tfuq.selective._row_hashes import (
    floats_of_sketch,
    labelled_hashes,
    remember_scores,
    sketch,
    sketch_of_floats,
)

__all__ = ["ErrorPredictor"]

FEWEST = 10  # errors, and right answers
PENALTIES = (1.0, 10.0, 100.0, 1000.0)
FOLDS = 3
FREE = 10.0  # by which doubts are stretched: a hundredth of the penalty of all else
ROWS = ("row_counts", "row_hashes")


def doubts(logits):
    """log((1 - max p) / max p) and the entropy of each row, `(n, 2)`, float64."""
    logits = tf.cast(logits, "float64")
    top = tf.reduce_max(logits, -1, keepdims=True)
    others = tf.where(tf.equal(logits, top), tf.cast(-np.inf, logits.dtype), logits)
    ties = tf.reduce_sum(tf.cast(tf.equal(logits, top), logits.dtype), -1) - 1
    rest = tf.reduce_sum(tf.exp(others - top), -1) + ties
    return tf.stack([tf.math.log(tf.maximum(rest, LEAST)), entropy_of_logits(logits)], -1)


def centred(logits):
    logits = tf.cast(logits, "float64")
    return logits - tf.reduce_mean(logits, -1, keepdims=True)


@register
class ErrorPredictor(FeatureDetector):
    """Probability that an answer is wrong, learned from the model's own errors.

    It is a logistic regression: its inputs are the penultimate features (their first `components`
    principal components), the logits, the log-odds of the largest probability and the entropy.
    Held-out errors are few, tens to hundreds. A convex fit of some dozens of numbers has one
    solution, the same on every machine, and cross-validation chooses its ridge penalty. The last
    two columns have a hundredth of the penalty, so with very few errors it ranks as the probability
    does. A network would memorize so few errors.

    It works as a detector of `tfuq.ood`: `fit`, `score`, `save`, in exports and on the command
    line, and as the score of a rule, `RejectionRule.fit_model(model, data, score=predictor)`. It
    needs separate rows: not those of the training, which have too few errors, and not those of the
    rule, which refuses them as far as it recognizes them.

    `fit_features` and `score_features` take a pair: features `(n, d)` and logits `(n, classes)`.

    Args:
        layer: Name of the layer whose outputs are the features, as for `tfuq.ood.Mahalanobis`.
        components: Largest number of principal components of the features; 0 uses only the logits.
        output: Which output of the model is the classification, as there.
        from_logits: Whether that holds logits, as there.

    Raises:
        ValueError: If an argument is not as described; in `fit`, if labels are missing, if fewer
            than 10 answers are wrong or right, or the model does not make one prediction of classes
            per example.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.selective import ErrorPredictor, RejectionRule

    rng = np.random.default_rng(0)
    x = rng.normal(size=(1500, 4)).astype("float32")
    y = np.where(rng.random(1500) < 0.5 * (x[:, 3] > 0), 0, x[:, :3].argmax(-1))
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "softmax")])
    model.set_weights([10 * np.eye(4)[:, :3], np.zeros(3)])  # knows nothing of the last input
    predictor = ErrorPredictor().fit(model, (x[:700], y[:700]))
    rule = RejectionRule.fit_model(model, (x[700:], y[700:]), score=predictor, target_risk=0.1)
    print(rule.fitted_to["coverage"])
    ```

    References:
        - Corbiere et al., "Addressing Failure Prediction by Learning Model Confidence", NeurIPS
          2019 (a network fitted to the training rows' true-class probability).
        - Fisch, Jaakkola and Barzilay, "Calibrated Selective Classification", TMLR 2022 (small
          selectors fitted to held-out rows).

    See also: `tfuq.selective.CombinedScore`, `tfuq.selective.best_score`.
    """

    def __init__(
        self,
        layer: str | None = None,
        components: int = 32,
        *,
        output: Output | None = None,
        from_logits: bool | None = None,
    ) -> None:
        super().__init__(layer, output=output, from_logits=from_logits)
        check_integer("components", components, 0)
        self.components = components

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "components": self.components}

    def _read(self, batch):
        found = self._tap(batch)
        if found.logits.ndim != 2 or (self._tap.reading.multi_label and found.logits.shape[1] > 2):
            raise ValueError(
                "Argument `model` must make one prediction of classes per example. "
                f"Received: logits of shape {found.logits.shape}"
            )
        return *found.features, found.logits

    def _check(self, features):
        return check_pair("features", features)

    def _shapes(self):
        shapes = {"of_features": ("features_0",), "of_logits": ("features_1",)}
        shapes |= {"of_doubts": ("doubts",), "bias": ("one",)}
        return {**shapes, "row_counts": ("three",), "row_hashes": ("rows", "two")}

    def _fit(self, arrays, y):
        features, logits = arrays
        labels = check_labels(y, len(logits))
        wrong = logits.argmax(-1) != labels
        _check_errors(wrong)
        probs = np.asarray(probabilities(np.asarray(logits, "float64"), True, False))
        known = sketch(labelled_hashes(probs, labels))
        columns, parts = self._columns(np.asarray(features, "float64"), logits)
        penalty = _best_penalty(columns, wrong)
        weights, bias = logistic_regression(columns, wrong, penalty)
        found, start = {}, 0
        for name, (center, axes) in parts.items():
            part = axes @ weights[start : start + axes.shape[1]]
            found[name], start = part, start + axes.shape[1]
            bias -= center @ part
        counts, hashes = floats_of_sketch(known)
        return {**found, "bias": np.array([bias]), "row_counts": counts, "row_hashes": hashes}

    def _columns(self, features, logits):
        """What the regression is on, `(n, columns)`, and of each part its centre and axes."""
        given = {
            "of_features": features,
            "of_logits": np.asarray(centred(logits)),
            "of_doubts": np.asarray(doubts(logits)),
        }
        parts, columns = {}, []
        for name, rows in given.items():
            center, spread = rows.mean(axis=0), rows.std(axis=0)
            scale = np.where(spread > 1e-6 * max(spread.max(), 1e-300), spread, np.inf)
            if name == "of_features":
                axes = _principal((rows - center) / scale, self.components) / scale[:, None]
            else:
                axes = np.diag((FREE if name == "of_doubts" else 1.0) / scale)
            parts[name] = center, axes
            columns.append((rows - center) @ axes)
        return np.concatenate(columns, axis=1), parts

    def _score(self, arrays):
        return np.asarray(_log_odds(*arrays, self._state))

    def _graph_state(self):
        return {name: a for name, a in super()._graph_state().items() if name not in ROWS}

    def _graph_score(self, state, found, batch):
        arrays = *found.features, found.logits
        return _log_odds(*arrays, state), list(arrays)

    def score(self, x: Data, *, batch_size: int = 32, verbose: int = 0) -> np.ndarray:
        """The log-odds that each answer is wrong; `1 / (1 + exp(-score))` is the probability.

        Args:
            x: Inputs, as for `fit`; labels are not looked at.
            batch_size: Examples at a time, for arrays.
            verbose: 1 shows a progress bar.

        Returns:
            Array `(n,)`, float64; inf for what is not finite.

        Raises:
            ValueError: If the predictor is not fitted, or has no model, or one of other weights; if
                `x` is empty.
        """
        scores = super().score(x, batch_size=batch_size, verbose=verbose)
        self.note_scores(scores)
        return scores

    def note_scores(self, scores: Any) -> None:
        """Lets rules that are fitted to these scores know which rows they must not stand on."""
        known = sketch_of_floats(*(self._state[name] for name in ROWS))
        remember_scores(scores, type(self).__name__, known)


def _log_odds(features, logits, state):
    found = tf.linalg.matvec(tf.cast(features, "float64"), state["of_features"])
    found += tf.linalg.matvec(centred(logits), state["of_logits"])
    return found + tf.linalg.matvec(doubts(logits), state["of_doubts"]) + state["bias"][0]


def _principal(rows, count):
    """Axes `(d, count)` of the largest variance, each stretched to a variance of at most 1."""
    count = min(count, *rows.shape)
    is_wide = len(rows) < rows.shape[1]  # the smaller of both matrices has the same axes
    vectors = np.linalg.eigh(rows @ rows.T if is_wide else rows.T @ rows)[1][:, ::-1][:, :count]
    axes = rows.T @ vectors if is_wide else vectors
    axes /= np.maximum(np.linalg.norm(axes, axis=0), np.finfo("float64").tiny)
    spread = (rows @ axes).std(axis=0)
    return axes / np.maximum(spread, 1)


def _check_errors(wrong):
    count = int(wrong.sum())
    if min(count, len(wrong) - count) < FEWEST:
        raise ValueError(
            f"Argument `y` must make at least {FEWEST} answers wrong and {FEWEST} right: pass more "
            "rows that the model was not trained on, or use the score 'confidence', which needs "
            f"none. Received: {count} of {len(wrong)} wrong"
        )


def _best_penalty(columns, wrong):
    """The ridge penalty of the best likelihood on the folds that are left out."""
    fold = np.empty(len(wrong), int)
    for kind in (True, False):  # errors are spread over the folds
        rows = np.flatnonzero(wrong == kind)
        fold[rows] = np.arange(len(rows)) % FOLDS
    losses = []
    for penalty in PENALTIES:
        total = 0.0
        for k in range(FOLDS):
            weights, bias = logistic_regression(columns[fold != k], wrong[fold != k], penalty)
            margin = (columns[fold == k] @ weights + bias) * np.where(wrong[fold == k], 1, -1)
            total += np.logaddexp(0, -margin).sum()
        losses.append(total)
    return PENALTIES[int(np.argmin(losses))]
