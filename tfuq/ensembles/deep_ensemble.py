"""`DeepEnsemble`: several networks trained apart, and the mixture of their predictions."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

import keras
import numpy as np

from tfuq._arguments import ArrayLike, Data, Output, PathLike, Self, check_integer, shown, told
from tfuq._models.meaning import reading_of
from tfuq._models.member_graphs import mean_of_members
from tfuq._predictions.stacks import samples
from tfuq._random.draws import warn_of_lost_posterior
from tfuq._random.global_state import derived_seed, seeded
from tfuq.ensembles._checks import check_built, check_function, check_members, checked_metrics
from tfuq.ensembles._files import EnsembleFiles, read_checkpoint
from tfuq.ensembles._mixture import joined, mean_as_stack, stacks
from tfuq.ensembles._stacking import Stackable
from tfuq.ensembles.processes import (
    Task,
    check_compiles,
    check_executor,
    check_portable,
    fit_arguments,
    train_elsewhere,
)

__all__ = ["DeepEnsemble"]


@told
class DeepEnsemble(EnsembleFiles, Stackable):
    """Deep ensemble: networks of one architecture, trained from different random starts.

    Disagreement of the members is epistemic uncertainty: their predictions are a stack for
    `tfuq.predictive.decompose`, and the mean is the prediction of the ensemble. The attribute
    `members` holds ordinary Keras models; before `fit` they predict as `build_model` made them.

    Building and training draw from seeds of their own for each member, and leave the random state
    of Python, NumPy, TensorFlow and Keras as it was found. What cannot be put back: TensorFlow
    operations called eagerly with a seed of their own (`tf.random.normal(..., seed=1)`) start
    their sequence again, as after `tf.random.set_seed`, and generators that your code holds itself
    stay where they are.

    Formula:
        p(y | x) = 1/M sum_m p(y | x, w_m)                     (Lakshminarayanan et al. 2017)
    with w_m the weights of member m of M.

    Args:
        build_model: Function without arguments that returns a new Keras model, compiled if it is
            to be trained.
        num_members: Number of members, M.
        seed: Integer; the same seed gives the same ensemble, as far as the operations of your
            machine repeat.

    Raises:
        ValueError: If an argument is out of its range, or `build_model` returns something else
            than a new Keras model.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.ensembles import DeepEnsemble
    from tfuq.predictive import decompose

    def build_model():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("adam", loss, jit_compile=False)
        return model

    x, y = np.random.rand(32, 4), np.random.randint(3, size=32)
    ensemble = DeepEnsemble(build_model, num_members=3, seed=0)
    histories = ensemble.fit(x, y, epochs=2, verbose=0)
    stack = ensemble.predict(x)  # (3, 32, 3)
    print(decompose(stack).mutual_information, ensemble.evaluate(x, y))
    ```

    References:
        Lakshminarayanan, Pritzel, Blundell: Simple and scalable predictive uncertainty estimation
        using deep ensembles, NeurIPS 2017.

    See also: `tfuq.callbacks.SnapshotEnsemble`, `tfuq.layers.BatchEnsembleDense`,
    `tfuq.predictive.decompose`, `tfuq.distribute.RayExecutor`.
    """

    def __init__(
        self, build_model: Callable[[], keras.Model], num_members: int = 5, *, seed: int = 0
    ) -> None:
        check_integer("num_members", num_members, 1)
        check_integer("seed", seed, 0)
        check_function("build_model", build_model)
        made = []
        for number in range(num_members):
            with seeded(derived_seed(seed, number, 0)):
                made.append(build_model())
        self._hold(made, "build_model", build_model, seed)

    def _hold(self, members, name, build_model, seed):
        check_members(members, name)
        warn_of_lost_posterior(members, "the ensemble")
        self._members = list(members)
        self.build_model = build_model
        self.seed = seed
        self._forward = self._source = None  # of `stacked`
        self._fits = 0

    def _told_arguments(self):
        return {"num_members": len(self._members), "seed": self.seed}

    def _told_lines(self):
        first = self._members[0]
        one = f"{type(first).__name__} {first.name!r}, {first.count_params():,} weights"
        how = ["computed at once, over stacked weights"] if self._forward is not None else []
        return [f"members: {one} each", f"trained by `fit`: {self._fits} times", *how]

    def _told_table(self):
        rows = [
            (i, x.name, f"{x.count_params():,}", x.compiled) for i, x in enumerate(self.members)
        ]
        return ("member", "name", "weights", "compiled"), rows

    @classmethod
    def from_models(cls, models: Sequence[keras.Model], *, seed: int = 0) -> Self:
        """An ensemble of models from elsewhere, whatever trained them.

        Args:
            models: Keras models with outputs of one shape. They are held, not copied.
            seed: Integer from which `fit` draws.

        Returns:
            `DeepEnsemble`.

        Raises:
            ValueError: If `models` is empty, holds something twice or something else, or their
                outputs differ in shape.
        """
        check_integer("seed", seed, 0)
        if not isinstance(models, (list, tuple)):
            raise ValueError(
                "Argument `models` must be a list of Keras models. "
                f"Received: models={shown(models)}"
            )
        ensemble = cls.__new__(cls)
        ensemble._hold(models, "models", None, seed)
        return ensemble

    @classmethod
    def from_checkpoints(
        cls,
        paths: Sequence[PathLike],
        build_model: Callable[[], keras.Model] | None = None,
        *,
        seed: int = 0,
    ) -> Self:
        """An ensemble of saved models or weights, such as the snapshots of one training.

        Args:
            paths: Files `.keras`, or `.weights.h5` for models as `build_model` makes them.
            build_model: Function without arguments that returns a new, built model.
            seed: Integer from which `fit` draws.

        Returns:
            `DeepEnsemble`.

        Raises:
            ValueError: If there are no paths, a file is missing or of another kind, weights come
                without `build_model`, or the models' outputs differ in shape.
        """
        if isinstance(paths, (str, os.PathLike)) or not list(paths):
            raise ValueError(
                f"Argument `paths` must be a list of files. Received: paths={shown(paths)}"
            )
        if build_model is not None:
            check_function("build_model", build_model)
        models = [read_checkpoint("paths", pathlib.Path(path), build_model) for path in paths]
        ensemble = cls.from_models(models, seed=seed)
        ensemble.build_model = build_model
        return ensemble

    @property
    def members(self) -> tuple[keras.Model, ...]:
        """The models, as a tuple."""
        return tuple(self._members)

    def __len__(self):
        return len(self._members)

    def __iter__(self):
        return iter(self.members)

    # --- Training -------------------------------------------------------------------------

    def fit(
        self,
        x: Data,
        y: ArrayLike | None = None,
        *,
        workers: int = 1,
        executor: Executor | None = None,
        callbacks: Callable[[int], list[keras.callbacks.Callback]]
        | list[keras.callbacks.Callback]
        | None = None,
        verbose: int | str = "auto",
        **fit_kwargs: Any,
    ) -> list[keras.callbacks.History]:
        """Trains every member on the data, each from a seed and with an order of its own.

        With `workers` or `executor`, the members are trained in other processes, to which models
        and arrays go as files in the temporary folder, never pickled; the same seed gives the same
        ensemble. Then:

        - members are built, and save and load as `.keras` files do;
        - functions (`build_model`, `callbacks`, `x`) are importable, because the processes import
          their modules; so is what is registered there with Keras. A script keeps its own
          commands behind `if __name__ == "__main__"`;
        - datasets of `tf.data` do not travel: pass a function that makes one. A PyDataset is
          pickled;
        - the trained members are new objects in `members`.

        The workers share the processor, not a graphics card: with several of those, let the
        processes of an `executor` choose.

        Args:
            x: Inputs: arrays, `(x, y)` or `(x, y, sample_weight)`, a `tf.data.Dataset` or
                `keras.utils.PyDataset` of batches (which shuffle as they themselves say), or a
                function of the member's number, from 0, that returns any of these.
            y: Labels, for arrays.
            workers: Number of processes; 1 trains the members one after another in this one.
            executor: A `concurrent.futures.Executor` of other processes, used instead of
                `workers`; they have to see this process's temporary folder.
            callbacks: A function of the member's number that returns a list of callbacks, or, in
                this process, a list that serves one member after another.
            verbose: 0 prints nothing; otherwise a line says which member it is, and Keras reports
                on its training (not from other processes, whose reports would mix).
            **fit_kwargs: Further arguments of `keras.Model.fit`: `epochs`, `batch_size`, `shuffle`,
                `validation_data`, `class_weight` and so on.

        Returns:
            A list of `keras.callbacks.History`, one per member.

        Raises:
            ValueError: If an argument is out of its range or cannot go to other processes.
        """
        self._check_not_stacked("fit")
        check_integer("workers", workers, 1)
        check_executor(executor, workers)
        arguments = fit_arguments(x, y, fit_kwargs)
        tasks = [
            Task(number, derived_seed(self.seed, number, self._fits + 1), arguments, callbacks)
            for number in range(len(self))
        ]
        if executor is None and workers == 1:
            histories = [self._fit_here(task, verbose) for task in tasks]
        else:
            histories = self._fit_elsewhere(tasks, workers, executor, verbose)
        self._fits += 1
        return histories

    def _fit_here(self, task, verbose):
        if verbose:
            print(f"Member {task.number + 1} of {len(self)}")
        return task.train(self._members[task.number], verbose)

    def _fit_elsewhere(self, tasks, workers, executor, verbose):
        check_built(self._members, "be trained in other processes")
        check_compiles(self._members)
        check_portable(tasks[0], self.build_model)
        histories = train_elsewhere(
            tasks, self._members, self.build_model, workers, executor, verbose
        )
        self._members = [history.model for history in histories]
        return histories

    # --- Prediction -----------------------------------------------------------------------

    def predict(
        self,
        x: Data,
        batch_size: int = 32,
        output: Output | None = None,
        *,
        from_logits: bool | None = None,
        multi_label: bool | None = None,
        verbose: int | str = 0,
    ) -> np.ndarray:
        """Probabilities of every member.

        All members see the same rows, even of data that shuffle.

        Args:
            x: Inputs: an array (or what the models take), `(x, y)`, a `tf.data.Dataset` or a
                `keras.utils.PyDataset` of batches of inputs or of pairs. Labels are ignored.
            batch_size: Examples at a time, for arrays; datasets have their own.
            output: Which output, when the models have several: an index, a key, a field of a named
                tuple, or a function of the outputs.
            from_logits: Whether the outputs are logits; False leaves them as they are. By default
                what the last layer declares, else what the compiled loss says.
            multi_label: Whether each entry of the last axis is a binary prediction of its own.
            verbose: 1 shows a progress bar.

        Returns:
            Array `(members, examples, ..., classes)`, float32.

        Raises:
            ValueError: If the data are empty, the members' predictions differ in shape, or
                `output` names none.
        """
        reading = reading_of(output, from_logits, multi_label)
        parts = stacks(self, x, batch_size, reading, verbose)
        return samples(np.concatenate([stack for stack, *_ in parts], axis=1))

    def predict_mixture(
        self,
        x: Data,
        batch_size: int = 32,
        output: Output | None = None,
        *,
        from_logits: bool | None = None,
        multi_label: bool | None = None,
        verbose: int | str = 0,
    ) -> np.ndarray:
        """Mean of the members' probabilities, without keeping those.

        Arguments and errors are those of `predict`.

        Returns:
            Array `(examples, ..., classes)`, float32.
        """
        reading = reading_of(output, from_logits, multi_label)
        parts = stacks(self, x, batch_size, reading, verbose, mean_of_members)
        return np.concatenate([probs for probs, *_ in parts])

    def evaluate(
        self,
        x: Data,
        y: ArrayLike | None = None,
        metrics: Mapping[str, Callable[..., float]] | None = None,
        batch_size: int = 32,
        output: Output | None = None,
        *,
        sample_weight: ArrayLike | None = None,
        from_logits: bool | None = None,
        multi_label: bool | None = None,
        per_member: bool = False,
        verbose: int | str = 0,
    ) -> dict[str, Any]:
        """How good the mixture is, and, if asked, each member.

        Args:
            x: Inputs, or inputs and labels, as for `predict`.
            y: Labels, for arrays: `(n, ...)`, or one-hot `(n, ..., classes)`.
            metrics: Dict of name to function of `(y_true, y_pred, *, multi_label, sample_weight)`,
                such as those of `tfuq.metrics`. By default `"nll"` (nats), `"accuracy"`, `"brier"`
                and `"ece"`.
            batch_size: As for `predict`, and so are `output`, `from_logits` and `verbose`.
            output: Which output; it picks the labels as well, if those are several.
            sample_weight: Weights, for arrays.
            from_logits: Whether the outputs are logits.
            multi_label: Whether each entry of the last axis is a binary prediction of its own.
            per_member: Whether to measure each member too. This keeps the predictions of all.
            verbose: 1 shows a progress bar.

        Returns:
            Dict of the mixture's metrics by name; with `per_member`, `"members"` is a list of such
            dicts.

        Raises:
            ValueError: If there are no labels, or a metric cannot judge what it gets.
        """
        metrics = checked_metrics(metrics)
        data = x if y is None else (x, y, sample_weight)
        reading = reading_of(output, from_logits, multi_label)
        reduce = None if per_member else mean_as_stack
        rows = list(stacks(self, data, batch_size, reading, verbose, reduce))
        stack = np.concatenate([part.probs for part in rows], axis=1)
        labels, weight = (joined(rows, index, output) for index in (1, 2))
        if labels is None:
            raise ValueError("Argument `y` must hold labels, or `x` pairs. Received: no labels")

        def measured(probs):
            beside = {"multi_label": rows[0].multi_label, "sample_weight": weight}
            return {name: metric(labels, probs, **beside) for name, metric in metrics.items()}

        found = measured(stack.mean(0))
        return {**found, "members": [measured(probs) for probs in stack]} if per_member else found
