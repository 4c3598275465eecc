"""The graph that every format holds: a batch in, a dict of all that a model says of it out."""

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfuq._arguments import shown
from tfuq._models.finite import finite_rows, where_known
from tfuq._models.taken import has_sizes
from tfuq.export._decisions import MEANINGS, make_decisions, unbounded
from tfuq.export._inputs import of_rank
from tfuq.export._number_decisions import make_number_decisions
from tfuq.export._operations import named, of_python, unrepeatable
from tfuq.export._request import Request
from tfuq.export._samples import EXACT
from tfuq.export._tables import tracked_of
from tfuq.export._tracing import tracing


class Serving(NamedTuple):
    """The graph of a `Request`, to be written."""

    request: Request
    serve: object  # a `tf.function` of a batch, traced
    concrete: object  # what it was traced to
    held: list  # variables

    def write(self, folder, verbose=False):
        """Writes a SavedModel."""
        archive = keras.export.ExportArchive()
        for each in (*self.request.members, *tracked_of(self.request.steps)):
            archive.track(each)
        archive.add_variable_collection("held", self.held)
        archive.add_endpoint("serve", self.serve)
        # What is served is not differentiated, and some gradients cannot be written.
        plain = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        try:
            archive.write_out(str(folder), plain, verbose)
        except AssertionError as error:
            if "untracked" not in str(error):
                raise
            raise ValueError(
                "Argument `preprocessing` must hold its tables and files in a Keras layer, in a "
                "`tf.Module` or as a variable of the function itself, where the export finds "
                f"them. Received: {str(error).splitlines()[0]}"
            ) from error


def graph(request, networks):
    """`Serving` of a `Request` and its `Networks`, or a ValueError if it cannot be exported."""
    serve = tf.function(
        lambda inputs: _served(request, networks, inputs),
        input_signature=[request.spec],
        autograph=False,  # it would wrap our errors
    )
    with tracing(request):
        concrete = serve.get_concrete_function()
    _check_operations(concrete, request)
    return Serving(request, serve, concrete, networks.held)


def _served(request, networks, inputs):
    """The dict that `serve` returns.

    Of inputs that are not finite nothing is known, even if the preparation or the network hides it,
    nor of what has another size than was exported or lies outside of the range that is declared of
    the models.
    """
    inputs = of_rank(inputs, request.spec)
    batch = request.prepare(inputs)
    values, scores = networks(batch)
    known = finite_rows([inputs] if batch is inputs else [inputs, batch])
    known &= has_sizes(inputs, request.spec)
    if request.declared.inputs is not None:
        known &= request.declared.inputs.rows_inside(batch)
    values = where_known(known, values, axis=int(networks.is_stack))
    shape = values.shape[1:] if networks.is_stack else values.shape
    if request.family is None:
        decide = make_decisions(request, shape, networks.is_stack, networks.is_logits)
    else:
        decide = make_number_decisions(request, shape)
    with tf.name_scope(EXACT):
        said = decide(values, networks.is_stack)
    if request.detector is not None:
        score = scores[0] if scores else _of_examples(said["mutual_information"])
        score = where_known(known, score, otherwise=np.inf)
        if getattr(decide, "needs_score", False):
            with tf.name_scope(EXACT):
                said |= decide.by_score(said, score)
        said["ood_score"] = unbounded(score)
    return {name: tf.identity(said[name], name=name) for name in MEANINGS if name in said}


def _of_examples(information):
    """The mutual information of one prediction per example, `(batch,)`."""
    return tf.reshape(information, (tf.shape(information)[0],))


def _check_operations(concrete, request):
    python = of_python(concrete)
    if python:
        raise ValueError(
            "Argument `model` must not call Python, which a file cannot hold: use TensorFlow "
            f"operations. Received: a py_function in {named(python[0], request.members)}"
        )
    changing = [] if request.predictive == "fresh_samples" else unrepeatable(concrete)
    if changing:
        raise ValueError(
            f"Argument `predictive` must be 'fresh_samples' for a model whose calls differ. "
            f"Received: predictive={shown(request.predictive)} with "
            f"{named(changing[0], request.members)}"
        )
