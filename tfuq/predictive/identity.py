"""Identity of data: all of them, not a sample.

What is known before anything is read (names, sizes, times, lengths, labels) is an `identity`, a
dict; of what has to be read to be known, `Marks` holds a digest of the rows of each shard.
"""

import hashlib
import os

import keras
import numpy as np
import tensorflow as tf

BLOCK = 2**24  # bytes that are hashed at a time
ANOTHER = (
    "give another `path`, or replace what is there with `resume=False` (`--overwrite` on the "
    "command line)"
)


def array_digest(array, start=0, end=None):
    """A mark of the rows of an array: dtype, shape and every byte."""
    rows = np.asarray(array)[start:end]
    found = hashlib.sha256(f"{rows.dtype}{rows.shape}".encode())
    step = max(1, BLOCK // max(1, rows.nbytes // max(1, len(rows))))
    for first in range(0, len(rows), step):
        part = rows[first : first + step]
        found.update(repr(part.tolist()).encode() if part.dtype.hasobject else part.tobytes())
    return found.hexdigest()[:16]


def structure_digest(structure, start=0, end=None):
    """As `array_digest`, of all arrays of a structure, or None of None."""
    if structure is None:
        return None
    found = [array_digest(array, start, end) for array in tf.nest.flatten(structure)]
    return found[0] if len(found) == 1 else _text_digest(found)


def batch_digest(batch):
    """A mark of a whole batch: inputs, labels and names."""
    parts = (structure_digest(batch.inputs), structure_digest(batch.labels), batch.files)
    return _text_digest(parts)


def _text_digest(parts):
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogateescape")).hexdigest()[:16]


# --- What is known up front ---------------------------------------------------------------------


def identity_of_files(names, labels=None):
    """Identity of files, which are not read: names, sizes, times of their last change, labels."""
    found = [os.stat(name) for name in names]
    return {
        "files": len(names),
        "names": _text_digest([str(name) for name in names]),
        "sizes": _text_digest([each.st_size for each in found]),
        "times of change": _text_digest([each.st_mtime_ns for each in found]),
        "labels": structure_digest(labels),
    }


def identity_of_arrays(inputs, labels):
    """Identity of arrays, whose every byte counts."""
    return {
        "examples": len(tf.nest.flatten(inputs)[0]),
        "inputs": structure_digest(inputs),
        "labels": structure_digest(labels),
    }


def identity_of_dataset(data):
    """Identity of a `tf.data.Dataset` or `PyDataset`: its length, where it is known."""
    if isinstance(data, keras.utils.PyDataset):
        return {"batches": data.num_batches}
    count = int(data.cardinality())
    return {"batches": count if count >= 0 else None}


# --- What has to be read ------------------------------------------------------------------------


class Marks:
    """Digests of the rows of each shard, found as batches pass, and held to those in a folder.

    Args:
        folder: `ShardFolder`, whose shards were written before.
        shard_size: Rows of a shard.
    """

    def __init__(self, folder, shard_size):
        self.found = []
        self._before = [shard.get("data") for shard in folder.shards]
        self._folder, self._size = folder, shard_size
        self._parts, self._rows = [], 0

    def add(self, batch):
        """Takes a batch; ValueError if it completes a shard that was written of other rows."""
        start = 0
        while len(batch) - start >= self._size - self._rows:
            end = start + self._size - self._rows
            self._take(batch, start, end)
            self._close()
            start = end
        if start < len(batch):
            self._take(batch, start, len(batch))

    def finish(self):
        """Says that there are no more batches."""
        if self._rows:
            self._close()
        if self._folder.complete and len(self.found) > len(self._before):
            raise ValueError(
                "Argument `data` must hold the examples that were scored before and no others, or "
                f"{ANOTHER}. Received: more than the {self._folder.rows} rows that are in "
                f"{str(self._folder.path)!r}"
            )

    def _take(self, batch, start, end):
        parts = (batch.inputs, batch.labels)
        self._parts.append([structure_digest(part, start, end) for part in parts])
        self._rows += end - start

    def _close(self):
        number, digest = len(self.found), _text_digest(self._parts)
        if number < len(self._before) and self._before[number] != digest:
            first = number * self._size
            raise ValueError(
                "Argument `data` must hold the examples that were scored before, the same inputs "
                f"and labels in the same order and batches, or {ANOTHER}. Received: others in rows "
                f"{first} to {first + self._rows - 1} than those in {str(self._folder.path)!r}"
            )
        self.found.append(digest)
        self._parts, self._rows = [], 0
