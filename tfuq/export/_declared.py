"""Declarations of the models of an export, on which these and the rule agree."""

from tfuq._predictions.class_names import agreed_names
from tfuq.predictive.declarations import Declared, declared


def declared_of(members, rule):
    """`Declared` on which all members, and the rule, agree; ValueError where they do not."""
    found = [declared(member) for member in members]
    given = {f"member {number}": each.class_names for number, each in enumerate(found)}
    names = agreed_names({**given, "`rule`": getattr(rule, "class_names", None)})
    inputs = {each.inputs for each in found}
    if len(inputs) > 1:
        raise ValueError(
            "Argument `model` must have members with the same declared inputs. Received: "
            f"{sorted(map(str, inputs))}"
        )
    return Declared(names, inputs.pop())
