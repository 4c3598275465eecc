"""Files of detectors: NumPy archives without code in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tfuq._arguments import ModelLike, PathLike, Self, check_integer, shown
from tfuq._files.archives import check_shapes, read_arrays, write_arrays
from tfuq._files.reading import DAMAGE, check_fields
from tfuq._models.feature_arrays import check_rows
from tfuq._models.fingerprint import checked_fingerprint
from tfuq.ood.thresholds import Threshold

FORMAT = 1


class Saved:
    """Base of what is saved as its constructor's arguments and a dict of arrays, `_state`.

    A child is registered, and has `get_config`, `_check_fitted` and `_shapes`.
    """

    def save(self, path: PathLike) -> None:
        """Writes the detector, whole or not at all, to one file without code in it.

        That is a NumPy archive: the constructor's arguments as JSON, what was fitted, the
        threshold. The model is not in it: save that beside it, and give it to `load`.

        Args:
            path: Name of the file, usually `.npz`; its folder must exist.

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
    def load(
        cls,
        path: PathLike,
        model: ModelLike | Callable[..., Any] | None = None,
        *,
        check_model: bool = True,
    ) -> Self:
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
                raise ValueError(f"widths {shown(widths)}")
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


def load_detector(
    path: PathLike, model: ModelLike | Callable[..., Any] | None = None, *, check_model: bool = True
) -> Any:
    """Loads a detector of any class from the file that its `save` wrote.

    Args:
        path: Name of the file.
        model: The model that it was fitted on, to score inputs; it is not in the file.
        check_model: Whether to compare the model with the mark of weights and outputs in the file.
            (A file from an earlier version, from `fit_features`, or for a function instead of a
            model has no mark, and is not checked.) False accepts any model.

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

    See also: `tfuq.ood.DetectorLayer`.
    """
    try:
        header, arrays = read_arrays(path)
        if header["format"] != FORMAT:
            raise ValueError(f"format {shown(header['format'])}, not {FORMAT}")
        check_fields(header, ("format", "class", "config", "widths", "threshold", "model"))
        made = keras.saving.get_registered_object(header["class"])
        if not (isinstance(made, type) and issubclass(made, Saved)):
            raise ValueError(f"a {shown(header['class'])}, not a detector that is known here")
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
