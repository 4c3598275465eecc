"""Options of a detector chosen on held-out inputs and corruptions of them."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfuq._arguments import ArrayLike, ModelLike, check_integer, check_kind, shown
from tfuq._models.batches import batches
from tfuq.corruptions import corrupt, names
from tfuq.metrics import auroc
from tfuq.ood.base import Detector

PERCENTILES = (65, 70, 75, 80, 85, 90, 95)
GRIDS = {  # by class
    "ASH": {"percentile": PERCENTILES, "variant": ("s", "p", "b")},
    "DICE": {"percentile": (10, 30, 50, 70, 90)},
    "Energy": {"temperature": (0.5, 1.0, 2.0, 5.0, 10.0)},
    "GEN": {"gamma": (0.01, 0.1, 0.5, 1.0, 2.0), "top": (10, 100, None)},
    "GradNorm": {"temperature": (0.5, 1.0, 2.0, 5.0)},
    "KNN": {"k": (1, 5, 10, 20, 50, 100, 200)},
    "Mahalanobis": {"shrinkage": (None, 0.01, 0.1, 0.5)},
    "NNGuide": {"k": (1, 5, 10, 20, 50, 100)},
    "ODIN": {"temperature": (1.0, 10.0, 100.0, 1000.0), "epsilon": (0.0, 0.0007, 0.0014, 0.0028)},
    "ReAct": {"percentile": (85, 90, 95, 99)},
    "RelativeMahalanobis": {"shrinkage": (None, 0.01, 0.1, 0.5)},
    "SCALE": {"percentile": PERCENTILES},
}
JUDGES = ("shot_noise", "defocus_blur", "frost", "contrast")  # none of `names("validation")`
FEWEST = 10  # rows of each half


class Tuned(NamedTuple):
    """The detector with the best options that `tune` found.

    Example:

    >>> from tfuq.ood import KNN, Tuned
    >>> found = Tuned(KNN(k=5), {"k": 5}, 0.91, 0.9, 0.87, ())
    >>> print(found.judged - found.default_judged)  # what tuning has gained
    0.030000000000000027

    See also: `tfuq.ood.tune`.
    """

    detector: Detector
    """Fitted, with the best options."""
    options: dict
    """These options."""
    auroc: float
    """The mean AUROC that was the best of all, and is too good for being so."""
    judged: float
    """That of these options on other rows, of other corruptions."""
    default_judged: float
    """The same of the detector as it was given; NaN if that was refused."""
    rows: tuple
    """Of all that was tried a dict of `"options"`, `"auroc"` and `"refused"`, None or why."""


def tune(
    detector: Any,
    model: ModelLike | Callable[..., Any],
    x: ArrayLike,
    y: ArrayLike | None = None,
    *,
    x_val: ArrayLike,
    x_ood: ArrayLike | None = None,
    grid: Mapping[str, Sequence[Any]] | None = None,
    severity: int = 5,
    seed: int = 0,
    batch_size: int = 32,
    verbose: int = 0,
) -> Tuned:
    """Finds the options of a detector that best tell held-out inputs from unknown ones.

    The given options are among those tried, and stay unless others are better. As unknown inputs to
    tune on are rarely at hand, it takes by default the held-out images under the four validation
    corruptions (`tfuq.corruptions.names("validation")`). Half of the held-out rows choose the
    options. The other half, with other corruptions (shot noise, defocus blur, frost, contrast),
    compares the choice with the detector as given. OpenOOD does the same with a validation set of
    unknown images (Zhang et al. 2023): pass one as `x_ood`.

    Args:
        detector: A detector of `tfuq.ood`; it is not changed.
        model: The model that it looks at, as for `fit`.
        x: Inputs to fit to, as for `fit`.
        y: Labels, if they are not in `x`.
        x_val: In-distribution inputs that neither the model nor the detector has seen, arrays; for
            corruptions images `(n, height, width, 1 or 3)`, uint8 or floating point in [0, 1].
        x_ood: Unknown inputs to tell them from, arrays, instead of corruptions.
        grid: `{argument: values}` of what to try, all combinations; by default a grid for the kind
            of detector: percentiles, numbers of neighbours, temperatures.
        severity: Of the corruptions, 1 to 5.
        seed: Integer of at least 0 from which the halves and the corruptions follow.
        batch_size: Examples at a time, for arrays.
        verbose: 1 shows progress bars.

    Returns:
        `Tuned`. Its detector is fitted; `threshold_at` is still to be called.

    Warns:
        UserWarning: If the choice is worse than the given options on the rows that judge it.

    Raises:
        ValueError: If the detector has nothing to tune and `grid` is not given, an argument in it
            is none of the detector's, held-out rows are fewer than 20 or among those of `x`, or all
            options are refused.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.ood import KNN, tune

    x = 0.3 * np.random.rand(80, 8, 8, 1).astype("float32")
    layers = [keras.layers.Flatten(name="flatten"), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((8, 8, 1)), *layers])
    detector, grid = KNN(k=3, layer="flatten", from_logits=True), {"k": (1, 9)}
    found = tune(detector, model, x[:40], x_val=x[40:], x_ood=1 - x[:40], grid=grid)
    print(found.options, found.judged, found.default_judged)
    found.detector.threshold_at(0.95, x[40:])
    ```

    References:
        - Zhang et al., "OpenOOD v1.5: Enhanced Benchmark for Out-of-Distribution Detection",
          arXiv 2306.09301, 2023.

    See also: `tfuq.ood.Tuned`, `tfuq.corruptions.corrupt`.
    """
    _check_detector(detector)
    check_integer("seed", seed, 0)
    trials = _trials(detector, grid)
    _check_rows(x, x_val, x_ood)
    halves = _halves(x_val, x_ood, severity, seed)
    _warn_of_rows_twice(x_val)
    run = _Run(model, x, y, halves, batch_size, verbose)
    rows, best, given = [], None, None
    for options in trials:
        candidate = type(detector)(**{**detector.get_config(), **options})
        try:
            areas = run.areas(candidate)
        except ValueError as error:  # k above the number of examples
            rows.append({"options": options, "auroc": None, "refused": str(error)})
            continue
        rows.append({"options": options, "auroc": areas[0], "refused": None})
        given = areas if not options else given
        if best is None or areas[0] > best[1][0]:
            best = candidate, areas, options
    if best is None:
        raise ValueError(
            "Argument `grid` must hold options that fit the data. Received: all were refused, "
            f"the last as {rows[-1]['refused']}"
        )
    candidate, (area, judged), options = best
    default_judged = float("nan") if given is None else given[1]
    if judged < default_judged:
        warnings.warn(
            f"The best options, {options}, are worse than the detector's own on the rows that "
            f"judge them: AUROC {judged:.3f} instead of {default_judged:.3f}. Keep its own, or "
            "pass more `x_val`.",
            stacklevel=2,
        )
    return Tuned(candidate._know_model(), options, area, judged, default_judged, tuple(rows))


def _check_detector(detector):
    if not isinstance(detector, Detector) or not hasattr(detector, "output"):
        raise ValueError(
            "Argument `detector` must be a detector of tfuq.ood that looks at a model itself. "
            f"Received: detector={shown(detector)}"
        )


def _trials(detector, grid):
    """Options to try, dicts; the first is {}, the detector as it is."""
    if grid is None:
        grid = GRIDS.get(type(detector).__name__)
    config = detector.get_config()
    is_grid = isinstance(grid, dict) and grid and all(name in config for name in grid)
    if not is_grid or any(isinstance(v, str) or not np.iterable(v) for v in grid.values()):
        raise ValueError(
            f"Argument `grid` must be {{argument: values}} of arguments of a "
            f"{type(detector).__name__}, {sorted(config)}; a grid of their own have "
            f"{sorted(GRIDS)}. "
            f"Received: grid={shown(grid)}"
        )
    found = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    changed = [options for options in found if any(config[n] != v for n, v in options.items())]
    return [{}, *changed]


def _check_length(name, inputs):
    check_kind(name, inputs)
    leaves = tf.nest.flatten(inputs)
    shapes = [np.shape(leaf) for leaf in leaves]
    if not leaves or any(not shape or shape[0] < 2 * FEWEST for shape in shapes):
        raise ValueError(
            f"Argument `{name}` must be arrays of at least {2 * FEWEST} rows: half of them choose, "
            f"and half judge. Received: shapes {shapes}"
        )
    if len({shape[0] for shape in shapes}) > 1:
        raise ValueError(
            f"Argument `{name}` must hold arrays of one length. Received: shapes {shapes}"
        )


def _warn_of_rows_twice(x_val):
    if not isinstance(x_val, np.ndarray):
        return  # of datasets nobody knows before they are read
    again = len(x_val) - len({row.tobytes() for row in x_val})
    if again:
        warnings.warn(
            f"{again} rows of `x_val` are there more than once. Where one copy chooses and another "
            "judges, the result looks too good: pass each row once.",
            stacklevel=3,
        )


def _check_rows(x, x_val, x_ood):
    _check_length("x_val", x_val)
    if x_ood is not None:
        _check_length("x_ood", x_ood)
    fitted = x[0] if isinstance(x, tuple) and len(x) > 1 else x
    if not all(isinstance(each, np.ndarray) for each in (fitted, x_val)):
        return  # of datasets nobody knows before they are read
    if fitted.shape[1:] == x_val.shape[1:]:
        seen = {row.tobytes() for row in fitted.astype(x_val.dtype)}
        twice = sum(row.tobytes() in seen for row in x_val)
        if twice:
            raise ValueError(
                "Argument `x_val` must hold rows that are not in `x`: rows that a detector was "
                f"fitted to score lower than others. Received: {twice} rows that are"
            )


def _halves(x_val, x_ood, severity, seed):
    """Of the choice and of the judgement: inputs, and a list of unknown ones."""
    rng = np.random.default_rng(seed)

    def halves(inputs):
        rows = rng.permutation(len(tf.nest.flatten(inputs)[0]))
        parts = np.array_split(rows, 2)
        return [
            tf.nest.map_structure(lambda a, r=r: np.asarray(a)[np.sort(r)], inputs) for r in parts
        ]

    inside = halves(x_val)
    if x_ood is not None:
        return [(part, [other]) for part, other in zip(inside, halves(x_ood), strict=True)]
    if not isinstance(x_val, np.ndarray) or x_val.ndim != 4 or x_val.shape[-1] not in (1, 3):
        raise ValueError(
            "Argument `x_ood` must be given where `x_val` is not an array of images (n, height, "
            "width, 1 or 3): others cannot be corrupted. "
            f"Received: x_val={shown(x_val)} without x_ood"
        )
    kinds = (names("validation"), JUDGES)
    return [
        (part, [corrupt(part, kind, severity, seed=seed).numpy() for kind in each])
        for part, each in zip(inside, kinds, strict=True)
    ]


class _Run:
    """What a model gives of all inputs, read once for all detectors that take the same of it."""

    def __init__(self, model, x, y, halves, batch_size, verbose):
        self.model, self.x, self.y, self.halves = model, x, y, halves
        self.options = {"batch_size": batch_size, "verbose": verbose}
        self._found = {}

    def areas(self, candidate):
        """Fits a detector; its mean AUROC on each of the halves."""
        candidate._bind(self.model)
        tap, (arrays, y), halves = self._read_once(candidate)
        candidate._use(tap)
        candidate._learn("x", arrays, y, **candidate._from_model())
        return [self._area(candidate, *pair) for pair in zip(self.halves, halves, strict=True)]

    def _read_once(self, candidate):
        if type(candidate).__name__ not in GRIDS:  # what it takes may depend on any option
            return self._read(candidate)
        key = repr((candidate.output, candidate.from_logits, candidate._tapped()))
        if key not in self._found:
            self._found[key] = self._read(candidate)
        return self._found[key]

    def _read(self, candidate):
        fitted = candidate._gathered(self.x, self.y, **self.options)
        halves = [
            [self._arrays(candidate, inputs) for inputs in (inside, *outside)]
            for inside, outside in self.halves
        ]
        return candidate._tap, fitted, halves

    def _arrays(self, candidate, inputs):
        found = batches(inputs, **self.options, model=self.model)
        parts = [candidate._read(batch) for batch, *_ in found]
        return tuple(np.concatenate(columns) for columns in zip(*parts, strict=True))

    def _area(self, candidate, half, arrays):
        if candidate._needs_inputs:
            inside, outside = half
            scores = [candidate.score(inputs, **self.options) for inputs in (inside, *outside)]
        else:
            scores = [candidate._scores_of(each) for each in arrays]
        first, others = scores[0], scores[1:]
        labels = [np.repeat([0, 1], [len(first), len(other)]) for other in others]
        pairs = zip(labels, others, strict=True)
        return float(np.mean([auroc(ids, np.concatenate([first, s])) for ids, s in pairs]))
