"""Command `tfuq report`: one page on which a rejection threshold can be tried."""

from tfuq import report as reporting
from tfuq._arguments import shown
from tfuq._predictions.scores import GIVEN
from tfuq.cli._inputs import (
    DATA_HELP,
    MODEL_HELP,
    Numbers,
    add_data,
    add_model,
    add_ood,
    add_prediction,
    load_data,
    load_model,
    load_ood,
    load_rule,
    predict,
    progress,
)

OF_NUMBERS = "tolerance", "quantity", "unit"
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

exit code: 0 fine; 2 bad input."""


def add_arguments(parser):
    add_model(parser)
    add_data(parser)
    parser.add_argument("out", metavar="OUT", help="HTML file to write")
    add_prediction(parser)
    parser.add_argument("--rule", metavar="FILE", help="a RejectionRule, as `calibrate` writes it")
    add_ood(parser)
    parser.add_argument("--title", default="Report", help="of the page")
    parser.add_argument("--num-examples", type=int, default=80, help="pictures on the page (80)")
    group = parser.add_argument_group("of a regression")
    group.add_argument(
        "--tolerance", type=float, metavar="T", help="how far off an answer is wrong (the rule's)"
    )
    group.add_argument("--quantity", metavar="TEXT", help='what the number is: "age (years)"')
    group.add_argument("--unit", type=int, metavar="K", help="which of several numbers, from 0")


def run(arguments):
    """Writes the page."""
    rule = load_rule(arguments.rule)
    model = load_model(arguments.model)
    data = load_data(arguments, model, rule)
    progress(f"predicting {arguments.data}")
    ood = load_ood(arguments.ood, model)
    if ood is not None and rule is not None and rule.score != GIVEN:
        raise ValueError(
            f"--ood must be left out with a rule of {shown(rule.score)}, by which the page ranks "
            f"answers. Received: --ood {arguments.ood}"
        )
    found = predict(model, data, arguments, rule, ood=ood)
    of_numbers = {name: getattr(arguments, name) for name in OF_NUMBERS}
    if isinstance(found, Numbers):
        if ood is not None:
            raise ValueError(f"--ood must be left out for numbers. Received: --ood {arguments.ood}")
        if found.found is None:
            raise ValueError(
                "MODEL must be a Keras model or an ensemble, no SavedModel, for a page of numbers. "
                f"Received: {arguments.model}"
            )
        source, options = (found.found, found.labels), of_numbers
    else:
        for name, value in of_numbers.items():
            if value is not None:
                raise ValueError(f"--{name} must be left out for classes. Received: {value}")
        if rule is not None:
            rule = type(rule)(**{**rule.get_config(), "from_logits": False})
        source = found.probs, found.labels
        options = {"names": data.classes, "from_logits": False, "score": found.strange}
    page = reporting.html(
        source,
        arguments.out,
        images=data.pictures,
        rule=rule,
        title=arguments.title,
        num_examples=arguments.num_examples,
        **options,
    )
    return {"wrote": str(page), "examples": len(found.labels)}, True


def text_of(figures):
    """The figures for a person."""
    return f"wrote {figures['wrote']}, of {figures['examples']} examples"
