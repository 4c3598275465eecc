"""Heads for label noise that depends on the input (Collier et al., CVPR 2021)."""

from __future__ import annotations

from typing import Any

from tfuq._arguments import check_integer, register
from tfuq.layers._factor_analysis import HeteroscedasticOutput, MCDenseFA
from tfuq.layers._links import OfClasses, OfLabels

__all__ = ["HeteroscedasticOutput", "MCSigmoidDenseFA", "MCSoftmaxDenseFA"]


@register
class MCSoftmaxDenseFA(OfClasses, MCDenseFA):
    """Dense soft-max head with label noise that depends on the input.

    It replaces `Dense(num_classes)`. The logits are Gaussian: their mean, independent noise and
    correlated noise are each an affine function of the input. The probabilities are the mean of the
    soft-max over that noise.

    Formula (Collier et al. 2021, section 2 and algorithm 1):

    ```
    u(x) = mu(x) + d(x) * e + V(x) z,    e ~ N(0, I_K), z ~ N(0, I_R)
    p(x) = mean over samples of softmax(u(x) / temperature)
    d(x) = softplus(W_d x + b_d) + 0.001
    ```

    with V(x) of shape `(K, R)`. With `parameter_efficient=True`, V(x) z = v(x) * (V z), where V is
    a weight; with `num_factors=0` there is no correlated noise.

    The constructor is that of edward2's layer of this name: change the import. The layer differs
    where edward2's has a fault: log-probabilities are exact however small, predictions repeat,
    `training` is false unless Keras says otherwise, and the correlated noise has no bias. The
    default numbers of samples give the error of 1,000 independent draws or less; up to 100 classes,
    256 are enough at inference.

    Args:
        num_classes: Integer K, at least 2.
        num_factors: Integer R >= 0, the rank of the correlated noise.
        temperature: Number above 0. Lower is closer to an arg max, and its gradients noisier.
        parameter_efficient: Whether V(x) is v(x) times a weight: O(D K + K R) weights instead of
            O(D K R), for many classes.
        train_mc_samples: Number of samples in training. With mirror images (see `sampling`) an odd
            number is rounded up.
        test_mc_samples: Number of samples otherwise.
        compute_pred_variance: Whether to compute `predictive_variance`.
        share_samples_across_batch: Whether all examples see the same fresh samples. Otherwise each
            example has its own random signs on them, which decorrelates examples at no cost.
        logits_only: Whether to return the logits alone, as `Sequential` needs.
        eps: Fraction. Bound below which `probs` (and only it) is clipped; edward2's is 1e-7.
        dtype: Dtype or policy, as of every layer; the 11th argument, as edward2 has it.
        tune_temperature: Whether the temperature is a weight, kept between the bounds. It starts
            at `temperature`, or amid the bounds if that is outside.
        temperature_lower_bound: Number above 0. Both bounds may be None where the temperature is
            not tuned.
        temperature_upper_bound: Number above `temperature_lower_bound`.
        kernel_initializer: Initializer of all kernels.
        bias_initializer: Initializer of all biases.
        kernel_regularizer: Regularizer of all kernels.
        bias_regularizer: Regularizer of all biases.
        kernel_constraint: Constraint of all kernels.
        bias_constraint: Constraint of all biases.
        sampling: How samples are placed: `"sobol"` (scrambled Sobol points and their mirror
            images), `"antithetic"` (independent draws and their mirror images) or `"iid"`.
        resample: Whether to draw fresh samples at inference, too. By default they are fixed, so
            that predictions repeat, here and in an exported model.
        seed: Integer >= 0 or None. Fixes the samples of training; the fixed samples of inference
            follow from it, too (None counts as 0 there).
        last_layer: What mu(x) is. None: an affine function. `"vbll"`: one whose weights are
            uncertain, as `VBLLDense`. `"sngp"`: a Gaussian process, as `SNGPDense` (HetSNGP). Or
            such a layer with options of its own, as
            `VBLLDense(3, kl_weight=1 / n, posterior="low_rank", rank=2)`. See below.
        kl_weight: Weight of the KL divergence of `last_layer="vbll"`, which requires it, as of
            `VBLLDense`.
        **kwargs: `name`, `trainable` of `keras.layers.Layer`.

    With a `last_layer`, the noise models the labels, and the uncertainty of the mean models what
    the data leave open. Predictions average over both, in closed form over the weights: independent
    noise of variance d(x)^2 + var mu(x). Draws of the network draw mu and average over the noise.
    So `tfuq.predictive.predict_uncertainty` and `decompose` separate the two: the expected entropy
    belongs to the noise, the mutual information to the weights. In training `"vbll"` adds the KL
    divergence, and the terms that turn your cross-entropy into a bound on E[-log p(y | x, weights)]
    (Jensen's inequality, as the closed form of `VBLLDense`):

    ```
    L_k  = log mean over samples of softmax_k(u(x) / temperature + v / 2) - v_k / 2
    v    = var mu(x) / temperature^2
    loss = CE(L, y) - logsumexp(L) + kl_weight * beta * KL
    ```

    with u(x) at the mean weights; without noise it is the loss of a `VBLLDense`. `"sngp"` trains
    its mean, as its authors do. Initializers apply to the mean, too; `"vbll"` takes no
    `kernel_regularizer`, as its KL divergence has that role. The attribute `mean_layer` holds the
    layer.

    Call arguments:
        inputs: Tensor of shape `(batch, ..., features)`.
        training: Boolean: fresh samples, `train_mc_samples` of them.
        seed: Integer: fresh samples that follow from it alone, in training and in prediction.

    Returns:
        Named tuple of tensors, each `(batch, ..., num_classes)`: `logits` (the log-probabilities,
        for a cross-entropy with `from_logits=True`), `log_probs` (nats), `probs`, and
        `predictive_variance`, the variance of the probabilities over samples, of width 0 unless
        `compute_pred_variance`. With `logits_only`, the logits. Under a mixed precision policy they
        are float32, as is everything after the matrix products.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    ```python
    import numpy as np
    import keras
    from tfuq.layers import MCSoftmaxDenseFA

    inputs = keras.Input((8,))
    logits = MCSoftmaxDenseFA(num_classes=3, num_factors=2)(inputs).logits
    model = keras.Model(inputs, logits)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss)
    model.fit(np.random.rand(16, 8), np.random.randint(3, size=16), verbose=0)
    ```

    Noise of labels and uncertain weights in one head:

    ```python
    import numpy as np
    import keras
    from tfuq.layers import MCSoftmaxDenseFA
    from tfuq.predictive import predict_uncertainty

    x, y = np.random.rand(16, 8), np.random.randint(3, size=16)
    head = MCSoftmaxDenseFA(3, 2, logits_only=True, last_layer="vbll", kl_weight=1 / len(x))
    model = keras.Sequential([keras.Input((8,)), head])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, verbose=0)
    parts = predict_uncertainty(model, x, 16)
    print(parts.expected_entropy.mean(), parts.mutual_information.mean())
    ```

    References:
        Collier, Mustafa, Kokiopoulou, Jenatton, Berent: Correlated Input-Dependent Label Noise in
        Large-Scale Image Classification. CVPR 2021.
        Fortuin, Collier, Wenzel, Allingham, Liu, Tran, Lakshminarayanan, Berent, Jenatton,
        Kokiopoulou: Deep Classifiers with Label Noise Modeling and Distance Awareness. TMLR 2022.

    See also: `tfuq.layers.MCSigmoidDenseFA`, `tfuq.layers.MCSoftmaxDenseXL`,
    `tfuq.interpret.label_noise_pairs`.
    """

    def __init__(
        self,
        num_classes: int,
        num_factors: int,
        temperature: float = 1.0,
        parameter_efficient: bool = False,
        train_mc_samples: int = 512,
        test_mc_samples: int = 640,
        compute_pred_variance: bool = False,
        share_samples_across_batch: bool = False,
        logits_only: bool = False,
        eps: float = 0.0,
        dtype: Any = None,
        tune_temperature: bool = False,
        temperature_lower_bound: float = 0.3,
        temperature_upper_bound: float = 3.0,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        sampling: str = "sobol",
        resample: bool = False,
        seed: int | None = None,
        last_layer: str | None = None,
        kl_weight: float | None = None,
        **kwargs: Any,
    ) -> None:
        _check_classes(num_classes)
        super().__init__(
            num_classes,
            num_factors,
            temperature=temperature,
            parameter_efficient=parameter_efficient,
            train_mc_samples=train_mc_samples,
            test_mc_samples=test_mc_samples,
            compute_pred_variance=compute_pred_variance,
            share_samples_across_batch=share_samples_across_batch,
            logits_only=logits_only,
            eps=eps,
            dtype=dtype,
            tune_temperature=tune_temperature,
            temperature_lower_bound=temperature_lower_bound,
            temperature_upper_bound=temperature_upper_bound,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            kernel_constraint=kernel_constraint,
            bias_constraint=bias_constraint,
            sampling=sampling,
            resample=resample,
            seed=seed,
            last_layer=last_layer,
            kl_weight=kl_weight,
            **kwargs,
        )

    @property
    def num_classes(self) -> int:
        return self.num_outputs

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        return {"num_classes": config.pop("num_outputs"), **config}


def _check_classes(num_classes):
    check_integer("num_classes", num_classes, minimum=1)
    if num_classes == 1:
        raise ValueError(
            "Argument `num_classes` must be at least 2: one class has probability 1 whatever the "
            "input. For two classes in one logit, or one label, take `MCSigmoidDenseFA(1)`. "
            "Received: num_classes=1"
        )


@register
class MCSigmoidDenseFA(OfLabels, MCDenseFA):
    """Dense sigmoid head, for several labels at once, with noise that depends on the input.

    As `MCSoftmaxDenseFA`, with the sigmoid of each logit in place of the soft-max over them (paper,
    section 2 and appendix A): p_k(x) = mean over samples of sigmoid(u_k(x) / temperature). Noise is
    correlated between the labels.

    Args:
        num_outputs: Integer K, at least 1: the number of labels.
        num_factors: Integer R >= 0, the rank of the correlated noise.
        temperature: This and all further arguments are those of `MCSoftmaxDenseFA`.

    Call arguments:
        inputs: Tensor of shape `(batch, ..., features)`.
        training: Boolean: fresh samples, `train_mc_samples` of them.
        seed: As of `MCSoftmaxDenseFA`.

    Returns:
        As `MCSoftmaxDenseFA`; `logits` is the inverse sigmoid of `probs`, for a binary
        cross-entropy with `from_logits=True`.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    ```python
    import numpy as np
    import keras
    from tfuq.layers import MCSigmoidDenseFA

    head = MCSigmoidDenseFA(num_outputs=4, num_factors=2, logits_only=True)
    model = keras.Sequential([keras.Input((8,)), head])
    model.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True))
    model.fit(np.random.rand(16, 8), np.random.randint(2, size=(16, 4)), verbose=0)
    ```

    See also: `tfuq.layers.MCSoftmaxDenseFA`, `tfuq.layers.MCSigmoidDenseXL`.
    """
