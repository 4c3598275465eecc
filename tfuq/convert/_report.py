"""Reports of conversions: layers that were changed, and those that were left, and why."""

from __future__ import annotations

import collections
import weakref
from typing import NamedTuple

import keras

from tfuq._arguments import shown

_REPORTS = weakref.WeakKeyDictionary()


class ConversionReport(NamedTuple):
    """The layers that a conversion changed, and those that it left, with reasons.

    Args:
        converted: Dict from the names of layers to `(old class, new class)`.
        left: Dict from the names of layers to `(class, why)`: those with weights, or of
            `mc_dropout` those that are random in training.

    Example:

    >>> from tfuq.convert import ConversionReport
    >>> found = ConversionReport({"top": ("Dense", "DenseVariational")}, {})
    >>> print(found.summary())
    1 converted (1 Dense)

    See also: `tfuq.convert.report`.
    """

    converted: dict
    left: dict

    def summary(self) -> str:
        """One line: how many layers of which classes, and why others were left."""
        done = collections.Counter(old for old, _ in self.converted.values())
        lines = [f"{len(self.converted)} converted ({_listed(done)})"]
        for why in dict.fromkeys(why for _, why in self.left.values()):
            kinds = collections.Counter(kind for kind, each in self.left.values() if each == why)
            lines.append(f"left {_listed(kinds)}: {why}")
        return "; ".join(lines)


def _listed(counts):
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def report(model: keras.Model) -> ConversionReport:
    """Reports which layers a conversion changed and which it left.

    A conversion prints one line of it, the `summary()`.

    Args:
        model: The result of `mc_dropout`, `variational`, `sparse_bayesian`, `batch_ensemble` or
            `spectral_normalize`.

    Returns:
        `ConversionReport`.

    Raises:
        ValueError: If the model is not from a conversion of this process: a file holds no report.

    Example:

    ```python
    import keras
    from tfuq.convert import report, variational

    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3), keras.layers.PReLU()])
    bayesian = variational(model, kl_weight=0.001)
    print(report(bayesian).left)  # {"p_re_lu": ("PReLU", "no layer stands in for PReLU")}
    ```

    See also: `tfuq.convert.variational`, `tfuq.convert.to_deterministic`.
    """
    try:
        return _REPORTS[model]
    except (KeyError, TypeError):
        raise ValueError(
            "Argument `model` must be what `mc_dropout`, `variational`, `sparse_bayesian`, "
            "`batch_ensemble` or `spectral_normalize` of this process returned. "
            f"Received: model={shown(model)}"
        ) from None


def told(model, name, converted, left, note=""):
    """The model, once its report is noted and printed, with a `note` of the conversion."""
    found = ConversionReport(converted, left)
    _REPORTS[model] = found
    print(f"tfuq.convert.{name}: {found.summary()}{note and '; '}{note}")
    return model
