"""Scores in an Apache Beam pipeline (extra `beam`): rows as of `score_dataset`."""

import numpy as np

from tfuq.predictive._worker import Worker, checked_paths

try:
    from apache_beam import DoFn as _DoFn
except ImportError:
    _DoFn = None

__all__ = ["ScoreDoFn"]


class ScoreDoFn(_DoFn or object):
    """Scores batches of inputs: a `beam.DoFn` whose outputs are rows, dicts, one per example.

    Elements are batches of pairs `(key, input)` or of inputs alone, lists as `beam.BatchElements()`
    makes them. Each worker loads the model once, from a file that all of them see, and the seed
    makes all draw the same networks.

    Args:
        model: Path of a `.keras` file, or a list of such: an ensemble.
        num_samples, rule, ood, output, from_logits, multi_label, family, level, conformal, columns,
        seed: As for `tfuq.predictive.score_dataset`, of classifiers and regressions, except that a
            model without a compiled loss needs `from_logits`, because each worker sees another
            first batch.

    Returns:
        Rows as `score_dataset` writes them, with plain numbers and lists, and `"key"` in place of
        `"index"`; of inputs without keys, neither.

    Raises:
        ImportError: Without apache-beam.
        ValueError: If an argument is out of its range, once a worker has the model.

    Example:

    ```
    import apache_beam as beam
    from tfuq.predictive.beam import ScoreDoFn

    with beam.Pipeline() as pipeline:
        (
            pipeline
            | beam.Create([("a", image_a), ("b", image_b)])
            | beam.BatchElements(min_batch_size=32, max_batch_size=32)
            | beam.ParDo(ScoreDoFn("model.keras", num_samples=30))
            | beam.Map(print)  # {'key': 'a', 'probabilities': [...], 'label': 3, ...}
        )
    ```
    """

    def __init__(
        self,
        model,
        *,
        num_samples=None,
        rule=None,
        ood=None,
        output=None,
        from_logits=None,
        multi_label=None,
        family=None,
        level=None,
        conformal=None,
        columns=None,
        seed=0,
    ):
        if _DoFn is None:
            raise ImportError("ScoreDoFn needs Apache Beam: pip install 'tfuq[beam]'")
        super().__init__()
        self._paths = checked_paths(model)
        self._options = {"num_samples": num_samples, "rule": rule, "ood": ood, "output": output}
        self._options |= {"from_logits": from_logits, "multi_label": multi_label}
        self._options |= {"family": family, "level": level, "conformal": conformal}
        self._options |= {"columns": columns, "seed": seed}
        self._worker = None

    def setup(self):
        """Loads the model, once in each worker."""
        self._worker = Worker(self._paths, self._options)

    def process(self, batch):
        """Rows of a batch."""
        batch = list(batch)
        if not batch:
            return
        has_keys = all(isinstance(item, tuple) and len(item) == 2 for item in batch)
        inputs = np.stack([np.asarray(item[1] if has_keys else item) for item in batch])
        rows = self._worker.rows(inputs)
        for number in range(len(batch)):
            row = {name: values[number].tolist() for name, values in rows.items()}
            yield {"key": batch[number][0], **row} if has_keys else row

    def teardown(self):
        """Lets go of the model."""
        self._worker = None
