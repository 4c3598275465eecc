"""What people do wrong with conversions and layers' switches: refused, with the argument's name."""

import keras
import numpy as np
import pytest
from keras import layers as kl

from tfuq import convert, layers
from tfuq.predictive import sample_predictions

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
DATA = (np.ones((4, 4), "float32"), np.arange(4) % 3)


def model(*last):
    return keras.Sequential([keras.Input((4,)), kl.Dense(5, "relu"), *(last or [kl.Dense(3)])])


def head(**options):
    return layers.VBLLDense(3, **{"kl_weight": 0.1, **options})


def fa(**options):
    return layers.MCSoftmaxDenseFA(3, 2, **options)


def two_outputs():
    x = keras.Input((4,))
    return keras.Model(x, {"a": kl.Dense(3)(x), "b": kl.Dense(2)(x)})


ROWS = {
    "no dropout": ("model", lambda: convert.mc_dropout(model())),
    "dropout of rate 0 in a GRU": (
        "model",
        lambda: convert.mc_dropout(keras.Sequential([keras.Input((4, 2)), kl.GRU(3)])),
    ),
    "moped as a word": ("moped", lambda: convert.variational(model(), 0.1, moped="yes")),
    "prior as a number": (
        "trainable_prior",
        lambda: convert.variational(model(), 0.1, trainable_prior=1),
    ),
    "initialize as a word": (
        "initialize",
        lambda: convert.replace_head(model(), head(), initialize="no"),
    ),
    "copy as a number": ("copy", lambda: convert.replace_head(model(), head(), copy=1)),
    "several outputs, none named": ("output", lambda: convert.replace_head(two_outputs(), head())),
    "an output that is not there": (
        "output",
        lambda: convert.replace_head(two_outputs(), head(), output="c"),
    ),
    "an index that is not there": (
        "output",
        lambda: convert.replace_head(two_outputs(), head(), output=2),
    ),
    "a boolean for an index": (
        "output",
        lambda: convert.replace_head(two_outputs(), head(), output=True),
    ),
    "the report of another model": ("model", lambda: convert.report(model())),
    "the report of no model": ("model", lambda: convert.report("model.keras")),
    "losses of other outputs": (
        "loss",
        lambda: convert.sparse_bayesian(two_outputs(), DATA, {"c": LOSS}, kl_weight=0.1),
    ),
    "labels of one output for two": (
        "data",
        lambda: convert.sparse_bayesian(
            two_outputs(), DATA, {"a": LOSS, "b": "mse"}, kl_weight=0.1
        ),
    ),
    "resample as a word": ("resample", lambda: layers.MCDropout(0.5, resample="no")),
    "resample of weights": (
        "resample",
        lambda: layers.DenseVariational(3, kl_weight=0.1, resample="no"),
    ),
    "structure of a Laplace head": (
        "structure",
        lambda: layers.LastLayerLaplace(3, structure="kron"),
    ),
    "one class of a Laplace head": ("units", lambda: layers.LastLayerLaplace(1)),
    "a prior of nothing": ("prior_scale", lambda: layers.LastLayerLaplace(3, prior_scale=0.0)),
    "noise of a Laplace head": (
        "noise",
        lambda: layers.LastLayerLaplaceRegression(1, noise="student_t"),
    ),
    "logits_only of a VBLL head": ("logits_only", lambda: head(logits_only="no")),
    "logits_only of a noisy head": ("logits_only", lambda: fa(logits_only="yes")),
    "tune_temperature by place": (
        "tune_temperature",
        lambda: layers.MCSoftmaxDenseFA(3, 2, 1.0, False, 8, 8, False, False, True, 0.0, True),
    ),
    "bounds of None, tuned": (
        "temperature_lower_bound",
        lambda: fa(tune_temperature=True, temperature_lower_bound=None),
    ),
    "an unknown last layer": ("last_layer", lambda: fa(last_layer="laplace")),
    "a last layer of no head": ("last_layer", lambda: fa(last_layer=keras.layers.Dense(3))),
    "a last layer of other units": (
        "last_layer",
        lambda: fa(last_layer=layers.SNGPDense(4, num_features=8)),
    ),
    "a last layer of labels": ("last_layer", lambda: fa(last_layer=head(likelihood="bernoulli"))),
    "noise in a last layer": ("last_layer", lambda: fa(last_layer=head(noise="learned"))),
    "samples of a last layer": ("last_layer", lambda: fa(last_layer=head(test_mc_samples=9))),
    "a last layer in use": (
        "last_layer",
        lambda: fa(last_layer=keras.Sequential([keras.Input((4,)), head()]).layers[0]),
    ),
    "a last layer without its KL": ("kl_weight", lambda: fa(last_layer="vbll")),
    "a KL of no weights": ("kl_weight", lambda: fa(kl_weight=0.1)),
    "a KL of two weights": ("kl_weight", lambda: fa(last_layer=head(), kl_weight=0.1)),
    "a last layer of noisy features": (
        "last_layer",
        lambda: layers.MCSoftmaxDenseXL(3, 2, last_layer="vbll", kl_weight=0.1),
    ),
    "one class by its features": ("units", lambda: layers.MCSoftmaxDenseXL(1, 2)),
    "no factors by their number": ("num_factors", lambda: layers.MCSigmoidDenseXL(2, None)),
    "a density of more units than features": (
        "units",
        lambda: layers.MCSoftmaxDenseXL(5, 2).logit_distribution(np.ones((2, 4), "float32")),
    ),
    "no number of members": ("num_members", lambda: layers.BatchEnsembleDense(3)),
    "one member": ("num_members", lambda: layers.BatchEnsembleConv2D(3, 2, num_members=1)),
    "half a member": ("num_members", lambda: layers.BatchEnsembleDense(3, 2.5)),
    "members of unknown factors": ("factors", lambda: layers.BatchEnsembleDense(3, 2, factors="r")),
    "members that do not differ": (
        "factor_scale",
        lambda: convert.batch_ensemble(model(), 2, factor_scale=0),
    ),
    "members of layers that are not there": (
        "layers",
        lambda: convert.batch_ensemble(model(), 2, layers=["hidden"]),
    ),
    "members of a model that has them": (
        "model",
        lambda: convert.batch_ensemble(
            keras.Sequential([keras.Input((4,)), layers.BatchEnsembleDense(3, 2)]), 2
        ),
    ),
    "draws that members do not divide": (
        "num_samples",
        lambda: sample_predictions(
            keras.Sequential([keras.Input((4,)), layers.BatchEnsembleDense(3, 2)]), DATA[0], 5
        ),
    ),
    "draws of Student's t": ("objective", lambda: head(noise="student_t", objective="monte_carlo")),
    "one class of a density": ("units", lambda: layers.VBLLGenerativeDense(1, kl_weight=0.1)),
    "one class of a process": ("units", lambda: layers.SNGPDense(1)),
    "a momentum of 1": ("momentum", lambda: layers.SNGPDense(3, momentum=1.0)),
    "no bound of kernels": ("norm_bound", lambda: convert.spectral_normalize(model(), 0)),
    "a bound of unknown layers": (
        "layers",
        lambda: convert.spectral_normalize(model(), layers=["hidden"]),
    ),
    "a bound of no model": ("model", lambda: convert.spectral_normalize("model.keras")),
    "a Laplace head of weights that are none": (
        "data",
        lambda: convert.laplace_head(model(), (*DATA, np.zeros(4)), from_logits=True),
    ),
    "weights in one of the folds alone": (
        "data",
        lambda: convert.laplace_head(
            model(),
            (np.ones((10, 4)), np.arange(10) % 3, (np.arange(10) % 5 == 0) * 1.0),
            prior="cross-validation",
            from_logits=True,
        ),
    ),
    "words for numbers of a Laplace head": (
        "data",
        lambda: convert.laplace_head(
            model(kl.Dense(1, "sigmoid")), (DATA[0], np.array(["a", "b", "a", "b"]))
        ),
    ),
    "a Laplace head of a noisy one": (
        "model",
        lambda: convert.laplace_head(
            model(fa(logits_only=True, last_layer="vbll", kl_weight=0.1)), DATA
        ),
    ),
    "a plain copy of a noisy head": (
        "model",
        lambda: convert.to_deterministic(
            model(fa(logits_only=True, last_layer="vbll", kl_weight=0.1))
        ),
    ),
    "weights of a process in a noisy head": (
        "head",
        lambda: convert.replace_head(model(), fa(logits_only=True, last_layer="sngp")),
    ),
    "everything is dropped": ("rate", lambda: layers.MCGaussianDropout(1.0)),
    "flipout in a sequence": (
        "estimator",
        lambda: layers.LSTMVariational(3, kl_weight=0.1, estimator="flipout"),
    ),
    "no weight of the KL": ("kl_weight", lambda: layers.MultiHeadAttentionVariational(2, 3)),
}


@pytest.mark.parametrize("argument, call", ROWS.values(), ids=ROWS)
def test_refused(argument, call, counts):
    with pytest.raises(ValueError, match=f"Argument .*`{argument}`|`{argument}` "):
        call()
    counts("misuse rows, refused")
