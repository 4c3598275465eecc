"""Command `tfuq predict`: predictions and their uncertainty, in a table."""

import csv
import pathlib
import shutil

from tfuq import predictive
from tfuq._files.shards import ShardFolder, has_pyarrow
from tfuq._files.writing import written_whole
from tfuq.cli._inputs import (
    DATA_HELP,
    MODEL_HELP,
    add_data,
    add_intervals,
    add_model,
    add_ood,
    add_prediction,
    interval_options,
    load_data,
    load_model,
    load_ood,
    load_rule,
    prediction_options,
    progress,
)

HELP = "writes predictions and their uncertainty to a table"
EPILOG = f"""\
OUT ends in .csv or .parquet: one file; or is a folder, which gets shards of 10000 rows. A row
holds index, file, true_label, the probabilities, label, class (where names are known),
confidence, predictive_entropy (nats), for random models and ensembles expected_entropy,
mutual_information and variation_ratio, with --rule accept, with --ood ood_score. Of a regression
it holds mean, std, aleatoric_std, epistemic_std, lower, upper, and with --rule score and accept.
Data need no labels. Memory does not grow with the data.

A command that was interrupted goes on where it stopped when it is given again with the same
data: until it is done, rows are in OUT.parts.

{MODEL_HELP}

{DATA_HELP}

examples:
  tfuq predict model.keras images/ predictions.csv --scale 0.00392156862745098
  tfuq predict model.keras new.npz predictions.parquet --rule rule.json
  tfuq predict saved_model/ images/ predictions/ --class-names cat,dog,emu --scale 1

exit code: 0 fine; 2 bad input."""


def add_arguments(parser):
    add_model(parser)
    add_data(parser)
    parser.add_argument("out", metavar="OUT", help="a .csv or .parquet file, or a folder")
    add_prediction(parser)
    add_intervals(parser)
    parser.add_argument("--rule", metavar="FILE", help="a RejectionRule, as `calibrate` writes it")
    add_ood(parser)
    parser.add_argument("--columns", help="which columns, separated by commas")
    parser.add_argument("--shard-size", type=int, default=10_000, help="rows of a shard (10000)")
    parser.add_argument(
        "--overwrite", action="store_true", help="replaces OUT and what was begun of it"
    )


def run(arguments):
    """Writes the table."""
    out = pathlib.Path(arguments.out)
    join = {".csv": _write_csv, ".parquet": _write_parquet}.get(out.suffix.lower())
    if join and out.exists() and not arguments.overwrite:
        raise ValueError(f"OUT must be new, unless --overwrite is given. Received: {out}")
    if join is _write_parquet and not has_pyarrow():
        raise ImportError("OUT in Parquet needs pyarrow: pip install 'tfuq[parquet]'")
    if join and not out.absolute().parent.is_dir():
        raise ValueError(f"OUT must be in a folder that exists. Received: {out}")
    rule = load_rule(arguments.rule)
    model = load_model(arguments.model)
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


def text_of(figures):
    """The figures for a person."""
    again = figures["resumed_after"]
    text = f" ({again} were there from before)" if again else ""
    return f"wrote {figures['wrote']}: {figures['examples']} examples{text}"
