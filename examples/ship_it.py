"""From images to a server that decides: train, rule, export, verify, predict, serve, one request.

    python examples/ship_it.py           # skin lesions, the file in --data or TFUQ_DATA
    python examples/ship_it.py --quick   # scikit-learn's digits, under two minutes

Each step is a command of `tfuq`, printed before it runs, so that it can be given again in a shell;
only the training is Python. The model is declared to take images from 0 to 255 and to know its
classes by name; a rule is fitted that keeps the share of wrong answers at the given risk; model and
rule are exported together, with a model card; the export is checked, predicts a folder of JPEG
files, and is served. The last step sends one JPEG over HTTP and prints the decision with its
reason, and what the server counts of it for Prometheus.

It needs the extras `examples` and `serving`. Without the file of skin lesions it takes the digits,
and says so.
"""

import argparse
import contextlib
import json
import os
import pathlib
import shlex
import subprocess
import sys
import urllib.request

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import tfuq
from tfuq import cli

FILE = "ham10000_64_jpeg.npz"
WAIT = 300  # seconds until a server answers


# --- Data -------------------------------------------------------------------------------------


def read_lesions(path):
    """`{"train": (x, y), "validation": (x, y), "test": (x, y)}`, images 0 to 255, and names."""
    parts = {}
    for split in ("train", "test"):
        batches = tfuq.datasets.from_npz(path, split, batch_size=256)
        found = [(np.asarray(x), np.asarray(y)) for x, y in batches]
        parts[split] = tuple(np.concatenate(column) for column in zip(*found, strict=True))
    with np.load(path, allow_pickle=False) as file:
        names = [str(name) for name in file["classes"]]
    return _with_validation(parts), names


def read_digits():
    """The same of digits of 8 by 8 pixels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = np.repeat((digits.images[..., None] * 15).astype("uint8"), 3, axis=-1)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order].astype("float32"), digits.target[order]
    parts = {"train": (x[:600], y[:600]), "test": (x[600:], y[600:])}
    return _with_validation(parts), [f"digit {k}" for k in range(10)]


def _with_validation(parts):
    """Half of the test images are for the rule, which must not have been trained on."""
    x, y = parts["test"]
    order = np.random.default_rng(1).permutation(len(x))
    half = len(x) // 2
    for name, rows in (("validation", order[:half]), ("test", order[half:])):
        parts[name] = (x[rows], y[rows])
    return parts


# --- Steps ------------------------------------------------------------------------------------


def trained(parts, names, epochs):
    """A small network that takes images from 0 to 255."""
    keras.utils.set_random_seed(0)
    x, y = parts["train"]
    layers = [keras.Input(x.shape[1:]), keras.layers.Rescaling(1 / 255)]
    for filters in (16, 32):
        layers.append(keras.layers.Conv2D(filters, 3, padding="same", activation="relu"))
        layers.append(keras.layers.MaxPooling2D())
    layers += [keras.layers.Flatten(), keras.layers.Dense(len(names), activation="softmax")]
    model = keras.Sequential(layers)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(x, y, batch_size=32, epochs=epochs, verbose=0)
    tfuq.predictive.declare(model, class_names=names, value_range=(0, 255))
    return model


def prepared(folder, parts, names, epochs, source):
    """What the commands take: a model, labelled images, a folder of JPEG files and a card."""
    trained(parts, names, epochs).save(folder / "model.keras")
    for name in ("validation", "test"):
        x, y = parts[name]
        np.savez(folder / f"{name}.npz", x=x, y=y)
    images = folder / "images"
    images.mkdir(exist_ok=True)
    for number, image in enumerate(parts["test"][0][:20]):
        keras.utils.save_img(images / f"{number:02d}.jpg", image, scale=False, quality=95)
    card = {
        "use": "A demonstration. No patient, and no letter, is to be judged by it.",
        "data": f"{source}: {len(parts['train'][0])} images to train on.",
        "not_tested_on": ["images of another size", "images that show none of the classes"],
    }
    (folder / "card.json").write_text(json.dumps(card), encoding="utf-8")


def run(*words, fine=(0,)):
    """Runs a command of `tfuq` as a shell would."""
    words = [str(word) for word in words]
    print(f"\n$ tfuq {shlex.join(words)}", flush=True)
    code = cli.main([*words, "--quiet"])
    if code not in fine:
        sys.exit(f"tfuq {words[0]} ended with {code}")


@contextlib.contextmanager
def served(folder):
    """The address of a server in a process of its own, which is told to end at the end."""
    words = ["serve", str(folder), "--port", "0"]
    print(f"\n$ tfuq {shlex.join(words)} &", flush=True)
    command = [sys.executable, "-m", "tfuq", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            if "http://" not in line:
                sys.exit("the server did not start")
            print(line.strip(), flush=True)
            yield "http://" + line.split("http://")[1].strip()
        finally:
            process.terminate()
            process.wait(timeout=WAIT)


def asked(address, image):
    """The answer to one JPEG, and the lines of `/metrics`."""
    headers = {"Content-Type": "image/jpeg"}
    request = urllib.request.Request(f"{address}/predict", image.read_bytes(), headers)
    with urllib.request.urlopen(request, timeout=WAIT) as answer:
        found = json.load(answer)
    with urllib.request.urlopen(f"{address}/metrics", timeout=WAIT) as answer:
        metrics = answer.read().decode()
    return found, metrics


def main(argv=None):
    """The whole way; returns the answer to the one request, and the server's figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("TFUQ_DATA", "../shared/data"))
    parser.add_argument("--output", default="demo_output/ship_it", help="folder to write")
    parser.add_argument("--target-risk", type=float, help="share of wrong answers (0.2; 0.05)")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--quick", action="store_true", help="digits instead of skin lesions")
    options = parser.parse_args(argv)
    path = pathlib.Path(options.data) / FILE
    is_quick = options.quick or not path.is_file()
    if is_quick and not options.quick:
        print(f"There is no {path}: digits stand for the skin lesions.")
    parts, names = read_digits() if is_quick else read_lesions(path)
    source = "scikit-learn's digits" if is_quick else "HAM10000, 64 by 64 pixels"
    folder = pathlib.Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    prepared(folder, parts, names, options.epochs, source)

    risk = options.target_risk or (0.05 if is_quick else 0.2)
    model, rule, export = folder / "model.keras", folder / "rule.json", folder / "served"
    to_rule = ("--target-risk", risk, "--out", rule, "--overwrite")
    run("calibrate", model, folder / "validation.npz", *to_rule)
    run("evaluate", model, folder / "test.npz", "--rule", rule, fine=(0, 1))
    to_export = ("--rule", rule, "--card", folder / "card.json", "--overwrite")
    run("export", model, export, *to_export)
    run("verify", export)
    out = folder / "predictions.csv"
    run("predict", export, folder / "images", out, "--trust", "--overwrite")
    with served(export) as address:
        answer, metrics = asked(address, folder / "images" / "00.jpg")
    print(f"\n{answer['decision']}: {answer['class']}")
    for reason in answer["reasons"]:
        print(f"  {reason}")
    counted = [
        line for line in metrics.splitlines() if line.startswith("tfuq_") and "_total" in line
    ]
    print("\n".join(["", "of /metrics:", *counted]))
    return answer, metrics


if __name__ == "__main__":
    main()
