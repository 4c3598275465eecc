"""Image sets of a stranger, `benchmarks/methods.py --data`: what is taken, said and refused."""

import importlib
import pathlib
import sys

import numpy as np
import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def parts():
    """The script and the files beside it, by name."""
    sys.path.insert(0, str(FOLDER))
    try:
        found = {n: importlib.import_module(f"evidence.{n}") for n in ("features", "images", "own")}
        for name in ("rows", "tasks"):
            found[name] = importlib.import_module(f"evidence.{name}")
        yield {**found, "methods": importlib.import_module("methods")}
    finally:
        sys.path.remove(str(FOLDER))
        for name in [name for name in sys.modules if name.split(".")[0] in ("evidence", "methods")]:
            del sys.modules[name]


def a_file(**changed):
    """90 made-up images of three classes."""
    rng = np.random.default_rng(0)
    arrays = {"images": rng.integers(255, size=(90, 8, 8), dtype="uint8")}
    return {**arrays, "labels": np.arange(90) % 3, **changed}


def sizes(parts, found):
    return [len(found[part].labels) for part in parts["images"].SHARES]


def test_no_group_is_in_two_parts_and_no_class_is_left_out(parts):
    rng = np.random.default_rng(0)
    labels = np.r_[np.full(8, 3), rng.integers(3, size=392)]
    groups = np.array([f"patient {i}" for i in rng.permutation(np.arange(400) % 80)])
    arrays = {"images": rng.integers(255, size=(400, 8, 8), dtype="uint8")}
    arrays |= {"labels": labels, "groups": groups[:, None]}
    found = parts["own"].own_task(arrays, {})
    split = [set(found[part].groups) for part in parts["images"].SHARES]
    assert sum(map(len, split)) == len(set.union(*split)) == 80
    assert sum(sizes(parts, found)) == 400
    assert all(3 in found[part].labels for part in parts["images"].SHARES)


def test_of_a_few_hospitals_one_is_unseen(parts, capsys):
    groups = np.array([0, 1, 1, 2, 2, 2] * 15)
    found = parts["own"].own_task(a_file(groups=groups), {})
    assert set(found["shift"].groups) == {0} and len(found["shift"].labels) == 15
    assert all(set(found[part].groups) <= {1, 2} for part in parts["images"].SHARES)
    assert sum(sizes(parts, found)) == 75
    assert "Group 0 is the part that is shifted" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"images": np.zeros((90, 8, 8))}, r"are floats \(0 to 0\): say by `--top 1`"),
        ({"images": np.zeros((90, 8, 8), "int64")}, "must be uint8"),
        ({"images": np.zeros((90, 3, 8, 8), "uint8")}, "1 or 3 channels"),
        ({"images": np.zeros((90, 8, 8, 4), "uint8")}, "1 or 3 channels"),
        ({"labels": np.arange(90) % 3 / 2}, "integers or strings"),
        ({"labels": np.eye(3)[np.arange(90) % 3]}, "a row for each"),
        ({"labels": np.arange(8)}, "a row for each"),
        ({"labels": np.arange(90)}, "90 classes among 90 images"),
        ({"labels": np.zeros(90, int)}, "two classes or more"),
        ({"labels": np.r_[np.full(89, 0), 1], "groups": np.arange(90) > 85}, "none of class 1"),
        ({"groups": np.zeros(90, int)}, "Leave it out if no image"),
        ({"groups": np.r_[np.nan, np.arange(89)]}, "of a table with gaps"),
        ({"groups": np.zeros(8, int)}, "a row for each"),
        ({"near": np.zeros((9, 8, 8))}, "`near` of the file are floats"),
        ({"shift": np.zeros((9, 8, 8), "uint8")}, "must hold `shift_labels`"),
        ({"shift": np.zeros((9, 8, 8), "uint8"), "shift_labels": np.full(9, 3)}, "Received: .3"),
        ({"images": np.zeros((90, 8, 8), "uint8")}, "has too few images"),
    ],
)
def test_a_file_of_another_form_is_refused(parts, changed, said):
    with pytest.raises(ValueError, match=said):
        parts["own"].own_task(a_file(**changed), {})


def test_a_file_without_labels_or_with_few_images_is_refused(parts):
    arrays = a_file()
    with pytest.raises(ValueError, match=r"must hold `images` .* Received: \['x', 'y'\]"):
        parts["own"].own_task({"x": arrays["images"], "y": arrays["labels"]}, {})
    few = {name: values[:40] for name, values in arrays.items()}
    with pytest.raises(ValueError, match="would have 6, and must have 10"):
        parts["own"].own_task(few, {})


@pytest.mark.parametrize("made", ["column", "strings", "gaps", "booleans"])
def test_labels_are_numbered_by_their_names(parts, made, capsys):
    plain = np.arange(90) % 3
    labels = {
        "column": plain[:, None].astype("uint8"),
        "strings": np.array(["a", "b", "c"])[plain],
        "gaps": 7 * plain + 1,
        "booleans": plain > 0,
    }[made]
    found = parts["own"].own_task(a_file(labels=labels), {})
    expected = parts["own"].own_task(a_file(labels=plain > 0 if made == "booleans" else plain), {})
    for part in parts["images"].SHARES:
        np.testing.assert_array_equal(found[part].labels, expected[part].labels)
    said = {"strings": "classes a, b, c.", "gaps": "classes 1, 8, 15."}
    assert said.get(made, "") in capsys.readouterr().out


def test_labels_of_a_shift_are_the_same_names(parts):
    names = np.array(["a", "b", "c"])
    shift = {"shift": np.ones((2, 5, 6), "uint8"), "shift_labels": names[[2, 1]]}
    found = parts["own"].own_task(a_file(labels=names[np.arange(90) % 3], **shift), {})
    assert found["shift"].labels.tolist() == [2, 1]
    assert found["shift"].images.shape == (2, 8, 8, 3)


def test_floats_are_what_top_says(parts):
    whole = a_file()
    floats = a_file(images=whole["images"].astype("float32") / 255)
    found, expected = (parts["own"].own_task(each, {}, top=1) for each in (floats, whole))
    np.testing.assert_array_equal(found["test"].images, expected["test"].images)
    for wrong, top, said in (
        (floats, 255, "are black if white is 255"),
        (a_file(images=whole["images"].astype("float32")), 1, "between 0 and 1, as"),
        (a_file(images=np.where(whole["images"] > 9, 0.5, np.nan)), 1, "Received: nan"),
    ):
        with pytest.raises(ValueError, match=said):
            parts["own"].own_task(wrong, {}, top=top)


def test_a_rare_class_trains_and_it_is_said_where_it_lacks(parts, capsys):
    labels = np.r_[3, np.arange(89) % 3]
    found = parts["own"].own_task(a_file(labels=labels), {})
    assert 3 in found["train"].labels
    said = "class 3 has 1 images, and none in validation, calibration, test"
    assert said in capsys.readouterr().out


def test_an_image_that_is_there_twice_counts_once(parts, capsys):
    once = a_file()
    twice = {name: np.concatenate([values, values[:20]]) for name, values in once.items()}
    found = parts["own"].own_task(twice, {})
    assert sum(sizes(parts, found)) == 90
    assert "20 of 110 images are copies" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["near", "far", "shift"])
def test_what_a_file_brings_beside_its_images_is_none_of_them(parts, kind, capsys):
    file = a_file()
    other = 255 - file["images"][:20]
    more = {kind: np.concatenate([file["images"][:5], other])}
    more |= {"shift_labels": np.arange(25) % 3} if kind == "shift" else {}
    found = parts["own"].own_task({**file, **more}, {}, "a.npz")[kind]
    np.testing.assert_array_equal(found.images[..., 0], other)
    if kind == "shift":
        np.testing.assert_array_equal(found.labels, np.arange(5, 25) % 3)
    assert f"5 images of `{kind}` are copies of `images` and left out" in capsys.readouterr().out
    more[kind] = file["images"][:25]
    with pytest.raises(ValueError, match=f"`{kind}` of a.npz must be other images"):
        parts["own"].own_task({**file, **more}, {}, "a.npz")


def test_images_of_zeros_and_ones_are_refused(parts):
    """As `astype` makes them of floats between 0 and 1."""
    cut = (a_file()["images"] / 255 > 0.5).astype("uint8")
    with pytest.raises(ValueError, match=r"black if white is 255: np.uint8\(255 \* images\)"):
        parts["own"].own_task(a_file(images=cut), {})


def test_a_class_that_is_nearly_all_is_said(parts, capsys):
    rng = np.random.default_rng(0)
    arrays = {"images": rng.integers(255, size=(600, 8, 8), dtype="uint8")}
    parts["own"].own_task({**arrays, "labels": np.arange(600) >= 18}, {}, "a.npz")
    assert "who always says True is right in 96.7% of the test" in capsys.readouterr().out
    parts["own"].own_task({**arrays, "labels": np.arange(600) >= 200}, {}, "a.npz")
    assert "always says" not in capsys.readouterr().out


def test_images_of_another_set_are_far_where_they_are_none_of_its_own(parts, capsys):
    own, rng = a_file(), np.random.default_rng(1)
    others = {
        "same": parts["images"].in_colour(own["images"]),
        "other": rng.integers(255, size=(5, 12, 20, 3), dtype="uint8"),
    }
    found = parts["own"].own_task(own, others)
    assert found["far"].images.shape == (5, 8, 8, 3)
    assert "90 images of same are of this set, too" in capsys.readouterr().out
    assert "far" not in parts["own"].own_task(own, {"same": others["same"]})


def test_what_is_no_file_of_arrays_is_refused(parts, tmp_path):
    with pytest.raises(ValueError, match=r"folder with \.npz files"):
        parts["own"].own_tasks(tmp_path)
    (tmp_path / "a.npz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"a\.npz must be an \.npz file"):
        parts["own"].own_tasks(tmp_path)["a"]()
    np.savez(tmp_path / "a.npz", **a_file(labels=np.array(["x", "y", "z"] * 30, object)))
    with pytest.raises(ValueError, match=r"`labels` of a\.npz .* Python objects"):
        parts["own"].own_tasks(tmp_path)["a"]()


def test_energies_of_pixels_take_any_size(parts):
    images = np.random.default_rng(0).integers(255, size=(3, 28, 5, 3), dtype="uint8")
    assert parts["features"].dct_energies(images).shape == (3, 192)


def options_of(folder, *more):
    names = ["--data", folder, "--pixels", "--json", folder / "found.json"]
    return [str(each) for each in (*names, "--cache", folder / "cache", *more)]


@pytest.mark.filterwarnings("ignore:The temperature stopped at its limit")
def test_a_folder_runs_to_its_tables(parts, tmp_path, monkeypatch, capsys):
    """Quick, one set whose predictions are all certain; then other images of the same name."""
    monkeypatch.setattr(parts["rows"], "STEPS", 24)
    labels = np.arange(160) % 2
    images = np.random.default_rng(0).integers(60, size=(160, 6, 7), dtype="uint8")
    images += (180 * labels)[:, None, None].astype("uint8")
    np.savez(tmp_path / "one.npz", images=images, labels=np.array(["no", "yes"])[labels])
    found = parts["methods"].main(options_of(tmp_path, "--quick"))["tasks"]["one"]
    assert found["runs"]["temperature scaling"]["0"]["accuracy"] == 1
    said = capsys.readouterr().out
    assert "## Differences with Dense" in said and "classes no, yes." in said
    assert (tmp_path / "found.md").read_text(encoding="utf-8") in said
    np.savez(tmp_path / "one.npz", images=images[::-1], labels=labels)
    with pytest.raises(ValueError, match=r"must name a new file: .*found\.json has a set 'one'"):
        parts["methods"].main(options_of(tmp_path, "--quick"))


def test_results_of_own_sets_are_none_of_the_pages(parts, tmp_path):
    methods = parts["methods"]
    given = methods.parse(["--data", str(tmp_path)])
    assert parts["tasks"].results_of(given, methods.RESULTS, tmp_path).name == "methods-found.json"
    with pytest.raises(ValueError, match="--seeds must be at least 1"):
        methods.main(["--data", str(tmp_path), "--seeds", "0"])


@pytest.mark.slow
def test_a_folder_of_a_stranger_runs(parts, tmp_path, monkeypatch):
    """Two sets of digits without groups, `near` or `far`: each is far from the other."""
    from sklearn.datasets import load_digits

    monkeypatch.setattr(parts["rows"], "STEPS", 60)
    x, y = load_digits(return_X_y=True)
    x = (x.reshape(-1, 8, 8) * 15).astype("uint8")
    for name, first in (("low", 0), ("high", 5)):
        chosen = (y >= first) & (y < first + 5)
        labels = (y[chosen] - first)[:, None]
        np.savez(tmp_path / f"{name}.npz", images=x[chosen], labels=labels)
    options = ["--data", str(tmp_path), "--pixels", "--json", str(tmp_path / "found.json")]
    options += ["--cache", str(tmp_path / "cache"), "--seeds", "2", "--rows"]
    found = parts["methods"].main([*options, "Dense", "temperature scaling"])
    assert set(found["tasks"]) == {"low", "high"}
    for task in found["tasks"].values():
        assert set(task["runs"]["Dense"]) == {"0", "1"} and task["classes"] == 5
        assert task["runs"]["Dense"]["0"]["accuracy"] > 0.8
        assert 0.5 < task["runs"]["Dense"]["0"]["far"] <= 1
