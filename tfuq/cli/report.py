"""Command `tfuq report`: one page on which a rejection threshold can be tried."""

import pathlib

from tfuq import report as reporting
from tfuq._arguments import shown
from tfuq._predictions.scores import GIVEN
from tfuq.cli._inputs import (
    Numbers,
    load_data,
    load_model,
    load_ood,
    load_rule,
    predict,
)
from tfuq.cli._stderr import progress

OF_NUMBERS = "tolerance", "quantity", "unit"


def run(arguments):
    """Writes the page."""
    if pathlib.Path(arguments.out).suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"OUT must end in .html, as the page is one. Received: {arguments.out}")
    rule = load_rule(arguments.rule)
    model = load_model(arguments)
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
        if found.found is None:
            raise ValueError(
                "MODEL must be a Keras model or an ensemble for a page of numbers, not a "
                f"SavedModel. Received: {arguments.model}"
            )
        source, options = (found.found, found.labels), {**of_numbers, "score": found.strange}
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
