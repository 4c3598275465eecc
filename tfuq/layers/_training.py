"""Terms that layers add to the loss of the model whose call is running, and its weight decay."""

import threading

import keras
import tensorflow as tf

# Nothing public says which call a layer's call is a part of.
from keras.src.backend.common import global_state
from keras.src.backend.common.stateless_scope import get_stateless_scope, in_stateless_scope

from tfuq._arguments import shown
from tfuq._models.train_step import optimizer_chain

MEANS = ("sum_over_batch_size", "mean", "mean_with_sample_weight")  # reductions of Keras
_LATEST = threading.local()  # the replicas of a strategy are threads


def _call_context():
    return global_state.get_global_attribute("current_call_ctx")


def first_in_call(layer):
    """Whether `layer` asks for the first time in the outermost call that is running.

    What a layer adds once per set of weights, and not once per use of them, it adds then. A call
    that only finds out shapes, in a scope of its own, does not count.
    """
    context = _call_context()
    if context is None:
        return True
    # Keyed by the scope itself, not its id: held, the id is not given to another one.
    key = (id(layer), get_stateless_scope() if in_stateless_scope() else None)
    asked = vars(context).setdefault("_tfuq_asked", set())
    is_first = key not in asked
    asked.add(key)
    return is_first


def calling_model():
    """The Keras model whose call is running, the outermost one, or None."""
    layer = getattr(_call_context(), "entry_layer", None)
    return layer if isinstance(layer, keras.Model) else None


def compiled_metrics(model):
    """The metrics that a model was compiled with, as they were given."""
    holder = getattr(model, "_compile_metrics", None)
    given = (getattr(holder, name, None) for name in ("_user_metrics", "_user_weighted_metrics"))
    return [metric for metric in keras.tree.flatten(list(given)) if metric is not None]


def steps_taken():
    """The `iterations` of the optimizer of the model that is running, int32; None without one."""
    optimizer = getattr(calling_model(), "optimizer", None)
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        return None
    return tf.cast(tf.convert_to_tensor(optimizer_chain(optimizer)[-1].iterations), "int32")


def exempt_from_decay(variables):
    """Excludes `variables` from the weight decay of the optimizer of the model that is running."""
    optimizer = getattr(calling_model(), "optimizer", None)
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        return
    inner = optimizer_chain(optimizer)[-1]
    if not inner.weight_decay:
        return
    keys = {inner._var_key(variable) for variable in variables}
    # Keras' own `exclude_from_weight_decay` refuses once the optimizer is built.
    inner._exclude_from_weight_decay = getattr(inner, "_exclude_from_weight_decay", set()) | keys
    for key in keys:
        getattr(inner, "_exclude_from_weight_decay_cache", {}).pop(key, None)


# --- A term of the loss that follows the loss --------------------------------------------------


class _Reduced(keras.losses.Loss):
    """Values per position, reduced by Keras as it reduces a loss."""

    def call(self, y_true, y_pred):
        return y_pred


def masked_mean(values, mask):
    """Mean of `values` `(batch, ...)` where `mask` is true, or of all; that of none is 0."""
    weights = _position_weights(values, mask)
    return tf.reduce_sum(values * weights) / tf.maximum(tf.reduce_sum(weights), 1)


def _position_weights(values, mask):
    if mask is None:
        return tf.ones_like(values)
    return tf.ones_like(values) * tf.cast(_of_rank(mask, values), values.dtype)


def _of_rank(mask, values):
    while mask.shape.rank < values.shape.rank:
        mask = mask[..., None]
    return mask


def add_term(layer, values, mask):
    """Adds to the loss the mean of `values` `(batch, ...)`, one for each term of the loss.

    In a compiled model of one output the values are weighted and reduced as the compiled loss is:
    by its reduction, `loss_weights`, `ignore_class`, sample and class weights. A layer that is
    called several times there adds the mean over its calls, as the loss is a mean over all.
    """
    added = masked_mean(values, mask)
    layer.add_loss(added)
    model, context = calling_model(), _call_context()
    if model is None or in_stateless_scope() or getattr(model, "loss", None) is None:
        return
    if getattr(_LATEST, "context", None) is not context:
        _LATEST.context, _LATEST.model, _LATEST.terms = context, model, {}
    _LATEST.terms.setdefault(layer.name, []).append((values, mask, added))
    if "compute_loss" not in vars(model):
        # Past Keras' own `__setattr__`, which tracks.
        object.__setattr__(model, "compute_loss", _following(model, model.compute_loss))


def _following(model, original):
    """`model.compute_loss`, with the terms of the latest call weighted as the loss is."""

    def compute_loss(x=None, y=None, y_pred=None, sample_weight=None, **kwargs):
        is_latest = getattr(_LATEST, "model", None) is model
        terms = _LATEST.terms if is_latest and kwargs.get("training", True) else {}
        _LATEST.context, _LATEST.model, _LATEST.terms = None, None, {}
        corrections = [
            _correction(model, name, calls, y, y_pred, sample_weight)
            for name, calls in terms.items()
        ]
        loss = original(x, y, y_pred, sample_weight, **kwargs)
        for correction in corrections:
            loss = loss if correction is None else loss + tf.cast(correction, loss.dtype)
        return loss

    return compute_loss


def _correction(model, name, calls, y, y_pred, sample_weight):
    """What is to be added to the sum of the means of `calls`; None for nothing."""
    loss, weight = _single(model.loss), _single(_loss_weights(model))
    y, y_pred, sample_weight = _single(y), _single(y_pred), _single(sample_weight)
    if keras.tree.is_nested(y_pred):
        _check_is_plain(model, name, sample_weight)
        return None
    weight = 1.0 if weight is None else weight
    reduction, ignored = _reduction(loss), getattr(loss, "ignore_class", None)
    is_plain = reduction in MEANS and weight == 1 and sample_weight is None
    if is_plain and ignored is None and len(calls) == 1:
        return None
    if reduction in (None, "none"):
        raise ValueError(
            f"Argument `loss` must have a reduction, such as 'sum_over_batch_size', for {name!r}, "
            "which adds a term to it. "
            f"Received: loss={shown(loss)} with reduction={shown(reduction)}"
        )
    reduce = _Reduced(name="term", reduction=reduction, dtype=calls[0][0].dtype)
    total = 0.0
    for values, mask, added in calls:
        values, mask = tf.identity(values), None if mask is None else _of_rank(mask, values)
        if mask is not None:
            mask = tf.broadcast_to(mask, tf.shape(values))
        if ignored is not None:
            valid = tf.reshape(tf.not_equal(y, tf.cast(ignored, y.dtype)), tf.shape(values))
            mask = valid if mask is None else mask & valid
        if mask is not None:
            values._keras_mask = mask
        reduced = reduce(values, values, sample_weight)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        total += weight / len(calls) * reduced - added / replicas
    return total


def _single(of_outputs):
    """What a list or dict of one output holds; anything else as it is."""
    if isinstance(of_outputs, (list, tuple)) and len(of_outputs) == 1:
        return of_outputs[0]
    if isinstance(of_outputs, dict) and len(of_outputs) == 1:
        return next(iter(of_outputs.values()))
    return of_outputs


def _loss_weights(model):
    return getattr(getattr(model, "_compile_config", None), "config", {}).get("loss_weights")


def _reduction(loss):
    return getattr(loss, "reduction", "sum_over_batch_size")


def _check_is_plain(model, name, sample_weight):
    """Raises ValueError if a loss of several outputs asks for what the term cannot follow."""
    losses = [each for each in keras.tree.flatten(model.loss) if each is not None]
    weights = [w for w in keras.tree.flatten(_loss_weights(model)) if w is not None]
    given = [w for w in keras.tree.flatten(sample_weight) if w is not None]
    asked = {
        "reduction": any(_reduction(each) not in MEANS for each in losses),
        "ignore_class": any(getattr(each, "ignore_class", None) is not None for each in losses),
        "loss_weights": any(weight != 1 for weight in weights),
        "sample_weight": bool(given),
    }
    found = [argument for argument, is_asked in asked.items() if is_asked]
    if found:
        raise ValueError(
            f"The layer {name!r} adds a term to the loss, which follows {', '.join(asked)} only if "
            "the model has one output. Give the model one output (`logits_only=True`), or leave "
            f"these out. Received: {', '.join(found)} with several outputs"
        )
