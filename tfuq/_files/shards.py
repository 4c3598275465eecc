"""Rows in shards that are there whole or not at all, and a manifest that says which they are.

A folder of scores holds `_manifest.json` (its first letter lets pandas, polars and Spark pass it
over; earlier versions wrote `manifest.json`), and shards `part-00000.parquet` (or `.tfrecord`) and
so on. The manifest is the truth: it is written before the first shard and after each, and a shard
that it does not name has been left by a process that was killed, and is written again.
"""

import pathlib
import re

import numpy as np
import tensorflow as tf

from tfuq._arguments import check_integer, shown
from tfuq._files.reading import (
    DAMAGE,
    check_fields,
    fingerprint,
    json_text,
    read_json,
    sealed,
    unsealed,
)
from tfuq._files.writing import prepare_folder, written_whole

MANIFEST, EARLIER_MANIFEST = "_manifest.json", "manifest.json"
FORMATS = ("parquet", "tfrecord")
NOTES = "tfuq"  # the key of the metadata of Parquet files
_VERSION = 2
_READABLE = (1, 2)  # the first knows its data by their first batch alone: it is not gone on with
_MAX_BYTES = 2**26  # of a manifest: some 300,000 shards
_SHARD = re.compile(r"part-\d{5,}\.(parquet|tfrecord)")
_PYARROW = "Parquet files need pyarrow: pip install 'tfuq[parquet]'"


def has_pyarrow():
    """Whether Parquet files can be written and read."""
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        return False
    return True


def chosen_format(path, wanted):
    """The format that is asked for, or that the name of the folder says, or that can be had."""
    if wanted not in (None, *FORMATS):
        raise ValueError(
            "Argument `format` must be None, 'parquet' or 'tfrecord'. "
            f"Received: format={shown(wanted)}"
        )
    suffix = pathlib.Path(path).suffix[1:].lower()
    by_name = suffix if suffix in FORMATS else "parquet" if has_pyarrow() else "tfrecord"
    if (wanted or by_name) == "parquet" and not has_pyarrow():
        raise ImportError(_PYARROW)
    return wanted or by_name


class ShardFolder:
    """The shards of one run and their manifest."""

    def __init__(self, path, manifest):
        self.path = path
        self.manifest = manifest

    @classmethod
    def begin(cls, path, run, resume):
        """The folder to write the shards of `run` to: a new one, or the one that was begun.

        Args:
            path: Folder.
            run: Dict, as JSON can hold it, of all that decides what the shards hold.
            resume: Whether to go on where an earlier process stopped; else that is replaced.
        """
        path = pathlib.Path(path)
        prepare_folder("path", path)
        begun = cls(path, _read_manifest(path)) if any(path.iterdir()) else None
        if begun and resume:
            begun._check_version()
            begun._check_run(run)
            begun._check_shards()
        else:
            begun = cls(path, {"version": _VERSION, "run": run, "complete": False, "shards": []})
            begun._write_manifest()
        begun._remove_others()
        return begun

    @classmethod
    def open(cls, path):
        """The folder of a run that is complete."""
        path = pathlib.Path(path)
        folder = cls(path, _read_manifest(path))
        if not folder.complete:
            raise ValueError(
                "Argument `path` must hold scores of all examples. Received: path="
                f"{str(path)!r}, where {folder.rows} are scored: call `score_dataset` again"
            )
        folder._check_shards()
        return folder

    @property
    def complete(self):
        return self.manifest["complete"]

    @property
    def shards(self):
        return self.manifest["shards"]

    @property
    def rows(self):
        return sum(shard["rows"] for shard in self.shards)

    @property
    def files(self):
        return [self.path / shard["file"] for shard in self.shards]

    def add(self, columns, data=None, notes=None):
        """Writes the next shard: a dict of arrays, or lists of texts, one row per example.

        `data` is a digest of what its rows were made of, where only that tells; `notes`, as JSON
        can hold them, go into the metadata of a Parquet file: `units` by column, and the rest.
        """
        form = self.manifest["run"]["format"]
        name = f"part-{len(self.shards):05d}.{form}"
        with written_whole(self.path / name) as unfinished:
            _WRITERS[form](unfinished, columns, notes or {})
            written = fingerprint(unfinished)
        rows = len(next(iter(columns.values())))
        schema = {name: _schema(values) for name, values in columns.items()}
        if schema != self.manifest.setdefault("columns", schema):
            raise ValueError(
                "Argument `data` must give examples of one kind. Received: columns "
                f"{self.manifest['columns']}, then {schema}"
            )
        mark = {} if data is None else {"data": data}
        self.shards.append({"file": name, "rows": rows, **written, **mark})
        self._write_manifest()

    def finish(self):
        """Says that there is nothing more to come."""
        self.manifest["complete"] = True
        self._write_manifest()

    def read(self):
        """The columns of all shards, one dict per shard, each checked to be what was written."""
        form, schema = self.manifest["run"]["format"], self.manifest["columns"]
        for path, shard in zip(self.files, self.shards, strict=True):
            if fingerprint(path)["sha256"] != shard["sha256"]:
                raise ValueError(
                    "Argument `path` must hold its shards unchanged: restore the file, or score "
                    f"again. Received: {str(path)!r}, which has changed since"
                )
            try:
                found = _READERS[form](path, schema)
                if any(len(values) != shard["rows"] for values in found.values()):
                    raise ValueError(f"not of {shard['rows']} rows")
            except Exception as error:  # Arrow and TensorFlow have kinds of their own
                raise ValueError(
                    f"Argument `path` must hold shards with the columns that {MANIFEST} says. "
                    f"Received: {str(path)!r} ({type(error).__name__}: {error})"
                ) from error
            yield found

    def _write_manifest(self):
        text = json_text(sealed(self.manifest), indent=1)
        with written_whole(self.path / MANIFEST) as unfinished:
            unfinished.write_text(text + "\n", encoding="utf-8")
        (self.path / EARLIER_MANIFEST).unlink(missing_ok=True)  # of a folder that is gone on with

    def _check_version(self):
        if self.manifest["version"] != _VERSION:
            raise ValueError(
                "Argument `path` must be a new folder: an earlier version of tfuq wrote this one "
                "and did not record enough to tell whether the data are the same. Pass "
                "`resume=False` (`--overwrite` on the command line) to replace it. If it is "
                f"complete, `read_scores` reads it. Received: path={str(self.path)!r}"
            )

    def _check_run(self, run):
        pairs = _differences(self.manifest["run"], run)
        if pairs:
            raise ValueError(
                "Argument `path` must be a new folder, or one of the same model, data and "
                "options. Pass `resume=False` (`--overwrite` on the command line) to replace it. "
                f"Received: path={str(self.path)!r}, which differs in {'; '.join(pairs)}"
            )

    def _check_shards(self):
        for path, shard in zip(self.files, self.shards, strict=True):
            size = path.stat().st_size if path.is_file() else "no"
            if size != shard["bytes"]:
                raise ValueError(
                    f"Argument `path` must hold its shards complete. Received: {str(path)!r} of "
                    f"{size} bytes, where {shard['bytes']} were written: restore it, or score "
                    "again with `resume=False`"
                )

    def _remove_others(self):
        """Shards that the manifest does not name, which a killed process has left."""
        known = {shard["file"] for shard in self.shards}
        for path in self.path.iterdir():
            if _SHARD.fullmatch(path.name) and path.name not in known:
                path.unlink()


def _differences(there, now):
    """What differs between two runs, a text for each entry."""
    texts = []
    for name in sorted({*there, *now}):
        old, new = there.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            texts += [f"{name}: {text}" for text in _differences(old, new)]
        elif old != new:
            texts.append(f"{name}: {old!r} there, {new!r} now")
    return texts


def _read_manifest(path):
    file = path / MANIFEST
    if not file.exists() and (path / EARLIER_MANIFEST).exists():
        file = path / EARLIER_MANIFEST
    try:
        manifest = unsealed(read_json(file, _MAX_BYTES))
        if manifest["version"] not in _READABLE:
            raise ValueError(f"version {shown(manifest['version'])}, known are {_READABLE}")
        check_fields(manifest, ("version", "run", "complete", "shards", "columns"))
        names = [shard["file"] for shard in manifest["shards"]]
        if not all(_SHARD.fullmatch(name) for name in names):
            raise ValueError("names that are no shards")
        if manifest["run"]["format"] not in FORMATS or not isinstance(manifest["complete"], bool):
            raise ValueError("no format of shards")
        for shard in manifest["shards"]:
            check_fields(shard, ("file", "rows", "bytes", "sha256", "data"))
            check_integer("rows", shard["rows"], 0)
            check_integer("bytes", shard["bytes"], 0)
            if not isinstance(shard["sha256"], str):
                raise ValueError(f"a hash {shown(shard['sha256'])}")
        _check_columns(manifest.get("columns", {}))
        if manifest["shards"] and not manifest.get("columns"):
            raise ValueError("shards without columns")
        if manifest["complete"] and not manifest["shards"]:
            raise ValueError("all examples are scored, but there are no shards")
    except DAMAGE as error:
        raise ValueError(
            "Argument `path` must be a folder that `score_dataset` wrote, or new or empty to write "
            f"one. Received: path={str(path)!r} ({type(error).__name__}: {error})"
        ) from error
    return manifest


def _check_columns(columns):
    """Raises ValueError unless these are what `_schema` says of columns."""
    for name, (kind, *shape) in columns.items():
        if not isinstance(kind, str) or (kind != "text" and np.dtype(kind).kind not in "biuf"):
            raise ValueError(f"column {name!r} of {shown(kind)}")
        for size in shape:
            check_integer("columns", size, 1)


def _check_names(names, schema):
    if set(names) != set(schema):
        raise ValueError(f"columns {sorted(names)}, not {sorted(schema)}")


def _schema(values):
    """Dtype and shape of a row of a column, as JSON can hold them."""
    if isinstance(values, list):
        return ["text"]
    return [str(values.dtype), *values.shape[1:]]


# --- Parquet ----------------------------------------------------------------------------------


def _write_parquet(path, columns, notes):
    import pyarrow as pa
    import pyarrow.parquet

    arrays, units = [_arrow(values) for values in columns.values()], notes.get("units", {})
    fields = [
        pa.field(name, array.type, metadata={"unit": units[name]} if name in units else None)
        for name, array in zip(columns, arrays, strict=True)
    ]
    told = {"units": {name: units[name] for name in columns if name in units}}
    metadata = {NOTES: json_text({**notes, **told})} if notes else None
    pa.parquet.write_table(pa.table(arrays, pa.schema(fields, metadata)), path)


def _arrow(values):
    import pyarrow as pa

    if isinstance(values, list):
        return pa.array(values, pa.string())
    if values.ndim == 1:
        return pa.array(values)
    ends = np.arange(len(values) + 1, dtype="int32") * values.shape[1]
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(values.ravel()))


def _read_parquet(path, schema):
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    _check_names(table.column_names, schema)
    found = {}
    for name, (dtype, *shape) in schema.items():
        column = table[name].combine_chunks()
        if dtype == "text":
            found[name] = column.to_pylist()
        else:
            flat = column.flatten() if shape else column
            found[name] = flat.to_numpy(zero_copy_only=False).astype(dtype).reshape(-1, *shape)
    return found


# --- TFRecord ---------------------------------------------------------------------------------


def _write_tfrecord(path, columns, _):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for row in range(len(next(iter(columns.values())))):
            features = {name: _feature(values[row]) for name, values in columns.items()}
            example = tf.train.Example(features=tf.train.Features(feature=features))
            # The order of a map is else that of a hash: the bytes would differ between runs.
            writer.write(example.SerializeToString(deterministic=True))


def _feature(value):
    if isinstance(value, str):
        value = value.encode("utf-8")
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
    value = np.ravel(value)
    if value.dtype.kind == "f":
        return tf.train.Feature(float_list=tf.train.FloatList(value=value))
    return tf.train.Feature(int64_list=tf.train.Int64List(value=value.astype("int64")))


def _read_tfrecord(path, schema):
    found = {name: [] for name in schema}
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        features = tf.train.Example.FromString(record).features.feature
        _check_names(features, schema)
        for name, (dtype, *_) in schema.items():
            feature = features[name]
            if dtype == "text":
                found[name].append(feature.bytes_list.value[0].decode("utf-8"))
            else:
                is_float = np.dtype(dtype).kind == "f"
                values = feature.float_list.value if is_float else feature.int64_list.value
                found[name].append(np.asarray(values, dtype))
    return {
        name: found[name] if dtype == "text" else np.reshape(found[name], (-1, *shape))
        for name, (dtype, *shape) in schema.items()
    }


_WRITERS = {"parquet": _write_parquet, "tfrecord": _write_tfrecord}
_READERS = {"parquet": _read_parquet, "tfrecord": _read_tfrecord}
