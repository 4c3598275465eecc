"""The declared meaning of outputs that are numbers: of which family their parameters are."""

from typing import NamedTuple

import keras
import tensorflow as tf

from tfuq._models.finite import known_only
from tfuq._models.meaning import said_by_head, said_by_loss, said_when_called
from tfuq._models.outputs import select_output
from tfuq._predictions.families import Point, family_named
from tfuq._random.draws import random_layers


def declared_family(model, output=None, family=None, batch=None):
    """The `Family` of a regression's output, or None where a model is declared to be a classifier.

    It is taken, in this order, from the caller, from the head, from the compiled loss; a loss of
    numbers, such as a squared error, says `Point`.

    Raises:
        ValueError: If two sides contradict each other.
    """
    given = None if family is None else family_named(family)
    head = said_by_head(model, output)
    if head.says == "" and batch is not None and isinstance(model, keras.Model):
        head = said_when_called(model, output, batch)
    loss = said_by_loss(model, output)
    of_head, of_loss = head.family, loss.family
    if given is not None and of_head is not None and given != of_head:
        raise ValueError(
            f"Argument `family` must be {of_head!r} or left out: {head.says} gives its parameters. "
            f"Received: family={given!r}"
        )
    if of_head is not None and of_loss not in (None, of_head) and not isinstance(of_loss, Point):
        raise ValueError(
            f"The compiled loss must be of the family {of_head!r}, whose parameters {head.says} "
            f"gives. Received: {loss.says} of {of_loss!r}"
        )
    if given is not None or of_head is not None:
        return of_head if given is None else given
    return None if head.is_logits is not None else of_loss


class NumberReading(NamedTuple):
    """How an output of a model becomes parameters of a family; it stands for a `Reading`."""

    output: object
    family: object

    def select(self, model, batch):
        """The output of a batch, float32."""
        return tf.cast(select_output(model(batch, training=False), self.output, model), "float32")

    def probs(self, model, batch):
        """Parameters `(batch, ..., units * size)`, NaN for inputs that are not finite."""
        return self.as_probs(batch, self.select(model, batch))

    def as_probs(self, batch, params):
        self.family.units(params.shape[-1])
        return known_only(batch, params)

    def checked(self, params):
        return params

    def known(self, model, batch=None):
        del model, batch  # all is known
        return self


def is_closed_form(model, family):
    """Whether the one random layer of a model is the head whose parameters its output has."""
    random = [layer for layer in random_layers(model) if layer.is_random()]
    return len(random) == 1 and random[0].closed_form and random[0].family == family


def number_reading(model, reading, family, batch=None):
    """`NumberReading` of a regression, None of a classifier."""
    if reading.from_logits is not None or reading.multi_label is not None:
        if family is None:
            return None
        raise ValueError(
            "Arguments `from_logits` and `multi_label` must be left out with `family`, which says "
            f"that the outputs are numbers. Received: from_logits={reading.from_logits}, "
            f"multi_label={reading.multi_label} with family={family!r}"
        )
    found = declared_family(model, reading.output, family, batch)
    return None if found is None else NumberReading(reading.output, found)


def number_readings(models, reading, family, batch=None):
    """`number_reading` of each model; all say numbers of one family, or none does."""
    found = [number_reading(model, reading, family, batch) for model in models]
    if len(set(found)) > 1:
        families = [None if each is None else each.family for each in found]
        raise ValueError(
            "Argument `model` must be an ensemble whose members predict numbers of one family. "
            f"Received: {families}"
        )
    return found
