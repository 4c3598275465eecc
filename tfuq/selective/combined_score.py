"""Several scores joined into one, each in its own unit of what is usual, as a detector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfuq._arguments import ArrayLike, Data, ModelLike, Output, Self, check_choice, register, shown
from tfuq._models.feature_arrays import check_rows
from tfuq._predictions.scores import GIVEN
from tfuq._predictions.stacks import Kind, read_stack
from tfuq.ood.base import Detector
from tfuq.selective._combined_parts import (
    PROBS,
    Taps,
    at,
    checked_scores,
    checked_weights,
    common,
    content_of,
    of_part,
    of_probs,
    probs_of,
    rank,
    scores_of_own,
    side_by_side,
)
from tfuq.selective._row_hashes import (
    floats_of_sketch,
    remember_scores,
    score_hashes,
    sketch,
    sketch_of_floats,
)

__all__ = ["CombinedScore"]

SCALES = ("std", "rank")
MOST_KNOTS = 1001  # of a distribution, between which ranks are interpolated
ROWS = ("row_counts", "row_hashes")
OWN = ("knots", "center", "spread")


@register
class CombinedScore(Detector):
    """Weighted sum of several scores, brought to one scale on separate rows.

    Use it for a rule that has to reject for several reasons: an unsure answer, an input far from
    the training data, a likely error. It works as a detector of `tfuq.ood`: `fit`, `score`, `save`,
    in exports and on the command line (`--ood`), and as the score of a rule,
    `RejectionRule.fit_model(model, data, score=combined)`. Such a rule refuses the rows that the
    score was fitted to, as far as it recognizes them.

    Formula: score = sum_i w_i u_i(s_i) / sum_i w_i, for scores s_i that grow with uncertainty. With
    `scale="std"`, u(s) = (s - mean) / standard deviation on the rows of `fit`. With `scale="rank"`,
    u(s) is the share of these rows with a smaller score, counting half of the equal ones: outliers
    do not move it, but it is the same for every score beyond the largest.

    `fit_features` and `score_features` take a dict: for each detector and each `"given"` score an
    array `(n,)`, larger for less certain examples (for a fitted detector the result of its
    `score(x)`); for scores of predictions `"probs"`, `(n, classes)`, logits with
    `from_logits=True`.

    Args:
        scores: Two or more, in a list or a dict with a name for each: the name of a score of single
            predictions (`"confidence"`, `"margin"`, `"predictive_entropy"`, `"pnorm(3)"`); a
            detector of `tfuq.ood` that runs in a graph, or `ErrorPredictor`; a function of
            probabilities `(n, classes)` that returns `(n,)`, larger for the less certain, written
            with `keras.ops` and registered (`keras.saving.register_keras_serializable`) if it is to
            be saved; `"given"`, an array that you pass, not for `fit`. A fitted detector stays as
            it is, and the rows of `fit` may differ from its own: held-out rows are more typical.
            `fit` fits the other detectors to its own rows.
        weights: A number of at least 0 for each, not all 0, in the same order or as a dict of the
            same names; None for equal ones. If you choose weights by looking at labels, use
            separate rows for that, too.
        scale: `"std"` or `"rank"`.
        output: Which output of the model is the classification; None for that of the detectors.
        from_logits: Whether that holds logits, likewise.

    Raises:
        ValueError: If an argument is not as described, names repeat, or detectors look at different
            outputs; in `fit`, if a score is the same for all rows.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.ood import KNN
    from tfuq.selective import CombinedScore, RejectionRule

    x = np.random.default_rng(0).normal(size=(900, 4)).astype("float32")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "softmax")])
    model.set_weights([3 * np.eye(4)[:, :3], np.zeros(3)])
    score = CombinedScore([KNN(k=5), "confidence"], weights=[1, 2]).fit(model, x[:300])
    data = x[300:], x[300:, :3].argmax(-1)
    rule = RejectionRule.fit_model(model, data, score=score, target_risk=0.05)
    whole = rule.append_to(model, detector=score)
    print(whole.predict(x[:5], verbose=0)["accept"])
    ```

    See also: `tfuq.selective.best_score`, `tfuq.selective.ErrorPredictor`, `tfuq.ood.SIRC`.
    """

    def __init__(
        self,
        scores: Any,
        weights: Any = None,
        scale: str = "std",
        *,
        output: Output | None = None,
        from_logits: bool | None = None,
    ) -> None:
        check_choice("scale", scale, SCALES)
        self.scores = checked_scores(scores)
        self.weights = checked_weights(weights, self.scores)
        self.scale = scale
        self._detectors = {n: s for n, s in self.scores.items() if isinstance(s, Detector)}
        self._kept = {name for name, each in self._detectors.items() if each._state}
        options = {"output": output, "from_logits": from_logits}
        super().__init__(**{n: common(n, v, self._detectors) for n, v in options.items()})

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, JSON."""
        config = {"scores": {name: content_of(score) for name, score in self.scores.items()}}
        return {**super().get_config(), **config, "weights": self.weights, "scale": self.scale}

    # What the model says.

    def _bind(self, model):
        self._check_comes_from_model()
        for detector in self._detectors.values():
            if detector._model is not model:
                detector.model = model
            detector._check_model()
        super()._bind(model)
        self._tap = Taps(self._tap, [each._tap for each in self._detectors.values()])

    def _tapped(self):
        taps = [each._tap for each in self._detectors.values()]
        return {"layers": tuple(layer for tap in taps for layer in tap.layers)}

    def _check_comes_from_model(self):
        given = [name for name, score in self.scores.items() if score == GIVEN]
        if given:
            raise ValueError(
                "Argument `scores` must come from the model where inputs are scored: take "
                "`fit_features` and `score_features` for scores that are given. "
                f"Received: {given} of {shown(GIVEN)}"
            )

    def _read(self, batch):
        logits = self._tap(batch).logits
        if logits.ndim != 2 or (self._tap.reading.multi_label and logits.shape[1] > 2):
            raise ValueError(
                "Argument `model` must make one prediction of classes per example. "
                f"Received: logits of shape {logits.shape}"
            )
        probs = probs_of(logits)
        columns = [
            of_probs(name, score, probs)
            if name not in self._detectors
            else self._detectors[name]._score_batch(batch)
            for name, score in self.scores.items()
        ]
        return (side_by_side(columns),)

    def _check(self, features):
        given = [n for n, s in self.scores.items() if n in self._detectors or s == GIVEN]
        wanted = given if len(given) == len(self.scores) else [*given, PROBS]
        if not isinstance(features, dict) or set(features) != set(wanted):
            found = sorted(features) if isinstance(features, dict) else shown(features)
            raise ValueError(
                f"Argument `features` must be a dict of arrays, {wanted}. Received: {found}"
            )
        arrays = {name: check_rows("features", features[name], ndim=1) for name in given}
        if PROBS in wanted:
            kind = Kind(np.ndim(features[PROBS]), bool(self.from_logits), False)
            arrays[PROBS] = read_stack(features[PROBS], kind, False, "features")[0]
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(
                "Argument `features` must hold as many rows of each score. "
                f"Received: {lengths} rows"
            )
        columns = [
            arrays[name] if name in given else of_probs(name, score, arrays[PROBS])
            for name, score in self.scores.items()
        ]
        return (side_by_side(columns),)

    # Fit and score.

    def fit(
        self,
        model: ModelLike,
        x: Data,
        y: ArrayLike | None = None,
        *,
        batch_size: int = 32,
        verbose: int = 0,
    ) -> Self:
        """Finds what is usual of each score; fits the detectors that were not when they were given.

        Args:
            model: As for the detectors of `tfuq.ood`.
            x: Inputs, as there; of rows that no rule is fitted to.
            y: Labels, for detectors that need them.
            batch_size: Examples at a time, for arrays.
            verbose: 1 shows a progress bar.

        Returns:
            The score.

        Raises:
            ValueError: As there; if a detector that is fitted is of a model of other weights, or a
                score is the same for all rows.
        """
        self._check_comes_from_model()
        for name, detector in self._detectors.items():
            if name not in self._kept:
                detector.fit(model, x, y, batch_size=batch_size, verbose=verbose)
        return super().fit(model, x, y, batch_size=batch_size, verbose=verbose)

    def fit_features(
        self, features: ArrayLike | Sequence[ArrayLike], y: ArrayLike | None = None
    ) -> Self:
        """Finds what is usual of each score, of arrays.

        Args:
            features: A dict, as the class describes it.
            y: Not looked at.

        Returns:
            The score.

        Raises:
            ValueError: If arrays do not fit together, or a detector is not fitted.
        """
        self._check_detectors(self._detectors.keys() - self._kept)
        return super().fit_features(features, y)

    def _check_detectors(self, unfitted):
        for name in sorted(unfitted):
            raise ValueError(
                "Argument `scores` must hold detectors that are fitted: call `fit(model, x)`, or "
                f"let scores that come as arrays be 'given'. Received: {name!r}, a "
                f"{type(self._detectors[name]).__name__} that is not"
            )

    def _fit(self, arrays, y):
        columns = arrays[0].copy()
        fresh = [name for name in self._detectors if name not in self._kept]
        for name in fresh:  # without itself, where the detector looks so
            place = list(self.scores).index(name)
            columns[:, place] = scores_of_own(self._detectors[name], columns[:, place])
        center, spread = columns.mean(axis=0), columns.std(axis=0)
        same = spread <= 1e-12 * np.maximum(1, np.abs(columns).max(axis=0))
        if same.any():
            place = int(np.argmax(same))
            name = list(self.scores)[place]
            raise ValueError(
                "Argument `scores` must hold scores that differ between rows, or they tell nothing "
                f"apart. Received: {name!r}, {center[place]:g} for all of {len(columns)} rows"
            )
        levels = np.linspace(0, 1, min(MOST_KNOTS, len(columns)))
        state = {"knots": np.quantile(columns, levels, axis=0), "center": center, "spread": spread}
        joined = np.asarray(self._joined(tf.constant(arrays[0]), state))
        known = sketch(score_hashes(joined))
        state |= dict(zip(ROWS, floats_of_sketch(known), strict=True))
        for place, detector in enumerate(self._detectors.values()):
            state |= {at(place, name): array for name, array in detector._state.items()}
            state[at(place, "widths")] = np.array(detector._widths, "float64")
        self._has_fresh = bool(fresh)
        return state

    def _scores_of_fit(self, arrays):
        return None if self._has_fresh else self._scores_of(arrays)

    def _shapes(self):
        shapes = {"knots": ("knots", "features_0"), "center": ("features_0",)}
        shapes |= {"spread": ("features_0",), "row_counts": ("three",), "row_hashes": ("k", "two")}
        for place, detector in enumerate(self._detectors.values()):
            inner = detector._shapes().items()
            shapes |= {at(place, n): tuple(at(place, axis) for axis in axes) for n, axes in inner}
            shapes[at(place, "widths")] = (at(place, "arrays"),)
        return shapes

    def _restore(self, header, arrays):
        for place, detector in enumerate(self._detectors.values()):
            of_it = of_part(place, {n.removeprefix("state/"): a for n, a in arrays.items()})
            widths = [int(width) for width in np.ravel(of_it.pop("widths", ()))]
            of_it = {f"state/{name}": array for name, array in of_it.items()}
            detector._restore({"widths": widths, "threshold": None}, of_it)
        super()._restore(header, arrays)
        self._kept = set(self._detectors)

    def _score(self, arrays):
        return np.asarray(self._joined(tf.constant(arrays[0], "float64"), self._state))

    def _joined(self, columns, state):
        """The weighted mean `(n,)` of scores `(n, scores)`, each in its own unit."""
        weights = np.array(list(self.weights.values()), "float64")
        if self.scale == "std":
            units = (columns - state["center"]) / state["spread"]
        else:
            knots = tf.unstack(tf.convert_to_tensor(state["knots"]), axis=1)
            pairs = zip(tf.unstack(columns, num=len(knots), axis=1), knots, strict=True)
            units = tf.stack([rank(*pair) for pair in pairs], axis=1)
        return tf.linalg.matvec(units, weights / weights.sum())

    def _graph_state(self):
        state = {name: np.asarray(self._state[name], "float64") for name in OWN}
        for place, detector in enumerate(self._detectors.values()):
            state |= {at(place, n): array for n, array in detector._graph_state().items()}
        return state

    def _graph_score(self, state, found, batch):
        columns, needed, start = {}, [found.logits], 0
        for place, (name, detector) in enumerate(self._detectors.items()):
            end = start + len(detector._tap.layers)
            own, start = found._replace(features=found.features[start:end]), end
            column, arrays = detector._graph_score(of_part(place, state), own, batch)
            columns[name], needed = column, [*needed, *arrays]
        probs = probs_of(found.logits)
        columns = [
            columns[name] if name in columns else of_probs(name, score, probs)
            for name, score in self.scores.items()
        ]
        columns = tf.stack([tf.cast(column, "float64") for column in columns], axis=1)
        return self._joined(columns, state), [*needed, columns]

    def score(self, x: Data, *, batch_size: int = 32, verbose: int = 0) -> np.ndarray:
        """The joined score of each example, larger for the less certain.

        Args:
            x: Inputs, as for `fit`; labels are not looked at.
            batch_size: Examples at a time, for arrays.
            verbose: 1 shows a progress bar.

        Returns:
            Array `(n,)`, float64; inf where one of the scores is not finite.

        Raises:
            ValueError: If it is not fitted, has no model, or one of other weights; if `x` is empty.
        """
        scores = super().score(x, batch_size=batch_size, verbose=verbose)
        self.note_scores(scores)
        return scores

    def score_features(self, features: ArrayLike | Sequence[ArrayLike]) -> np.ndarray:
        """As `score`, of arrays as `fit_features` takes them."""
        scores = super().score_features(features)
        self.note_scores(scores)
        return scores

    def note_scores(self, scores: Any) -> None:
        """Lets rules that are fitted to these scores know which rows they must not stand on."""
        known = sketch_of_floats(*(self._state[name] for name in ROWS))
        remember_scores(scores, type(self).__name__, known, of_scores=True)
        for detector in self._detectors.values():
            if hasattr(detector, "note_scores"):
                detector.note_scores(scores)
