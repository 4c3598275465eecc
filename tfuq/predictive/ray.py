"""Scores in Ray Data (extra `ray-data`): rows as of `score_dataset`."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tfuq._arguments import PathLike, shown
from tfuq.predictive._worker import Worker, checked_paths

__all__ = ["ScoreBatches"]


class ScoreBatches:
    """Scores batches of a `ray.data.Dataset`: what its `map_batches` calls, once in each worker.

    Each worker loads the model from a file that all of them see, and the seed makes all draw the
    same networks. Rows may come out in any order: give examples a column that identifies them.

    Args:
        model: Path of a `.keras` file, or a list of such: an ensemble.
        inputs: Name of the column of inputs, which is not passed on.
        labels: Name of the column of labels, which becomes `true_label`; None without one.
        num_samples, rule, ood, output, from_logits, multi_label, family, level, conformal, columns,
        seed: As for `tfuq.predictive.score_dataset`, except that a model without a compiled loss
            needs `from_logits`.

    Returns:
        The batch, with the columns that `score_dataset` writes in place of `inputs` and `labels`.

    Raises:
        ValueError: If an argument is out of its range, a column is missing, its inputs are of
            several shapes, or another column has the name of a score.

    Example:

    ```
    import ray
    from tfuq.predictive.ray import ScoreBatches

    scores = ray.data.read_images("photos", size=(64, 64), include_paths=True).map_batches(
        ScoreBatches,
        fn_constructor_args=("model.keras",),
        fn_constructor_kwargs={"inputs": "image", "num_samples": 30},
        batch_size=32,
        concurrency=2,
    )
    scores.write_parquet("scores")  # path, probabilities, label, ...
    ```

    See also: `tfuq.predictive.score_dataset`.
    """

    def __init__(
        self,
        model: PathLike | Sequence[PathLike],
        *,
        inputs: str = "inputs",
        labels: str | None = None,
        num_samples: int | None = None,
        rule: Any = None,
        ood: Any = None,
        output: Any = None,
        from_logits: bool | None = None,
        multi_label: bool | None = None,
        family: Any = None,
        level: float | None = None,
        conformal: Any = None,
        columns: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        options = {"num_samples": num_samples, "rule": rule, "ood": ood, "output": output}
        options |= {"from_logits": from_logits, "multi_label": multi_label, "family": family}
        options |= {"level": level, "conformal": conformal, "columns": columns, "seed": seed}
        self._inputs, self._labels = inputs, labels
        self._worker = Worker(checked_paths(model), options)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        used = [name for name in (self._inputs, self._labels) if name is not None]
        missing = [name for name in used if name not in batch]
        if missing:
            raise ValueError(
                f"Arguments `inputs` and `labels` must name columns of the data, {sorted(batch)}. "
                f"Received: {', '.join(map(shown, missing))}"
            )
        labels = None if self._labels is None else np.asarray(batch[self._labels])
        rows = self._worker.rows(_stacked(batch[self._inputs]), labels)
        kept = {name: values for name, values in batch.items() if name not in used}
        both = sorted(kept.keys() & rows.keys())
        if both:
            raise ValueError(
                "Argument `batch` must have no columns with the names of scores: rename or drop "
                f"them, or name them as `labels`. Received: {both}"
            )
        return {**kept, **rows}


def _stacked(inputs):
    """A column as one array; Ray gives objects where rows are arrays of their own."""
    inputs = np.asarray(inputs)
    if inputs.dtype != object:
        return inputs
    shapes = {np.shape(each) for each in inputs}
    if len(shapes) > 1:
        raise ValueError(
            f"Argument `batch` must hold inputs of one shape. Received: {sorted(shapes)[:3]}"
        )
    return np.stack(list(inputs))
