"""Arguments of `tfuq predict`."""

from tfuq.cli.options.shared import (
    DATA_HELP,
    MODEL_HELP,
    add_data,
    add_intervals,
    add_model,
    add_ood,
    add_prediction,
    add_rule,
)

HELP = "writes predictions and their uncertainty to a table"
EPILOG = f"""\
OUT ends in .csv, .jsonl or .parquet: one file; or is a folder, which gets shards of 10000 rows.
A row holds index, file, true_label, the probabilities, label, class (where names are known),
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
  tfuq predict saved_model/ images/ predictions/ --class-names cat,dog,emu --scale 1 --trust

exit code: 0 fine; 2 bad input;
3 done, but for images that were left out, which are named."""


def add_arguments(parser):
    add_model(parser)
    add_data(parser)
    parser.add_argument("out", metavar="OUT", help="a .csv, .jsonl or .parquet file, or a folder")
    add_prediction(parser)
    add_intervals(parser)
    add_rule(parser)
    add_ood(parser)
    parser.add_argument("--columns", help="which columns, separated by commas")
    parser.add_argument("--shard-size", type=int, default=10_000, help="rows of a shard (10000)")
    parser.add_argument(
        "--overwrite", action="store_true", help="replaces OUT and what was begun of it"
    )
