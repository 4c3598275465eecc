"""Selection of the random weights of a network in the middle of its training."""

from __future__ import annotations

import functools
import warnings
import weakref
from typing import Any

import keras
import tensorflow as tf

from tfuq._arguments import Data, check_choice, check_integer, shown, told
from tfuq._models.gradients import METHODS, squared_gradients
from tfuq._models.train_step import (
    adapt,
    build_optimizer,
    callbacks_of_fit,
    forget_functions,
    intercepted,
    optimizer_chain,
    rebuild_optimizer,
    sum_over_replicas,
    unwrap_step,
    wrap_step,
)
from tfuq.callbacks._neighbours import check_alone
from tfuq.layers.saliency import SCOPES
from tfuq.layers.selection import (
    check_which,
    choose_layers,
    less_than_one,
    needs_gradients,
    select_layers,
)
from tfuq.layers.sparse_bayes import sparse_bayes_layers
from tfuq.optimizers.ivon import hessians_of


def _adapted(model):
    """Tells `model`, a weak reference, that a file has brought other variables."""
    if model() is not None:
        adapt(model())


@told
class SaliencySelection(keras.callbacks.Callback):
    """Trains a deterministic network first, then makes its most salient weights random.

    It runs the three steps of Abboud et al. 2024 in one `fit`. For `after_epoch` epochs, layers
    such as `tfuq.layers.SparseBayesDense` behave as their Keras twins. Then the weights with the
    largest squared gradients become random. The optimizer keeps its state of all earlier weights.

    Layers with a selection, such as one that `keras.callbacks.BackupAndRestore` restored, keep it.
    Frozen layers (`trainable=False`) stay deterministic; if they are trained again later, the
    selection follows then. Put this callback before those that save the model, so that they save
    the selection. `logs` get `bayesian_weights`, the number of random weights in use.

    The selection makes another network, so comparisons of epochs start again: `EarlyStopping` never
    restores weights from before it, and `ModelCheckpoint(save_best_only=True)` does not compare
    with earlier epochs. Weights from before the selection can be loaded after it, and the reverse:
    layers adapt their number of random weights to the file. If a training stops before the
    selection, a warning says that no weight is random.

    Args:
        data: Data for the gradients, in one pass, with the model in inference mode: `(x, y)` or
            `(x, y, sample_weight)` arrays, a `tf.data.Dataset` or a `keras.utils.PyDataset`. `None`
            takes the gradients of the training steps of the last epoch before the selection.
        after_epoch: Number of epochs to train before, at least 1 without `data`, and at most those
            of `fit`.
        scope: `"layer"`: each layer has its fraction `r_bayes`. `"global"`: as many weights in
            all, those with the largest gradients of the whole network; `r_bayes` of each layer
            becomes its share. Variables change their shapes then.
        method: `"gradient"`: squares of the gradients of batches, as in the paper. `"fisher"`: of
            single examples, the diagonal of the empirical Fisher information. Needs `data`, and
            computes one example at a time.
        which: Which weights become random: `"saliency"`, `"magnitude"`, `"random"`, `"first"`,
            `"last"` or `"biases"`, as in `tfuq.convert.sparse_bayesian`. `"first"` and `"last"`
            select as many weights as the layers' shares add up to, from the first or last layer on.
            `"biases"` selects no weight of a kernel, and of each bias the share `bias_r_bayes`, or
            all.
        saliency: `"gradient"`, or `"ivon"`: the Hessian of `tfuq.optimizers.IVON`, the model's
            optimizer.
        seed: Integer that determines which weights chance chooses.
        batch_size: Examples at a time, where `data` are arrays.
        verbose: 1 shows a progress bar and prints a line when it selects.

    Raises:
        ValueError: If an argument is not as described. When training begins: if the model has no
            sparse Bayesian layers, is not built, or would be selected after the last epoch. When
            it selects: if the loss gives no gradient for a layer, or one that is not finite, or
            no IVON has trained what `saliency="ivon"` ranks.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.callbacks import SaliencySelection
    from tfuq.layers import SparseBayesDense

    x, y = np.random.rand(64, 8), np.random.randint(3, size=64)
    head = SparseBayesDense(3, r_bayes=0.2, kl_weight=1 / 64)
    model = keras.Sequential([keras.Input((8,)), head])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    selection = SaliencySelection(after_epoch=2, scope="global")
    history = model.fit(x, y, epochs=4, callbacks=[selection], verbose=0).history
    print(history["bayesian_weights"])  # 0, 5, 5, 5
    ```

    References:
        - Abboud, Lombaert and Kadoury, "Sparse Bayesian Networks: Efficient Uncertainty
          Quantification in Medical Image Analysis", MICCAI 2024.

    See also: `tfuq.convert.sparse_bayesian`, `tfuq.convert.saliency`,
    `tfuq.layers.SparseBayesDense`.
    """

    def __init__(
        self,
        data: Data | None = None,
        after_epoch: int = 1,
        scope: str = "layer",
        method: str = "gradient",
        *,
        which: str = "saliency",
        saliency: str = "gradient",
        seed: int = 0,
        batch_size: int = 32,
        verbose: int = 0,
    ) -> None:
        super().__init__()
        check_which(which, saliency, method, seed)
        self._has_gradients = needs_gradients(which, saliency)
        needs_training = (self._has_gradients and data is None) or saliency == "ivon"
        check_integer("after_epoch", after_epoch, 1 if needs_training else 0)
        check_choice("scope", scope, SCOPES)
        check_choice("method", method, METHODS)
        check_integer("batch_size", batch_size, 1)
        check_choice("verbose", verbose, (0, 1))
        if data is None and method == "fisher":
            raise ValueError(
                "Argument `data` must be given for `method='fisher'`: the training steps only "
                "have the gradients of whole batches. Received: data=None"
            )
        self.data = data
        self.after_epoch = after_epoch
        self.scope = scope
        self.method = method
        self.which = which
        self.saliency = saliency
        self.seed = seed
        self.batch_size = batch_size
        self.verbose = verbose
        self._sums = None  # of squared gradients, while they are recorded
        self._recorded = []  # the layers whose they are
        self._comparing = []  # callbacks that keep the best epoch, and what they began with

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        for layer in sparse_bayes_layers(model):  # before another callback restores weights
            layer.when_resized = functools.partial(_adapted, weakref.ref(model))

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        layers = sparse_bayes_layers(self.model)
        if not layers:
            raise ValueError(
                "Argument `model` must hold sparse Bayesian layers, such as "
                "`tfuq.layers.SparseBayesDense`, for SaliencySelection. "
                f"Received: model={shown(self.model)}"
            )
        if not all(layer.built for layer in layers):
            raise ValueError(
                "Argument `model` must be built before `fit`, for SaliencySelection: call it on a "
                f"batch, or give it an `Input`. Received: model={shown(self.model)}"
            )
        check_alone(self, "weights are selected once")
        epochs = self.params["epochs"]
        if self._waiting() and self.after_epoch > epochs:
            raise ValueError(
                "Argument `after_epoch` must not be above the number of `epochs` of `fit`, or no "
                f"weight would be random. Received: after_epoch={self.after_epoch} with "
                f"epochs={epochs}"
            )
        self._sums = None
        self._comparing = [
            (each, getattr(each, "best", None))
            for each in callbacks_of_fit(self)
            if isinstance(each, keras.callbacks.EarlyStopping)
            or (isinstance(each, keras.callbacks.ModelCheckpoint) and each.save_best_only)
        ]

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if not self._waiting():
            return
        is_recording = self._has_gradients and self.data is None
        if is_recording and epoch >= self.after_epoch - 1:
            self._record()
        elif not is_recording and epoch >= self.after_epoch:
            self._select(self._waiting(), self._saliencies(), epoch)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self._sums is not None:
            recorded = [variable.numpy() for variable in self._sums]
            self._stop_recording()
            self._select(self._recorded, recorded, epoch)
        elif self._waiting() and epoch + 1 >= self.after_epoch:
            self._select(self._waiting(), self._saliencies(), epoch)
        if logs is not None:
            logs["bayesian_weights"] = self._count()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self._sums is not None:
            self._stop_recording()
        waiting = self._waiting()
        if waiting:
            warnings.warn(
                f"The training ended before SaliencySelection(after_epoch={self.after_epoch}) "
                f"selected: no weight of {len(waiting)} sparse Bayesian layers is random. Train "
                "for more epochs; with EarlyStopping give it `start_from_epoch`.",
                stacklevel=2,
            )

    def _waiting(self):
        """The layers that have not been selected yet, and are trained."""
        layers = sparse_bayes_layers(self.model)
        return [each for each in layers if each.kernel.trainable and not each.is_selected()]

    def _ranked_weights(self):
        return [v for layer in self._waiting() for v in layer.ranked_weights().values()]

    def _count(self):
        layers = [layer for layer in sparse_bayes_layers(self.model) if layer.is_selected()]
        return sum(layer.num_bayesian(name) for layer in layers for name in ("kernel", "bias"))

    def _saliencies(self):
        """Of each ranked weight; None where none chooses."""
        if self.saliency == "ivon":
            return hessians_of(self.model, self._ranked_weights())
        if not self._has_gradients:
            return None
        return squared_gradients(
            self.model,
            self._ranked_weights(),
            self.data,
            method=self.method,
            batch_size=self.batch_size,
            verbose=self.verbose,
        )

    def _record(self):
        ranked, self._recorded = self._ranked_weights(), self._waiting()
        with self.model.distribute_strategy.scope():
            self._sums = [
                keras.Variable(
                    initializer="zeros",
                    shape=variable.shape,
                    dtype="float32",
                    trainable=False,
                    aggregation="only_first_replica",
                )
                for variable in ranked
            ]
        sums = {id(v): total for v, total in zip(ranked, self._sums, strict=True)}

        def apply(original, gradients, variables):
            pairs = zip(variables, gradients, strict=True)
            found = [(sums[id(v)], g) for v, g in pairs if id(v) in sums and g is not None]
            summed = sum_over_replicas([g for _, g in found])
            for (total, _), gradient in zip(found, summed, strict=True):
                total.assign_add(tf.square(tf.cast(gradient, "float32")))
            return original(gradients, variables)

        def wrap(step):
            def recorded_step(data):
                with intercepted(optimizer_chain(self.model.optimizer)[-1], self, apply):
                    return step(data)

            return recorded_step

        build_optimizer(self.model)
        wrap_step(self.model, self, wrap)

    def _stop_recording(self):
        self._sums = None
        unwrap_step(self.model, self)
        self.model.make_train_function()

    def _select(self, layers, saliencies, epoch):
        few = less_than_one(layers, self.which, self.scope)
        with self.model.distribute_strategy.scope():
            if self._chosen(layers, saliencies):
                if self.model.optimizer.built:
                    rebuild_optimizer(self.model.optimizer, self.model.trainable_variables)
                forget_functions(self.model, self)
        for callback, best in self._comparing:
            if isinstance(callback, keras.callbacks.EarlyStopping):
                callback.on_train_begin()  # forgets the best epoch and its weights
            else:
                callback.best = best
        if self.verbose:
            print(
                f"\nEpoch {epoch + 1}: SaliencySelection made {self._count()} weights of "
                f"{len(layers)} layers random{few and '; '}{few}"
            )

    def _chosen(self, layers, saliencies):
        """Selects the random weights of `layers`; returns whether any variable is new."""
        if saliencies is None:
            return choose_layers(layers, self.which, self.scope, self.seed)
        found = iter(saliencies)
        found = [{name: next(found) for name in layer.ranked_weights()} for layer in layers]
        return select_layers(layers, found, self.scope)
