"""One answer in six runtimes: the 10,000 test images of MNIST, what is accepted and how sure.

    TFUQ_DATA=folder python benchmarks/runtimes.py --json benchmarks/runtimes.json
    python benchmarks/runtimes.py --json benchmarks/runtimes.json --report   # the table of the page

Small networks with one head after another are trained for a short while, calibrated and given a
rule, and exported once a format. Keras is `predict_uncertainty`, the calibration and the rule in
Python; the others run the files: TensorFlow the SavedModel, LiteRT, ONNX Runtime, OpenVINO and a
browser (ONNX Runtime Web in headless Chromium, by `examples/browser/decide.js`) the one file.

Cases that are in the JSON are not run again, unless `--again` is given. Ends with an error if a
decision or a label of two runtimes differs, or a probability by more than 1e-4. It needs the extras
`onnx` and `openvino`; the browser also playwright, Chromium and npm, which fetches its runtime,
unless `--modules` says where a `node_modules` is.
"""

import argparse
import base64
import contextlib
import functools
import http.server
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

import tfuq
from tfuq.export import export, export_litert, export_onnx
from tfuq.export._runtimes import ONNX, LiteRT, OpenVINO
from tfuq.selective import ConformalPredictor, RejectionRule, TemperatureScaling

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests" / "report"))
from browser import executable, launched
from evidence.marked import ROOT, markdown, write_table

K = keras.layers
SAMPLES, MEMBERS, BLOCK = 10, 3, 500
ALLOWED = 1e-4
CASES = ("Dense", "VBLLDense, 10 samples", "MCDropout, 10 samples", "ensemble of 3")
RUNTIMES = ("TensorFlow", "LiteRT", "ONNX Runtime", "OpenVINO", "browser")
PAGE, PLACE = "docs/reliability.md", "runtimes"


# --- Data, networks and what decides ----------------------------------------------------------


def read_mnist(folder, rows):
    """`{"train", "held", "test"}` of images in 0 to 1 and labels; the rule's are not trained on."""
    with np.load(pathlib.Path(folder) / "mnist.npz", allow_pickle=False) as file:
        x, y = (file["x_train"] / 255).astype("float32")[..., None], file["y_train"].astype("int64")
        test = (file["x_test"][:rows] / 255).astype("float32")[..., None], file["y_test"][:rows]
    return {"train": (x[:4000], y[:4000]), "held": (x[4000:7000], y[4000:7000]), "test": test}


def network(head, shape, seed=0):
    keras.utils.set_random_seed(seed)
    body = [K.Conv2D(8, 3, strides=2, activation="relu"), K.Flatten(), K.Dense(32, "relu")]
    return keras.Sequential([keras.Input(shape), *body, *head])


def trained(model, train):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss, jit_compile=False)
    model.fit(*train, batch_size=64, epochs=2, verbose=0)
    tfuq.predictive.declare(model, value_range=(0, 1))
    return model


def cases(parts):
    """By name, what makes a model, and the arguments of `predict_uncertainty` and of exports."""
    train = parts["train"]
    shape = train[0].shape[1:]
    classes = int(train[1].max()) + 1
    sampled = {"num_samples": SAMPLES}
    vbll = functools.partial(tfuq.layers.VBLLDense, kl_weight=1 / len(train[0]))

    def dense():
        return [K.Dense(classes)]

    def dropped():
        return [tfuq.layers.MCDropout(0.3), *dense()]

    def ensemble():
        members = [trained(network(dense(), shape, seed), train) for seed in range(MEMBERS)]
        return tfuq.ensembles.DeepEnsemble.from_models(members)

    makers = (
        (lambda: trained(network(dense(), shape), train), {}),
        (lambda: trained(network([vbll(classes)], shape), train), sampled),
        (lambda: trained(network(dropped(), shape), train), sampled),
        (ensemble, {}),
    )
    return dict(zip(CASES, makers, strict=True))


def decided(model, options, held):
    """A calibration, a rule that keeps four of five, and conformal sets, of rows held back."""
    x, y = held
    half = len(x) // 2
    probs = tfuq.predictive.predict_uncertainty(model, x, from_logits=True, **options).probs
    calibration = TemperatureScaling().fit(probs[:half], y[:half])
    calibrated = np.asarray(calibration(probs[half:]))
    rule = RejectionRule.fit(calibrated, y[half:], target_coverage=0.8)
    sets = ConformalPredictor.fit(calibrated, y[half:], alpha=0.05)
    return calibration, rule, sets


def in_keras(model, options, calibration, rule, sets, x):
    """What Python says of `x`, by the names that exports give."""
    found = tfuq.predictive.predict_uncertainty(model, x, from_logits=True, **options)
    probs = np.asarray(calibration(found.probs))
    return {
        "probabilities": probs,
        "label": probs.argmax(-1),
        "accept": rule.accept(probs),
        "prediction_set": sets.predict_set(probs),
    }


# --- Runtimes ---------------------------------------------------------------------------------


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


def missing_for_browser():
    """What the browser needs and is not there."""
    wanted = {
        "npm": shutil.which("npm"),
        "Chromium": executable(),
        "playwright": importlib.util.find_spec("playwright"),
    }
    return [name for name, found in wanted.items() if not found]


def prepared_site(folder, modules=None):
    """The page of `examples/browser` and ONNX Runtime Web, to which a model is to be added."""
    ignored = shutil.ignore_patterns("node_modules")
    shutil.copytree(ROOT / "examples" / "browser", folder, ignore=ignored)
    if modules:
        (folder / "node_modules").symlink_to(pathlib.Path(modules).resolve())
    else:
        command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"]
        subprocess.run(command, cwd=folder, check=True, stdout=sys.stderr, timeout=500)
    return folder


@contextlib.contextmanager
def served(folder):
    """The address of a folder."""
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


ASK = """([text, count]) => {
    const bytes = Uint8Array.from(atob(text), (each) => each.charCodeAt(0));
    return outputsOf(new Float32Array(bytes.buffer), count);
}"""


def in_browser(folder, model, x, shapes):
    """What the page says of `x`, whose outputs have these shapes after the first axis."""
    for file in (model, model.with_name(model.name + ".json")):
        shutil.copy(file, folder / f"model.onnx{file.name.removeprefix(model.name)}")
    found = []
    with served(folder) as address, launched() as browser:
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector("body[data-ready]", state="attached")
        for start in range(0, len(x), BLOCK):
            block = np.ascontiguousarray(x[start : start + BLOCK], "float32")
            text = base64.b64encode(block.tobytes()).decode()
            found.append(page.evaluate(ASK, [text, len(block)]))
    arrays = {name: np.concatenate([each[name] for each in found]) for name in found[0]}
    return {name: arrays[name].reshape(len(x), *shape) for name, shape in shapes.items()}


def in_blocks(run, x):
    found = [run(x[start : start + BLOCK]) for start in range(0, len(x), BLOCK)]
    return {name: np.concatenate([np.asarray(each[name]) for each in found]) for name in found[0]}


def answers(model, options, folder, x, expected, site):
    """What each runtime says of `x`, by its name; `site` is None where no browser is."""
    export(model, folder / "served", **options)
    export_litert(model, folder / "m.tflite", **options)
    export_onnx(model, folder / "m.onnx", **options)
    loaded = tf.saved_model.load(str(folder / "served"))
    files = {"LiteRT": LiteRT(folder / "m.tflite"), "ONNX Runtime": ONNX(folder / "m.onnx")}
    files["OpenVINO"] = OpenVINO(folder / "m.onnx")
    told = {"TensorFlow": in_blocks(loaded.serve, x)}
    for name, file in files.items():
        told[name] = in_blocks(lambda block, run=file: run({run.inputs[0]: block}), x)
    if site is not None:
        shapes = {name: array.shape[1:] for name, array in expected.items()}
        told["browser"] = in_browser(site, folder / "m.onnx", x, shapes)
    return told


# --- Figures ----------------------------------------------------------------------------------


def compared(told, expected):
    """Of one runtime, how far its answers are from those of Keras."""
    gap = np.abs(np.asarray(told["probabilities"], "float64") - expected["probabilities"]).max()
    figures = {"probabilities": float(gap)}
    for name in ("label", "accept", "prediction_set"):
        same = np.asarray(told[name]).astype("int64") == np.asarray(expected[name]).astype("int64")
        figures[name] = int((~same.reshape(len(same), -1).all(-1)).sum())
    return figures


def one_case(make, options, parts, folder, site):
    """The figures of a model, exported to a folder that is there."""
    model, (x, y) = make(), parts["test"]
    calibration, rule, sets = decided(model, options, parts["held"])
    expected = in_keras(model, options, calibration, rule, sets, x)
    exported = {"calibration": calibration, "rule": rule, "conformal": sets, **options}
    told = answers(model, {"from_logits": True, **exported}, folder, x, expected, site)
    away = np.abs(expected["probabilities"].max(-1) - rule.threshold)
    return {
        "accuracy": float((expected["label"] == y).mean()),
        "accepted": int(expected["accept"].sum()),
        "within 1e-5 of the threshold": int((away < 1e-5).sum()),
        "runtimes": {key: compared(each, expected) for key, each in told.items()},
    }


def measured(parts, modules=None, before=None, keep=lambda found: None):
    """The figures of all cases, which go into the JSON; those of `before` are kept."""
    lacking, count = missing_for_browser(), len(parts["test"][0])
    found = {"inputs": count, "left_out": {"browser": lacking} if lacking else {}, "cases": {}}
    if before and before["inputs"] == count:
        found["cases"] = before["cases"]
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        site = None if lacking else prepared_site(root / "site", modules)
        for number, (name, (make, options)) in enumerate(cases(parts).items()):
            if name in found["cases"]:
                continue
            (root / str(number)).mkdir()
            found["cases"][name] = one_case(make, options, parts, root / str(number), site)
            print(name, json.dumps(found["cases"][name]), flush=True)
            keep(found)
    return found


def faults(found):
    """What is not as it should be, in words."""
    for name, case in found["cases"].items():
        for runtime, figures in case["runtimes"].items():
            if figures["probabilities"] > ALLOWED or figures["label"] or figures["accept"]:
                yield f"{name}, {runtime}: {figures}"


def table(found):
    """The table of the page."""
    titles = ["head", "accepted", *RUNTIMES]
    rows = []
    for name, case in found["cases"].items():
        cells = []
        for runtime in RUNTIMES:
            figures = case["runtimes"].get(runtime)
            if figures is None:
                cells.append("not run")
                continue
            others = [figures[key] for key in ("label", "accept", "prediction_set")]
            cells.append(f"{figures['probabilities']:.1e}; {' / '.join(map(str, others))}")
        rows.append([name, f"{case['accepted']:,}", *cells])
    missing = [name for name in CASES if name not in found["cases"]]
    rest = f" Not run yet: {'; '.join(missing)}." if missing else ""
    said = (
        f"\nA cell, over {found['inputs']:,} images of MNIST: the largest difference of a "
        "probability from Keras; then how many labels / decisions / conformal sets "
        f"differ.{rest}\n"
    )
    return markdown(titles, rows) + said


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("TFUQ_DATA", "../shared/data"))
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--modules", help="a node_modules with onnxruntime-web")
    parser.add_argument("--json", type=pathlib.Path, help="where the figures go, or are")
    parser.add_argument("--again", action="store_true", help="also what is in the JSON")
    parser.add_argument("--report", action="store_true", help=f"write the table into {PAGE}")
    options = parser.parse_args(arguments)
    if options.report:
        write_table(PAGE, PLACE, table(json.loads(options.json.read_text(encoding="utf-8"))))
        return
    before = None
    if options.json is not None and options.json.is_file() and not options.again:
        before = json.loads(options.json.read_text(encoding="utf-8"))

    def keep(found):
        if options.json is not None:
            options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    found = measured(read_mnist(options.data, options.inputs), options.modules, before, keep)
    print(table(found))
    if wrong := list(faults(found)):
        sys.exit("runtimes.py: " + "; ".join(wrong))


if __name__ == "__main__":
    main()
