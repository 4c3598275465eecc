"""Command `tfuq report`: one page on which a rejection threshold can be tried."""

from tfuq import report as reporting
from tfuq.cli._inputs import (
    DATA_HELP,
    MODEL_HELP,
    Numbers,
    add_data,
    add_model,
    add_prediction,
    load_data,
    load_model,
    load_rule,
    predict,
    progress,
)

HELP = "writes one page on which a person can try where to refuse a model's answers"
EPILOG = f"""\
OUT is one HTML file, which opens from a disk and loads nothing from anywhere.

{MODEL_HELP}

{DATA_HELP}

examples:
  tfuq report model.keras test.npz report.html
  tfuq report model.keras test_images/ report.html --rule rule.json --scale 1

exit code: 0 fine; 2 bad input."""


def add_arguments(parser):
    add_model(parser)
    add_data(parser)
    parser.add_argument("out", metavar="OUT", help="HTML file to write")
    add_prediction(parser)
    parser.add_argument("--rule", metavar="FILE", help="a RejectionRule, as `calibrate` writes it")
    parser.add_argument("--title", default="Report", help="of the page")
    parser.add_argument("--num-examples", type=int, default=80, help="pictures on the page (80)")


def run(arguments):
    """Writes the page."""
    rule = load_rule(arguments.rule)
    if rule is not None:
        rule = type(rule)(**{**rule.get_config(), "from_logits": False})
    model = load_model(arguments.model)
    data = load_data(arguments, model, rule)
    progress(f"predicting {arguments.data}")
    found = predict(model, data, arguments, rule)
    if isinstance(found, Numbers):
        raise ValueError(
            "MODEL must be a classifier, whose answers the page shows. Received: a regression, "
            f"{arguments.model}"
        )
    page = reporting.html(
        (found.probs, found.labels),
        arguments.out,
        images=data.pictures,
        names=data.classes,
        rule=rule,
        title=arguments.title,
        num_examples=arguments.num_examples,
        from_logits=False,
    )
    return {"wrote": str(page), "examples": len(found.labels)}, True


def text_of(figures):
    """The figures for a person."""
    return f"wrote {figures['wrote']}, of {figures['examples']} examples"
