"""The monitor of a served rule: its promise, watched case by case, while labels come later.

The only file of the package that needs the rest of tfuq, and that when a monitor is asked for.
"""

import logging
import math
import os
import pathlib
import threading

import numpy as np

from tfuq.serving.answers import OUTPUT_OF, score_of, with_numbers
from tfuq.serving.cases import HEADER, Recent, checked_key, marks_of
from tfuq.serving.refusals import Refused

LOG = logging.getLogger("tfuq.serving")


class Watch:
    """A `tfuq.selective.Monitor` of the rule that is served, in a file.

    Args:
        path: File of the monitor, `rule.monitor().save(path)` or `tfuq monitor`; it is written
            again after labels have come, every `save_every` cases, and at the end.
        metadata: The content of the model's `metadata.json`.
        class_names: Names that labels may have, or None.
        save_every: How many cases may be lost with the process.

    Raises:
        ImportError: Without tfuq.
        ValueError: If the file holds no monitor, or one of another rule, or the outputs of the
            model do not say what it watches.
    """

    def __init__(self, path, metadata, class_names=None, save_every=100):
        try:
            from tfuq.selective import Monitor
        except ImportError as error:
            raise ImportError("--monitor needs tfuq: pip install tfuq") from error
        self.path, self.save_every = pathlib.Path(path), save_every
        self.monitor = Monitor.load(self.path)
        self.rule = self.monitor.rule
        self.class_names = class_names
        self.of_numbers = metadata.get("family") is not None
        self._check(metadata)
        self.num_classes = None
        if not self.of_numbers:
            self.num_classes = max(metadata["outputs"]["probabilities"]["shape"][-1], 2)
        self._lock = threading.Lock()
        self._waiting = Recent()  # accepted, and what was said, by the id of a case
        self._ids, self._keys = Recent(), Recent()  # of cases by marks; of requests by keys
        self._repeated = self._unidentified = 0
        self._run = os.urandom(6).hex()  # so that labels of an earlier process are known as such
        self._unsaved = 0

    def _check(self, metadata):
        served = (metadata["rule"] or {}).get("config")
        config = self.rule.get_config()
        served, config = served and with_numbers(served), with_numbers(config)
        same = served is not None and all(
            np.array_equal(np.asarray(served.get(name)), np.asarray(config.get(name)))
            for name in ("score", "threshold", "by", "keys", "tolerance")
        )
        if not same:
            raise ValueError(f"{self.path} watches another rule than the model is served with")
        name = served["score"]
        known = (
            self.of_numbers or name == "margin" or OUTPUT_OF.get(name, name) in metadata["outputs"]
        )
        if not known or self.rule.fitted_to["loss"] != "error":
            raise ValueError(
                f"{self.path} must watch a rule of errors, by a score that the model computes: it "
                f"is of the loss {self.rule.fitted_to['loss']} and the score {name}. `tfuq "
                "monitor` watches others, batch by batch"
            )

    # --- Cases --------------------------------------------------------------------------------

    def marks(self, inputs, key):
        """A mark of each input of a request, by which `take` knows one that comes again.

        Args:
            inputs: List of arrays.
            key: The request's `Idempotency-Key`, or None.

        Raises:
            Refused: If the key is none, or another request came with it.
        """
        key = checked_key(key)
        marks = marks_of(inputs, key)
        if key is not None:
            digests = [mark.digest for mark in marks]
            with self._lock:
                if self._keys.get(key, digests) != digests:
                    reason = f"another request came with this {HEADER}: each case has its own"
                    raise Refused(422, "key_reused", reason)
                self._keys.keep(key, digests)
        return marks

    def take(self, outputs, answers, marks):
        """Counts the cases of a batch, and gives their answers an `id` that a label can name.

        A case that comes again is not counted; its answer has the `id` of before, and says so.
        """
        with self._lock:
            for place, (answer, mark) in enumerate(zip(answers, marks, strict=True)):
                if mark is not None and mark in self._ids:
                    answer["id"], answer["repeated"] = self._ids[mark], True
                    self._repeated += 1
                    continue
                row = {name: values[place] for name, values in outputs.items()}
                accepted = bool(np.all(row["accept"]))
                self.monitor.update_decisions([accepted], [self._score(row)])
                said = answer["mean"] if self.of_numbers else answer["label"]
                answer["id"] = f"{self._run}-{self.monitor.fitted_to['cases']}"
                self._waiting.keep(answer["id"], (accepted, said))
                if mark is None:  # its client has to know: a retry would count
                    self._unidentified, answer["unidentified"] = self._unidentified + 1, True
                else:
                    self._ids.keep(mark, answer["id"])
                self._unsaved += 1
            if self._unsaved >= self.save_every:
                self._try_to_save()

    def _score(self, row):
        if self.of_numbers:
            return float(np.ravel(row["score"])[0])
        probs = np.atleast_1d(row["probabilities"])
        value = score_of({k: np.ravel(v)[0] for k, v in row.items()}, probs, self.rule.score)
        return float(value)

    def label(self, labels):
        """Takes the labels of cases by their ids; all of them, or, with a reason, none.

        Raises:
            Refused: If a case is not known, or a label is none.
        """
        if not isinstance(labels, dict) or not labels:
            raise Refused(422, "wrong_shape", 'labels must be {"labels": {id: label, ...}}')
        with self._lock:
            unknown = [name for name in labels if name not in self._waiting]
            if unknown:
                raise Refused(
                    404,
                    "unknown_case",
                    f"{len(unknown)} of {len(labels)} cases are not waiting for a label, such as "
                    f"'{unknown[0][:40]}': it has one, or is of an earlier process",
                )
            losses = {name: self._loss(name, label) for name, label in labels.items()}
            for name, loss in losses.items():
                accepted, _ = self._waiting.pop(name)
                if accepted:
                    self.monitor.update_losses([loss])
            self._unsaved += len(losses)
            self._try_to_save()
            return self._said()

    def _loss(self, name, label):
        _, said = self._waiting[name]
        if self.of_numbers:
            if isinstance(label, bool) or not isinstance(label, (int, float)):
                raise Refused(422, "wrong_label", f"the label of {name} must be a number")
            if not math.isfinite(label):
                raise Refused(422, "wrong_label", f"the label of {name} must be finite")
            return float(said is None or abs(label - said) > self.rule.tolerance)
        names = self.class_names
        if isinstance(label, str) and names is not None and label in names:
            label = names.index(label)
        is_number = isinstance(label, int) and not isinstance(label, bool)
        if not is_number or not 0 <= label < self.num_classes:
            known = f"a class, 0 to {self.num_classes - 1}"
            known += f", or one of {', '.join(names)}" if names else ""
            raise Refused(
                422, "wrong_label", f"the label of {name} must be {known}, not '{str(label)[:40]}'"
            )
        return float(label != said)

    # --- What it says -------------------------------------------------------------------------

    def said(self):
        """Whether an alarm was raised, and what has been seen, ready for JSON."""
        with self._lock:
            return self._said()

    def _said(self):
        monitor = self.monitor
        return {
            "alarm": monitor.alarm,
            "alarms": monitor.alarms,
            "promised_risk": self.rule.fitted_to["target_risk"],
            "risk_bound": monitor.risk_bound,
            "wealth": monitor.wealth,
            **monitor.fitted_to,
            "waiting_for_labels": len(self._waiting),
            "repeated": self._repeated,
            "unidentified": self._unidentified,
            "unsaved": self._unsaved,
        }

    def _try_to_save(self):
        """Writes the file; where that fails the next time is tried, and `unsaved` grows.

        What was counted would be counted again if a request failed by this and came once more.
        """
        try:
            self._save()
        except OSError as error:
            LOG.error("The monitor was not written to %s, it goes on: %r", self.path, error)

    def _save(self):
        self.monitor.save(self.path)
        self._unsaved = 0

    def close(self):
        with self._lock:
            self._save()
