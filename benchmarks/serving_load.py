"""Load on `tfuq serve`: 20,000 requests, 5 % of them hostile in more than 50 ways.

    python benchmarks/serving_load.py --json benchmarks/serving_load.json

Exports a small network for digits with a rule and a detector, starts the server in a process of its
own, and measures good requests alone, all requests, and good requests alone once more, eight at a
time. Ends with an error if an answer was wrong, a hostile request was not refused as it should be,
or the memory grew after the first fifth. The clients share the machine with the server.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from tfuq.export import export
from tfuq.layers import MCDropout
from tfuq.ood import Mahalanobis
from tfuq.predictive import declare
from tfuq.selective import RejectionRule

SERVING = pathlib.Path(__file__).parents[1] / "examples" / "serving"
AT_A_TIME = 8
COMMAND = (sys.executable, "-m", "tfuq", "serve")


def exported(folder):
    """The folders of a model and of a hundred images that it has not seen."""
    keras.utils.set_random_seed(0)
    found = load_digits()
    pixels = np.round(255 / 16 * found.images[..., None]).astype("uint8")
    x, y = (pixels[:1200] / 255).astype("float32"), found.target[:1200]
    layers = [keras.layers.Conv2D(16, 3, activation="relu"), keras.layers.Flatten()]
    layers += [keras.layers.Dense(32, activation="relu"), MCDropout(0.2), keras.layers.Dense(10)]
    model = keras.Sequential([keras.Input((8, 8, 1)), *layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, jit_compile=False)
    model.fit(x, y, batch_size=64, epochs=20, verbose=0)
    declare(model, value_range=(0, 1))
    detector = Mahalanobis().fit(model, x, y)
    detector.threshold_at(0.99)
    rule = RejectionRule("confidence", 0.7)
    export(model, folder / "served", rule=rule, ood=detector, num_samples=10)
    (folder / "images").mkdir()
    for number, image in enumerate(pixels[1200:1300]):
        Image.fromarray(image[..., 0]).save(folder / "images" / f"{number:03}.png")
    return folder / "served", folder / "images"


def scripts():
    """The load test of `examples/serving`."""
    sys.path.insert(0, str(SERVING))
    try:
        import load_test
    finally:
        sys.path.remove(str(SERVING))
    return load_test


def measured(count, share=0.05):
    """What the load test says of `count` requests, `share` of them hostile, and the figures."""
    load_test = scripts()
    with tempfile.TemporaryDirectory() as folder:
        model, images = exported(pathlib.Path(folder))
        files = sorted(images.glob("*.png"))
        good = load_test.good_requests(model, files)
        bad = load_test.bad_requests(model, files[0])
        alone = load_test.mixed(good, bad, max(count // 10, 100), share=0)
        requests = load_test.mixed(good, bad, count, share=share)
        with load_test.running_server(model, command=COMMAND) as server:
            load_test.run(server, alone, AT_A_TIME)  # warms up
            before = load_test.run(server, alone, AT_A_TIME)
            found = load_test.run(server, requests, AT_A_TIME)
            after = load_test.run(server, alone, AT_A_TIME)
    idle = [float(each["of_good"][1]) for each in (before, after)]
    return found, {
        "requests": count,
        "hostile": count - found["counts"]["good"],
        "ways": len(bad),
        "wrong": sum(map(len, found["faults"].values())),
        "alive": found["alive"],
        "flat": bool(load_test.is_flat(found)),
        "memory_MB": {
            "start": round(found["memory"][0]),
            "after a fifth": round(found["warm"]),
            "end": round(found["memory"][-1]),
            "peak": round(found["peak"]),
        },
        "requests_per_second": round(count / found["took"]),
        "p50_ms": {"good, alone": float(before["of_good"][0]), "good": float(found["of_good"][0])},
        "p99_ms": {"good, alone": idle, "good": float(found["of_good"][1])},
        "p99_ratio": float(found["of_good"][1]) / (sum(idle) / 2),
    }


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--json", type=pathlib.Path, help="where the figures go")
    options = parser.parse_args(arguments)
    found, figures = measured(options.requests)
    print("\n".join(scripts().report(found)))
    text = json.dumps(figures, indent=1)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n", encoding="utf-8")
    if figures["wrong"] or not figures["alive"] or not figures["flat"]:
        sys.exit("serving_load.py: not as it should be, see above")


if __name__ == "__main__":
    main()
