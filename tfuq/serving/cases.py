"""Identity of cases: of a request that comes again, so that a monitor counts each case once."""

import collections
import hashlib
from typing import NamedTuple

import numpy as np

from tfuq.serving.refusals import Refused

HEADER = "Idempotency-Key"
LONGEST = 200  # characters of a key
KEPT = 100_000  # cases, and keys, that are remembered; older ones are forgotten
SOME = 4096  # values of an input that are looked at first
LEAST_VALUES = 8  # different ones of an input, from which on equal inputs are no chance


class Mark(NamedTuple):
    """What tells a case from others: the key of its request, its place there, and what it holds."""

    key: str | None
    place: int
    digest: bytes


def checked_key(key):
    """The key of a request, or None; `Refused` if it is none."""
    if key is None:
        return None
    if not 0 < len(key) <= LONGEST or not key.isprintable():
        raise Refused(422, "wrong_key", f"{HEADER} must have 1 to {LONGEST} printable characters")
    return key


def marks_of(inputs, key):
    """A `Mark` of each input of a request, or None where an equal one may be another case.

    Without a key an input is known by itself if it holds many values, else by the whole request.
    """
    digests = [_digest(array) for array in inputs]
    if key is not None:
        return [Mark(key, place, digest) for place, digest in enumerate(digests)]
    whole = None
    if _has_many_values(inputs):
        whole = hashlib.blake2b(b"".join(digests), digest_size=16).digest()
    marks = []
    for place, (array, digest) in enumerate(zip(inputs, digests, strict=True)):
        if _has_many_values([array]):
            marks.append(Mark(None, 0, digest))  # the same in another list
        else:
            marks.append(None if whole is None else Mark(None, place, whole))
    return marks


def _digest(array):
    head = f"{array.dtype} {array.shape} ".encode()
    return hashlib.blake2b(head + np.ascontiguousarray(array).tobytes(), digest_size=16).digest()


def _has_many_values(arrays):
    found = set()
    for array in arrays:
        some = array.ravel()[:: max(array.size // SOME, 1)]
        for part in (some, array):  # of an image some are enough
            found.update(np.unique(part).tolist())
            if len(found) >= LEAST_VALUES:
                return True
    return False


class Recent(collections.OrderedDict):
    """The last `KEPT` things that were kept, by their marks."""

    def keep(self, name, value):
        self[name] = value
        if len(self) > KEPT:
            self.popitem(last=False)
