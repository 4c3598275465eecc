"""Command `tfuq predict`: predictions and their uncertainty, in a table."""

import csv
import json
import pathlib
import shutil

import numpy as np

from tfuq import predictive
from tfuq._files.shards import ShardFolder, has_pyarrow
from tfuq._files.writing import written_whole
from tfuq.cli._inputs import (
    interval_options,
    load_data,
    load_model,
    load_ood,
    load_rule,
    prediction_options,
)
from tfuq.cli._stderr import progress


def run(arguments):
    """Writes the table."""
    out = pathlib.Path(arguments.out)
    join = _FILES.get(out.suffix.lower())
    if out.suffix and join is None and not out.is_dir() and not arguments.out.endswith("/"):
        raise ValueError(
            f"OUT must end in {', '.join(_FILES)}, or be a folder, whose name ends in / where it "
            f"has a dot. Received: {arguments.out}"
        )
    if join and out.exists() and not arguments.overwrite:
        raise ValueError(f"OUT must be new, unless --overwrite is given. Received: {out}")
    if join is _write_parquet and not has_pyarrow():
        raise ImportError("OUT in Parquet needs pyarrow: pip install 'tfuq[parquet]'")
    if join and not out.absolute().parent.is_dir():
        raise ValueError(f"OUT must be in a folder that exists. Received: {out}")
    rule = load_rule(arguments.rule)
    model = load_model(arguments)
    ood = load_ood(arguments.ood, model)
    data = load_data(arguments, model, rule)
    parts = out.with_name(f"{out.name}.parts") if join else out
    progress(f"predicting {arguments.data}")
    found = predictive.score_dataset(
        model,
        data.source,
        parts,
        batch_size=arguments.batch_size,
        shard_size=arguments.shard_size,
        rule=rule,
        ood=ood,
        columns=arguments.columns.split(",") if arguments.columns else None,
        class_names=data.classes,
        resume=not arguments.overwrite,
        **prediction_options(arguments),
        **interval_options(arguments),
    )
    folder = ShardFolder.open(parts)
    figures = {"wrote": str(out), "examples": found.examples, "resumed_after": 0}
    figures["resumed_after"] = found.examples - found.scored
    figures["columns"] = list(folder.manifest["columns"])
    if join:
        with written_whole(out) as unfinished:
            join(unfinished, folder)
        shutil.rmtree(parts)
    return figures, True


def _write_csv(path, folder):
    """Lists become a column for each of their entries: `probabilities_0` and so on."""
    schema = folder.manifest["columns"]
    header = []
    for name, (_, *shape) in schema.items():
        header += [f"{name}_{number}" for number in range(shape[0])] if shape else [name]
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for columns in folder.read():
            values = [_texts(column) for column in columns.values()]
            for row in zip(*values, strict=True):
                writer.writerow([cell for cells in row for cell in cells])


def _texts(column):
    """For each row of a column its cells; numbers as short as they can be read back."""
    if isinstance(column, list):
        return [[text] for text in column]
    return [[str(cell) for cell in row] for row in column.reshape(len(column), -1)]


def _write_parquet(path, folder):
    import pyarrow.parquet

    schema = pyarrow.parquet.read_schema(folder.files[0])
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for file in folder.files:
            writer.write_table(pyarrow.parquet.read_table(file))


def _write_jsonl(path, folder):
    """A JSON object for each row; what is no number is null."""
    with open(path, "w", encoding="utf-8") as file:
        for columns in folder.read():
            names, values = list(columns), [_plain(column) for column in columns.values()]
            for row in zip(*values, strict=True):
                json.dump(dict(zip(names, row, strict=True)), file, allow_nan=False)
                file.write("\n")


def _plain(column):
    if isinstance(column, list):
        return column
    if column.dtype.kind != "f":
        return column.tolist()
    known = np.isfinite(column)
    return column.tolist() if known.all() else np.where(known, column, None).tolist()


_FILES = {".csv": _write_csv, ".jsonl": _write_jsonl, ".parquet": _write_parquet}


def text_of(figures):
    """The figures for a person."""
    again = figures["resumed_after"]
    text = f" ({again} were there from before)" if again else ""
    return f"wrote {figures['wrote']}: {figures['examples']} examples{text}"
