"""Schemas of requests and answers, for `/openapi.json`."""

from tfuq.serving.cases import HEADER, LONGEST
from tfuq.serving.reading import IMAGES, JSON, NPY

DESCRIPTION = (
    "Answers each input with a decision and its reasons, or refuses it with a reason. `accept` is "
    "true where the model's rule vouches for the answer; all else goes to an expert."
)
_NUMBER = {"type": "number", "nullable": True}
_FILE = {"schema": {"type": "string", "format": "binary"}}
_ANY = {"type": "array", "items": {}, "minItems": 1}
_INSTANCES = {"type": "object", "required": ["instances"], "properties": {"instances": _ANY}}
BODY = {
    "required": True,
    "content": {
        **{kind: _FILE for kind in (*IMAGES, NPY)},
        JSON: {"schema": _INSTANCES},
    },
}
LABELS = {
    "required": True,
    "content": {
        JSON: {
            "schema": {
                "type": "object",
                "required": ["labels"],
                "properties": {"labels": {"type": "object", "additionalProperties": {}}},
            }
        }
    },
}
KEY = {
    "name": HEADER,
    "in": "header",
    "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": LONGEST},
    "description": "With a monitor: the same for each try of one request, another for another.",
}
_REFUSAL = {
    "type": "object",
    "required": ["error", "reason"],
    "properties": {"error": {"type": "string"}, "reason": {"type": "string"}},
}
_WHY = {
    400: "The body is not whole, or not what it says.",
    404: "There is no such case, or no monitor.",
    408: "The body did not come in time.",
    413: "More bytes, pixels or numbers than are read.",
    415: "Another type of body.",
    422: "Numbers that the model does not take, labels that are none, or a key of another request.",
    503: "Too many requests at a time: come again after `Retry-After` seconds.",
}
REFUSALS = {
    status: {"description": text, "content": {JSON: {"schema": _REFUSAL}}}
    for status, text in _WHY.items()
}
_COMMON = {
    "decision": {"type": "string", "enum": ["accepted", "refer to an expert"]},
    "accept": {"type": "boolean"},
    "reasons": {"type": "array", "items": {"type": "string"}},
    "id": {"type": "string", "description": "With a monitor: what a label names the case by."},
    "repeated": {
        "type": "boolean",
        "description": "With a monitor: true if the case came before, and was not counted again.",
    },
    "unidentified": {
        "type": "boolean",
        "description": "With a monitor: true if the case would be counted again if the request "
        f"came again, as it holds few values and came without {HEADER}.",
    },
    "ood_score": _NUMBER,
}
_OF_CLASSES = {
    **_COMMON,
    "label": {"type": "integer", "nullable": True},
    "class": {"type": "string", "nullable": True},
    "confidence": _NUMBER,
    "probabilities": {"type": "array", "items": _NUMBER},
    "uncertainty": {"type": "object", "additionalProperties": _NUMBER},
    "prediction_set": {"type": "array", "items": {"type": "integer"}},
}
_OF_NUMBERS = {
    **_COMMON,
    **{
        name: _NUMBER
        for name in ("mean", "std", "aleatoric_std", "epistemic_std", "lower", "upper")
    },
}


def answer_responses(of_numbers):
    """Responses of `/predict`: one answer, or those of `instances`, or a refusal."""
    answer = {
        "type": "object",
        "required": ["decision", "accept", "reasons"],
        "properties": _OF_NUMBERS if of_numbers else _OF_CLASSES,
    }
    several = {"type": "object", "properties": {"predictions": {"type": "array", "items": answer}}}
    content = {JSON: {"schema": {"oneOf": [answer, several]}}}
    found = {200: {"description": "The decision and its reasons.", "content": content}}
    return {**found, **REFUSALS}
