"""What a new user does, with what is installed: train, choose a threshold, export, serve, ask.

    python smoke.py            # with the extra `serving`
    python smoke.py --photo    # the same with photographs, with the extra `examples` too
    python smoke.py --readme   # the snippets of README, with the extra `examples`

Run by `tests/versions.py` in clean environments; prints versions and one line at the end.
"""

import io
import json
import os
import pathlib
import re
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

import tfuq

TOOL = pathlib.Path(sys.executable).with_name("tfuq")
PHOTOGRAPHS = ("china", "flower")  # the JPEG files of scikit-learn


def digits(count, seed):
    """Images `(count, 8, 8, 1)` of 0 to 255 with a bright half, and which half it is."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=count)
    images = rng.integers(0, 90, size=(count, 8, 8, 1))
    images[labels == 0, :4] += 120
    images[labels == 1, 4:] += 120
    return images.astype("uint8"), labels


def crops(count, seed, rows):
    """Pieces of scikit-learn's two photographs, of those rows of pixels, and of which each is."""
    from sklearn.datasets import load_sample_image

    photographs = [load_sample_image(f"{name}.jpg")[rows] for name in PHOTOGRAPHS]
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=count)
    tops = rng.integers(photographs[0].shape[0] - 64, size=count)
    lefts = rng.integers(photographs[0].shape[1] - 64, size=count)
    places = zip(labels, tops, lefts, strict=True)
    return np.stack([photographs[k][i : i + 64, j : j + 64] for k, i, j in places]), labels


def exported(folder, rows_of, size, class_names):
    """A trained model with a rule, in a folder of that; `rows_of(count, seed)` makes examples."""
    keras.utils.set_random_seed(0)
    (x, y), (others, their_labels) = rows_of(600, 0), rows_of(400, 1)
    layers = [keras.layers.Rescaling(1 / 255), keras.layers.AveragePooling2D(2)]
    if size[0] is None:
        layers += [keras.layers.Conv2D(8, 3, activation="relu")]
        layers += [keras.layers.GlobalAveragePooling2D()]
    layers += [keras.layers.Flatten(), tfuq.layers.MCDropout(0.2)]
    head = tfuq.layers.VBLLDense(2, kl_weight=1 / len(x))
    model = keras.Sequential([keras.Input(size), *layers, head])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss)
    model.fit(x.astype("float32"), y, epochs=8, verbose=0)
    model.save(folder / "model.keras")
    model = keras.models.load_model(folder / "model.keras")
    tfuq.predictive.declare(model, value_range=(0, 255), class_names=class_names)
    found = tfuq.predictive.predict_uncertainty(model, others.astype("float32"), num_samples=10)
    rule = tfuq.selective.RejectionRule.fit(found.probs, their_labels, target_risk=0.1)
    tfuq.export.export(model, folder / "served", rule=rule, num_samples=10)
    return folder / "served"


def asked(url, path, body=None, kind=""):
    request = urllib.request.Request(url + path, body, {"Content-Type": kind} if body else {})
    with urllib.request.urlopen(request, timeout=600) as answer:
        return answer.read().decode()


def answered(*words):
    """What a command prints, once nothing is on stderr; and seconds of it, by clock and of CPU."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.stderr:
        raise RuntimeError(f"{words} wrote to stderr: {done.stderr}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.stdout, f"{seconds:.2f} s, CPU {cpu:.2f} s"


def read_me():
    """Runs the Python of README, each block in a namespace and a folder of its own."""
    text = (pathlib.Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    if not blocks:
        raise RuntimeError("README has no Python")
    for block in blocks:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            exec(compile(block, "README.md", "exec"), {"__name__": "snippet"})
            os.chdir("/")
    print(f"README: {len(blocks)} snippets run")


def answer_of_server(model, image, kind):
    """What `tfuq serve` says of an encoded image, once it has counted the answer."""
    command = [TOOL, "serve", model, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            url = server.stdout.readline().split()[-1]
            answer = json.loads(asked(url, "/predict", image, kind))
            if 'tfuq_answers_total{decision="accepted"} 1.0' not in asked(url, "/metrics"):
                raise RuntimeError(f"/metrics does not count the answer: {answer}")
        finally:
            server.terminate()
            server.wait(600)
    if not answer["reasons"] or not answer["accept"]:
        raise RuntimeError(f"a wrong answer: {answer}")
    return answer


def photographs():
    """The same with photographs: JPEG files as scikit-learn has them, whole, in one model."""
    from sklearn import datasets

    files = pathlib.Path(datasets.__file__).parent / "images"
    with tempfile.TemporaryDirectory() as folder:
        rows = {0: slice(0, 200), 1: slice(200, None)}  # to train on, and for the rule
        model = exported(
            pathlib.Path(folder),
            lambda count, seed: crops(count, seed, rows[seed]),
            (None, None, 3),
            list(PHOTOGRAPHS),
        )
        for name in PHOTOGRAPHS:
            file = files / f"{name}.jpg"
            answer = answer_of_server(model, file.read_bytes(), "image/jpeg")
            if answer["class"] != name:
                raise RuntimeError(f"a wrong answer to {file}: {answer}")
            print(f"{file.name}: {answer['decision']}: {answer['class']}; {answer['reasons'][0]}")


def main():
    (told, of_help), (version, of_version) = answered(TOOL, "--help"), answered(TOOL, "--version")
    if "serve" not in told or tfuq.__version__ not in version:
        raise RuntimeError("tfuq --help names no `serve`, or --version another version")
    print(f"tfuq --help: {of_help}; --version: {of_version}")
    with tempfile.TemporaryDirectory() as folder:
        model = exported(pathlib.Path(folder), digits, (8, 8, 1), ["top", "bottom"])
        (image, *_), (label, *_) = digits(1, 2)
        file = io.BytesIO()
        Image.fromarray(image[..., 0]).save(file, "PNG")
        answer = answer_of_server(model, file.getvalue(), "image/png")
        if answer["label"] != label:
            raise RuntimeError(f"a wrong answer: {answer}")
    where = pathlib.Path(tfuq.__file__).parent
    versions = f"Keras {keras.__version__}, TensorFlow {tf.__version__}, NumPy {np.__version__}"
    print(f"smoke: right. Python {sys.version.split()[0]}, {versions}; {where}")


if __name__ == "__main__":
    {"": main, "--photo": photographs, "--readme": read_me}["".join(sys.argv[1:])]()
