"""Heads whose label noise is made in the features (HET-XL; Collier et al., ICLR 2023)."""

from __future__ import annotations

from typing import Any

from tfuq._arguments import check_integer, register
from tfuq.layers._links import OfClasses, OfLabels
from tfuq.layers._pre_logits import MCDenseXL

__all__ = ["MCSigmoidDenseXL", "MCSoftmaxDenseXL"]


@register
class MCSoftmaxDenseXL(OfClasses, MCDenseXL):
    """Dense soft-max head with label noise from the features, for very many classes.

    Stands in for `Dense(units)`. As `MCSoftmaxDenseFA`, with the noise in the D features instead of
    the K logits: its weights and its work do not grow with K beyond those of `Dense`.

    Formula (Collier et al. 2023, section 4):

    ```
    u(x) = W^T (x + d(x) * e + V(x) z) + b,    e ~ N(0, I_D), z ~ N(0, I_R)
    p(x) = mean over samples of softmax(u(x) / temperature)
    d(x) = softplus(W_d x + b_d) + 0.001
    V(x) z = v(x) * (V z),                     v(x) = W_v x + b_v
    ```

    with V a weight `(D, R)`; `parameter_efficient=False` has a V(x) of its own for each x, D R
    affine functions, and `num_factors=0` has d(x) alone. Beside `Dense`, there are 2 D^2 + D R
    weights. W is that of the mean, so that noise in a feature goes where the feature goes.

    A sample costs a projection from D to K; a mirror image costs none (W^T of -e is known).
    The temperature is learned, in place of the search over it that `MCSoftmaxDenseFA` needs. In
    prediction the default number of samples has about the error of 1,000 independent draws; 128
    have it where the noise of logits is small, and with very many classes few have to do
    (`benchmarks/README.md` has a table).

    Args:
        units: Integer K, at least 2: the number of classes.
        num_factors: Integer R >= 0, the rank of the correlated noise.
        temperature: Number above 0 that the learned temperature starts at.
        parameter_efficient: Whether V(x) is v(x) times a weight.
        train_mc_samples: Number of samples in training. With mirror images (see `sampling`) an odd
            number is rounded up.
        test_mc_samples: Number of samples otherwise.
        tune_temperature: Whether the temperature is a weight, kept between
            `temperature_lower_bound` and `temperature_upper_bound`.
        **kwargs: The further arguments of `MCSoftmaxDenseFA`, by name, but for `last_layer`.

    Call arguments:
        inputs: Tensor of shape `(batch, ..., features)`.
        training: Boolean: fresh samples, `train_mc_samples` of them.
        seed: Integer: fresh samples that follow from it alone, in training and in prediction.

    Returns:
        As `MCSoftmaxDenseFA`: a named tuple of `logits`, `log_probs`, `probs` and
        `predictive_variance`, each `(batch, ..., units)`; with `logits_only`, the logits.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.layers import MCSoftmaxDenseXL

    head = MCSoftmaxDenseXL(units=3, num_factors=2, logits_only=True)
    model = keras.Sequential([keras.Input((8,)), head])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(np.random.rand(16, 8), np.random.randint(3, size=16), verbose=0)
    print(f"{head.current_temperature():.1f}")
    ```

    References:
        Collier, Jenatton, Mustafa, Houlsby, Berent, Kokiopoulou: Massively Scaling Heteroscedastic
        Classifiers. ICLR 2023.

    See also: `tfuq.layers.MCSoftmaxDenseFA`, `tfuq.layers.MCSigmoidDenseXL`.
    """

    def __init__(self, units: int, num_factors: int, *args: Any, **kwargs: Any) -> None:
        check_integer("units", units, minimum=1)
        if units == 1:
            raise ValueError(
                "Argument `units` must be at least 2: one class has probability 1 whatever the "
                "input. For two classes in one logit, or one label, take `MCSigmoidDenseXL(1)`. "
                "Received: units=1"
            )
        super().__init__(units, num_factors, *args, **kwargs)


@register
class MCSigmoidDenseXL(OfLabels, MCDenseXL):
    """Dense sigmoid head, for several labels at once, with label noise from the features.

    As `MCSoftmaxDenseXL`, with the sigmoid of each logit in place of the soft-max over them:
    p_k(x) = mean over samples of sigmoid(u_k(x) / temperature).

    Args:
        units: Integer K, at least 1: the number of labels.
        num_factors: Integer R >= 0, the rank of the correlated noise.
        temperature: This and all further arguments are those of `MCSoftmaxDenseXL`.

    Call arguments:
        inputs: Tensor of shape `(batch, ..., features)`.
        training: Boolean: fresh samples, `train_mc_samples` of them.
        seed: As of `MCSoftmaxDenseXL`.

    Returns:
        As `MCSoftmaxDenseXL`; `logits` is the inverse sigmoid of `probs`, for a binary
        cross-entropy with `from_logits=True`.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.layers import MCSigmoidDenseXL

    head = MCSigmoidDenseXL(units=4, num_factors=2, logits_only=True)
    model = keras.Sequential([keras.Input((8,)), head])
    model.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True))
    model.fit(np.random.rand(16, 8), np.random.randint(2, size=(16, 4)), verbose=0)
    ```

    See also: `tfuq.layers.MCSigmoidDenseFA`, `tfuq.layers.MCSoftmaxDenseXL`.
    """
