"""The page of examples/browser in headless Chromium: the decisions of Python, and their reasons."""

import base64
import functools
import http.server
import importlib.util
import io
import pathlib
import shutil
import subprocess
import sys
import threading

import keras
import numpy as np
import pytest
from PIL import Image

from tfuq._images.files import read_image
from tfuq.export import export_onnx
from tfuq.layers import NormalDense
from tfuq.predictive import declare, predict_uncertainty
from tfuq.selective import RejectionRule
from tfuq.serving.answers import Decision, answers

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "report"))
try:
    from browser import executable, launched
finally:
    sys.path.remove(str(ROOT / "tests" / "report"))

WANTED = {
    "npm": shutil.which("npm"),
    "Chromium": executable(),
    "the package playwright": importlib.util.find_spec("playwright"),
}
MISSING = [name for name, found in WANTED.items() if not found]
pytestmark = [
    pytest.mark.slow,  # npm fetches 30 MB
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}"),
]
X = np.random.default_rng(0).random((300, 8, 8, 3), "float32")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the page, its runtime and a model; its address, the model and the rule."""
    folder = tmp_path_factory.mktemp("site") / "browser"
    shutil.copytree(ROOT / "examples" / "browser", folder, ignore=shutil.ignore_patterns("node*"))
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=500)
    if done.returncode:
        pytest.skip(f"npm could not install onnxruntime-web: {done.stderr[-300:]}")
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Conv2D(4, 3, activation="relu"), keras.layers.Flatten()]
    model = keras.Sequential([keras.Input((8, 8, 3)), *layers, keras.layers.Dense(3, "softmax")])
    declare(model, class_names=["cat", "dog", "emu"], value_range=(0, 1))
    found = predict_uncertainty(model, X)
    rule = RejectionRule("confidence", float(np.median(found.confidence)) + 1e-5)
    export_onnx(model, folder / "model.onnx", rule=rule)
    model.save(folder / "model.keras")
    handler = functools.partial(Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", folder, found, rule
    server.shutdown()
    server.server_close()


def test_the_page_decides_as_python_does(site):
    address, folder, found, rule = site
    with launched() as browser:
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector("body[data-ready]", state="attached")
        assert page.text_content("#decision") == "Choose a picture."
        call = "([values, count]) => outputsOf(values, count)"
        outputs = page.evaluate(call, [X.ravel().tolist(), len(X)])
        probs = np.array(outputs["probabilities"]).reshape(-1, 3)
        np.testing.assert_allclose(probs, found.probs, atol=1e-4)
        accept = rule.accept(found.probs)
        np.testing.assert_array_equal(np.array(outputs["accept"]) == 1, accept)
        assert 0 < accept.sum() < len(X)
        for want in (True, False):  # a picture of each kind, as a person gives it
            image = np.round(255 * X[np.flatnonzero(accept == want)[3]]).astype("uint8")
            path = folder / f"{want}.png"
            keras.utils.save_img(path, image, scale=False)
            page.set_input_files("#file", str(path))
            page.wait_for_function(
                f"document.querySelector('#decision').dataset.accept === '{want}'.toLowerCase()"
            )
            reason = page.text_content("#reasons")
            assert ("is at least" if want else "is below") in reason and "confidence" in reason
        named = page.evaluate("model.about.class_names")
        assert named == ["cat", "dog", "emu"]
        model = folder / "model.onnx"
        whole = model.read_bytes()
        model.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        page.goto(address)
        page.wait_for_selector("body[data-ready]", state="attached")
        assert "not as it was written" in page.text_content("#decision")
        model.write_bytes(whole)


# What a person gives the page, as numbers, and how many examples they say that it is.
MISTAKES = {
    "0 to 255 for 0 to 1": (255 * X[:3], 3, "unknown"),
    "from -1 to 1": (2 * X[:3] - 1, 3, "unknown"),
    "half of a picture": (X[:3, :4], 3, "refused"),
    "one channel": (X[:3, ..., :1], 3, "refused"),
    "four channels": (np.concatenate([X[:3], X[:3, ..., :1]], -1), 3, "refused"),
    "fewer pictures than are said": (X[:2], 3, "refused"),
}
ASK = """async ([values, count]) => {
    try { return await outputsOf(values, count); } catch (error) { return error.message; }
}"""


def test_what_is_no_picture_of_the_model_is_refused_or_unknown(site, counts):
    address, *_ = site
    with launched() as browser:
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector("body[data-ready]", state="attached")
        for mistake, (values, count, expected) in MISTAKES.items():
            told = page.evaluate(ASK, [values.ravel().tolist(), count])
            if expected == "refused":
                assert isinstance(told, str) and told, mistake
            else:
                assert told["accept"] == [0] * count, mistake
                assert all(p is None or np.isnan(p) for p in told["probabilities"]), mistake
            counts("misuse rows, refused")
        # JSON has no NaN: the page makes it.
        call = "() => outputsOf(new Array(192).fill(NaN), 1)"
        assert page.evaluate(call)["accept"] == [0]
        counts("misuse rows, refused")
        # Blue and red change places where the model is declared so, of one pixel here.
        script = """async () => {
            const { fromRGBA } = await import("./decide.js");
            const of = (channels) => Array.from(fromRGBA(
                new Uint8ClampedArray([255, 51, 0, 255]),
                { inputs: { value_range: [0, 1], channels } },
            ));
            return [of("rgb"), of("bgr"), of("gray")];
        }"""
        rgb, bgr, gray = page.evaluate(script)
        np.testing.assert_allclose(rgb, [1, 0.2, 0], atol=1e-6)
        assert bgr == rgb[::-1]
        np.testing.assert_allclose(gray, [0.299 + 0.2 * 0.587], atol=1e-6)
        counts("misuse rows, right")


GIVE = """async ([bytes, type]) => {
    const file = new File([Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0))], "x", { type });
    try { return await decide(file); } catch (error) { return error.message; }
}"""


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return [base64.b64encode(file.getvalue()).decode(), f"image/{kind.lower()}"]


def test_a_picture_has_the_pixels_that_the_server_has(site, counts):
    """Of a JPEG, turned or not; and a picture that is transparent in places is refused."""
    address, folder, _, _ = site
    image = Image.fromarray(np.round(255 * X[0]).astype("uint8"))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    model = keras.models.load_model(folder / "model.keras")
    with launched() as browser:
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector("body[data-ready]", state="attached")
        for options in ({}, {"exif": exif}, {"quality": 60, "exif": exif}):
            image.save(folder / "turned.jpg", **options)
            pixels = read_image(folder / "turned.jpg", 3) / np.float32(255)
            expected = predict_uncertainty(model, np.asarray(pixels)[None]).probs[0]
            found = page.evaluate(GIVE, encoded(image, "JPEG", **options))
            np.testing.assert_allclose(found["outputs"]["probabilities"], expected, atol=1e-4)
            counts("misuse rows, right")
        holes = image.copy()
        holes.putalpha(Image.fromarray(np.arange(192, 256, dtype="uint8").reshape(8, 8)))
        assert "transparent" in page.evaluate(GIVE, encoded(holes, "PNG"))
        assert isinstance(page.evaluate(GIVE, [base64.b64encode(b"x").decode(), "image/png"]), str)
        counts("misuse rows, refused")


ROW = {
    "probabilities": [0.1, 0.7, 0.2],
    "label": [1],
    "confidence": [0.7],
    "predictive_entropy": [0.8],
    "ood_score": [2.0],
}
CONFIDENT = {"score": "confidence", "threshold": 0.6, "by": None}
BY_CLASS = {**CONFIDENT, "threshold": [0.6], "by": "class"}
PARTS = {  # rule, set, threshold of a detector
    "a rule": (CONFIDENT, None, None),
    "a margin": ({**CONFIDENT, "score": "margin"}, None, None),
    "an entropy": ({**CONFIDENT, "score": "entropy"}, None, None),
    "a detector's rule": ({**CONFIDENT, "score": "given"}, None, None),
    "a rule of the class": ({**BY_CLASS, "keys": [1]}, None, None),
    "a rule of other classes": ({**BY_CLASS, "keys": [0]}, None, None),
    "a rule that accepts nothing": ({**CONFIDENT, "threshold": "inf"}, None, None),
    "a set": (None, {"alpha": 0.1}, None),
    "a detector": (None, None, 1.5),
    "a rule and a detector": (CONFIDENT, None, 1.5),
    "a rule and a detector at its threshold": (CONFIDENT, None, 2.0 - 1e-7),
}


def test_the_page_decides_as_the_server_does(site):
    """Each part that decides, content or not: a detector's threshold is no output of the model."""
    address, *_ = site
    ask = """async ([outputs, about]) => {
        const { decisionOf } = await import("./decide.js");
        return decisionOf(outputs, about);
    }"""
    seen = set()
    with launched() as browser:
        page = browser.new_page()
        page.goto(address)
        for name, (rule, conformal, threshold) in PARTS.items():
            for accept in (True, False):
                row = {**ROW, "accept": [accept], "prediction_set": [0, 1, int(not accept)]}
                about = {
                    "rule": rule and {"config": {"keys": None, **rule}},
                    "conformal": conformal and {"config": conformal},
                    "ood": None if threshold is None else {"threshold": threshold},
                    "class_names": None,
                }
                outputs = {k: np.array([v] if len(v) == 3 else v) for k, v in row.items()}
                (expected,) = answers(outputs, Decision.of(about))
                given = {k: [float(x) for x in v] for k, v in row.items()}
                found = page.evaluate(ask, [given, about])
                assert found["accept"] == expected["accept"], name
                assert len(found["reasons"]) == len(expected["reasons"]) > 0, name
                seen.add(found["accept"])
    assert seen == {True, False}


def test_what_the_page_cannot_tell_is_refused(site):
    address, folder, *_ = site
    numbers = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), NormalDense(1)])
    model = folder / "model.onnx"
    before = {path: path.read_bytes() for path in folder.glob("model.onnx*")}
    export_onnx(numbers, model, overwrite=True)
    try:
        with launched() as browser:
            page = browser.new_page()
            page.goto(address)
            page.wait_for_selector("body[data-ready]", state="attached")
            assert "no numbers" in page.text_content("#decision")
            model.unlink()
            page.goto(address)
            page.wait_for_selector("body[data-ready]", state="attached")
            assert "is not there (404)" in page.text_content("#decision")
    finally:
        for path, content in before.items():
            path.write_bytes(content)
