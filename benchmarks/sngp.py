"""SNGP beside keras-proba 0.1.0: a training step, a prediction, and every way to save.

    make bench-sngp

keras-proba runs in an environment of its own with the same TensorFlow and Keras. Each contestant
has its own process of one thread; the two of a case take turns, so that ratios hold on a machine
whose speed drifts, and a ratio is the median of the rounds' ratios. Above 1: keras-proba takes
longer.

A head of 10 classes with 1,024 random features on 128 features, and the same behind a `Dense` of
128 units whose spectral norm is bounded (their `GaussianProcessClassificationHead`; here a `Dense`
with `SpectralBound` and `SNGPDense`). Steps are Keras' `train_on_batch`, with Adam, predictions its
`predict_on_batch`, of 64 examples; "compiled" is by XLA, which is Keras' default.

Saving: after two epochs of training a model is saved as `.keras`, as weights and as a SavedModel,
each read by a new process with `safe_mode`, which tells by how much its predictions differ.
"""

import argparse
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

import turns

BATCH, FEATURES, HIDDEN, CLASSES, RANDOM_FEATURES = 64, 128, 128, 10, 1024
BOUND = 0.95
PLAIN, COMPILED = ("train", "predict"), ("train compiled", "predict compiled")
CASES = {"network, sum": (*PLAIN, *COMPILED), "head, sum": PLAIN, "head, momentum": PLAIN}
KINDS = ("tfuq", "keras_proba")
FORMS = {"keras": "`.keras`", "weights": "weights", "saved_model": "SavedModel"}
TOLERANCE = 1e-5


# --- A contestant, in a process of its own ------------------------------------------------------


def tfuq_model(case):
    import keras

    from tfuq.convert import SpectralBound
    from tfuq.layers import SNGPDense

    momentum = 0.999 if "momentum" in case else None
    bound = {"kernel_constraint": SpectralBound(BOUND)}
    hidden = [keras.layers.Dense(HIDDEN, "tanh", **bound)] if "network" in case else []
    head = SNGPDense(CLASSES, RANDOM_FEATURES, length_scale=1.0, momentum=momentum)
    return keras.Sequential([keras.Input((FEATURES,)), *hidden, head]), []


def keras_proba_model(case):
    import keras
    from keras_proba.callbacks import ResetCovarianceCallback
    from keras_proba.layers import GaussianProcessClassificationHead

    head = GaussianProcessClassificationHead(
        inner_dim=HIDDEN if "network" in case else 0,
        num_classes=CLASSES,
        temperature=math.pi / 8,
        num_inducing=RANDOM_FEATURES,
        gp_cov_momentum=0.999 if "momentum" in case else -1,
        normalize_input=False,
        scale_random_features=True,
        norm_multiplier=BOUND,
    )
    return keras.Sequential([keras.Input((FEATURES,)), head]), [ResetCovarianceCallback()]


MODELS = {"tfuq": tfuq_model, "keras_proba": keras_proba_model}


def compiled(kind, case, jit_compile):
    """A model, what its training needs beside it, and data."""
    import keras
    import numpy as np

    keras.utils.set_random_seed(0)
    model, callbacks = MODELS[kind](case)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-4), loss, jit_compile=jit_compile)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4 * BATCH, FEATURES)).astype("float32") / math.sqrt(FEATURES)
    return model, callbacks, x, rng.integers(CLASSES, size=len(x))


def stepper(kind, case, mode):
    """A function of nothing that does one step."""
    model, _, x, y = compiled(kind, case, mode.endswith("compiled"))
    x, y = x[:BATCH], y[:BATCH]
    if mode.startswith("train"):
        return lambda: model.train_on_batch(x, y)
    return lambda: model.predict_on_batch(x)


def save(kind, folder):
    import numpy as np

    model, callbacks, x, y = compiled(kind, "network, sum", False)
    model.fit(x, y, BATCH, epochs=2, verbose=0, callbacks=callbacks)
    np.savez(folder / "expected.npz", x=x, predictions=model.predict(x, verbose=0))
    model.save(folder / "model.keras")
    model.save_weights(folder / "model.weights.h5")
    model.export(folder / "saved_model", verbose=False)


def loaded(kind, folder, form):
    """A function of inputs, from a file."""
    import keras
    import tensorflow as tf

    model, *_ = compiled(kind, "network, sum", False)  # which imports the library, too
    if form == "saved_model":
        module = tf.saved_model.load(str(folder / "saved_model"))
        return lambda x: module.serve(x)  # which keeps the module, and its weights
    if form == "weights":
        model.load_weights(folder / "model.weights.h5")
    else:
        model = keras.saving.load_model(folder / "model.keras", safe_mode=True)
    return lambda x: model.predict(x, verbose=0)


def load(kind, folder):
    """Says of each form by how much its predictions differ, or which error there was."""
    import numpy as np

    expected, said = np.load(folder / "expected.npz"), {}
    for form in FORMS:
        try:
            found = np.asarray(loaded(kind, folder, form)(expected["x"]))
            said[form] = float(np.abs(found - expected["predictions"]).max())
        except Exception as error:  # whatever happened is the answer
            said[form] = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    print("answer " + json.dumps(said), flush=True)


# --- The tables ---------------------------------------------------------------------------------


def speed(pythons, rounds, only, path, found):
    """Rows of cases and modes, each written at once; those of before stay if they are not run."""
    rows = found.setdefault("speed", [])
    for case, modes in CASES.items():
        for mode in modes:
            if only not in (None, mode):
                continue
            rows[:] = [row for row in rows if (row["case"], row["mode"]) != (case, mode)]
            pair = [
                turns.Process(__file__, "--serve", kind, case, mode, python=pythons[kind])
                for kind in KINDS
            ]
            peaks = [process.peak for process in pair]
            times, ratios, of_processor = turns.take_turns(pair, rounds, repeats=5)
            rows.append({"case": case, "mode": mode, "ms": times, "peak_mb": peaks})
            rows[-1] |= {"ratio": ratios[1], "ratio_processor": of_processor[1]}
            rows[-1]["load"] = round(os.getloadavg()[0], 1)
            print(rows[-1], flush=True)
            write(path, found)


def write(path, found):
    if path:
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def saving(pythons):
    found = {}
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            for step in ("--save", "--load"):
                command = [pythons[kind], __file__, step, kind, folder]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    raise RuntimeError(f"{kind} {step}: {done.stderr[-2000:]}")
            answer = next(line for line in done.stdout.splitlines() if line.startswith("answer "))
            found[kind] = json.loads(answer.removeprefix("answer "))
    return found


def report(found):
    if "speed" in found:
        report_speed(found["speed"])
    if "saving" in found:
        report_saving(found["saving"])


def report_speed(rows):
    print("| case | mode | tfuq, ms | keras-proba, ms | ratio | of the processor |")
    print("| --- | --- | --: | --: | --: | --: |")
    for row in rows:
        times = " | ".join(f"{ms:.2f}" for ms in row["ms"])
        ratios = f"{row['ratio']:.2f} | {row['ratio_processor']:.2f}"
        print(f"| {row['case']} | {row['mode']} | {times} | {ratios} |")


def report_saving(found):
    print("\n| saved as | tfuq | keras-proba |\n| --- | --- | --- |")
    for form, name in FORMS.items():
        print(f"| {name} | " + " | ".join(said(found[kind][form]) for kind in KINDS) + " |")


def said(answer):
    if isinstance(answer, str):
        return answer
    return "same" if answer <= TOLERANCE else f"differs by {answer:.2g}"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--serve", nargs=3, metavar=("KIND", "CASE", "MODE"))
    parser.add_argument("--save", nargs=2, metavar=("KIND", "FOLDER"))
    parser.add_argument("--load", nargs=2, metavar=("KIND", "FOLDER"))
    parser.add_argument("--proba-python", default=".venv-proba/bin/python")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--mode", choices=(*PLAIN, *COMPILED), help="rows of it alone")
    parser.add_argument("--part", choices=("all", "saving", "speed"), default="all")
    parser.add_argument("--json", type=pathlib.Path)
    given = parser.parse_args()
    if given.serve:
        turns.serve(stepper(*given.serve))
    elif given.save:
        save(given.save[0], pathlib.Path(given.save[1]))
    elif given.load:
        load(given.load[0], pathlib.Path(given.load[1]))
    else:
        pythons = {"tfuq": sys.executable, "keras_proba": given.proba_python}
        known = given.json is not None and given.json.exists()
        found = json.loads(given.json.read_text(encoding="utf-8")) if known else {}
        if given.part != "speed":
            found["saving"] = saving(pythons)
            write(given.json, found)
        if given.part != "saving":
            speed(pythons, given.rounds, given.mode, given.json, found)
        report(found)


if __name__ == "__main__":
    main()
