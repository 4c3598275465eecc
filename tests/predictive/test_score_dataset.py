"""Scores in files: what they hold, against `predict_uncertainty`, and what is refused."""

import json
import math
import sys
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfuq.export
from tfuq._files.reading import sealed
from tfuq._files.shards import ShardFolder
from tfuq.cli import predict
from tfuq.ensembles import DeepEnsemble
from tfuq.layers import MCDropout
from tfuq.ood import MaxSoftmax
from tfuq.predictive import predict_uncertainty, read_scores, score_dataset
from tfuq.selective import RejectionRule

RNG = np.random.default_rng(0)
X = RNG.normal(size=(53, 5)).astype("float32")
Y = np.arange(53) % 3
MEASURES = ("label", "confidence", "predictive_entropy")
OF_SAMPLES = ("expected_entropy", "mutual_information", "variation_ratio")


def make(*layers, inputs=(5,)):
    return keras.Sequential([keras.Input(inputs), *layers])


def make_random():
    return make(keras.layers.Dense(8, "relu"), MCDropout(0.5), keras.layers.Dense(3, "softmax"))


@pytest.fixture(scope="module")
def plain():
    return make(keras.layers.Dense(3, "softmax"))


@pytest.fixture(scope="module")
def random():
    return make_random()


def score(model, data, path, **options):
    options = {"shard_size": 20, "batch_size": 8, "verbose": 0, **options}
    return score_dataset(model, data, path, **options)


def contents(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


def refused(argument, call, *args, **kwargs):
    with pytest.raises(ValueError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert f"`{argument}`" in message and "must" in message and "Received: " in message, message
    return message


# --- What is written ----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["parquet", "tfrecord"])
def test_rows_are_those_of_predict_uncertainty(random, tmp_path, form):
    rule = RejectionRule("mutual_information", 0.1)
    options = {"num_samples": 6, "seed": 3}
    found = score(random, (X, Y), tmp_path / "s", format=form, rule=rule, **options)
    assert (found.examples, found.scored, len(found.files)) == (53, 53, 3)
    scores = read_scores(found.path)
    expected = predict_uncertainty(random, X, batch_size=8, **options)
    np.testing.assert_array_equal(scores["index"], np.arange(53))
    np.testing.assert_array_equal(scores["true_label"], Y)
    np.testing.assert_allclose(scores["probabilities"], expected.probs, atol=1e-6)
    for name in (*MEASURES, *OF_SAMPLES):
        np.testing.assert_allclose(scores[name], getattr(expected, name), atol=2e-6, err_msg=name)
    accepted = scores["mutual_information"] <= 0.1
    assert 0 < accepted.sum() < 53 and scores["accept"].dtype == bool
    np.testing.assert_array_equal(scores["accept"], accepted)


def test_parquet_is_read_by_pyarrow_alone(plain, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    found = score(plain, X, tmp_path / "s.parquet")
    tables = [parquet.read_table(file) for file in found.files]
    assert [len(table) for table in tables] == [20, 20, 13]
    rows = [row for table in tables for row in table["probabilities"].to_pylist()]
    np.testing.assert_allclose(rows, plain.predict(X, verbose=0), atol=1e-6)
    assert not {*OF_SAMPLES, "true_label", "accept", "file"} & {*tables[0].column_names}


def test_tfrecords_are_read_by_tensorflow_alone(plain, tmp_path):
    found = score(plain, X, tmp_path / "s.tfrecord")
    features = {
        "index": tf.io.FixedLenFeature((), "int64"),
        "probabilities": tf.io.FixedLenFeature((3,), "float32"),
    }
    records = tf.data.TFRecordDataset([str(file) for file in found.files])
    rows = [tf.io.parse_single_example(record, features) for record in records]
    assert [int(row["index"]) for row in rows] == list(range(53))
    probs = np.stack([row["probabilities"] for row in rows])
    np.testing.assert_allclose(probs, plain.predict(X, verbose=0), atol=1e-6)


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 7

    def __getitem__(self, number):
        rows = slice(8 * number, 8 * number + 8)
        return X[rows], Y[rows]


def test_data_of_all_kinds_give_the_same_files(plain, tmp_path):
    np.savez(tmp_path / "a.npz", x=X[:16], y=Y[:16])
    np.savez(tmp_path / "b.npz", x_test=X[16:], y_test=Y[16:])
    kinds = {
        "arrays": (X, Y),
        "dataset": tf.data.Dataset.from_tensor_slices((X, Y)).batch(8),
        "py_dataset": Batches(),
        "npz": [tmp_path / "a.npz", str(tmp_path / "b.npz")],
    }
    found = {n: read_scores(score(plain, d, tmp_path / n).path) for n, d in kinds.items()}
    assert set(found["npz"].pop("file")[:16]) == {str(tmp_path / "a.npz")}
    for name, scores in found.items():
        assert scores.keys() == found["arrays"].keys(), name
        for column, values in scores.items():
            np.testing.assert_array_equal(values, found["arrays"][column], err_msg=name)


def test_images_are_resized_as_tensorflow_does_it(tmp_path):
    images = RNG.integers(0, 256, size=(5, 12, 10, 3)).astype("uint8")
    names = [tmp_path / f"{n}.png" for n in range(5)]
    for name, image in zip(names, images, strict=True):
        name.write_bytes(tf.io.encode_png(image).numpy())
    flat = [keras.layers.Rescaling(1 / 255), keras.layers.Flatten()]
    model = make(*flat, keras.layers.Dense(2, "softmax"), inputs=(6, 6, 3))
    scores = read_scores(score(model, names, tmp_path / "s", batch_size=2).path)
    assert scores["file"].tolist() == [str(name) for name in names]
    expected = model.predict(tf.image.resize(images, (6, 6), antialias=True), verbose=0)
    np.testing.assert_allclose(scores["probabilities"], expected, atol=1e-5)

    def blank(file):
        return np.zeros((6, 6, 3), "float32")

    scores = read_scores(score(model, names, tmp_path / "blank", decode=blank).path)
    np.testing.assert_allclose(scores["confidence"], scores["confidence"][0])
    names[3].write_bytes(b"\x89PNG but no picture")
    assert "3.png" in refused("data", score, model, names, tmp_path / "t", batch_size=2)


@pytest.mark.slow
def test_logits_binary_and_several_labels(tmp_path):
    logits = make(keras.layers.Dense(3))
    scores = read_scores(score(logits, X, tmp_path / "logits", from_logits=True).path)
    z = logits.predict(X, verbose=0)
    expected = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    np.testing.assert_allclose(scores["probabilities"], expected, atol=1e-6)

    binary = make(keras.layers.Dense(1, "sigmoid"))
    rule = RejectionRule("confidence", 0.6)
    scores = read_scores(score(binary, X, tmp_path / "binary", rule=rule).path)
    p = binary.predict(X, verbose=0)[:, 0]
    np.testing.assert_array_equal(scores["label"], p > 0.5)
    np.testing.assert_allclose(scores["confidence"], np.maximum(p, 1 - p), atol=1e-6)
    np.testing.assert_array_equal(scores["accept"], np.maximum(p, 1 - p) >= 0.6)

    several = make(keras.layers.Dense(4, "sigmoid"))
    scores = read_scores(score(several, X, tmp_path / "several", multi_label=True).path)
    np.testing.assert_array_equal(scores["label"], several.predict(X, verbose=0) > 0.5)
    assert scores["predictive_entropy"].shape == (53, 4)


@pytest.mark.slow
def test_ensembles_detectors_and_saved_models(plain, tmp_path):
    ensemble = DeepEnsemble(lambda: make(keras.layers.Dense(3, "softmax")), 3)
    detector = MaxSoftmax().fit(plain, X)
    scores = read_scores(score(ensemble, X, tmp_path / "e", ood=detector).path)
    stack = ensemble.predict(X)
    np.testing.assert_allclose(scores["probabilities"], stack.mean(0), atol=1e-6)
    votes = stack.argmax(-1)
    most = np.stack([(votes == k).sum(0) for k in range(3)]).max(0)
    np.testing.assert_allclose(scores["variation_ratio"], 1 - most / 3, atol=1e-6)
    np.testing.assert_allclose(scores["ood_score"], detector.score(X), atol=1e-6)

    plain.export(tmp_path / "saved", verbose=False)  # by Keras, with one output
    served = tf.saved_model.load(str(tmp_path / "saved"))
    scores = read_scores(score(served, X, tmp_path / "m", from_logits=False).path)
    np.testing.assert_allclose(scores["probabilities"], plain.predict(X, verbose=0), atol=1e-6)


def test_a_saved_model_of_logits_is_read_as_such_where_that_is_said(tmp_path):
    model = make(keras.layers.Dense(3))
    model.export(tmp_path / "saved", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "saved"))
    expected = np.asarray(keras.ops.softmax(model.predict(X, verbose=0)))
    scores = read_scores(score(served, X, tmp_path / "told", from_logits=True).path)
    np.testing.assert_allclose(scores["probabilities"], expected, atol=1e-6)
    for name, flag in (("untold", None), ("wrong", False)):
        refused("from_logits", score, served, X, tmp_path / name, from_logits=flag)


def test_an_exported_model_tells_what_it_knows(random, tmp_path):
    rule = RejectionRule("mutual_information", 0.1)
    tfuq.export.export(random, tmp_path / "m", rule=rule, num_samples=5)
    served = tf.saved_model.load(str(tmp_path / "m"))
    scores = read_scores(score(served, X, tmp_path / "s").path)
    expected = read_scores(score(random, X, tmp_path / "e", num_samples=5, rule=rule).path)
    assert scores.keys() == expected.keys() - {"variation_ratio"}
    for name, values in scores.items():
        np.testing.assert_allclose(values, expected[name], atol=1e-5, err_msg=name)


def test_what_is_not_finite_is_told_and_not_accepted(plain, tmp_path):
    x = X.copy()
    x[4] = np.nan
    rule = RejectionRule("confidence", 0.0)
    scores = read_scores(score(plain, x, tmp_path / "s", rule=rule).path)
    assert scores["label"][4] == -1 and np.isnan(scores["confidence"][4])
    assert np.isnan(scores["probabilities"][4]).all()
    known = np.arange(53) != 4  # and the others are what they are, probabilities as they came
    expected = plain.predict(X[known], verbose=0)
    np.testing.assert_allclose(scores["probabilities"][known], expected, atol=1e-6)
    assert scores["accept"].tolist() == [n != 4 for n in range(53)]
    nothing = read_scores(score(plain, np.full_like(X, np.nan), tmp_path / "t", rule=rule).path)
    assert np.all(nothing["label"] == -1) and not nothing["accept"].any()


def test_a_rule_of_logits_decides_as_on_logits(tmp_path):
    model = make(keras.layers.Dense(3))
    rule = RejectionRule("confidence", 0.6, from_logits=True)
    scores = read_scores(score(model, X, tmp_path / "s", rule=rule, from_logits=True).path)
    expected = rule.accept(model.predict(X, verbose=0))
    assert 0 < expected.sum() < 53
    np.testing.assert_array_equal(scores["accept"], expected)


def test_columns_are_chosen(plain, tmp_path):
    names = ["label", "index"]
    found = score(plain, X, tmp_path / "s", columns=names)
    assert list(read_scores(found.path)) == names
    assert list(read_scores(found.path, ["index"])) == ["index"]
    refused("columns", read_scores, found.path, ["file"])


# --- Interruptions ------------------------------------------------------------------------------


class Killed(BaseException):
    pass


class Cut(Batches):
    """Ends the run at a batch, as a signal would."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def __getitem__(self, number):
        if number == self.at:
            raise Killed
        return super().__getitem__(number)


@pytest.mark.slow_product
@pytest.mark.parametrize("form", ["parquet", "tfrecord"])
@pytest.mark.parametrize("shard_size", [3, 8, 20])
def test_cut_at_every_batch_and_resumed_gives_the_same_bytes(random, tmp_path, form, shard_size):
    options = {"format": form, "shard_size": shard_size, "num_samples": 3}
    score(random, Batches(), tmp_path / "whole", **options)
    cut = tmp_path / "cut"
    for at in range(7):
        with pytest.raises(Killed):
            score(random, Cut(at), cut, **options)
        if at:  # what a process leaves that has no time to clean up
            (cut / ".unfinished-part-00099.parquet").write_bytes(b"half")
            (cut / f"part-00098.{form}").write_bytes(b"not in the manifest")
    found = score(random, Batches(), cut, **options)
    assert found.scored <= max(shard_size, 8) + 7
    assert contents(cut) == contents(tmp_path / "whole")
    again = score(random, Batches(), cut, **options)
    assert (again.examples, again.scored) == (53, 0)


@pytest.mark.parametrize("target", ["add", "finish"])
def test_cut_before_the_manifest_is_written(plain, tmp_path, monkeypatch, target):
    from tfuq._files.shards import ShardFolder

    score(plain, (X, Y), tmp_path / "whole")
    write, writes = ShardFolder._write_manifest, []

    def killed(folder):
        writes.append(folder)
        if len(writes) == (3 if target == "add" else 5):
            raise Killed
        write(folder)

    monkeypatch.setattr(ShardFolder, "_write_manifest", killed)
    with pytest.raises(Killed):
        score(plain, (X, Y), tmp_path / "cut")
    monkeypatch.undo()
    assert contents(tmp_path / "cut") != contents(tmp_path / "whole")
    refused("path", read_scores, tmp_path / "cut")
    score(plain, (X, Y), tmp_path / "cut")
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_files_that_were_scored_are_not_read_again(tmp_path):
    names = [tmp_path / f"{n:02d}.raw" for n in range(20)]
    for number, name in enumerate(names):
        name.write_bytes(X[number].tobytes())
    model, read = make(keras.layers.Dense(3, "softmax")), []

    def decode(file, limit):
        read.append(file)
        if limit and file.endswith("11.raw"):
            raise Killed
        return np.fromfile(file, "float32")

    options = {"batch_size": 2, "shard_size": 6}
    with pytest.raises(Killed):
        score(model, names, tmp_path / "s", decode=lambda f: decode(f, True), **options)
    assert sorted({file[-6:-4] for file in read}) == [f"{n:02d}" for n in range(12)]
    read.clear()
    found = score(model, names, tmp_path / "s", decode=lambda f: decode(f, False), **options)
    expected = {"00", "01"} | {f"{n:02d}" for n in range(6, 20)}  # the first batch tells the data
    assert {file[-6:-4] for file in read} == expected and found.scored == 14
    probs = read_scores(found.path)["probabilities"]
    np.testing.assert_allclose(probs, model.predict(X[:20], verbose=0), atol=1e-6)


def test_memory_holds_one_shard(plain, tmp_path, monkeypatch):
    from tfuq._files.shards import ShardFolder

    add, sizes, read = ShardFolder.add, [], []
    data = tf.data.Dataset.range(400).map(lambda n: tf.fill((5,), tf.cast(n, "float32"))).batch(8)

    def noted(folder, columns, *told):
        sizes.append(len(columns["index"]))
        read.append(sum(sizes))
        add(folder, columns, *told)

    monkeypatch.setattr(ShardFolder, "add", noted)
    score(plain, data, tmp_path / "s", shard_size=30)
    assert sizes == [30] * 13 + [10] and read[-1] == 400


# --- What is refused ----------------------------------------------------------------------------


def test_another_run_is_not_mixed_in(plain, random, tmp_path):
    path = tmp_path / "s"
    score(random, X, path, num_samples=2)
    before = contents(path)
    other = {
        "num_samples": {"num_samples": 3},
        "seed": {"num_samples": 2, "seed": 1},
        "shard_size": {"num_samples": 2, "shard_size": 21},
        "batch_size": {"num_samples": 2, "batch_size": 9},
        "rule": {"num_samples": 2, "rule": RejectionRule("confidence", 0.5)},
        "columns": {"num_samples": 2, "columns": ["index"]},
        "ood": {"num_samples": 2, "ood": MaxSoftmax().fit(plain, X)},
    }
    for name, options in other.items():
        assert f"{name}: " in refused("path", score, random, X, path, **options)
    other = make_random()
    other.set_weights([weight + 0.01 for weight in random.get_weights()])
    message = refused("path", score, other, X, path, num_samples=2)
    assert "model: " in message and "data: " not in message
    assert "data: " in refused("path", score, random, X[::-1].copy(), path, num_samples=2)
    assert contents(path) == before
    score(plain, X, path, resume=False)
    score(plain, X, tmp_path / "new")
    assert contents(path) == contents(tmp_path / "new")


def interrupted(model, data, path, **options):
    """Scores the first shards of `data`, as a process that is killed then."""
    from tfuq._files.shards import ShardFolder

    add = ShardFolder.add

    def killed(folder, *columns):
        if len(folder.shards) == 2:
            raise Killed
        add(folder, *columns)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardFolder, "add", killed)
        with pytest.raises(Killed):
            score(model, data, path, **options)


def raw_files(folder, numbers):
    folder.mkdir(exist_ok=True)
    for number in numbers:
        (folder / f"{number:03d}.raw").write_bytes(X[number % 53].tobytes())
    return sorted(folder.iterdir())


def decoded(file):
    return np.fromfile(file, "float32")


@pytest.mark.parametrize("is_whole", [True, False])
def test_files_that_came_or_changed_since_are_noticed(plain, tmp_path, is_whole):
    """Forty files were scored, and then there are 64; or one in the middle; or another content."""
    names = raw_files(tmp_path / "raw", range(0, 100, 2))
    path, options = tmp_path / "s", {"decode": decoded, "shard_size": 10}
    (score if is_whole else interrupted)(plain, names, path, **options)
    before = contents(path)
    more = [*names, *raw_files(tmp_path / "more", range(9))]
    message = refused("path", score, plain, more, path, **options)
    assert "files: 50 there, 59 now" in message and "resume=False" in message
    middle = raw_files(tmp_path / "raw", [51])
    assert "names" in refused("path", score, plain, middle[:-1], path, **options)
    names[30].write_bytes(X[1].tobytes())  # as large as before, with another time
    assert "times of change" in refused("path", score, plain, names, path, **options)
    assert contents(path) == before
    assert score(plain, more, path, resume=False, **options).examples == 59


@pytest.mark.slow_product
@pytest.mark.parametrize("is_whole", [True, False])
@pytest.mark.parametrize("kind", ["arrays", "dataset", "py_dataset"])
def test_data_that_changed_behind_the_first_batch_are_noticed(plain, tmp_path, kind, is_whole):
    class Given(keras.utils.PyDataset):
        def __init__(self, x, y):
            super().__init__()
            self.x, self.y = x, y

        def __len__(self):
            return math.ceil(len(self.x) / 8)

        def __getitem__(self, number):
            rows = slice(8 * number, 8 * number + 8)
            return self.x[rows], self.y[rows]

    def given(x, y):
        dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
        return {"arrays": (x, y), "dataset": dataset, "py_dataset": Given(x, y)}[kind]

    path = tmp_path / "s"
    (score if is_whole else interrupted)(plain, given(X, Y), path)
    before, argument = contents(path), "path" if kind == "arrays" else "data"
    pixel, label = X.copy(), Y.copy()
    pixel[25, 2] += 1
    label[38] = 2 - label[38]
    for data in (given(pixel, Y), given(X, label)):
        message = refused(argument, score, plain, data, path)
        assert kind == "arrays" or "rows 20 to 39" in message
    refused("path", score, plain, given(X[:32], Y[:32]), path)  # the length is known
    refused("path", score, plain, given(np.tile(X, (2, 1)), np.tile(Y, 2)), path)
    assert contents(path) == before
    assert score(plain, given(X, Y), path).scored == (0 if is_whole else 13)


def test_a_dataset_of_unknown_length_that_grew_or_shrank_is_noticed(plain, tmp_path):
    def given(count, batch_size=8):
        data = tf.data.Dataset.from_tensor_slices(X[:count]).batch(batch_size)
        return data.filter(lambda _: True)

    score(plain, given(40), tmp_path / "s")
    for count in (53, 41, 32, 39):
        refused("data", score, plain, given(count), tmp_path / "s")
    interrupted(plain, given(53), tmp_path / "t")
    for data in (given(32), given(53).shuffle(9)):
        with pytest.raises(ValueError, match=r"Argument `(data|path)`"):
            score(plain, data, tmp_path / "t")
    assert score(plain, given(53), tmp_path / "t").scored == 13


def test_folders_of_the_version_before_are_read_but_not_gone_on_with(plain, tmp_path):
    path = tmp_path / "s"
    score(plain, X, path)
    manifest = json.loads((path / "_manifest.json").read_text())
    manifest["run"]["data"] = "0123456789abcdef"  # as it was: a digest of the first batch
    old = {k: v for k, v in manifest.items() if k != "sha256"} | {"version": 1}
    (path / "_manifest.json").write_text(json.dumps(sealed(old)))
    assert len(read_scores(path)["label"]) == 53
    assert "earlier version" in refused("path", score, plain, X, path)
    assert score(plain, X, path, resume=False).scored == 53


def test_another_activation_is_another_model(tmp_path):
    one, other = (make(keras.layers.Dense(3, kind)) for kind in ("softmax", "sigmoid"))
    other.set_weights(one.get_weights())
    score(one, X, tmp_path / "s")
    message = refused("path", score, other, X, tmp_path / "s", from_logits=False, multi_label=True)
    assert "model: " in message


def test_foreign_and_damaged_folders_are_refused(plain, tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    for resume in (True, False):
        refused("path", score, plain, X, foreign, resume=resume)
    assert contents(foreign) == {"thesis.txt": b"years of work"}
    refused("path", score, plain, X, foreign / "thesis.txt")
    refused("path", read_scores, tmp_path / "nothing")

    path = tmp_path / "s"
    files = score(plain, X, path).files
    data = files[1].read_bytes()
    for damaged in (data[:-1], b""):
        files[1].write_bytes(damaged)
        for call in (lambda: score(plain, X, path), lambda: read_scores(path)):
            assert files[1].name in refused("path", call)
    files[1].write_bytes(data[:-1] + bytes([data[-1] ^ 1]))  # as long, but not the same
    assert files[1].name in refused("path", read_scores, path)
    manifest = json.loads((path / "_manifest.json").read_text())
    for text in ("", "[]", "{}", json.dumps({**manifest, "version": 3})):
        (path / "_manifest.json").write_text(text)
        refused("path", score, plain, X, path)
    manifest["shards"][0]["file"] = "../elsewhere"
    (path / "_manifest.json").write_text(json.dumps(manifest))
    refused("path", read_scores, path)


def test_bad_arguments_are_refused(plain, random, tmp_path):
    def fails(argument, model=plain, data=X, **options):
        refused(argument, score, model, data, tmp_path / "s", **options)

    fails("format", format="csv")
    for value in (0, 2.5, True):
        fails("shard_size", shard_size=value)
        fails("batch_size", batch_size=value)
    fails("num_samples", num_samples=5)  # nothing to draw
    fails("num_samples", random, num_samples=0)
    fails("seed", seed=-1)
    fails("columns", columns=["certainty"])
    fails("columns", columns=["accept"])
    fails("columns", columns=[])
    fails("rule", rule="confidence > 0.5")
    fails("rule", rule=RejectionRule("mutual_information", 0.1))
    by = RejectionRule("confidence", [0.5], by="group", keys=["a"])
    fails("rule", rule=by)
    fails("rule", rule=RejectionRule("confidence", 0.5, multi_label=True))
    fails("ood", ood=lambda x: x)
    fails("model", model=lambda x: x)
    fails("from_logits", make(keras.layers.Dense(3)))
    fails("from_logits", make(keras.layers.Dense(3)), from_logits=False)
    pixels = make(keras.layers.Conv2D(2, 1, activation="softmax"), inputs=(4, 4, 1))
    fails("model", pixels, np.ones((3, 4, 4, 1)))
    fails("data", data=X[:0])
    fails("data", data=(X, Y, np.ones(53)))
    fails("data", data=tf.data.Dataset.from_tensor_slices(X).batch(8).repeat())
    fails("data", data=["nowhere.png"])
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "bad.npz").write_text("x")
    np.savez(tmp_path / "empty.npz", z=X)
    for name in ("notes.txt", "bad.npz", "empty.npz"):
        fails("data", data=[tmp_path / name])
    fails("decode", data=[tmp_path / "notes.txt"], decode=3)
    fails("decode", decode=np.load)
    (tmp_path / "a.png").write_bytes(b"")
    fails("model", data=[tmp_path / "a.png"])  # takes no images
    assert not (tmp_path / "s").exists()


def test_parquet_without_pyarrow_says_what_to_install(plain, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install 'tfuq\[parquet\]'"):
        score(plain, X, tmp_path / "s", format="parquet")
    assert score(plain, X, tmp_path / "s").files[0].suffix == ".tfrecord"


# --- For others ---------------------------------------------------------------------------------


def test_a_parquet_folder_is_read_as_a_whole(plain, tmp_path):
    """Pandas reads by this, and passes names with `_` over: `manifest.json` stopped it."""
    dataset = pytest.importorskip("pyarrow.dataset")
    found = score(plain, (X, Y), tmp_path / "s.parquet")
    table = dataset.dataset(found.path, format="parquet").to_table()
    expected = read_scores(found.path)
    assert set(table.column_names) == set(expected)
    np.testing.assert_array_equal(table["label"].to_numpy(), expected["label"])
    assert all(path.name.startswith(("part-", "_")) for path in found.path.iterdir())


def test_parquet_says_units_and_names_of_classes(random, tmp_path):
    """In the metadata of each shard, and of the one file that the command line makes of them."""
    parquet = pytest.importorskip("pyarrow.parquet")
    found = score(random, X, tmp_path / "s.parquet", class_names=["a", "b", "c"], num_samples=2)
    for file in found.files:
        schema = parquet.read_schema(file)
        told = json.loads(schema.metadata[b"tfuq"])
        assert told["class_names"] == ["a", "b", "c"]
        assert told["units"]["mutual_information"] == "nat"
        assert set(told["units"]) <= set(schema.names)
        assert schema.field("predictive_entropy").metadata == {b"unit": b"nat"}
        assert schema.field("index").metadata is None
    joined = tmp_path / "one.parquet"
    predict._write_parquet(joined, ShardFolder.open(found.path))
    one = parquet.read_schema(joined)
    assert (
        one.metadata[b"tfuq"] == schema.metadata[b"tfuq"] and len(parquet.read_table(joined)) == 53
    )


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_data_frames(plain, tmp_path, library):
    read = pytest.importorskip(library).read_parquet
    found = score(plain, (X, Y), tmp_path / "s.parquet")
    assert len(read(str(found.path))["label"]) == 53


def test_scores_as_a_data_frame(plain, tmp_path, monkeypatch):
    """Of columns with one axis each: a stand-in, as pandas is no dependency."""

    class Pandas(types.ModuleType):
        @staticmethod
        def DataFrame(columns):
            shapes = {np.shape(column)[:1] for column in columns.values()}
            assert shapes == {(53,)} and not any(
                np.ndim(c) > 1 for c in columns.values() if isinstance(c, np.ndarray)
            )
            return columns

    found = score(plain, (X, Y), tmp_path / "s")
    monkeypatch.setitem(sys.modules, "pandas", Pandas("pandas"))
    frame = read_scores(found.path, as_frame=True)
    np.testing.assert_array_equal(frame["label"], read_scores(found.path)["label"])
    assert isinstance(frame["probabilities"], list) and frame["probabilities"][0].shape == (3,)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="needs pandas"):
        read_scores(found.path, as_frame=True)


def test_folders_with_the_name_of_before_are_read_and_gone_on_with(plain, tmp_path):
    path = tmp_path / "s"

    class Cut(keras.utils.PyDataset):
        def __len__(self):
            return 7

        def __getitem__(self, number):
            if self.broken and number == 4:
                raise RuntimeError("cut")
            return Batches()[number]

    data = Cut()
    data.broken = True
    with pytest.raises(RuntimeError, match="cut"):
        score(plain, data, path)
    (path / "_manifest.json").rename(path / "manifest.json")
    data.broken = False
    assert score(plain, data, path).scored == 33
    assert not (path / "manifest.json").exists()
    expected = read_scores(path)
    (path / "_manifest.json").rename(path / "manifest.json")
    np.testing.assert_array_equal(read_scores(path)["label"], expected["label"])
