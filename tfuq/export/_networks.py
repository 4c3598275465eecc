"""What an exported model computes: one network, draws of one, or several, as a stack of outputs."""

import contextlib
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfuq._arguments import check_integer
from tfuq._models.features import watched
from tfuq._models.outputs import select_output
from tfuq._random.cut import cut
from tfuq._random.draws import one_draw, random_layers
from tfuq.ensembles import DeepEnsemble
from tfuq.export._operations import layer_of
from tfuq.export._samples import FreshSeeds, samples, unrolled_samples
from tfuq.layers.ways import knows, predicting

PREDICTIVES = ("fixed_samples", "probit", "mean", "fresh_samples")
NUM_SAMPLES = 30


class Options(NamedTuple):
    """How each network predicts."""

    predictive: str
    num_samples: int | None
    output: object
    seed: int
    is_unrolled: bool = False  # without loops and random numbers, which LiteRT does not have


def members_of(model):
    """The Keras models of the argument `model`, and whether they are an ensemble."""
    if isinstance(model, keras.Model):
        members, several = [model], False
    else:
        if callable(getattr(model, "ensemble", None)):  # snapshots
            model = model.ensemble()
        if isinstance(model, (list, tuple)) and all(isinstance(m, keras.Model) for m in model):
            model = DeepEnsemble.from_models(model)
        if not isinstance(model, DeepEnsemble):
            raise ValueError(
                "Argument `model` must be a Keras model, a DeepEnsemble, a SnapshotEnsemble or a "
                f"list of Keras models. Received: model={model!r}"
            )
        members, several = list(model.members), True
    for member in members:
        if not member.built:
            raise ValueError(
                "Argument `model` must be built: give it an input shape, or call it once. "
                f"Received: {member} without weights"
            )
    return members, several


def check_options(members, several, options):
    """The options with the number of samples that will be drawn of each network, or ValueError."""
    predictive, count = options.predictive, options.num_samples
    check_integer("seed", options.seed, 0)
    if count is not None:
        check_integer("num_samples", count, 1)
    if predictive == "probit":
        _check_probit(members)
    if predictive == "fresh_samples" and not all(map(_has_noise, members)):
        raise ValueError(
            "Argument `predictive` must not be 'fresh_samples' for a model without random layers, "
            f"whose predictions are all the same. Received: predictive={predictive!r}"
        )
    draws = predictive in ("fixed_samples", "fresh_samples") and any(map(is_random, members))
    if count is not None and not draws:
        raise ValueError(
            "Argument `num_samples` must be None unless samples are drawn of a model with random "
            f"layers. Received: num_samples={count!r} with predictive={predictive!r} and "
            f"{members[0]}"
        )
    is_default = draws and count is None and not (several and predictive == "fixed_samples")
    return options._replace(num_samples=NUM_SAMPLES if is_default else count)


def check_is_fixed(predictive, kind):
    if predictive == "fresh_samples":
        raise ValueError(
            "Argument `predictive` must not be 'fresh_samples', of new random numbers in each "
            f"call, which {kind} does not have built in; take 'fixed_samples'. "
            "Received: predictive='fresh_samples'"
        )


def is_random(model):
    """Whether draws of the network differ."""
    return any(layer.is_random() for layer in random_layers(model))


def _has_noise(model):
    heads = [layer for layer in model._flatten_layers() if knows(layer, "fresh_samples")]
    return bool(heads) or is_random(model)


def _check_probit(members):
    for member in members:
        heads = [layer for layer in member._flatten_layers() if knows(layer, "probit")]
        others = [each.name for each in random_layers(member) if each not in heads]
        others = [name for name in others if is_random(member)]
        if len(heads) != 1 or others:
            found = f"the random layers {others}" if others else f"{len(heads)} of these"
            raise ValueError(
                "Argument `predictive` may be 'probit' for a model whose one random layer is a "
                "VBLLDense, MCSoftmaxDenseFA or MCSigmoidDenseFA, which knows the variance of its "
                f"logits; take 'fixed_samples'. Received: predictive='probit' with {found}"
            )


# --- One network ------------------------------------------------------------------------------


def changes(model, predictive):
    """Whether the network may predict otherwise than as it was made."""
    layers = model._flatten_layers()
    return any(knows(layer, predictive) or getattr(layer, "resample", False) for layer in layers)


def network(model, options, spec, hold, score=None):
    """A function of a batch that gives the outputs of one model, and a score beside them.

    Outputs are float32, `(samples, batch, ...)` where samples are drawn, else `(batch, ...)`.

    Args:
        model: A Keras model.
        options: `Options`.
        spec: What it takes, as `tf.TensorSpec`s.
        hold: Makes a variable of an array that is to be part of the file.
        score: None, or a `tfuq.export._detectors.GraphScore` of the same model.
    """

    def beside(batch):
        return [] if score is None else [score(batch)]

    def passes():
        # Not where layers count their calls, which such a scope would undo.
        is_shared = score is not None and options.predictive != "fresh_samples"
        return _variables_read_once(model) if is_shared else contextlib.nullcontext()

    if options.num_samples is not None and is_random(model):

        def drawn(batch, seed):
            with passes():
                with predicting(options.predictive), one_draw(seed):
                    outputs = select_output(model(batch, training=False), options.output)
                return tf.cast(outputs, "float32"), beside(batch)

        numbers = np.arange(options.num_samples)
        seeds = np.stack([np.full_like(numbers, options.seed), numbers], 1)
        if options.predictive == "fresh_samples":
            seeds = FreshSeeds(options.seed, options.num_samples, hold)
        parts = cut(drawn, spec)
        draw = unrolled_samples if options.is_unrolled else samples
        stack = draw(parts, seeds, hold)

        def predict(batch):
            frontier, scores = parts.prefix(batch)
            return stack(frontier), scores

        return predict

    if score is not None and score.reads(options.output) and not changes(model, options.predictive):
        return score.with_outputs  # one pass gives both

    def predict(batch):
        with passes():
            with predicting(options.predictive):
                outputs = select_output(model(batch, training=False), options.output)
            return tf.cast(outputs, "float32"), beside(batch)

    return predict


@contextlib.contextmanager
def _variables_read_once(model):
    """While it is open, all passes through the network take the same tensors of its weights.

    What two passes have in common is then the same operations of the same tensors, of which
    TensorFlow keeps one.
    """
    state = [v for v in model.variables if "seed_generator" not in v.path]
    held = [(variable, tf.convert_to_tensor(variable.value)) for variable in state]
    with keras.StatelessScope(state_mapping=held):
        yield


# --- Why it cannot be exported ----------------------------------------------------------------


def sample_inputs(spec, count=32):
    """Inputs of a kind that `spec` describes, to see what a model makes of them."""
    rng = np.random.default_rng(0)

    def of(leaf):
        shape = [count if leaf.shape[0] is None else leaf.shape[0]]
        shape += [1 if axis is None else axis for axis in leaf.shape[1:]]
        if leaf.dtype.is_floating:
            return tf.constant(rng.normal(size=shape), leaf.dtype)
        if leaf.dtype == tf.string:
            return tf.fill(shape, "")
        return tf.cast(rng.integers(256 if leaf.dtype == tf.uint8 else 2, size=shape), leaf.dtype)

    return tf.nest.map_structure(of, spec)


def failing_layer(models, spec):
    """The innermost layer whose call cannot be traced, or None if all can."""
    found = []

    def handler(layer):
        def handle(call, *args, **kwargs):
            try:
                return call(*args, **kwargs)
            except Exception:
                found.append(layer)  # the innermost comes first
                raise

        return handle

    for model in models:
        with contextlib.ExitStack() as stack, contextlib.suppress(Exception):
            for layer in dict.fromkeys(model._flatten_layers(include_self=False)):
                stack.enter_context(watched(layer, handler(layer)))
            tf.function(
                lambda batch, model=model: model(batch, training=False), autograph=False
            ).get_concrete_function(spec)
    return found[0] if found else None


def layers_of(models):
    """All layers at any depth, the outer ones first."""
    return [layer for model in models for layer in model._flatten_layers(include_self=False)]


def named(operation, models):
    """A text that names the layer of an operation."""
    layer = layer_of(operation, layers_of(models))
    where = "outside its layers" if layer is None else _describe(layer)
    return f"{where} (operation {operation!r})"


def _describe(layer):
    return f"layer {layer.name!r} of class {type(layer).__name__}"
