"""Arguments of `tfuq report`."""

from tfuq.cli.options.shared import (
    DATA_HELP,
    MODEL_HELP,
    add_data,
    add_model,
    add_ood,
    add_prediction,
    add_rule,
    number,
)

HELP = "writes one page on which a person can try where to refuse a model's answers"
EPILOG = f"""\
OUT is one HTML file, which opens from a disk and loads nothing from anywhere. Of a regression the
page shows intervals, and what a threshold of their width accepts. With --ood the slider moves the
score of a detector, which a rule of it needs.

{MODEL_HELP}

{DATA_HELP}

examples:
  tfuq report model.keras test.npz report.html
  tfuq report model.keras test_images/ report.html --rule rule.json --scale 1
  tfuq report model.keras test.npz report.html --rule rule.json --ood knn.npz
  tfuq report numbers.keras test.npz report.html --tolerance 5 --quantity "age (years)"

exit code: 0 fine; 2 bad input;
3 done, but for images that were left out, which are named."""


def add_arguments(parser):
    add_model(parser)
    add_data(parser)
    parser.add_argument("out", metavar="OUT", help="HTML file to write")
    add_prediction(parser)
    add_rule(parser)
    add_ood(parser)
    parser.add_argument("--title", default="Report", help="of the page")
    parser.add_argument("--num-examples", type=int, default=80, help="pictures on the page (80)")
    group = parser.add_argument_group("of a regression")
    group.add_argument(
        "--tolerance", type=number, metavar="T", help="how far off an answer is wrong (the rule's)"
    )
    group.add_argument("--quantity", metavar="TEXT", help='what the number is: "age (years)"')
    group.add_argument("--unit", type=int, metavar="K", help="which of several numbers, from 0")
