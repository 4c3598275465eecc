"""Scores of data that do not fit into memory, in files that survive whatever kills the process."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tfuq._arguments import ModelLike, Output, PathLike, check_flags, check_integer
from tfuq._files.shards import ShardFolder, chosen_format
from tfuq._models.torch_data import keras_data
from tfuq._predictions.family import Family
from tfuq._predictions.scores import new_word
from tfuq.predictive.column_notes import notes_of
from tfuq.predictive.identity import ANOTHER, Marks, batch_digest
from tfuq.predictive.inputs import is_files, source_of
from tfuq.predictive.number_rows import rows_of
from tfuq.predictive.rows import as_model, members_of


class ScoredDataset(NamedTuple):
    """The files that `score_dataset` wrote.

    Example:

    >>> from tfuq.predictive import ScoredDataset
    >>> ScoredDataset("scores", ["scores/part-00000.parquet"], 70, 70).examples
    70

    See also: `tfuq.predictive.score_dataset`, `tfuq.predictive.read_scores`.
    """

    path: object
    """The folder."""
    files: list
    """The shards, in the order of the examples."""
    examples: int
    """Rows in all of them."""
    scored: int
    """Rows that this call has added; the others were there."""


def score_dataset(
    model: ModelLike,
    data: Any,
    path: PathLike,
    *,
    format: str | None = None,
    num_samples: int | None = None,
    batch_size: int = 32,
    shard_size: int = 10_000,
    rule: Any = None,
    ood: Any = None,
    output: Output | None = None,
    from_logits: bool | None = None,
    multi_label: bool | None = None,
    family: str | Mapping[str, Any] | Family | None = None,
    level: float | None = None,
    conformal: Any = None,
    columns: Sequence[str] | None = None,
    decode: Callable[[str], Any] | None = None,
    class_names: Sequence[str] | None = None,
    seed: int = 0,
    resume: bool = True,
    verbose: int = 1,
) -> ScoredDataset:
    """Writes predictions and uncertainties of any number of examples to files, shard by shard.

    Memory holds one shard of rows and one batch. If the process is killed, make the same call
    again: it continues where it stopped, and the files equal those of an undisturbed run, byte for
    byte. A shard is whole or absent, and `_manifest.json` lists them. The manifest also binds the
    model's weights, the options and all data, so that another run cannot be mixed in: names, sizes,
    times and labels of files; each byte of arrays; and the rows of each shard of a dataset, which
    is read again from its beginning. Only one process at a time may write to a folder.

    Args:
        model: Keras model for classes or numbers. With random layers (`MCDropout`, `VBLLDense`,
            ...), `num_samples` networks are drawn. Or a `tfuq.ensembles.DeepEnsemble`; or a loaded
            SavedModel (`tf.saved_model.load`), such as one of `tfuq.export.export`: its only
            output, or the one called `"probabilities"`, holds probabilities, and its other outputs
            (`"accept"`, `"mutual_information"`, ...) are written too. An exported regression has
            the output `"mean"`.
        data: A `tf.data.Dataset` or a `keras.utils.PyDataset` of batches of inputs or of pairs
            `(x, y)`, in the same order each time; arrays `x` or `(x, y)`; or a list of files:
            images (`.png`, `.jpg`, `.bmp`, `.gif`) or `.npz` files with `x` and perhaps `y`.
        path: Folder to write, new or of an earlier call.
        format: `"parquet"` (extra `parquet`) or `"tfrecord"`, of `tf.train.Example`. By default
            what `path` ends in, or Parquet where pyarrow is installed.
        num_samples: Number of networks, for a model with random layers; by default 30.
        batch_size: Examples at a time, for arrays and files; datasets have their own.
        shard_size: Rows of a file.
        rule: `tfuq.selective.RejectionRule`, for the column `accept`; for a regression a
            `RegressionRule`, for `score` too.
        ood: Fitted detector of `tfuq.ood`, for the column `ood_score`.
        output: Which output, when the model has several: an index, a key, a field of a named
            tuple, or a function of the outputs.
        from_logits: Whether the output holds logits. By default what the last layer declares, else
            what the compiled loss says.
        multi_label: Whether each entry of the last axis is a binary prediction of its own.
        family: For a regression with undeclared outputs: the family of their parameters, as in
            `predict_uncertainty`.
        level: For a regression: probability of the central interval, by default that of the rule,
            else 0.9.
        conformal: For a regression: a `ConformalRegressor`, which gives the intervals instead.
        columns: Names of the columns to write; None for all that there are.
        decode: Function from the name of a file to the input that the model takes. By default an
            image is resized to the model's input (bilinear, antialiased) and has float32 pixels
            from 0 to 255, as of `keras.utils.image_dataset_from_directory`, or as is declared of
            the model (`tfuq.predictive.declare`).
        class_names: Names of the classes in the order of the model's output, by default those that
            are declared of the model, or that the rule was fitted with. Labels may then be texts.
        seed: Integer that determines the drawn networks.
        resume: Whether to continue the run in `path`; False replaces it. A dataset is read and
            compared even if all of it was scored.
        verbose: 1 shows a progress bar.

    Returns:
        `ScoredDataset`. A row has the columns

        - `index`: number of the example, int64; `file`: its name, for files;
        - `true_label`: the label beside it, int64 (float32 if it is no integer; a list if
          one-hot), where there is one, and by its number where it is a name;
        - `probabilities`: mean probabilities, a list of float32;
        - `label`: the most probable class, int64; `class`: its name, where names are known;
          `confidence`: its probability (of binary predictions the larger of p and 1 - p), float32;
        - `predictive_entropy`: nats, float32;
        - `expected_entropy`, `mutual_information` (nats) and `variation_ratio`, float32, of models
          with random layers and ensembles;
        - `accept`, bool, with `rule` (0 or 1 in TFRecords); `ood_score`, float32, with `ood`,
          larger the further out.

        A regression has other columns instead of those from `probabilities` to `variation_ratio`,
        as far as the model knows them: `mean`, `std`, `aleatoric_std`, `epistemic_std`, `lower` and
        `upper`, float32, and with `rule` its `score`; lists if an example has several numbers.

        The metadata of Parquet files hold, under the key `tfuq`, the units of the columns and the
        class names as JSON; the field of a column holds its `unit`.

        With `multi_label`, those from `label` to `accept` are lists, one entry per label. A
        prediction that is not finite has the label -1, measures of NaN, and is not accepted.

    Raises:
        ValueError: If the folder holds something else, another run (the error says what differs),
            one of an earlier version, or damaged shards; if the data differ from those that were
            scored before; if images are not as declared of the model, names of classes differ, or
            labels are none of them; if the predictions are per pixel, which has no row; if files
            are missing or cannot be read; or an argument is out of its range.
        ImportError: If Parquet is asked for without pyarrow.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.layers import VBLLDense
    from tfuq.predictive import read_scores, score_dataset

    model = keras.Sequential([keras.Input((8,)), VBLLDense(3, kl_weight=0.01)])
    x = np.random.rand(70, 8).astype("float32")
    found = score_dataset(model, x, "scores", num_samples=4, shard_size=50, verbose=0)
    print(found.examples, len(found.files))  # 70 2
    scores = read_scores("scores")
    print(scores["label"].shape, scores["mutual_information"].max())
    ```

    See also: `tfuq.predictive.read_scores`, `tfuq.predictive.predict_uncertainty`.
    """
    check_integer("shard_size", shard_size, 1)
    form = chosen_format(path, format)
    model, data = as_model(model), keras_data(data)
    source = source_of(data, batch_size, members_of(model)[0], decode, verbose)
    scorer = rows_of(
        model,
        source.first.inputs,
        num_samples=num_samples,
        output=output,
        from_logits=from_logits,
        multi_label=multi_label,
        seed=seed,
        rule=rule,
        ood=ood,
        columns=columns,
        class_names=class_names,
        family=family,
        level=level,
        conformal=conformal,
    )
    scorer.rows(0, source.first)  # whatever is wrong with the arguments, before anything is written
    run = {"format": form, "shard_size": shard_size, **scorer.described()}
    run["batch_size"] = _batch_size(data, batch_size)
    run["data"] = {**source.identity(), "first batch": batch_digest(source.first)}
    folder = ShardFolder.begin(path, run, resume)
    before = folder.rows
    if not (folder.complete and source.is_known):
        _write(folder, scorer, source, shard_size)
    return ScoredDataset(folder.path, folder.files, folder.rows, folder.rows - before)


def _batch_size(data, batch_size):
    """What decides which examples are predicted together."""
    is_dataset = hasattr(data, "element_spec") or hasattr(data, "num_batches")
    return None if is_dataset and not is_files(data) else batch_size


def _write(folder, scorer, source, shard_size):
    """Scores what is missing, and writes a shard whenever its rows are complete.

    Of data that are not known yet all batches are read, and compared with those of before.
    """
    done, waiting, count = folder.rows, [], 0
    marks = None if source.is_known else Marks(folder, shard_size)
    for start, batch in source.after(done if marks is None else 0):
        if marks is not None:
            marks.add(batch)
        new = max(done - start, 0)  # of the first batch, a part may be in the last shard
        if new >= len(batch):
            continue
        if folder.complete:
            break  # there are more, as `finish` says
        waiting.append(_sliced(scorer.rows(start, batch), new, len(batch)))
        count += len(batch) - new
        while count >= shard_size:
            whole = _joined(waiting)
            _add(folder, _sliced(whole, 0, shard_size), marks)
            waiting, count = [_sliced(whole, shard_size, count)], count - shard_size
    _check_end(folder, source, done, marks)
    if count:
        _add(folder, _joined(waiting), marks)
    if not folder.complete:
        folder.finish()


def _add(folder, columns, marks):
    data = None if marks is None else marks.found[len(folder.shards)]
    folder.add(columns, data, notes_of(folder.manifest["run"]))


def _check_end(folder, source, done, marks):
    """Raises ValueError if the data end before, or behind, the rows that were scored before."""
    if marks is not None:
        marks.finish()
    if source.examples < done:
        raise ValueError(
            f"Argument `data` must hold the examples that were scored before, or {ANOTHER}. "
            f"Received: {source.examples}, fewer than the {done} rows in {str(folder.path)!r}"
        )


def _sliced(columns, start, end):
    return {name: values[start:end] for name, values in columns.items()}


def _joined(parts):
    """Column by column, the rows of all parts."""
    joined = {}
    for name, first in parts[0].items():
        values = [part[name] for part in parts]
        is_text = isinstance(first, list)
        joined[name] = list(itertools.chain(*values)) if is_text else np.concatenate(values)
    return joined


def read_scores(
    path: PathLike, columns: Sequence[str] | None = None, *, as_frame: bool = False
) -> Any:
    """The columns that `score_dataset` wrote, of all examples in their order.

    The folder has to be complete, and every shard is checked to be what was written. (A folder of
    Parquet files can be read by `pandas.read_parquet` and `polars.read_parquet` as well, which
    check nothing.)

    Args:
        path: The folder.
        columns: Names of the columns that are wanted; None for all.
        as_frame: Whether to return a `pandas.DataFrame`, in which a row of lists is an array.

    Returns:
        Dict of name to array: `(examples,)`, or `(examples, classes)` where a row holds a list. It
        holds all rows: if memory does not, read the files one by one.

    Raises:
        ValueError: If `score_dataset` did not write the folder, it is not complete or damaged, or a
            column is unknown.
        ImportError: If a data frame is asked for without pandas.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.predictive import read_scores, score_dataset

    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3, "softmax")])
    score_dataset(model, np.random.rand(20, 8).astype("float32"), "scores", verbose=0)
    print(read_scores("scores", ["label", "confidence"])["confidence"].shape)  # (20,)
    ```

    See also: `tfuq.predictive.score_dataset`.
    """
    check_flags(as_frame=as_frame)
    folder = ShardFolder.open(pathlib.Path(path))
    there = folder.manifest["columns"]
    names = list(there) if columns is None else [new_word(name) for name in columns]
    unknown = [name for name in names if name not in there]
    if unknown:
        raise ValueError(
            f"Argument `columns` must name some of {', '.join(there)}. Received: {unknown}"
        )
    parts = [{name: shard[name] for name in names} for shard in folder.read()]
    found = {name: np.asarray(values) for name, values in _joined(parts).items()}
    return _as_frame(found) if as_frame else found


def _as_frame(columns):
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError("read_scores(as_frame=True) needs pandas: pip install pandas") from error
    # A column of a data frame has one axis.
    return pd.DataFrame({n: v if v.ndim == 1 else list(v) for n, v in columns.items()})
