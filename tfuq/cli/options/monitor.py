"""Arguments of `tfuq monitor`."""

from tfuq.cli.options.shared import (
    DATA_HELP,
    MODEL_HELP,
    add_data,
    add_model,
    add_ood,
    add_prediction,
    share,
)

HELP = "whether a rule's promise still holds, batch after batch of labelled cases"
EPILOG = f"""\
{MODEL_HELP}

{DATA_HELP}

STATE keeps what has been seen, about 1 KB of JSON: the first call makes it, the next ones go on
from it. Each case must come once, in its order. While the risk is at most the promised one, the
coverage as at the fit and the scores as they came at first, an alarm is ever raised with a
probability of at most alpha, however long this goes on.

examples:
  tfuq monitor model.keras monday.npz  state.json --rule rule.json
  tfuq monitor model.keras tuesday.npz state.json --rule rule.json

exit code: 0 fine; 1 an alarm was raised, now or earlier; 2 bad input;
3 done, but for images that were left out, which are named."""


def add_arguments(parser):
    add_model(parser)
    add_data(parser)
    parser.add_argument("state", metavar="STATE", help="what has been seen, a JSON file")
    add_prediction(parser)
    parser.add_argument("--rule", metavar="FILE", required=True, help="with a promised risk")
    add_ood(parser)
    parser.add_argument("--alpha", type=share, metavar="X", help="of a new STATE; default: 0.05")
