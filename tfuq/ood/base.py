"""What detectors of out-of-distribution inputs have in common.

A detector holds its constructor's arguments, and what it has fitted: a dict of arrays, `_state`,
that is all a file of it holds. A child names a few hooks and writes its mathematics as functions.
"""

import keras
import numpy as np
import tensorflow as tf

from tfuq._arguments import check_flags, check_integer
from tfuq._files.archives import check_shapes, read_arrays, write_arrays
from tfuq._files.reading import DAMAGE, check_fields
from tfuq._models.batches import batches
from tfuq._models.feature_arrays import check_rows, rows_finite
from tfuq._models.features import Tap
from tfuq._models.fingerprint import check_known, checked_fingerprint, fingerprint, quick_mark
from tfuq._models.finite import finite_rows
from tfuq._models.outputs import select_output
from tfuq.ood.thresholds import Threshold, find_threshold

FORMAT = 1
CHUNK = 1024  # rows that are scored at a time, which bounds the memory


def _chosen(label, output):
    """The labels of the output that is scored; None if there are several and none is named."""
    if not tf.nest.is_nested(label):
        return label
    return None if output is None else select_output(label, output)


class Detector:
    """Base of the detectors: a score per example that is larger the further out it is.

    A child names `_read`, what it takes from a model; `_check`, what of cached arrays; `_shapes`,
    what it fits; `_fit` and `_score`. Inside, arrays come as a tuple, examples along the first axis
    of each.

    Args:
        output: Which output of the model is the classification, when it has several: an index, a
            key or a field of a named tuple.
        from_logits: Whether that holds logits. By default what the last layer or the compiled loss
            says; of a model without, logits are what lies outside [0, 1] or does not sum to 1.

    Attributes:
        check_model: Whether `score` holds the model to the weights that it had when the detector
            was fitted to it. True at first.
    """

    def __init__(self, *, output=None, from_logits=None):
        if output is not None and not isinstance(output, (int, str)):
            raise ValueError(
                f"Argument `output` must be None, an index or a name. Received: output={output!r}"
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

    # What a child names.

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

    def _score_batch(self, batch):
        """Scores of a batch of inputs."""
        return self._scores_of(self._read(batch))

    def _scores_of_fit(self, arrays):
        """Scores of what was fitted, or None if these arrays do not tell."""
        return self._scores_of(arrays)

    # Fit and score.

    def fit(self, model, x, y=None, *, batch_size=32, verbose=0):
        """Fits to in-distribution examples, those that the model was trained on.

        The model runs as when it predicts: no dropout, batch statistics frozen.

        Args:
            model: Keras model of any style that classifies. It is kept, not copied.
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
        parts, labels = [], []
        for batch, label, _ in batches(x if y is None else (x, y), batch_size, verbose):
            if not np.all(finite_rows(batch)):
                raise ValueError("Argument `x` must be finite. Received: NaN or infinity in x")
            parts.append(self._read(batch))
            labels.append(_chosen(label, self.output))
        arrays = tuple(np.concatenate(columns) for columns in zip(*parts, strict=True))
        y = None if labels[0] is None else np.concatenate([np.asarray(part) for part in labels])
        return self._learn("x", arrays, y, **self._from_model())._know_model()

    def fit_features(self, features, y=None):
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
        return self._learn("features", self._check(features), y)

    def _learn(self, name, arrays, y, **more):
        if not np.all(rows_finite(arrays)):
            raise ValueError(f"Argument `{name}` must give finite features. Received: NaN or inf")
        self.threshold = self._known = None
        self._state = self._fit(arrays, y, **more)
        self._widths = [array.shape[-1] for array in arrays]
        self._fit_scores = self._scores_of_fit(arrays)
        return self

    def score(self, x, *, batch_size=32, verbose=0):
        """How far out of distribution each example is; the larger, the further.

        Args:
            x: Inputs, as for `fit`; labels are not looked at.
            batch_size: Examples at a time, for arrays.
            verbose: 1 shows a progress bar.

        Returns:
            Array `(n,)`, float64. What is not finite, as an input or as a feature of it, scores
            inf: it is unknown.

        Raises:
            ValueError: If the detector is not fitted, or has no model, or one of other weights than
                it was fitted to; if `x` is empty.
        """
        self._check_fitted()
        if self._model is None:
            raise ValueError(
                "Argument `model` must be given to score inputs: call `fit(model, x)`, "
                "`load(path, model=model)` or set `detector.model`. Received: no model"
            )
        self._check_model()
        found = [
            np.where(finite_rows(batch), self._score_batch(batch), np.inf)
            for batch, *_ in batches(x, batch_size, verbose)
        ]
        return np.concatenate(found)

    def score_features(self, features):
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
    def model(self):
        """The model whose inputs are scored; None if there is none yet."""
        return self._model

    @model.setter
    def model(self, model):
        self._bind(model)
        self._mark = None
        self._check_model()

    def _know_model(self):
        """Remembers the model as it is; of a function nothing is known."""
        self._known, self._mark = fingerprint(self._model), quick_mark(self._model)
        return self

    def _check_model(self):
        """Raises ValueError if the model is another than `fit` was given, or was trained since."""
        if self._known is None or not self.check_model:
            return
        mark = quick_mark(self._model)
        if mark != self._mark:
            check_known(self._known, self._model)
            self._mark = mark

    def _bind(self, model):
        reading = {"output": self.output, "from_logits": self.from_logits}
        self._tap = Tap(model, **reading, **self._tapped())
        self._model = model

    # Decide.

    def threshold_at(
        self, tpr=0.95, x=None, *, scores=None, confidence=0.95, batch_size=32, verbose=0
    ):
        """Finds, and keeps for `detect`, the threshold that accepts a fraction of good inputs.

        Formula:

        ```
        value = s_(k),  k = ceil(tpr n),  of the n sorted in-distribution scores
        [s_(l), s_(u)]: P(B < l), P(B >= u) <= (1 - confidence) / 2,  B ~ Binomial(n, tpr)
        ```

        The interval is distribution-free: it holds the quantile of order `tpr` of the scores, with
        at least this probability, if the n examples are independent draws. Those that the detector
        was fitted on score lower than others, for the detectors that fit much to them; give inputs
        that it has not seen.

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

    def detect(self, x, *, batch_size=32, verbose=0):
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

    # Save and load.

    def get_config(self):
        """The constructor's arguments."""
        return {"output": self.output, "from_logits": self.from_logits}

    def save(self, path):
        """Writes the detector, whole or not at all, to one file without code in it.

        That is a NumPy archive: the constructor's arguments as JSON, what was fitted, the
        threshold. The model is not in it: save that beside it, and give it to `load`.

        Args:
            path: Name of the file, by custom `.npz`; its folder has to be there.

        Raises:
            ValueError: If the detector is not fitted.
        """
        self._check_fitted()
        header = {
            "format": FORMAT,
            "class": keras.saving.get_registered_name(type(self)),
            "config": self.get_config(),
            "widths": self._widths,
            "threshold": self.threshold,
            "model": self._known,
        }
        arrays = {f"state/{name}": array for name, array in self._state.items()}
        if self._fit_scores is not None:
            arrays["fit_scores"] = self._fit_scores
        write_arrays(path, header, arrays)

    @classmethod
    def load(cls, path, model=None, *, check_model=True):
        """The detector that `save` wrote.

        Args:
            path: Name of the file.
            model: The model that it was fitted on, to score inputs; `score_features` needs none.
            check_model: As for `load_detector`.

        Returns:
            The detector, fitted, with its threshold.

        Raises:
            ValueError: If the file is not there, damaged, of another version, or holds a detector
                of another class; if the model has other weights.
        """
        detector = load_detector(path, model, check_model=check_model)
        if type(detector) is not cls:
            raise ValueError(
                f"Argument `path` must be a file of a {cls.__name__}. "
                f"Received: {str(path)!r}, a file of a {type(detector).__name__}"
            )
        return detector

    def _restore(self, header, arrays):
        """Takes over what was saved, or raises ValueError if it does not fit together."""
        widths, threshold = header["widths"], header["threshold"]
        sizes = {}
        if widths is not None:
            if not isinstance(widths, list) or not widths:
                raise ValueError(f"widths {widths!r}")
            for i, width in enumerate(widths):
                check_integer("widths", width, 1)
                sizes[f"features_{i}"] = width
        self._fit_scores = arrays.pop("fit_scores", None)
        self._state = {name.removeprefix("state/"): array for name, array in arrays.items()}
        check_shapes(self._state, self._shapes(), sizes)
        self._widths = widths
        self._known = checked_fingerprint(header.get("model"))
        if self._fit_scores is not None:
            check_rows("fit_scores", self._fit_scores, ndim=1)
        if threshold is not None:
            if any(isinstance(number, bool) for number in threshold):
                raise ValueError(f"a threshold of {threshold}")
            self.threshold = Threshold(*map(float, threshold[:-1]), int(threshold[-1]))
            if np.any(np.isnan(self.threshold)):
                raise ValueError(f"a threshold with NaN: {threshold}")


def check_layer(name, layer):
    """Raises ValueError unless `layer` is None or may be the name of a layer."""
    if layer is not None and not isinstance(layer, str):
        raise ValueError(
            f"Argument `{name}` must be the name of a layer, or None for the penultimate one. "
            f"Received: {name}={layer!r}"
        )


class FeatureDetector(Detector):
    """Base of the detectors whose features `(n, d)` are those of one layer."""

    def __init__(self, layer=None, *, output=None, from_logits=None):
        super().__init__(output=output, from_logits=from_logits)
        check_layer("layer", layer)
        self.layer = layer

    def get_config(self):
        return {**super().get_config(), "layer": self.layer}

    def _tapped(self):
        return {"layers": (self.layer,)}

    def _read(self, batch):
        return self._tap(batch).features

    def _check(self, features):
        return (check_rows("features", features, pool=True),)


def load_detector(path, model=None, *, check_model=True):
    """A detector of `tfuq.ood` of whatever class, from the file that its `save` wrote.

    Args:
        path: Name of the file.
        model: The model that it was fitted on, to score inputs; it is not in the file.
        check_model: Whether that is held to a mark of the weights and outputs, which is in the file
            (not in one that an earlier version or `fit_features` made, or of a function instead of
            a model: then nothing is known). With False any model is taken.

    Returns:
        The detector, fitted, with its threshold.

    Raises:
        ValueError: If the file is not there, damaged, or of another version; if the model is
            another than the one that the detector was fitted on, or has other weights.

    Example:

    ```python
    import numpy as np
    from tfuq.ood import Energy, load_detector

    detector = Energy().fit_features(np.random.normal(size=(100, 3)))
    detector.threshold_at(0.95)
    detector.save("energy.npz")
    print(load_detector("energy.npz").threshold.value)
    ```
    """
    try:
        header, arrays = read_arrays(path)
        if header["format"] != FORMAT:
            raise ValueError(f"format {header['format']!r}, not {FORMAT}")
        check_fields(header, ("format", "class", "config", "widths", "threshold", "model"))
        made = keras.saving.get_registered_object(header["class"])
        if not (isinstance(made, type) and issubclass(made, Detector)):
            raise ValueError(f"a {header['class']!r}, not a detector that is known here")
        detector = made(**header["config"])
        detector._restore(header, arrays)
    except DAMAGE as error:
        raise ValueError(
            "Argument `path` must be a whole file that a detector's `save` wrote, of this version. "
            f"Received: path={str(path)!r} ({type(error).__name__}: {error})"
        ) from error
    detector.check_model = check_model
    if model is not None:
        detector.model = model
    return detector
