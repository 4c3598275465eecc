"""JSON of strangers: what it would become is counted before it is parsed.

`json.loads` holds Python's lock until it is done, and 3.9 MB of `[],[],` take it seconds. Brackets
and commas are counted in milliseconds, and bound lists, numbers, time and memory.
"""

import collections
import json

import numpy as np

from tfuq.serving.refusals import Refused

MOST_ITEMS = 2**20  # whatever the model takes: about half a second of parsing
ITEM, BYTE = 72, 2  # bytes of memory for an item (an empty dict and its place in a list) and a byte
_STEP = np.zeros(256, "int8")
_STEP[[ord("["), ord("{")]], _STEP[[ord("]"), ord("}")]] = 1, -1
_REST = bytes(byte for byte in range(256) if _STEP[byte] == 0)


def cost_of(body, max_depth, max_items):
    """Bytes that parsing may take; `Refused` if there is more in it than there may be.

    Args:
        body: Bytes of the JSON text, in UTF-8.
        max_depth: How deep lists and objects may stand in each other.
        max_items: How many numbers, texts, lists and objects there may be.
    """
    brackets = np.frombuffer(body.translate(None, _REST), "uint8")
    steps = _STEP[brackets]
    if len(steps) and np.cumsum(steps, dtype="int32").max() > max_depth:
        raise Refused(
            400, "malformed", f"the JSON must not be nested deeper than {max_depth} levels"
        )
    items = 1 + body.count(b",") + int(np.sum(steps == 1))
    limit = min(max_items, MOST_ITEMS)
    if items > limit:
        raise Refused(
            413,
            "too_large",
            f"the JSON holds {items} numbers and lists, at most {limit} are read: send fewer "
            "inputs, or a .npy file",
        )
    return ITEM * items + BYTE * len(body)


def parsed(body):
    """The content of a JSON text of which `cost_of` has been asked."""
    try:
        return json.loads(
            body.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_each_once
        )
    except (ValueError, RecursionError) as error:
        raise Refused(400, "malformed", f"the body is not JSON: {error}") from error


def _each_once(pairs):
    """The object of the pairs: of a name that comes twice, Python would keep the last, silently."""
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = collections.Counter(name for name, _ in pairs)
        ((twice, _),) = counts.most_common(1)
        raise Refused(400, "malformed", f"the JSON names '{twice[:40]}' twice in one object")
    return found


def _refuse_constant(name):
    raise Refused(422, "not_finite", f"the input holds {name}")
