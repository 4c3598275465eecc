"""Last layers with uncertain weights as the mean of noisy logits, and the bound they train on."""

import inspect

import keras
import tensorflow as tf

from tfuq._arguments import shown
from tfuq.layers.base import check_kl_weight
from tfuq.layers.sngp import SNGPDense
from tfuq.layers.vbll import VBLLDense

NAMES = ("vbll", "sngp")
# What a VBLLDense does with its own Gaussian logits; those with label noise are its head's.
_OF_THE_HEAD = (
    "objective", "noise", "predictive", "train_mc_samples", "test_mc_samples", "logits_only",
    "sampling", "resample",
)  # fmt: skip


def mean_layer(head):
    """The layer that the argument `last_layer` of `head` stands for, or None.

    Raises:
        ValueError: If it does not suit the head, or `kl_weight` does not suit it.
    """
    given, likelihood = head.last_layer, "bernoulli" if head.multi_label else "categorical"
    if given == "vbll":
        check_kl_weight(head.kl_weight)
    elif head.kl_weight is not None:
        raise ValueError(
            "Argument `kl_weight` belongs to last_layer='vbll'; no other mean has a KL divergence, "
            "and a `VBLLDense` has its own weight of it. Leave it out. "
            f"Received: kl_weight={shown(head.kl_weight)} with last_layer={shown(given)}"
        )
    if given is None:
        return None
    if isinstance(given, (VBLLDense, SNGPDense)):
        _check_suits(given, head, likelihood)
        return given
    if not isinstance(given, str) or given not in NAMES:
        raise ValueError(
            "Argument `last_layer` must be None, 'vbll', 'sngp', a `VBLLDense` or an `SNGPDense`. "
            f"Received: last_layer={shown(given)}"
        )
    names = ("kernel_initializer", "bias_initializer", "seed")
    if given == "vbll":
        layer = VBLLDense
        names += ("kl_weight", "bias_regularizer", "kernel_constraint", "bias_constraint")
    else:
        layer = SNGPDense
        names += ("kernel_regularizer",)
    return layer(
        head.num_outputs,
        likelihood=likelihood,
        dtype=head.dtype_policy,
        name=f"{head.name}_mean",
        **{name: getattr(head, name) for name in names},
    )


def _check_suits(layer, head, likelihood):
    if layer.units != head.num_outputs:
        raise ValueError(
            "Argument `last_layer` must have as many units as the head has outputs, "
            f"{head.num_outputs}. Received: last_layer with units={layer.units}"
        )
    if layer.likelihood != likelihood:
        raise ValueError(
            f"Argument `last_layer` must have likelihood={shown(likelihood)} in a "
            f"{type(head).__name__}. Received: likelihood={shown(layer.likelihood)}"
        )
    check_is_own(layer)
    idle = ("logits_only",) if isinstance(layer, SNGPDense) else _OF_THE_HEAD
    defaults = inspect.signature(type(layer).__init__).parameters
    given = {name: getattr(layer, name) for name in idle}
    given = {name: value for name, value in given.items() if value != defaults[name].default}
    if given:
        said = ", ".join(f"{name}={shown(value)}" for name, value in given.items())
        raise ValueError(
            "Argument `last_layer` must leave out what the head decides: the head has arguments "
            "for samples, noise and outputs, and trains on the bound in closed form. Received: "
            f"last_layer with {said}"
        )


def check_is_own(layer):
    """Raises ValueError if a layer is built, and so, by somebody else than its head."""
    if layer.built:
        raise ValueError(
            "Argument `last_layer` must be a layer of its own, not built yet; the head builds it. "
            f"Received: the built layer {layer.name!r}"
        )


def serialized(last_layer):
    """The argument `last_layer` in a configuration."""
    if isinstance(last_layer, keras.layers.Layer):
        config = keras.saving.serialize_keras_object(last_layer)
        config.pop("build_config", None)  # its head builds it
        return config
    return last_layer


def deserialized(last_layer):
    """The argument `last_layer` from a configuration."""
    if isinstance(last_layer, dict):
        return keras.saving.deserialize_keras_object(last_layer)
    return last_layer


def bound(logs, half_variance):
    """Logits that train noisy logits with uncertain weights, and what the loss has beyond them.

    With v the variance that the weights give the logits, w their draw and z the noise,

        E_w[log E_z softmax_k(u)] >= log E_z exp(E_w[u_k - lse(u)])
                                  >= log E_z softmax_k(mean + z + v / 2) - v_k / 2 =: L_k

    by Jensen's inequality twice (of lse, and of -lse as in closed form of Harrison et al. 2024,
    theorem 1). -L_y is the cross-entropy of the logits L, less their log-sum-exp, which needs no
    label. Without noise it is the bound of a VBLL, without v the likelihood of the noise alone.

    Args:
        logs: log E_z softmax(mean + z + v / 2) `(rows, classes)`; of labels, that of the sigmoid
            and that of its complement.
        half_variance: v / 2, `(rows, classes)`.

    Returns:
        Logs that are normalized, as `logs`, and what is to be added to the cross-entropy,
        `(rows,)`, or of labels `(rows, labels)`.
    """
    log_prob, *log_complement = logs
    floor = (log_prob - half_variance, *log_complement)
    if not log_complement:
        total = tf.reduce_logsumexp(floor[0], axis=-1)
        return (floor[0] - total[:, None],), -total
    total = tf.reduce_logsumexp(tf.stack(floor), axis=0)
    return tuple(each - total for each in floor), -total
