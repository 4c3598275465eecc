"""Networks of an export: one, draws of one, or several, as a stack of outputs."""

import contextlib
import functools

import keras
import numpy as np
import tensorflow as tf

from tfuq._models.outputs import select_output
from tfuq._models.stacked import StackedForward
from tfuq._predictions.probabilities import is_binary, probabilities
from tfuq._random.cut import cut
from tfuq._random.draws import one_draw
from tfuq.export._samples import EXACT, FreshSeeds, are_at_once, samples, unrolled_samples
from tfuq.export._tracing import tracing
from tfuq.layers.ways import knows, predicting
from tfuq.ood import MutualInformation
from tfuq.ood.graph_scores import GraphScore

FEW = 16  # examples, up to which convolutions of many draws are faster as products of matrices


class Networks:
    """Outputs of all networks for a batch, as one stack, and the score of the detector beside it.

    Attributes:
        held: Variables that are part of the file.
        is_logits: Whether the stack holds what the models return: logits, or numbers.
        is_stack: Whether it has an axis of samples, the first.
    """

    def __init__(self, predict, flags, are_stacks, is_ensemble, multi_label, held):
        self.predict, self.flags, self.are_stacks = predict, flags, are_stacks
        self.multi_label, self.held = multi_label, held
        self.is_logits = all(flags)
        self.is_stack = is_ensemble or any(are_stacks)

    def __call__(self, batch):
        """Tensor `(samples, batch, ...)` or `(batch, ...)`, and a list of at most one score."""
        stack, scores = [], []
        for predict, flag, is_stack in zip(self.predict, self.flags, self.are_stacks, strict=True):
            outputs, more = predict(batch)
            if not self.is_logits:  # members of both kinds
                outputs = probabilities(outputs, flag, is_binary(outputs.shape, self.multi_label))
            stack.append(outputs if is_stack or not self.is_stack else outputs[None])
            scores += more
        return tf.concat(stack, 0) if self.is_stack else stack[0], scores


def networks(request):
    """`Networks` of a `Request`."""
    held, members = [], request.members

    def hold(array):
        held.append(tf.Variable(array, trainable=False, name=f"held_{len(held)}"))
        return held[-1]

    with tracing(request):
        score, scored = None, _scored_model(request.detector)
        if scored is not None:
            score = GraphScore(request.detector, request.inner_example(), hold)
        are_stacks = [request.draws_of(member) is not None for member in members]
        flags = request.are_logits
        if request.is_stacked and not any(are_stacks) and len(set(flags)) == 1:
            predict, are_stacks = [_all_at_once(request, score)], [True]
            flags = flags[:1]
        else:
            predict = [
                network(request, each, hold, score if each is scored else None) for each in members
            ]
    return Networks(predict, flags, are_stacks, request.is_ensemble, request.multi_label, held)


def _scored_model(detector):
    """The model that the detector reads; None without one, or if it scores the samples."""
    is_of_samples = detector is None or isinstance(detector, MutualInformation)
    return None if is_of_samples else detector.model


def network(request, model, hold, score=None):
    """A function of a batch that gives the outputs of one model, and a score beside them.

    Outputs are float32, `(samples, batch, ...)` where samples are drawn, else `(batch, ...)`.

    Args:
        request: `Request`.
        model: A Keras model, of its members.
        hold: Makes a variable of an array that is to be part of the file.
        score: None, or a `tfuq.ood.graph_scores.GraphScore` of the same model.
    """

    def read(batch):
        with predicting(request.predictive):
            return select_output(model(batch, training=False), request.output, model)

    def beside(batch):
        return [] if score is None else [_exact(score, batch, score.read(batch))]

    def passes():
        # Not where layers count their calls, which such a scope would undo.
        is_shared = score is not None and request.predictive != "fresh_samples"
        return _variables_read_once(model) if is_shared else contextlib.nullcontext()

    def predict(batch):
        with passes():
            return tf.cast(read(batch), "float32"), beside(batch)

    def drawn(batch, seed, at_once=False):
        with passes():
            with one_draw(seed, model, at_once):
                outputs = read(batch)
            return tf.cast(outputs, "float32"), beside(batch)

    if request.draws_of(model) is not None:
        return _by_size(request, drawn, hold)
    if score is None or not score.reads(request.output) or _changes(model, request.predictive):
        return predict

    def predict_with_score(batch):  # one pass gives both
        found = score.read(batch)
        return found.outputs, [_exact(score, batch, found)]

    return predict_with_score


def _all_at_once(request, score):
    """A function of a batch that gives `(members, batch, ...)`, of stacked weights."""

    forward = StackedForward(request.members)

    def predict(batch):
        with predicting(request.predictive):
            outputs = select_output(forward(batch), request.output, request.members[0])
        axis = len(outputs.shape) - 2
        stack = tf.transpose(tf.cast(outputs, "float32"), [axis, *range(axis), axis + 1])
        return stack, [] if score is None else [_exact(score, batch, score.read(batch))]

    return predict


def _by_size(request, drawn, hold):
    """A function of a batch that gives `(samples, batch, ...)`, of `drawn(batch, seed, at_once)`.

    Convolutions that cannot be done for all draws at once can as products of matrices. That saves
    the operations' overhead, and so is faster for few examples; of many, it is slower.
    """
    parts, count = cut(drawn, request.inner), request.num_samples
    size = tf.nest.flatten(request.inner)[0].shape[0]
    is_plain = are_at_once(parts, count) if size is None else size > FEW
    if request.is_unrolled or is_plain:
        return _stacked(request, parts, hold)
    products = cut(functools.partial(drawn, at_once=True), request.inner)
    if not are_at_once(products, count):
        return _stacked(request, parts, hold)
    of_few = _stacked(request, products, hold)
    if size is not None:
        return of_few
    of_many = _stacked(request, parts, hold)

    def predict(batch):
        is_small = tf.shape(tf.nest.flatten(batch)[0])[0] <= FEW
        return tf.cond(is_small, lambda: of_few(batch), lambda: of_many(batch))

    return predict


def _stacked(request, parts, hold):
    """A function of a batch that gives `(samples, batch, ...)`, of a `Cut`, and what is beside."""
    numbers = np.arange(request.num_samples)
    seeds = np.stack([np.full_like(numbers, request.seed), numbers], 1)
    if request.predictive == "fresh_samples":
        seeds = FreshSeeds(request.seed, request.num_samples, hold)
    draw = unrolled_samples if request.is_unrolled else samples
    stack = draw(parts, seeds, hold)

    def predict(batch):
        frontier, scores = parts.prefix(batch)
        return stack(frontier), scores

    return predict


def _exact(score, batch, found):
    with tf.name_scope(EXACT):
        return score(batch, found)


def _changes(model, predictive):
    """Whether the network may predict otherwise than as it was made."""
    layers = model._flatten_layers()
    return any(knows(layer, predictive) or getattr(layer, "resample", False) for layer in layers)


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
