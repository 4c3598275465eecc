"""The rows of `benchmarks/methods.py`: how each method is built, trained and asked.

Each is the same network: a hidden layer of 128 units on frozen features, and a head. What a row is
tuned by is its `knob`. All have the same penalties of weights to choose from, where the method has
no prior that is one: rows with a knob of their own try two values of it without a penalty, and the
better with each of the others. Then the best of these with a third of the steps: with noisy labels
that is what early stopping would do; and, in rows whose knob is one of eight values, with two
thirds, so that all have ten trials. What is not named is tfuq's default.
"""

import collections
import functools
import pathlib
import tempfile

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from keras.ops import convert_to_numpy
from scipy.special import softmax

from tfuq import convert
from tfuq import layers as uncertain
from tfuq.callbacks import SGDR, PosteriorMean, SaliencySelection, SnapshotEnsemble
from tfuq.ensembles import DeepEnsemble
from tfuq.optimizers import IVON
from tfuq.predictive import decompose, predict_uncertainty
from tfuq.selective import TemperatureScaling

HIDDEN, STEPS, RATE = 128, 960, 1e-3
STAGES = 12  # of equal length, which callbacks see as epochs; one call of a graph does a stage
ASKED = 1000  # rows at a time
MEMBERS, CYCLES, DRAWS, FACTORS, TRAIN_SAMPLES = 5, 4, 30, 6, 32

Row = collections.namedtuple("Row", ["kind", "knob", "values"])
# kind: "fit" trains; others are made of the networks of "Dense", whose choice they share.
PENALTIES = 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0  # the L2 that all rows try, beside none
L2, TEMPERATURE = (0.0, *PENALTIES), (0.5, 1.0)
PRIOR, SHORT_PRIOR = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0), (0.3, 1.0)
TRIALS = 10


class Plan(collections.namedtuple("Plan", "value l2 stages seed examples classes")):
    """What a network is built and trained by."""

    @property
    def batch(self):
        return int(np.clip(self.examples // 8, 16, 128))

    @property
    def kl_weight(self):
        return 1 / self.examples


def sequential(features, *parts):
    return keras.Sequential([keras.Input((features,)), *parts])


@keras.saving.register_keras_serializable("evidence")
class Penalty(keras.Regularizer):
    """An L2 penalty whose weight is a variable: a network that is traced can be given another."""

    def __init__(self, weight):
        self.weight = tf.Variable(weight, trainable=False, dtype="float32")

    def __call__(self, x):
        return self.weight * tf.reduce_sum(tf.square(x))

    def get_config(self):
        return {"weight": float(self.weight.numpy())}


def penalty(plan):
    return Penalty(plan.l2)


def penalties(model):
    """The penalties of a model's kernels, in layers and in what is wrapped by others."""
    found = (getattr(layer, "kernel_regularizer", None) for layer in model._flatten_layers())
    return [each for each in found if isinstance(each, Penalty)]


def hidden(plan):
    return layers.Dense(HIDDEN, "relu", kernel_regularizer=penalty(plan))


def dense(features, plan):
    head = layers.Dense(plan.classes, kernel_regularizer=penalty(plan))
    return sequential(features, hidden(plan), head)


def dropout(features, plan):
    head = layers.Dense(plan.classes, kernel_regularizer=penalty(plan))
    return sequential(features, hidden(plan), uncertain.MCDropout(plan.value), head)


def vbll(features, plan):
    head = uncertain.VBLLDense(
        plan.classes, kl_weight=plan.kl_weight, prior_scale=plan.value, seed=plan.seed
    )
    return sequential(features, hidden(plan), head)


def noisy(features, plan, factors, **options):
    head = uncertain.MCSoftmaxDenseFA(
        plan.classes, min(factors, plan.classes), plan.value, logits_only=True,
        train_mc_samples=TRAIN_SAMPLES, seed=plan.seed, kernel_regularizer=penalty(plan), **options,
    )  # fmt: skip
    return sequential(features, hidden(plan), head)


def noisy_vbll(features, plan):
    return noisy(features, plan, FACTORS, last_layer="vbll", kl_weight=plan.kl_weight)


def noisy_features(features, plan):
    head = uncertain.MCSoftmaxDenseXL(
        plan.classes, FACTORS, plan.value, logits_only=True, train_mc_samples=TRAIN_SAMPLES,
        seed=plan.seed,
    )  # fmt: skip
    return sequential(features, hidden(plan), head)


def sngp(features, plan):
    norm = layers.LayerNormalization()
    head = uncertain.SNGPDense(plan.classes, num_features=512, seed=plan.seed)
    model = sequential(features, hidden(plan), norm, head)
    return convert.spectral_normalize(model, plan.value, layers=[model.layers[0].name])


def sparse(features, plan, share):
    make = functools.partial(
        uncertain.SparseBayesDense,
        r_bayes=share,
        kl_weight=plan.kl_weight,
        prior_scale=plan.value,
        kernel_regularizer=penalty(plan),
    )
    return sequential(features, make(HIDDEN, activation="relu"), make(plan.classes))


def bayesian(features, plan):
    make = functools.partial(
        uncertain.DenseVariational, kl_weight=plan.kl_weight, prior_scale=plan.value
    )
    return sequential(features, make(HIDDEN, activation="relu"), make(plan.classes))


def members(features, plan):
    make = functools.partial(uncertain.BatchEnsembleDense, num_members=4, seed=plan.seed)
    first = make(HIDDEN, activation="relu", kernel_regularizer=penalty(plan))
    return sequential(features, first, make(plan.classes, kernel_regularizer=penalty(plan)))


BUILD = {
    "Dense": dense,
    "label smoothing": dense,
    "MC dropout": dropout,
    "VBLL": vbll,
    "HET diagonal": functools.partial(noisy, factors=0),
    "HET full": functools.partial(noisy, factors=FACTORS),
    "HET-XL": noisy_features,
    "VBLL + HET": noisy_vbll,
    "SNGP": sngp,
    "sparse Bayes 0.1 %": functools.partial(sparse, share=0.001),
    "sparse Bayes 1 %": functools.partial(sparse, share=0.01),
    "sparse Bayes 20 %": functools.partial(sparse, share=0.2),
    "fully Bayesian": bayesian,
    "IVON": dense,
    "snapshots": dense,
    "BatchEnsemble": members,
}
ROWS = {
    "Dense": Row("fit", "L2", L2),
    "temperature scaling": Row("of Dense", "", ()),
    "label smoothing": Row("fit", "smoothing", (0.05, 0.2)),
    "MC dropout": Row("fit", "rate", (0.2, 0.5)),
    "VBLL": Row("fit", "prior scale", SHORT_PRIOR),
    "HET diagonal": Row("fit", "temperature", TEMPERATURE),
    "HET full": Row("fit", "temperature", TEMPERATURE),
    "HET-XL": Row("fit", "temperature", TEMPERATURE),
    "VBLL + HET": Row("fit", "temperature", TEMPERATURE),
    "SNGP": Row("fit", "norm bound", (1.0, 6.0)),
    "Laplace": Row("of Dense", "", ()),
    "fully Bayesian": Row("fit", "prior scale", PRIOR),
    "IVON": Row("fit", "learning rate", (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)),
    "snapshots": Row("fit", "L2", L2),
    "BatchEnsemble": Row("fit", "L2", L2),
    "deep ensemble": Row("of Dense", "", ()),
    "sparse Bayes 1 %": Row("fit", "prior scale", SHORT_PRIOR),
    "sparse Bayes 20 %": Row("fit", "prior scale", SHORT_PRIOR),
    "sparse Bayes 0.1 %": Row("fit", "prior scale", SHORT_PRIOR),
}


def optimizer_of(row, plan):
    return IVON(plan.value, plan.examples, seed=plan.seed) if row == "IVON" else "adam"


def loss_of(row, plan):
    if row != "label smoothing":
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=plan.value)


def trials(row, plan, best):
    """Plans to compare: `best()`, when it is asked, is the best of those before."""
    spec = ROWS[row]
    for value in spec.values:
        yield plan._replace(value=value, l2=value if spec.knob == "L2" else 0.0)
    chosen = best()
    if len(spec.values) == 2:
        yield from (chosen._replace(l2=l2) for l2 in PENALTIES)
        chosen = best()
    yield chosen._replace(stages=max(1, plan.stages // 3))
    if len(spec.values) > 2:
        yield chosen._replace(stages=max(1, 2 * plan.stages // 3))


def started(row, features, plan, graphs):
    """A compiled network with weights of `plan.seed`: one of `graphs`, if it is there, set anew."""
    keras.utils.set_random_seed(plan.seed)
    fresh = BUILD[row](features, plan)
    is_ivon, is_variable = row == "IVON", ROWS[row].knob in ("L2", "learning rate")
    key = row, None if is_variable else plan.value, plan.seed if is_ivon else None
    if key not in graphs:
        compiled(fresh, optimizer_of(row, plan), loss_of(row, plan))
        if not is_ivon:
            fresh.optimizer.learning_rate = RATE
        fresh.optimizer.build(fresh.trainable_variables)
        graphs[key] = fresh, [convert_to_numpy(v).copy() for v in fresh.optimizer.variables]
        return fresh
    model, states = graphs[key]
    for each in penalties(model):
        each.weight.assign(plan.l2)
    for old, new in zip(model.layers, fresh.layers, strict=True):
        for variable, value in zip(old.variables, new.variables, strict=True):
            variable.assign(value)
    for variable, value in zip(model.optimizer.variables, states, strict=True):
        variable.assign(value)
    if is_ivon:
        model.optimizer.learning_rate = plan.value
    return model


def compiled(model, optimizer, loss):
    """The model, told to do a stage in one call."""
    model.compile(optimizer, loss, jit_compile=False, steps_per_execution=steps_of_stage())
    return model


def steps_of_stage():
    return max(1, STEPS // STAGES)


def train(model, x, y, plan, callbacks=()):
    """Trains for `plan.stages`: the rows in an order that follows from the seed, epoch by epoch."""
    steps = plan.stages * steps_of_stage()
    epochs, rng = -(-steps * plan.batch // len(x)), np.random.default_rng(plan.seed)
    order = np.concatenate([rng.permutation(len(x)) for _ in range(epochs)])
    order = order[: steps * plan.batch].reshape(steps, plan.batch)
    x, y = tf.constant(x), tf.constant(y)
    data = tf.data.Dataset.from_tensor_slices(order)
    data = data.map(lambda rows: (tf.gather(x, rows), tf.gather(y, rows)))
    options = {"epochs": plan.stages, "steps_per_epoch": steps_of_stage(), "verbose": 0}
    return model.fit(data, callbacks=list(callbacks), shuffle=False, **options)


def fitted(row, x, y, plan, watch=None, graphs=None):
    """A network, trained; of "snapshots" the ensemble of its cycles.

    `graphs`: a dictionary of networks that are traced already; what it gives it may train again.
    """
    model = started(row, x.shape[1], plan, {} if graphs is None else graphs)
    y = keras.utils.to_categorical(y, plan.classes) if row == "label smoothing" else y
    callbacks = [] if watch is None else [watch]
    if row == "IVON":
        callbacks.append(PosteriorMean())
    if row.startswith("sparse"):
        callbacks.append(selection(x, y, plan))
    if row != "snapshots":
        train(model, x, y, plan, callbacks)
        return model
    with tempfile.TemporaryDirectory() as folder:
        kept = SnapshotEnsemble(pathlib.Path(folder) / "kept")
        cycles = SGDR(RATE, cycle_length=plan.stages / CYCLES, cycle_mult=1)
        train(model, x, y, plan, [*callbacks, cycles, kept])
        return kept.ensemble()


def selection(x, y, plan):
    """After a third of the steps, by the gradients of as many rows as a stage has."""
    count = steps_of_stage() * plan.batch
    data = x[:count], y[:count]
    return SaliencySelection(data, max(1, plan.stages // 3), batch_size=plan.batch)


def made_of(row, network, x, y, validation):
    """What is made of a trained network of "Dense" without training it on."""
    if row == "Laplace":
        return convert.laplace_head(network, (x, y), batch_size=ASKED, from_logits=True)
    rows, labels = validation
    logits = network.predict(rows, batch_size=ASKED, verbose=0)
    return network, TemperatureScaling(from_logits=True).fit(logits, labels)


def asked(model, x, seed=0, draws=None):
    """What a method says of rows: mean probabilities and mutual information.

    Of as many draws as tfuq takes by itself, 30, or the next multiple of the members of its layers.
    """
    count = len(x)
    x = np.resize(x, (-(-count // ASKED) * ASKED, x.shape[1]))  # whole batches: one shape to trace
    if isinstance(model, tuple):
        logits = model[0].predict(x, batch_size=ASKED, verbose=0)
        return softmax(np.asarray(model[1](logits)), axis=-1)[:count], np.zeros(count)
    if isinstance(model, DeepEnsemble):
        found = decompose(model.predict(x, batch_size=ASKED, verbose=0))
    else:
        options = {"batch_size": ASKED, "from_logits": True, "seed": seed}
        options |= {} if draws is None else {"num_samples": draws}
        found = predict_uncertainty(model, x, **options)
    return np.asarray(found.probs)[:count], np.asarray(found.mutual_information)[:count]
