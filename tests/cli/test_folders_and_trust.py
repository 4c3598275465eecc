"""The command line: folders of images, files of other runtimes, trust, help at once."""

import csv
import json
import pathlib
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
from PIL import Image

from tfuq._images.files import read_image, reason_of
from tfuq._predictions.scores import RANKINGS
from tfuq.cli import COMMANDS, _inputs, main
from tfuq.cli.options import calibrate, shared
from tfuq.predictive import declare
from tfuq.selective import RejectionRule

ROOT = pathlib.Path(__file__).parents[2]
RNG = np.random.default_rng(0)
X = RNG.random((60, 4, 4, 3), "float32")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with a model of images, data, and its exports."""
    folder = tmp_path_factory.mktemp("models")
    head = keras.layers.Dense(3, "softmax")
    model = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Flatten(), head])
    declare(model, class_names=["cat", "dog", "emu"], value_range=(0, 1))
    model.save(folder / "m.keras")
    np.savez(folder / "d.npz", x=X, y=np.argmax(model.predict(X, verbose=0), -1))
    RejectionRule("confidence", 0.4, class_names=["cat", "dog", "emu"]).save(folder / "rule.json")
    for name in ("served", "m.onnx", "m.tflite"):
        assert (
            main(
                ["export", f"{folder}/m.keras", f"{folder}/{name}", "--rule", f"{folder}/rule.json"]
            )
            == 0
        )
    return folder


@pytest.fixture
def run(models, tmp_path, monkeypatch, capfd):
    """Runs a command in an empty folder; gives stdout, and stderr as `run.err`."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, code=0):
        capfd.readouterr()
        given = [str(a).replace("MODELS", str(models)) for a in arguments]
        assert main(given) == code, capfd.readouterr()
        out, run.err = capfd.readouterr()
        return json.loads(out) if "--json" in given else out

    return run


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# --- Folders of images --------------------------------------------------------------------------


def image(path, mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (6, 5, 3)).astype("uint8")).convert(mode).save(
        path, **options
    )


@pytest.mark.parametrize("name", ["a.jpg", "really_a_jpeg.png"])
@pytest.mark.parametrize("options", [{}, {"quality": 40}, {"progressive": True, "subsampling": 0}])
def test_a_jpeg_has_the_pixels_that_the_server_has(name, options, tmp_path):
    """A rule is fitted to a folder, and served: TensorFlow's default differs by 18 of 255."""
    image(tmp_path / name, format="JPEG", **options)
    with Image.open(tmp_path / name) as opened:
        expected = np.asarray(opened.convert("RGB"))
    np.testing.assert_array_equal(read_image(tmp_path / name, 3), expected)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("{{function_node __x}} Not a PNG [Op:DecodeImage] name: ", "Not a PNG"),
        ("\nTruncated file\nand more", "Truncated file"),
        ("", "ValueError"),
    ],
)
def test_a_reason_is_the_first_line_without_nodes(said, reason):
    assert reason_of(ValueError(said)) == reason


def test_what_cannot_be_read_is_left_out_named_and_counted(run, tmp_path):
    folder = tmp_path / "new"
    for name in ("a.png", "b.jpg", "c.tif", "d.webp"):
        image(folder / name)
    (folder / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "cut.jpg").write_bytes((folder / "b.jpg").read_bytes()[:200])
    (folder / "._a.png").write_bytes(b"\0\5\26\7")
    (folder / "phone.heic").write_bytes(b"ftypheic")
    (folder / "notes.txt").write_text("none")
    wide = Image.fromarray(RNG.integers(0, 2**16, (6, 5)).astype("uint16"))
    wide.save(folder / "wide.tif")
    pages = [Image.new("RGB", (5, 6)) for _ in range(2)]
    pages[0].save(folder / "pages.tif", save_all=True, append_images=pages[1:])
    found = run("predict", "MODELS/m.keras", folder, "o.csv", "--json", code=3)
    assert [pathlib.Path(r["file"]).name for r in rows_of("o.csv")] == [
        "a.png",
        "b.jpg",
        "c.tif",
        "d.webp",
    ]
    skipped = {pathlib.Path(each["file"]).name: each["why"] for each in found["skipped"]}
    assert set(skipped) == {"._a.png", "bad.png", "cut.jpg", "pages.tif", "phone.heic", "wide.tif"}
    assert "[Op:" not in run.err and "{{" not in run.err  # no names of nodes
    assert "8 bits" in skipped["wide.tif"] and "2 pictures" in skipped["pages.tif"]
    assert "6 images were left out" in run.err and "no images: 1 (.txt 1)" in run.err
    (folder / "bad.png").rename(tmp_path / "bad.png")
    for file in folder.iterdir():
        file.unlink()
    (tmp_path / "bad.png").rename(folder / "bad.png")
    run("predict", "MODELS/m.keras", folder, "p.csv", code=2)
    assert "of which none can" in run.err


def test_sub_folders_are_classes_whatever_they_hold(run, tmp_path):
    for name in ("cat/a.png", "dog/left/b.png", "dog/right/deep/c.png", "emu/d.tiff"):
        image(tmp_path / "new" / name)
    (tmp_path / "new" / "__MACOSX" / "cat").mkdir(parents=True)
    (tmp_path / "new" / "dog" / "x.png").write_bytes(b"")
    run("predict", "MODELS/m.keras", "new", "o.jsonl", code=3)
    rows = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [row["true_label"] for row in rows] == [0, 1, 1, 2]
    assert rows[2]["file"].endswith("deep/c.png") and len(rows[0]["probabilities"]) == 3


def test_the_out_of_a_command_is_what_its_name_says(run, tmp_path):
    for out in ("o.json", "o.tsv", "o.xlsx"):
        run("predict", "MODELS/m.keras", "MODELS/d.npz", out, code=2)
        assert "OUT must end in .csv, .jsonl, .parquet" in run.err
    run("predict", "MODELS/m.keras", "MODELS/d.npz", "v1.2/")
    assert (tmp_path / "v1.2").is_dir()
    run("report", "MODELS/m.keras", "MODELS/d.npz", "page.pdf", code=2)
    run("export", "MODELS/m.keras", "again.keras", code=2)
    fit = (
        "calibrate",
        "MODELS/m.keras",
        "MODELS/d.npz",
        "--target-coverage",
        0.8,
        "--out",
        "r.json",
    )
    run(*fit)
    before = (tmp_path / "r.json").read_bytes()
    run(*fit, code=2)
    assert "--overwrite" in run.err and (tmp_path / "r.json").read_bytes() == before
    run(*fit, "--force")


# --- Files of other runtimes --------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:\\s*Warning. tf.lite.Interpreter:UserWarning")
def test_every_export_is_read_and_says_the_same(run, tmp_path):
    told = {}
    for name in ("served", "m.onnx", "m.tflite"):
        run("predict", f"MODELS/{name}", "MODELS/d.npz", f"{name}.csv", "--trust")
        told[name] = rows_of(f"{name}.csv")
        assert (
            run("evaluate", f"MODELS/{name}", "MODELS/d.npz", "--trust", "--json")["accuracy"] == 1
        )
    for name in ("m.onnx", "m.tflite"):
        assert [r["accept"] for r in told[name]] == [r["accept"] for r in told["served"]]
        assert [r["class"] for r in told[name]] == [r["class"] for r in told["served"]]
        for one, other in zip(told[name], told["served"], strict=True):
            assert float(one["confidence"]) == pytest.approx(float(other["confidence"]), abs=1e-5)


# --- Trust --------------------------------------------------------------------------------------


def copied(models, name, to):
    source = models / name
    for file in [source, *models.glob(f"{name}.*")] if source.is_file() else source.rglob("*"):
        if file.is_file():
            target = to / file.relative_to(models)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    return to / name


def test_a_saved_model_is_run_by_those_who_trust_it(run, models, tmp_path):
    command = ("predict", "MODELS/served", "MODELS/d.npz", "o.csv")
    run(*command, code=2)
    assert "is code" in run.err and "--trust" in run.err and not (tmp_path / "o.csv").exists()
    run("export", "MODELS/m.keras", "keyed", "--sign", "none.pem", code=2)
    run("evaluate", "MODELS/m.keras", "MODELS/d.npz", "--key", "x.pem", code=2)
    assert "--key must be left out" in run.err
    assert "is whole" in run("verify", "MODELS/served")
    run("verify", "MODELS/m.keras", code=2)


@pytest.mark.parametrize("name", ["served", "m.onnx"])
def test_what_was_changed_is_refused_before_it_is_loaded(name, run, models, tmp_path):
    path = copied(models, name, tmp_path)
    target = path if path.is_file() else path / "variables" / "variables.data-00000-of-00001"
    content = bytearray(target.read_bytes())
    content[len(content) // 2] ^= 255
    target.write_bytes(content)
    for command in (("verify", path), ("predict", path, "MODELS/d.npz", "o.csv", "--trust")):
        run(*command, code=2)
        assert f"{target.name} altered" in run.err
    if path.is_dir():
        path = copied(models, name, tmp_path)
        (path / "assets").mkdir(exist_ok=True)
        (path / "assets" / "more.txt").write_text("new")
        run("verify", path, code=2)
        assert "which `export` did not write" in run.err


def keys(folder):
    serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    none, pem = serialization.NoEncryption(), serialization.Encoding.PEM
    kind, form = serialization.PrivateFormat.PKCS8, serialization.PublicFormat.SubjectPublicKeyInfo
    for name in ("own", "other"):
        key = ed25519.Ed25519PrivateKey.generate()
        (folder / f"{name}.pem").write_bytes(key.private_bytes(pem, kind, none))
        (folder / f"{name}.pub").write_bytes(key.public_key().public_bytes(pem, form))
    curve = ec.generate_private_key(ec.SECP256R1())
    (folder / "curve.pem").write_bytes(curve.private_bytes(pem, kind, none))


def test_an_export_without_its_graph_is_one_that_lacks_a_file(run, models, tmp_path):
    shutil.copytree(models / "served", tmp_path / "served")
    (tmp_path / "served" / "saved_model.pb").unlink()
    keys(tmp_path)
    for option in (["--trust"], ["--key", "own.pub"]):
        run("predict", "served", "MODELS/d.npz", "o.csv", *option, code=2)
        assert "saved_model.pb" in run.err and "--key must be left out" not in run.err


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("name", ["signed", "signed.onnx"])
def test_a_signature_tells_who_wrote_an_export(name, run, tmp_path):
    keys(tmp_path)
    write = ("export", "MODELS/m.keras", name)
    for key in ("own.pub", "curve.pem", "missing.pem"):
        run(*write, "--sign", key, code=2)
    assert not (tmp_path / name).exists()
    size = run(*write, "--sign", "own.pem").split(": ")[1].strip()
    assert f"is whole: {size}\n" in run("verify", name)
    assert "signed     by the key" in run("verify", name, "--key", "own.pub")
    assert "signed     not checked" in run("verify", name)
    run("predict", name, "MODELS/d.npz", "o.csv", "--key", "own.pub")
    run("verify", name, "--key", "other.pub", code=2)
    assert "must be signed by the owner" in run.err
    beside = tmp_path / name / "metadata.json" if name == "signed" else tmp_path / f"{name}.json"
    about = json.loads(beside.read_text())
    about["class_names"] = ["dog", "cat", "emu"]  # forged, hash and all
    about.pop("sha256_of_metadata")
    from tfuq._files.reading import hash_of

    beside.write_text(json.dumps({**about, "sha256_of_metadata": hash_of(about)}))
    run("verify", name)
    run("predict", name, "MODELS/d.npz", "p.csv", "--key", "own.pub", code=2)
    run(*write, "--overwrite")  # not signed, and the old signature is gone
    run("verify", name, "--key", "own.pub", code=2)
    assert "--sign" in run.err


# --- Help at once -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [["--version"], ["--help"], *([c, "--help"] for c in COMMANDS), ["no"]]
)
def test_help_imports_nothing_heavy(arguments):
    script = (
        "import runpy, sys\n"
        f"sys.argv = ['tfuq', *{arguments!r}]\n"
        "try:\n    runpy.run_module('tfuq', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "tops = sorted({name.partition('.')[0] for name in sys.modules})\n"
        "print(len(sys.modules), tops, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=100
    )
    number, names = done.stderr.splitlines()[-1].split(" ", 1)
    assert int(number) < 250
    assert not {"tensorflow", "keras", "numpy", "scipy"} & set(json.loads(names.replace("'", '"')))
    assert ("usage" in done.stdout + done.stderr) or done.stdout.startswith("tfuq ")


def test_words_of_help_are_those_of_the_library():
    assert set(shared.CALIBRATIONS) == set(_inputs.CALIBRATIONS)
    assert calibrate.RANKINGS == RANKINGS
