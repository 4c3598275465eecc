"""Base of the detectors of out-of-distribution inputs.

A detector holds its constructor's arguments, and what it has fitted: a dict of arrays, `_state`,
that is all a file of it holds. A child names a few hooks and writes its mathematics as functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfuq._arguments import (
    ArrayLike,
    Data,
    ModelLike,
    Output,
    Self,
    check_flags,
    listed,
    shown,
    told,
)
from tfuq._models.batches import batches
from tfuq._models.feature_arrays import dtypes_of, rows_finite
from tfuq._models.features import Tap
from tfuq._models.fingerprint import check_known, fingerprint, quick_mark
from tfuq._models.finite import finite_rows
from tfuq._models.outputs import select_output
from tfuq.ensembles import DeepEnsemble
from tfuq.ood._ensemble_tap import EnsembleTap
from tfuq.ood.saving import Saved
from tfuq.ood.thresholds import Threshold, find_threshold

CHUNK = 1024  # rows that are scored at a time, which bounds the memory


def _chosen(label, output):
    """The labels of the output that is scored; None if there are several and none is named."""
    if not tf.nest.is_nested(label):
        return label
    return None if output is None else select_output(label, output)


@told
class Detector(Saved):
    """Base of the detectors: a score per example that is larger the further out it is.

    A child names `_read`, what it takes from a model; `_check`, what of cached arrays; `_shapes`,
    what it fits; `_fit` and `_score`, and `_graph_score`, the same in a graph, or None for that.
    Inside, arrays come as a tuple, examples along the first axis of each.

    Args:
        output: Which output of the model is the classification, when it has several: an index, a
            key or a field of a named tuple.
        from_logits: Whether that holds logits. By default what the last layer declares, else what
            the compiled loss says.

    Attributes:
        check_model: Whether `score` holds the model to the weights that it had when the detector
            was fitted to it. True at first.
    """

    def __init__(self, *, output: Output | None = None, from_logits: bool | None = None) -> None:
        if output is not None and not isinstance(output, (int, str)):
            raise ValueError(
                "Argument `output` must be None, an index or a name. "
                f"Received: output={shown(output)}"
            )
        if from_logits is not None:
            check_flags(from_logits=from_logits)
        self.output = output
        self.from_logits = from_logits
        self.threshold = None
        self.check_model = True
        self._known = self._mark = None  # fingerprint of the model of `fit`; of weights as checked
        self._state = {}
        self._widths = self._fit_scores = self._model = self._tap = None
        self._dtypes = ()  # names of the floating types that the features of `fit` came in

    def _told_lines(self):
        fitted = f"fitted to features of {self._widths} numbers" if self._widths else "not fitted"
        beside = "" if self._model is None else f", scores inputs with {shown(self._model)}"
        found = self.threshold
        known = "found yet: `threshold_at`" if found is None else listed(found._asdict())
        return [fitted + beside, f"threshold: {'not ' if found is None else ''}{known}"]

    # What a child names.

    _draws = False  # whether it scores draws of the network, and not its prediction

    def _tapped(self):
        """What `Tap` is to read beside the logits, as its arguments."""
        return {}

    def _read(self, batch):
        """Arrays of a batch from the model, to fit or to score."""
        raise NotImplementedError

    def _from_model(self):
        """Arguments of `_fit` that the model itself gives."""
        return {}

    def _check(self, features):
        """What the user gives as `features`, as a tuple of arrays, or a ValueError."""
        raise NotImplementedError

    def _shapes(self):
        """`{name: axes}` of what `_fit` returns; an axis is a name, `"features_0"` is known."""
        return {}

    def _fit(self, arrays, y):
        """A dict of arrays, from those that `_check` or `_read` gave, and labels as they came."""
        return {}

    def _score(self, arrays):
        """Scores `(n,)` of arrays that are finite."""
        raise NotImplementedError

    def _graph_state(self):
        """Arrays that `_graph_score` takes: what was fitted, float64."""
        return {name: np.asarray(array, "float64") for name, array in self._state.items()}

    def _graph_score(self, state, found, batch):
        """Scores `(batch,)` in a graph, and the tensors that these need to be finite.

        Args:
            state: Tensors, as `_graph_state` gives arrays.
            found: `tfuq._models.features.Found` of the batch.
            batch: Inputs, for detectors that run the model again.
        """
        raise NotImplementedError

    def _score_batch(self, batch):
        """Scores of a batch of inputs."""
        return self._scores_of(self._read(batch))

    @property
    def _needs_inputs(self):
        """Whether scores need the inputs and the model, and not only what `_read` gives."""
        return False

    def _scores_of_fit(self, arrays):
        """Scores of what was fitted, or None if these arrays do not tell."""
        return self._scores_of(arrays)

    # Fit and score.

    def fit(
        self,
        model: ModelLike | Callable[..., Any],
        x: Data,
        y: ArrayLike | None = None,
        *,
        batch_size: int = 32,
        verbose: int = 0,
    ) -> Self:
        """Fits to in-distribution examples, those that the model was trained on.

        The model runs as when it predicts: no dropout, batch statistics frozen.

        Args:
            model: Keras model of any style that classifies, or a `tfuq.ensembles.DeepEnsemble`, of
                which the mean probabilities or logits are scored, and the features of all members
                side by side. It is kept, not copied. `KNN`, `Mahalanobis` and `Gram` take a
                regression, too: its examples count as one class, and `y` is ignored.
            x: Inputs: an array (or what the model takes), `(x, y)`, a `tf.data.Dataset` or a
                `keras.utils.PyDataset` of batches of inputs or of pairs.
            y: Labels, sparse or one-hot, if they are not in `x`. Only the detectors that say so
                need labels.
            batch_size: Examples at a time, for arrays; datasets have their own.
            verbose: 1 shows a progress bar.

        Returns:
            The detector.

        Raises:
            ValueError: If data are empty, not finite, or too few; if labels are needed and missing;
                if the model has no such layer, or does not return a prediction per example.
        """
        self._bind(model)
        arrays, y = self._gathered(x, y, batch_size, verbose)
        self._use(self._tap)
        return self._learn("x", arrays, y, **self._from_model())._know_model()

    def _gathered(self, x, y, batch_size, verbose):
        """What it takes of the model, and labels, of all inputs to fit to."""
        parts, labels, data = [], [], x if y is None else (x, y)
        for batch, label, _ in batches(data, batch_size, verbose, model=self._model, finite=True):
            parts.append(self._read(batch))
            labels.append(_chosen(label, self.output))
        arrays = tuple(np.concatenate(columns) for columns in zip(*parts, strict=True))
        y = None if labels[0] is None else np.concatenate([np.asarray(part) for part in labels])
        if getattr(self._tap, "is_of_numbers", False):
            y = np.zeros(len(arrays[0]), "int64")
        return arrays, y

    def _use(self, tap):
        """Takes a `Tap` of its model that has seen a batch, and how fine features of it are."""
        self._tap = tap
        self._dtypes = tap.dtypes if tap else ()

    def fit_features(
        self, features: ArrayLike | Sequence[ArrayLike], y: ArrayLike | None = None
    ) -> Self:
        """Fits to arrays instead of a model and its inputs.

        Args:
            features: What the detector takes of a model, as its description says, examples along
                the first axis.
            y: Labels, sparse or one-hot, where they are needed.

        Returns:
            The detector. `score` needs a model: assign `detector.model`.

        Raises:
            ValueError: If arrays are empty, not finite, of a wrong shape, or too few; if labels are
                needed and missing.
        """
        return self._learn("features", self._given(features), y)

    def _given(self, features):
        """What the user gives to fit to, checked; how fine its numbers are is noted."""
        arrays = self._check(features)
        dtypes = dtypes_of(features if isinstance(features, (list, tuple)) else [features])
        self._dtypes = dtypes if len(dtypes) == len(arrays) else (None,) * len(arrays)
        return arrays

    def _learn(self, name, arrays, y, **more):
        if not np.all(rows_finite(arrays)):
            raise ValueError(f"Argument `{name}` must give finite features. Received: NaN or inf")
        self.threshold = self._known = None
        self._state = self._fit(arrays, y, **more)
        self._widths = [array.shape[-1] for array in arrays]
        self._fit_scores = self._scores_of_fit(arrays)
        return self

    def score(self, x: Data, *, batch_size: int = 32, verbose: int = 0) -> np.ndarray:
        """How far out of distribution each example is; the larger, the further.

        Args:
            x: Inputs, as for `fit`; labels are ignored.
            batch_size: Examples at a time, for arrays.
            verbose: 1 shows a progress bar.

        Returns:
            Array `(n,)`, float64. What is not finite, as an input or as a feature of it, scores
            inf: it is unknown.

        Raises:
            ValueError: If the detector is not fitted, or has no model, or one of other weights than
                it was fitted to; if `x` is empty.
        """
        self._check_to_score()
        scores = [
            np.where(finite_rows(batch), self._score_batch(batch), np.inf)
            for batch, *_ in batches(x, batch_size, verbose, model=self._model)
        ]
        return np.concatenate(scores)

    def _check_to_score(self):
        """Raises ValueError unless it is fitted, and has the model that it was fitted to."""
        self._check_fitted()
        if self._model is None:
            raise ValueError(
                "Argument `model` must be given to score inputs: call `fit(model, x)`, "
                "`load(path, model=model)` or set `detector.model`. Received: no model"
            )
        self._check_model()

    def score_features(self, features: ArrayLike | Sequence[ArrayLike]) -> np.ndarray:
        """As `score`, of arrays as `fit_features` takes them.

        Returns:
            Array `(n,)`, float64; inf where features are not finite.

        Raises:
            ValueError: If the detector is not fitted, or the arrays are not of its shape.
        """
        self._check_fitted()
        return self._scores_of(self._check(features))

    def _scores_of(self, arrays):
        self._check_widths(arrays)
        return self._guarded(arrays, self._score)

    def _check_widths(self, arrays):
        widths = [array.shape[-1] for array in arrays]
        if self._widths is not None and widths != self._widths:
            raise ValueError(
                f"Argument `features` must have as many columns as were fitted, {self._widths}. "
                f"Received: {widths}"
            )

    def _guarded(self, arrays, score):
        """`score(arrays)`, a chunk at a time, of the rows that are finite; inf of the others."""
        scores = []
        for start in range(0, len(arrays[0]), CHUNK):
            rows = [array[start : start + CHUNK] for array in arrays]
            finite = rows_finite(rows)
            found = np.full(len(finite), np.inf)
            if finite.any():
                found[finite] = score(tuple(array[finite] for array in rows))
            scores.append(np.where(np.isnan(found), np.inf, found))
        return np.concatenate(scores)

    def _check_fitted(self):
        if any(name not in self._state for name in self._shapes()):
            raise ValueError(
                f"Argument `detector` must be fitted: call `fit` or `fit_features` first. "
                f"Received: a {type(self).__name__} that is not"
            )

    @property
    def model(self) -> Any:
        """The model whose inputs are scored; None if there is none yet."""
        return self._model

    @model.setter
    def model(self, model: ModelLike | Callable[..., Any]) -> None:
        self._bind(model)
        self._mark = None
        self._check_model()

    def _know_model(self):
        """Remembers the model as it is; of a function nothing is known."""
        self._known = fingerprint(self._model, self._draws)
        self._mark = quick_mark(self._model, self._draws)
        return self

    def _check_model(self):
        """Raises ValueError if the model is another than `fit` was given, or was trained since."""
        if self._known is None or not self.check_model:
            return
        mark = quick_mark(self._model, self._draws)
        if mark != self._mark:
            check_known(self._known, self._model, self._draws)
            self._mark = mark

    def _bind(self, model):
        options = {"output": self.output, "from_logits": self.from_logits, **self._tapped()}
        options["reader"] = type(self).__name__
        kind = EnsembleTap if isinstance(model, DeepEnsemble) else Tap
        self._tap = kind(model, **options)
        self._model = model

    # Decide.

    def threshold_at(
        self,
        tpr: float = 0.95,
        x: Data | None = None,
        *,
        scores: ArrayLike | None = None,
        confidence: float = 0.95,
        batch_size: int = 32,
        verbose: int = 0,
    ) -> Threshold:
        """Finds, and keeps for `detect`, the threshold that accepts a fraction of good inputs.

        Formula:

        ```
        value = s_(k),  k = ceil(tpr n),  of the n sorted in-distribution scores
        [s_(l), s_(u)]: P(B < l), P(B >= u) <= (1 - confidence) / 2,  B ~ Binomial(n, tpr)
        ```

        The interval is distribution-free: it holds the quantile of order `tpr` of the scores, with
        at least this probability, if the n examples are independent draws. Inputs that a detector
        was fitted to score lower than others, the more so the more it fits: give inputs that it has
        not seen.

        Args:
            tpr: Fraction of in-distribution data to accept, above 0 and at most 1.
            x: In-distribution inputs, best held out from `fit`; as for `score`.
            scores: Their scores `(n,)`, instead of `x`. With neither, those of the data of `fit`.
            confidence: Probability of the interval, in (0, 1).
            batch_size: Examples at a time, for arrays.
            verbose: 1 shows a progress bar.

        Returns:
            `Threshold`.

        Raises:
            ValueError: If an argument is out of its range, the scores are empty or NaN, or there
                are none.
        """
        if x is not None and scores is not None:
            raise ValueError("Argument `scores` must be None where `x` is given. Received: both")
        if x is not None:
            scores = self.score(x, batch_size=batch_size, verbose=verbose)
        elif scores is None:
            self._check_fitted()
            scores = self._own_scores()
        self.threshold = find_threshold(scores, tpr, confidence)
        return self.threshold

    def _own_scores(self):
        """Scores of the data of `fit`."""
        if self._fit_scores is None:
            raise ValueError(
                "Argument `x` must be given, or `scores`: there are no scores of the data of "
                "`fit`. Received: neither"
            )
        return self._fit_scores

    def detect(self, x: Data, *, batch_size: int = 32, verbose: int = 0) -> np.ndarray:
        """Whether each example is out of distribution: scores above the threshold.

        Args:
            x: Inputs, as for `score`.
            batch_size: Examples at a time, for arrays.
            verbose: 1 shows a progress bar.

        Returns:
            Array `(n,)`, bool. What is not finite is detected.

        Raises:
            ValueError: If there is no threshold: call `threshold_at` first.
        """
        if self.threshold is None:
            raise ValueError(
                "Argument `threshold` must be found before `detect`: call `threshold_at`. "
                "Received: no threshold"
            )
        scores = self.score(x, batch_size=batch_size, verbose=verbose)
        return (scores > self.threshold.value) | np.isposinf(scores)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"output": self.output, "from_logits": self.from_logits}
