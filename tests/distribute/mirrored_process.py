"""Trains on several logical CPUs and on one, for test_mirrored.py.

    python mirrored_process.py DEVICES FILE [CASE ...]

TensorFlow fixes its devices when it begins, hence a process for each number of them. FILE becomes
an `.npz` with `CASE/one/...` and `CASE/all/...` for each case: losses, KL terms, metrics,
predictions and weights. `layer:NAME` is a case of the contract's table of layers.
"""

import os
import pathlib
import sys

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["TF_NUM_INTRAOP_THREADS"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import keras
import numpy as np
import tensorflow as tf

from tfuq import convert, layers, metrics
from tfuq.callbacks import SGDR, KLAnnealing, RejectionEvaluator
from tfuq.ensembles import DeepEnsemble

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "contract"))

from contract import copy_variables, functional, perturb
from test_contract import LAYERS

BATCH, BATCHES, EPOCHS = 16, 2, 2
WEIGHTS = {"kl_weight": 0.02, "prior_scale": 0.5, "posterior_scale": 0.1}
# Noise of weights, or of all examples together: each device draws the same, as one device does.
SHARED = {"estimator": "reparameterization", "seed": 5}


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH * BATCHES, 6, 2)).astype("float32")
    return x, (x[:, 0, 0] > 0) + (x[:, 1, 1] > 0).astype("int32")


def network(body, head):
    inputs = keras.Input((6, 2))
    hidden = keras.layers.GlobalAveragePooling1D()(body(inputs))
    return keras.Model(inputs, head(hidden))


def conv():
    return keras.layers.Conv1D(4, 2, activation="tanh")


def vbll():
    return network(conv(), layers.VBLLDense(3, kl_weight=0.05))


def vbll_low_rank():
    head = layers.VBLLDense(3, kl_weight=0.05, posterior="low_rank", rank=2, noise="learned")
    return network(conv(), head)


def variational():
    body = layers.Conv1DVariational(4, 2, activation="tanh", **WEIGHTS, **SHARED)
    return network(body, layers.DenseVariational(3, **WEIGHTS, **SHARED))


def sparse():
    model = network(conv(), layers.SparseBayesDense(3, r_bayes=0.5, **WEIGHTS, **SHARED))
    rng = np.random.default_rng(0)
    head = model.layers[-1]
    head.select(*[rng.uniform(size=weight.shape) for weight in head.ranked_weights().values()])
    return model


def heteroscedastic():
    draws = {"train_mc_samples": 4, "test_mc_samples": 8, "share_samples_across_batch": True}
    return network(conv(), layers.MCSoftmaxDenseFA(3, num_factors=1, logits_only=True, **draws))


def converted():
    model = network(conv(), keras.layers.Dense(3))
    head = layers.VBLLDense(3, kl_weight=0.05)
    return convert.replace_head(model, head)


CASES = {
    "vbll": vbll,
    "vbll_low_rank": vbll_low_rank,
    "variational": variational,
    "sparse": sparse,
    "heteroscedastic": heteroscedastic,
    "converted": converted,
}


def compiled(model):
    judges = [
        "accuracy",
        metrics.NegativeLogLikelihood(from_logits=True),
        metrics.BrierScore(from_logits=True),
        metrics.ExpectedCalibrationError(from_logits=True),
    ]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1, 0.5), loss, metrics=judges)
    return model


def trained(make):
    x, y = data()
    keras.utils.set_random_seed(2)
    model = compiled(make())
    rejection = RejectionEvaluator((x, y), [0.4], from_logits=True, verbose=0)
    callbacks = [rejection, SGDR(0.1, cycle_length=1)]
    callbacks += [KLAnnealing(duration=2)] if model.losses else []
    fit = model.fit(x, y, BATCH, EPOCHS, 0, callbacks, shuffle=False)
    found = {f"history/{name}": values for name, values in fit.history.items()}
    judged = model.evaluate(x, y, BATCH, 0, return_dict=True)
    found |= {f"evaluate/{name}": value for name, value in judged.items()}
    model(x[:1])
    found |= {f"kl/{i}": np.asarray(value) for i, value in enumerate(model.losses)}
    found["predict"] = model.predict(x, BATCH, 0)
    return found | {f"weights/{i:02d}": w for i, w in enumerate(model.get_weights())}


def together():
    x, y = data()
    ensemble = DeepEnsemble(lambda: compiled(vbll()), 2, seed=1)
    ensemble.fit(x, y, batch_size=BATCH, epochs=EPOCHS, shuffle=False, verbose=0)
    found = {f"evaluate/{name}": value for name, value in ensemble.evaluate(x, y).items()}
    found["predict"] = ensemble.predict(x, BATCH)
    arrays = [array for member in ensemble for array in member.get_weights()]
    return found | {f"weights/{i:02d}": array for i, array in enumerate(arrays)}


def only_kl(y_true, y_pred):
    """No loss of the data: each device draws noise of its own for its examples."""
    return 0 * keras.ops.sum(y_pred, axis=-1)


def layer(case):
    """Judged with its loss; then trained by its KL divergence alone, whatever the noise."""
    keras.utils.set_random_seed(2)
    reference, model = functional(case), functional(case)
    perturb(reference)
    copy_variables(reference, model)
    x = case.inputs(32)
    y = case.target.labels(x.mean(axis=tuple(range(1, x.ndim))) > 0, np.shape(reference(x)))
    model.compile(loss=case.target.loss(from_logits=True))
    found = {}
    if case.repeats:
        found = {"evaluate": model.evaluate(x, y, 16, 0), "predict": model.predict(x, 16, 0)}
    model(x[:1])
    # The Monte Carlo bound of a last layer adds a loss of its examples, with noise.
    if model.losses and case.kwargs.get("objective") != "monte_carlo":
        model.compile(keras.optimizers.SGD(0.1), only_kl)
        fit = model.fit(x, y, 16, 2, 0, shuffle=False)
        model(x[:1])
        found |= {"kl/history": fit.history["loss"], "kl/after": sum(model.losses)}
        found |= {f"weights/{i:02d}": w for i, w in enumerate(model.get_weights())}
    return found


def run(case):
    if case.startswith("layer:"):
        return layer(next(each for each in LAYERS if case == f"layer:{each.name}"))
    return together() if case == "ensemble" else trained(CASES[case])


def main(devices, path, *cases):
    devices = int(devices)
    physical = tf.config.list_physical_devices("CPU")[0]
    logical = [tf.config.LogicalDeviceConfiguration()] * devices
    tf.config.set_logical_device_configuration(physical, logical)
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})  # as conftest
    strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(devices)])
    found = {}
    for case in cases or [*CASES, "ensemble", *(f"layer:{each.name}" for each in LAYERS)]:
        found |= {f"{case}/one/{name}": value for name, value in run(case).items()}
        with strategy.scope():
            found |= {f"{case}/all/{name}": value for name, value in run(case).items()}
    np.savez(path, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
