"""Evaluation after each epoch of a classifier that may reject: accuracy, coverage, calibration."""

from __future__ import annotations

import csv
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tfuq._arguments import Data, Output, PathLike, check_choice, check_integer, listed, shown, told
from tfuq._files.writing import written_whole
from tfuq._models.meaning import reading_of, said
from tfuq._models.predicting import (
    Labelled,
    check_validation_data,
    first_rows,
    predict_with_labels,
)
from tfuq._predictions.probabilities import is_binary, probabilities
from tfuq._predictions.scores import CONFIDENCES, OF_STACKS, SCORES, score_name
from tfuq._random.draws import random_layers
from tfuq.callbacks._kept_state import Copies
from tfuq.callbacks._rejection_table import (
    FIELDS,
    TITLES,
    check_thresholds,
    format_table,
    log_names,
    logged_names,
)
from tfuq.metrics import rejection_table
from tfuq.predictive import decompose, uncertainty_with_labels
from tfuq.predictive.sampler import NUM_SAMPLES


def check_batch_size(batch_size, data):
    """Raises ValueError unless `batch_size` is None, or a whole number that `data` leave open."""
    if batch_size is None:
        return
    check_integer("batch_size", batch_size, 1)
    if not isinstance(data, (tuple, list)):
        raise ValueError(
            "Argument `batch_size` must be None with a dataset, which has batches of its own. "
            f"Received: batch_size={shown(batch_size)}"
        )


def confidence_of(score, y_pred, *, from_logits=False, multi_label=False):
    """The confidence per label by `score`; None where `rejection_table` takes its own.

    That of an entropy H over K classes is 1 - H / log K; 1 - variation ratio is a confidence.
    """
    if score == "confidence":
        return None
    each_binary = y_pred.ndim == 1 or is_binary(y_pred.shape, multi_label)
    y_pred = np.asarray(probabilities(y_pred, from_logits, each_binary))
    shape = y_pred.shape if multi_label or y_pred.ndim == 1 else y_pred.shape[:-1]
    if not callable(score):
        columns = y_pred[:, None] if y_pred.ndim == 1 else y_pred
        return confidence_in(decompose(columns[None], multi_label), score).reshape(shape)
    confidence = np.asarray(score(y_pred))
    if confidence.shape != shape or not np.all((confidence >= 0) & (confidence <= 1)):
        raise ValueError(
            f"Argument `score` must give confidences in [0, 1], an array of shape {shape}. "
            f"Received: {confidence} of shape {confidence.shape}"
        )
    return confidence


def confidence_in(uncertainty, score):
    """The confidence that goes with a score, in [0, 1]."""
    value = getattr(uncertainty, score)
    if score in CONFIDENCES:
        return value
    if score != "variation_ratio":
        binary = value.shape == uncertainty.probs.shape
        value = value / np.log(2 if binary else uncertainty.probs.shape[-1])
    return np.clip(1 - value, 0, 1)


def _has_diverged(logs):
    """Whether the loss in the logs of an epoch is NaN or infinite."""
    loss = (logs or {}).get("loss", 0.0)
    return np.ndim(loss) == 0 and not np.isfinite(loss)


@told
class RejectionEvaluator(keras.callbacks.Callback):
    """Reports accuracy and coverage of a classifier with rejection after each epoch.

    A prediction is accepted at a threshold when its confidence reaches it. For each threshold the
    evaluator finds five numbers, all fractions in [0, 1]: `val_accuracy_at_0.7`,
    `val_coverage_at_0.7`, `val_rejection_rate_at_0.7`, `val_risk_at_0.7`, `val_ece_at_0.7`. One
    pass over the data serves all thresholds. All of them are in `history`, `table()` and
    `to_csv()`. Those that `log` chooses, by default two, are also in the `logs` of the epoch, where
    the progress bar, `CSVLogger`, `TensorBoard`, `EarlyStopping`, `ModelCheckpoint` and the history
    of `fit` find them: Keras has one `logs` for all of these.

    Formula:
        coverage  = sum_i w_i [c_i >= t] / sum_i w_i,   rejection rate = 1 - coverage
        accuracy  = sum_i w_i [c_i >= t][right_i] / sum_i w_i [c_i >= t],   risk = 1 - accuracy
        ECE       = expected calibration error of the accepted (`tfuq.metrics.rejection_table`)
    for confidences c_i, weights w_i and the threshold t.

    Place it **first** in the list of callbacks: callbacks before it do not see its numbers. (So
    `keras.callbacks.ProgbarLogger()` before it keeps the bar short with `log="all"`.) To monitor
    these names, `EarlyStopping` and `ModelCheckpoint` need `mode="max"` or `"min"`; the file name
    of `ModelCheckpoint` cannot contain them, because of their dot. The last table is not that of
    weights that `EarlyStopping` restores at the end of training: call `evaluate(model)` for these.

    Before the first epoch it reads labels and outputs once, and keeps no figures: data that cannot
    be evaluated stop the training there, not after an epoch.

    After an epoch with a loss of NaN or infinity all figures are NaN, and training continues;
    `keras.callbacks.TerminateOnNaN` ends it.

    Where nothing is accepted, accuracy, risk and ECE are NaN, never 0 or 1, and the table shows
    "-". `EarlyStopping` and `ModelCheckpoint` never recover from a first value of NaN: monitor a
    threshold that an untrained model reaches, or give `EarlyStopping` a `start_from_epoch`.

    Args:
        validation_data: Arrays `(x, y)` or `(x, y, sample_weight)`; a batched, finite
            `tf.data.Dataset` of such tuples, shuffled or not; or a `keras.utils.PyDataset`.
        thresholds: Confidences in [0, 1] from which a prediction is accepted.
        score: `"confidence"`, the largest probability; `"margin"`; `"predictive_entropy"`,
            `"expected_entropy"` or `"mutual_information"`, of which the confidence is 1 - score /
            log(classes); `"variation_ratio"`, 1 - score; or a function from the array of
            probabilities to an array of confidences in [0, 1], one per label. The ECE always uses
            the largest probability.
        every: Evaluate at the first epoch of a training, at each `every`-th after it, and at the
            last. In between, `logs` repeat the latest values, so that `CSVLogger` and monitors
            always find them; `history` holds only what was measured.
        output: Which output of the model to evaluate, when it has several: an index, a key, a
            field of a named tuple, or a function (made of `keras.ops`) of the outputs. Labels that
            are nested likewise are chosen from in the same way.
        from_logits: Whether that output holds logits and not probabilities; `None` takes what the
            layer that makes it or the compiled loss declares.
        multi_label: Whether its last axis holds labels, each a binary prediction of its own;
            likewise.
        num_samples: Number of networks to draw, with `tfuq.predictive`, for all scores but
            `"confidence"`; their mean prediction is then evaluated. A model without random layers
            has no expected entropy, mutual information and variation ratio, and the entropy and
            margin of its one prediction.
        n_bins: Number of bins of the expected calibration error.
        batch_size: Batch size for arrays; Keras' default if `None`. Datasets have their own.
        prefix: Prefix of the names in `logs`. `TensorBoard` files names with `"val_"` under
            validation, and `CSVLogger` leaves them alone.
        log: Which figures go into `logs`: `"few"`, accuracy and coverage at the middle one of the
            thresholds; `"all"`; or their names, such as `("val_risk_at_0.7",)`. Include every name
            that another callback monitors.
        verbose: 0 prints nothing, 1 one table at the end of training, 2 one per evaluation.

    Attributes:
        history: Plain dict of lists: `"epoch"` (from 0) and each name of the logs. It goes on
            growing when the evaluator serves another training.

    Raises:
        ValueError: If an argument is not as described; if the data are empty or endless, differ in
            length or have no labels; before the first epoch, if neither arguments, last layer nor
            loss say whether the output holds logits (the message names `from_logits`), if the
            predictions are not probabilities (NaN, outside [0, 1], not summing to 1), or the labels
            no classes.

    Example:

    >>> import keras, numpy as np, tfuq
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Softmax()])
    >>> x = np.log([[0.95, 0.05], [0.18, 0.82], [0.62, 0.38], [0.55, 0.45]])
    >>> evaluator = tfuq.callbacks.RejectionEvaluator((x, np.array([0, 1, 1, 0])), [0.5, 0.7])
    >>> table = evaluator.evaluate(model)
    >>> print(evaluator.table())
    threshold | accuracy | coverage | rejected |   risk |    ECE
    ----------+----------+----------+----------+--------+-------
          0.5 |   0.7500 |   1.0000 |   0.0000 | 0.2500 | 0.3250
          0.7 |   1.0000 |   0.5000 |   0.5000 | 0.0000 | 0.1150

    In training: `model.fit(..., callbacks=[evaluator, keras.callbacks.CSVLogger("log.csv")])`.

    See also: `tfuq.metrics.rejection_table`, `tfuq.selective.RejectionRule`.
    """

    def __init__(
        self,
        validation_data: Data,
        thresholds: Sequence[float] = (0.5, 0.6, 0.7, 0.8, 0.9),
        score: str = "confidence",
        every: int = 1,
        *,
        output: Output | None = None,
        from_logits: bool | None = None,
        multi_label: bool | None = None,
        num_samples: int = NUM_SAMPLES,
        n_bins: int = 15,
        batch_size: int | None = None,
        prefix: str = "val_",
        log: str | Sequence[str] = "few",
        verbose: int = 1,
    ) -> None:
        super().__init__()
        validation_data = check_validation_data(validation_data)
        check_thresholds(thresholds)
        score = score if callable(score) else score_name(score)
        check_integer("every", every, 1)
        check_integer("num_samples", num_samples, 1)
        check_integer("n_bins", n_bins, 1)
        reading_of(output, from_logits, multi_label)
        check_choice("verbose", verbose, (0, 1, 2))
        check_batch_size(batch_size, validation_data)
        if not isinstance(prefix, str):
            raise ValueError(
                f"Argument `prefix` must be a string. Received: prefix={shown(prefix)}"
            )
        self.validation_data = validation_data
        self.thresholds = tuple(float(threshold) for threshold in thresholds)
        self.score = score
        self.every = every
        self.output = output
        self.from_logits = from_logits
        self.multi_label = multi_label
        self.num_samples = num_samples
        self.n_bins = n_bins
        self.batch_size = batch_size
        self.prefix = prefix
        self.log = log
        self.verbose = verbose
        self._logged = logged_names(log, self.thresholds, prefix)
        self.history = {name: [] for name in ("epoch", *log_names(self.thresholds, prefix))}
        self._labelled = self._known = None
        self._table = None
        self._first_epoch = self._last_epoch = None

    def _told_lines(self):
        if self._table is None:
            return ["no evaluation yet"]
        table, middle = self._table, len(self.thresholds) // 2
        latest = {field: table[field][middle] for field in FIELDS}
        return [
            f"{len(self.history['epoch'])} epochs evaluated in training",
            f"latest at {self.thresholds[middle]:g}: {listed(latest)}",
        ]

    def _told_table(self):
        if self._table is None:
            return (), ()
        columns = self.thresholds, *(self._table[field] for field in FIELDS)
        return ("threshold", *(title.strip() for title in TITLES)), zip(*columns, strict=True)

    def set_model(self, model: keras.Model) -> None:
        """Takes the model of a new training, compiled perhaps otherwise than before."""
        super().set_model(model)
        self._labelled = None

    def evaluate(self, model: keras.Model | None = None, verbose: int = 0) -> dict[str, np.ndarray]:
        """Evaluates `model` (default: the one in training) in one pass over the validation data.

        Args:
            model: A Keras model, compiled or not.
            verbose: Progress bar of the pass, as in `model.predict`.

        Returns:
            The dict of arrays of `tfuq.metrics.rejection_table`, one entry per threshold. It is
            what `table()` shows; `history` records only what is evaluated in training.

        Raises:
            ValueError: If `model` is no Keras model, or its predictions cannot be evaluated.
        """
        model = self.model if model is None else model
        labelled, draws = self._wrapped(model), self._draws_networks(model)
        reading = self._reading(model)
        found, confidence = (
            self._evaluate_draws(model, reading, verbose)
            if draws
            else self._evaluate(labelled, reading, verbose)
        )
        self._table = self._table_of(found, reading, confidence, from_probs=draws)
        return self._table

    def _table_of(self, found, reading, confidence, *, from_probs=False):
        return rejection_table(
            found["y_true"],
            found["y_pred"],
            self.thresholds,
            confidence=confidence,
            n_bins=self.n_bins,
            sample_weight=found.get("weight"),
            from_logits=reading.from_logits and not from_probs,
            multi_label=reading.multi_label,
        )

    def _evaluate(self, labelled, reading, verbose, score=None):
        """Predictions beside labels, and the confidence in them by a score that is ours if None."""
        found = predict_with_labels(
            labelled, self.validation_data, batch_size=self.batch_size, verbose=verbose
        )
        kind = {"from_logits": reading.from_logits, "multi_label": reading.multi_label}
        return found, confidence_of(score or self.score, found["y_pred"], **kind)

    def _reading(self, model):
        """What the output of `model` means, found anew when it is another or compiled anew."""
        now = model, said(model, self.output)
        if self._known is None or self._known[0] is not model or self._known[1] != now[1]:
            asked = reading_of(self.output, self.from_logits, self.multi_label)
            self._known = *now, asked.known(model, first_rows(self.validation_data))
        return self._known[2]

    def _draws_networks(self, model):
        """Whether the score is one of many networks; some scores need that, and then it must be."""
        if callable(self.score) or self.score == "confidence":
            return False
        if self.score in OF_STACKS and not random_layers(model):
            single = ", ".join(repr(name) for name in SCORES if name not in OF_STACKS)
            raise ValueError(
                f"Argument `score` must be one of {single} or a function for a model without "
                f"random layers. Received: score={shown(self.score)}"
            )
        return bool(random_layers(model))

    def _evaluate_draws(self, model, reading, verbose):
        """As `_evaluate`, for the mean prediction of many networks."""
        uncertainty, y_true, weight = uncertainty_with_labels(
            model,
            self.validation_data,
            self.num_samples,
            self.batch_size or 32,
            **reading._asdict(),
            verbose=verbose,
        )
        found = {"y_true": y_true, "y_pred": uncertainty.probs}
        confidence = confidence_in(uncertainty, self.score)
        if uncertainty.probs.shape[-1] == 1 and not reading.multi_label:
            confidence = confidence[..., 0]
        return found | ({} if weight is None else {"weight": weight}), confidence

    def table(self) -> str:
        """The latest evaluation as text, one line per threshold."""
        if self._table is None:
            raise ValueError("Nothing to show yet: call `evaluate(model)` or train first.")
        return format_table(self.thresholds, self._table)

    def to_csv(self, path: PathLike) -> None:
        """Writes `history` to the file `path`: a header, then one line per evaluated epoch.

        The file is written whole, or the old one stays.
        """
        path = pathlib.Path(path)
        with (
            written_whole(path) as unfinished,
            open(unfinished, "w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.writer(file)
            writer.writerow(self.history)
            writer.writerows(zip(*self.history.values(), strict=True))

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._first_epoch = self._last_epoch = None
        self._check()

    def _check(self):
        """Raises what an evaluation of the model would raise, by one pass that changes nothing."""
        labelled = self._wrapped(self.model)
        score = "confidence" if self._draws_networks(self.model) else None
        reading = self._reading(self.model)
        before = Copies(*self.model.non_trainable_variables)  # the seeds of heads that sample
        try:
            found, confidence = self._evaluate(labelled, reading, 0, score)
        finally:
            before.put_back()
        self._table_of(found, reading, confidence)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self._first_epoch is None:
            self._first_epoch = epoch
        self._last_epoch = epoch
        if self._is_due(epoch):
            self._record(epoch, logs)
        self._tell(logs)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self._last_epoch is None:  # not one epoch was trained
            return
        if self.history["epoch"][-1] != self._last_epoch:  # somebody after us stopped training
            self._record(self._last_epoch, logs)
        self._tell(logs)
        if self.verbose == 1:
            print(f"\nRejection after epoch {self._last_epoch + 1}\n{self.table()}")

    def _is_due(self, epoch):
        planned = (self.params or {}).get("epochs")
        stopped = getattr(self.model, "stop_training", False)  # a loop without `compile` has none
        return stopped or epoch + 1 == planned or (epoch - self._first_epoch) % self.every == 0

    def _record(self, epoch, logs):
        table = self._nothing() if _has_diverged(logs) else self.evaluate()
        values = np.concatenate([table[field] for field in FIELDS]).tolist()
        for column, value in zip(self.history.values(), [epoch, *values], strict=True):
            column.append(value)
        if self.verbose == 2:
            print(f"\nRejection after epoch {epoch + 1}\n{self.table()}")

    def _nothing(self):
        """The table of a model that has diverged, whose predictions are NaN."""
        fields = {name: np.full(len(self.thresholds), np.nan) for name in FIELDS}
        self._table = {"threshold": np.array(self.thresholds), **fields}
        return self._table

    def _tell(self, logs):
        if logs is not None:
            logs.update({name: self.history[name][-1] for name in self._logged})

    def _wrapped(self, model):
        if not isinstance(model, keras.Model):
            raise ValueError(
                "Argument `model` must be a Keras model, or None in training. "
                f"Received: {shown(model)}"
            )
        if self._labelled is None or self._labelled.predictor is not model:
            with model.distribute_strategy.scope():
                self._labelled = Labelled(model, self.output)
        return self._labelled
