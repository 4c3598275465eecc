"""New examples of rare classes, made of those there are (extra `smote`)."""

from __future__ import annotations

import collections

import keras
import numpy as np
import tensorflow as tf

from tfuq._arguments import ArrayLike, as_array, check_integer
from tfuq._models.torch_data import is_loader


def smote(
    x: ArrayLike,
    y: ArrayLike | None = None,
    *,
    seed: int = 0,
    k_neighbors: int = 5,
    sampling_strategy: str | dict[int, int] = "auto",
) -> tuple[np.ndarray, np.ndarray]:
    """SMOTE, as imbalanced-learn does it, for images and labels as Keras takes them.

    New examples of a class are put between neighbours of that class. Give it training data alone:
    what is made of test images is no test any more.

    Formula:
        x_new = x_i + u (x_j - x_i),   u ~ U(0, 1),   x_j one of the k nearest of x_i's class
                                                                        (Chawla et al. 2002)

    Args:
        x: Examples `(n, ...)`, such as images `(n, height, width, channels)`. Integers are rounded
            to integers of the same type. Arrays alone: neighbours are looked for among all
            examples, which a `tf.data.Dataset` does not hold at once.
        y: Labels: integers `(n,)` or `(n, 1)`, or one-hot `(n, classes)`.
        seed: Integer from which neighbours and places are drawn.
        k_neighbors: Number of neighbours; fewer, where a class that grows has fewer.
        sampling_strategy: Which classes grow, and how far: `"auto"`, all to the size of the
            largest; a dict of class to number of examples; or else as imbalanced-learn's `SMOTE`
            takes it.

    Returns:
        `(x, y)`: what was given, followed by the new examples, in the forms and dtypes given.

    Raises:
        ImportError: If imbalanced-learn is missing.
        ValueError: If `x` and `y` do not fit together, a class that is to grow has one example
            only, or an argument is out of its range.

    Example:

    ```python
    import numpy as np
    from tfuq.datasets import smote

    images = np.random.default_rng(0).integers(256, size=(9, 4, 4, 3), dtype="uint8")
    x, y = smote(images, np.array([0] * 6 + [1] * 3))
    print(x.shape, np.bincount(y))  # (12, 4, 4, 3) [6 6]
    ```

    References:
        Chawla, Bowyer, Hall, Kegelmeyer: SMOTE: synthetic minority over-sampling technique,
        JAIR 2002.

    See also: `tfuq.datasets.balanced`, `tfuq.preprocessing.evaluate_synthetic`.
    """
    try:
        from imblearn.over_sampling import SMOTE
    except ImportError as error:
        raise ImportError(
            'tfuq.datasets.smote needs imbalanced-learn: pip install "tfuq[smote]"'
        ) from error
    _check_arrays(x, y)
    check_integer("seed", seed, 0)
    check_integer("k_neighbors", k_neighbors, 1)
    x, y = as_array("x", x), as_array("y", y)
    labels = _labels(x, y)
    smallest = _smallest_to_grow(labels, sampling_strategy)
    sampler = SMOTE(
        sampling_strategy=sampling_strategy,
        k_neighbors=max(1, min(k_neighbors, smallest - 1)),
        random_state=seed,
    )
    flat = x.reshape(len(x), -1)
    flat = flat if flat.dtype.kind == "f" else flat.astype("float32")
    found, classes = (part[len(x) :] for part in sampler.fit_resample(flat, labels))
    if x.dtype.kind in "iu":
        found = np.rint(found)
    made = found.astype(x.dtype).reshape(-1, *x.shape[1:])
    return np.concatenate([x, made]), np.concatenate([y, _as_given(classes, y)])


def _check_arrays(x, y):
    """Raises ValueError of what yields batches, and of missing labels."""
    if isinstance(x, (tf.data.Dataset, keras.utils.PyDataset)) or is_loader(x):
        raise ValueError(
            "Argument `x` must be an array, because neighbours are looked for among all examples: "
            "collect those of a dataset first, or rebalance it with `tfuq.datasets.balanced`. "
            f"Received: x of type {type(x).__name__}"
        )
    if y is None:
        raise ValueError("Argument `y` must hold a label for each example. Received: y=None")


def _labels(x, y):
    """Class ids `(n,)` of labels in any of the forms."""
    if x.ndim < 2 or x.dtype.kind not in "fiu":
        raise ValueError(
            "Argument `x` must hold numbers and have shape (n, ...). "
            f"Received: x of shape {x.shape} and dtype {x.dtype}"
        )
    if y.ndim not in (1, 2) or len(y) != len(x):
        raise ValueError(
            f"Argument `y` must hold a label for each of the {len(x)} examples, (n,) or one-hot "
            f"(n, classes). Received: y of shape {y.shape}"
        )
    if y.ndim == 2 and y.shape[1] > 1:
        is_one_hot = np.isin(y, (0, 1)).all() and (y.sum(1) == 1).all()
        if not is_one_hot:
            raise ValueError(
                "Argument `y` must be one-hot: rows with a single 1. Received: y with other rows"
            )
        return y.argmax(1)
    return y.reshape(-1)


def _smallest_to_grow(labels, sampling_strategy):
    """The size of the smallest class that gets new examples; any number if nothing says which."""
    counts = collections.Counter(labels.tolist())
    if isinstance(sampling_strategy, dict):
        growing = [n for c, n in counts.items() if sampling_strategy.get(c, n) > n]
    elif sampling_strategy in ("auto", "not majority"):
        growing = [n for n in counts.values() if n < max(counts.values())]
    else:
        growing = list(counts.values())
    if growing and min(growing) < 2:
        raise ValueError(
            "Argument `y` must hold each class that is to grow at least twice, for SMOTE to find "
            f"a neighbour. Received: these numbers of examples of each class: {dict(counts)}"
        )
    return min(growing, default=2)


def _as_given(classes, y):
    """New labels in the form of those given."""
    if y.ndim == 2 and y.shape[1] > 1:
        return np.eye(y.shape[1], dtype=y.dtype)[classes]
    return classes.astype(y.dtype).reshape(-1, *y.shape[1:])
