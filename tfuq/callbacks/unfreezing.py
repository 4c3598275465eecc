"""Gradual unfreezing of a pretrained backbone, from the top, stage by stage, in one `fit`."""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras

from tfuq._arguments import check_choice, check_integer, shown, told
from tfuq._models.train_step import build_optimizer, unwrap_step, wrap_step

NUM_STAGES = 3


# --- When: epochs -----------------------------------------------------------------------------


def stage_at(epoch, epochs_per_stage):
    """How many stages have begun by `epoch`, from 0: stage s begins when s waits are over."""
    return sum(epoch >= begin for begin in itertools.accumulate(epochs_per_stage))


def check_epochs_per_stage(epochs_per_stage, num_stages):
    """Raises ValueError unless it is an integer >= 1, or an integer >= 0 for each stage."""
    if not isinstance(epochs_per_stage, (list, tuple)):
        check_integer("epochs_per_stage", epochs_per_stage, 1)
        return
    for epochs in epochs_per_stage:
        check_integer("epochs_per_stage", epochs, 0)
    if len(epochs_per_stage) != num_stages:
        raise ValueError(
            "Argument `epochs_per_stage` must be an integer, or hold one per stage, "
            f"{num_stages} in all. Received: epochs_per_stage={shown(epochs_per_stage)}"
        )


# --- What: layers -----------------------------------------------------------------------------


class WeightedLayer(NamedTuple):
    """A layer that has weights, and the names on the way to it."""

    path: str
    layer: keras.layers.Layer

    def matches(self, pattern):
        """Whether it fits the name or path of the layer, or of a model that the layer is in."""
        names = self.path.split("/")
        paths = itertools.accumulate(names, "{}/{}".format)
        return any(fnmatch.fnmatchcase(part, pattern) for part in (*names, *paths))


def weighted_layers(layer, prefix=""):
    """Yields the parts of `layer`, bottom first.

    What only holds other layers is taken apart: nested models, wrappers, blocks. Layers of a
    functional model come in topological order, those of a subclassed one in the order in which
    they were made.
    """
    for inner in _held(layer):
        path = f"{prefix}{inner.name}"
        if _held(inner) and not _has_own_weights(inner):
            yield from weighted_layers(inner, f"{path}/")
        elif inner.weights:
            yield WeightedLayer(path, inner)


def _held(layer):
    if isinstance(layer, keras.Model):
        return layer.layers
    return layer._flatten_layers(include_self=False, recursive=False)


def _has_own_weights(layer):
    inside = {id(weight) for inner in _held(layer) for weight in inner.weights}
    return any(id(weight) not in inside for weight in layer.weights)


def distinct(parts):
    """Each layer once, where it comes first."""
    found = {}
    for part in parts:
        found.setdefault(id(part.layer), part)
    return list(found.values())


def split_from_top(parts, num_groups):
    """`parts`, bottom first, as groups of nearly equal size, top first."""
    parts = list(reversed(parts))
    bounds = [len(parts) * i // num_groups for i in range(num_groups + 1)]
    return [parts[low:high] for low, high in itertools.pairwise(bounds)]


def group_by_pattern(parts, stages):
    """For each stage, the parts that its patterns fit and no stage before it has, top first."""
    groups, left = [], list(parts)
    for stage in stages:
        patterns = [stage] if isinstance(stage, str) else stage
        for pattern in patterns:
            check_pattern(pattern, parts)
        group = [part for part in reversed(left) if any(part.matches(p) for p in patterns)]
        if not group:
            raise ValueError(
                f"Argument `stages` must add a layer in each stage. Received: {shown(stage)}, all "
                "of whose layers are in earlier stages"
            )
        left = [part for part in left if part not in group]
        groups.append(group)
    return groups


def check_pattern(pattern, parts):
    """Raises ValueError unless `pattern` fits one of `parts`."""
    if not any(part.matches(pattern) for part in parts):
        raise ValueError(
            "Argument `stages` must name trainable layers of the backbone that have weights, here "
            f"{[part.path for part in parts]}. Received: {shown(pattern)}, which fits none"
        )


def check_stages(stages):
    """Raises ValueError unless `stages` is a list of patterns or of lists of them."""
    rows = stages if isinstance(stages, (list, tuple)) else []
    rows = [[row] if isinstance(row, str) else row for row in rows]
    if not rows or not all(
        isinstance(row, (list, tuple)) and row and all(isinstance(p, str) for p in row)
        for row in rows
    ):
        raise ValueError(
            "Argument `stages` must be a list with names or patterns of layers, or lists of them, "
            f"for each stage. Received: stages={shown(stages)}"
        )


# --- How: flags, the train function, the optimizer --------------------------------------------


def trainable_flags(layers):
    """`(layer or weight, its flag)` for `layers` and all that they hold, parents first."""
    inside = [inner for layer in layers for inner in layer._flatten_layers()]
    weights = [weight for layer in layers for weight in layer.weights]
    return [(thing, thing.trainable) for thing in (*inside, *weights)]


@contextlib.contextmanager
def untrained(flags):
    """While it is open nothing in `flags` is trainable; then the flags are as they say."""
    for thing, _ in flags:
        thing.trainable = False
    try:
        yield
    finally:
        for thing, flag in flags:
            thing.trainable = flag


def frozen_step(step, flags):
    """The training step in which nothing in `flags` is trainable."""

    def wrapped(data):
        with untrained(flags):
            return step(data)

    return wrapped


def check_optimizer(model):
    """Raises ValueError unless the optimizer, which is built, knows all trainable variables."""
    optimizer, variables = model.optimizer, model.trainable_variables
    known = {id(variable) for variable in optimizer._trainable_variables}
    unknown = [variable.path for variable in variables if id(variable) not in known]
    if unknown:
        raise ValueError(
            "Argument `optimizer` of `compile` must be new, or have been built on all weights that "
            "are to be trained; call `compile` again after a change of `trainable`. "
            f"Received: an optimizer that does not know {unknown[:3]}"
        )


@told
class GradualUnfreezing(keras.callbacks.Callback):
    """Trains the head of a model first, then its backbone with it, from the top down.

    In stage 0 the whole backbone is frozen: its weights stay, and its batch normalization runs in
    inference mode. Stage s trains the head and the s topmost groups of layers. All stages are one
    `fit`: schedules, histories and the optimizer's state continue. The stage depends only on the
    number of the epoch, so a resumed training (`initial_epoch`, `keras.callbacks.BackupAndRestore`)
    is in the right stage.

    Set the flags `trainable` of the backbone to their final values: a layer that is not trainable
    stays frozen for good. The callback changes the flags only inside the training step; elsewhere
    you see your own values: in a model saved halfway (with all its optimizer's state), after an
    interruption, after training. (After an interruption, `compile` again before a `fit` without the
    callback: the model still has the training step of the stage.)

    Each stage compiles the training step anew. `logs` get `unfreezing_stage`, for the callbacks
    after this one.

    The count of steps goes on, too. Adam and its kin correct the bias of their moments by that
    count, not by the age of each moment, so layers that join late move faster at first: by Adam's
    formula up to 6.6 times the learning rate, with its default arguments, a dozen steps after they
    join. Choose the learning rate for that, or an optimizer without it, such as SGD.

    Args:
        backbone: The part to freeze at first: a layer (or model) inside the model, or a model whose
            layers are inside it; its name, or its path with `/` between the names of nested models.
            `None`: all but the last layer that has weights.
        num_stages: Number of groups into which the layers of the backbone that have weights and
            are trainable are split evenly, top first, nested models taken apart. 3 if `None`.
        epochs_per_stage: Number of epochs that stage 0, stage 1 and so on last: an integer for
            all, or a list with one for each stage but the last, that is, for as many as there are
            groups. The last stage goes on to the end of training. A training that ends before it
            leaves the lowest layers as they were.
        stages: Instead of `num_stages`, the groups, top first: for each a pattern or a list of
            patterns, as in `fnmatch`, of names or paths of layers, such as `"conv5_*"`. A model's
            name stands for all its layers. A layer belongs to the first stage that names it;
            layers of the backbone that none names stay frozen.
        verbose: 1 prints a line when a stage begins.

    Attributes:
        stage: Number of the latest stage, `None` before training.
        groups: List of lists of paths: what each stage but stage 0 adds, known from the beginning
            of training.

    Raises:
        ValueError: If an argument is not as described. When training begins: if the model is not
            built, has no such backbone or layers, nothing but the backbone to train or fewer
            layers than stages; if its optimizer was built on fewer weights.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.callbacks import GradualUnfreezing

    x, y = np.random.rand(8, 8, 8, 1), np.random.randint(3, size=8)
    layers = [keras.layers.Conv2D(4, 3, name=f"conv{i}") for i in (1, 2)]
    backbone = keras.Sequential([keras.Input((8, 8, 1)), *layers, keras.layers.Flatten()])
    model = keras.Sequential([backbone, keras.layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    unfreezing = GradualUnfreezing(backbone, num_stages=2, epochs_per_stage=[2, 1])
    history = model.fit(x, y, epochs=4, callbacks=[unfreezing], verbose=0).history
    print(history["unfreezing_stage"])  # 0, 0, 1, 2
    ```

    See also: `tfuq.optimizers.DiscriminativeLearningRate`, `tfuq.convert.replace_head`.
    """

    def __init__(
        self,
        backbone: Any = None,
        num_stages: int | None = None,
        epochs_per_stage: int | Sequence[int] = 1,
        *,
        stages: Sequence[Any] | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__()
        if backbone is not None and not isinstance(backbone, (str, keras.layers.Layer)):
            raise ValueError(
                "Argument `backbone` must be a layer, a name or None. "
                f"Received: backbone={shown(backbone)}"
            )
        if stages is not None:
            check_stages(stages)
            if num_stages is not None:
                raise ValueError(
                    "Argument `num_stages` must be None where `stages` are given. "
                    f"Received: num_stages={shown(num_stages)}"
                )
        elif num_stages is not None:
            check_integer("num_stages", num_stages, 1)
        self.backbone = backbone
        self.num_stages = num_stages
        self.epochs_per_stage = epochs_per_stage
        self.stages = stages
        self.verbose = verbose
        check_epochs_per_stage(epochs_per_stage, self._num_groups())
        check_choice("verbose", verbose, (0, 1))
        self.stage = None
        self.groups = []
        self._parts, self._groups = [], []

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if not self.model.built:
            raise ValueError(
                "Argument `model` must be built before `fit`, for GradualUnfreezing: call it on a "
                f"batch, or give it an `Input`. Received: model={shown(self.model)}"
            )
        self.stage = None
        self._parts = self._find_backbone()
        self._groups = self._split(self._parts)
        self.groups = [[part.path for part in group] for group in self._groups]
        build_optimizer(self.model)  # moments outlast the stages
        check_optimizer(self.model)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        stage = stage_at(epoch, self._waits())
        if stage != self.stage:
            self.stage = stage
            flags = trainable_flags(self._waiting())
            wrap_step(self.model, self, lambda step: frozen_step(step, flags))
            if self.verbose:
                self._print(epoch)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if logs is not None:
            logs["unfreezing_stage"] = self.stage

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        unwrap_step(self.model, self)

    def _num_groups(self):
        return len(self.stages) if self.stages is not None else self.num_stages or NUM_STAGES

    def _waits(self):
        if isinstance(self.epochs_per_stage, (list, tuple)):
            return self.epochs_per_stage
        return [self.epochs_per_stage] * self._num_groups()

    def _find_backbone(self):
        """The trainable parts of the backbone, bottom first."""
        parts = [part for part in self._choose() if part.layer.trainable]
        weights = {id(weight) for part in parts for weight in part.layer.trainable_weights}
        if not weights:
            raise ValueError(
                "Argument `backbone` must hold trainable layers: set `trainable` to its final "
                "value; the callback freezes each layer until its stage. Received: "
                f"backbone={shown(self.backbone)}, without a trainable layer"
            )
        if all(id(weight) in weights for weight in self.model.trainable_weights):
            raise ValueError(
                "Argument `backbone` must leave something to train in stage 0. "
                f"Received: backbone={shown(self.backbone)}, which holds all trainable weights"
            )
        return parts

    def _choose(self):
        """The parts of the model that belong to the backbone."""
        parts = distinct(weighted_layers(self.model))
        if self.backbone is None:
            return parts[:-1]
        if isinstance(self.backbone, str):
            chosen = [part for part in parts if part.matches(glob.escape(self.backbone))]
        else:
            inside = {id(layer) for layer in self.backbone._flatten_layers()}
            chosen = [part for part in parts if id(part.layer) in inside]
        if not chosen:
            raise ValueError(
                "Argument `backbone` must be in the model and have weights. Received: "
                f"backbone={shown(self.backbone)} with layers {[part.path for part in parts]}"
            )
        return chosen

    def _split(self, parts):
        if self.stages is not None:
            return group_by_pattern(parts, self.stages)
        if self._num_groups() > len(parts):
            raise ValueError(
                "Argument `num_stages` must not be above the number of layers of the backbone. "
                f"Received: num_stages={self._num_groups()} with {len(parts)} layers"
            )
        return split_from_top(parts, self._num_groups())

    def _waiting(self):
        """The layers of the backbone that are frozen in this stage."""
        joined = [part for group in self._groups[: self.stage] for part in group]
        return [part.layer for part in self._parts if part not in joined]

    def _print(self, epoch):
        trained = sum(map(len, self.groups[: self.stage]))
        added = ", ".join(self.groups[self.stage - 1]) if self.stage else "none"
        print(
            f"\nEpoch {epoch + 1}: GradualUnfreezing begins stage {self.stage} of "
            f"{len(self.groups)}, training {trained} of {len(self._parts)} layers of the "
            f"backbone. New: {added}"
        )
