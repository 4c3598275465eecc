"""The contract of layers: one answer in any model, batch, precision, compilation and device."""

import functools
import json
import random
import tempfile
import warnings

import keras
import numpy as np
import tensorflow as tf
from contract import (
    KINDS,
    POLICIES,
    arrays,
    assert_close,
    assert_finite,
    copy_variables,
    functional,
    perturb,
    policy,
    subclassed,
    tensors,
    two_devices,
    whole,
)
from keras import ops


def fit_must_learn(model, case, batch=32):
    x, y = case.data(model, batch)
    epochs = 12 if "dropout" in case.kwargs else 4  # losses of dropped units vary
    before = [weight.numpy() for weight in model.trainable_weights]
    loss = model.fit(x, y, batch_size=8, epochs=epochs, verbose=0).history["loss"]
    assert np.isfinite(loss).all() and loss[-1] < loss[0], loss
    for old, weight in zip(before, model.trainable_weights, strict=True):
        moved = np.any(old != weight.numpy())
        assert moved != (weight.name in case.idle), f"{weight.path} moved: {moved}"
    assert_finite(model.trainable_weights)
    return x, y


def compile_for(model, case, **kwargs):
    model.compile(keras.optimizers.SGD(0.1), case.target.loss(from_logits=True), **kwargs)
    return model


def layer_trains(case, kind, jit):
    model = compile_for(KINDS[kind](case), case, jit_compile=jit)
    x, y = fit_must_learn(model, case)
    assert np.isfinite(model.evaluate(x, y, verbose=0))
    predicted = model.predict(x, verbose=0)
    assert_finite(predicted)
    if case.repeats:  # what was compiled says what runs line by line
        assert_close(predicted, model(x), 1e-4)


def layer_mixed_precision(case, name):
    reference = whole(case)
    with policy(name):
        model = whole(case)
    assert {weight.dtype for weight in model.weights if "float" in weight.dtype} <= {"float32"}
    copy_variables(reference, model)
    x = case.inputs()
    outputs = tensors(model(x))
    assert_finite(outputs)
    dtypes = [keras.backend.standardize_dtype(tensor.dtype) for tensor in outputs]
    assert dtypes == [tensor.dtype for tensor in model.outputs]
    if case.repeats:  # 2^-8 is the relative rounding of bfloat16
        assert_close(outputs, reference(x), 0.05)


def layer_trains_in_mixed_precision(case, name, jit=False):
    with policy(name):
        model = compile_for(functional(case), case, jit_compile=jit)
    fit_must_learn(model, case)
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (name == "mixed_float16")


def declared(case, shape, found):
    """What a layer says its shape is; Keras' EinsumDense says None where its argument does."""
    is_open = case.is_twin and "output_shape" in case.kwargs
    pairs = zip(shape, found, strict=True)
    return tuple(n if known is None and is_open else known for known, n in pairs)


def layer_output_spec(case):
    layer, x = case.make(), case.inputs(3)
    spec = layer.compute_output_spec(keras.KerasTensor((3, *case.shape)))
    outputs = layer(x)
    assert type(outputs).__name__ == type(spec).__name__ or not isinstance(outputs, tuple)
    for output, expected in zip(tensors(outputs), tensors(spec), strict=True):
        assert tuple(output.shape) == declared(case, expected.shape, output.shape)
        assert keras.backend.standardize_dtype(output.dtype) == expected.dtype
    if "tfuq.layers" in type(layer).__module__:
        shapes = case.make().compute_output_shape((3, *case.shape))
        found = tuple(n for t in tensors(outputs) for n in t.shape)
        assert declared(case, keras.tree.flatten(shapes), found) == found
    assert all(tensor.shape[0] is None for tensor in whole(case).outputs)


def layer_config(case):
    layer = case.make()
    config = layer.get_config()
    for name in case.kwargs:
        assert name in config
    json.dumps(config)
    again = type(layer).from_config(config)
    assert again.get_config() == config
    whole_again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert whole_again.get_config() == config


def layer_batches(case):
    """Any batch, one example and none: an example's answer is its own."""
    model = whole(case)
    perturb(model)
    x = case.inputs()
    outputs = arrays(model(x))
    if case.repeats:
        assert_close(model(x[:1]), [array[:1] for array in outputs])
        assert_close(model(x[::-1]), [array[::-1] for array in outputs])
        # Three equal batches are one trace; batches that differ are those of `model` above.
        predicted = [model.predict(x, batch_size=3, verbose=0) for _ in range(2)]
        assert_close(predicted[0], outputs)
        np.testing.assert_equal(*map(arrays, predicted))
    # Last, because training moves what batch normalization predicts with.
    for training in (False, True) if case.takes_none else ():
        nothing = arrays(model(x[:0], training=training))
        assert [array.shape for array in nothing] == [(0, *a.shape[1:]) for a in outputs]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*trains only the first 1")  # nothing trains here
        assert_finite(model(x[:1], training=True))


def layer_batches_compiled(case):
    model = whole(case)
    call = tf.function(
        model, jit_compile=True, input_signature=[tf.TensorSpec((None, *case.shape), "float32")]
    )
    for batch in (5, 1, 0) if case.takes_none else (5, 1):
        x = case.inputs(5)[:batch]
        outputs = call(x)
        assert all(tensor.shape[0] == batch for tensor in tensors(outputs))
        if case.repeats:
            assert_close(outputs, model(x), 1e-4)


def layer_unknown_extents(case):
    for shape in case.more_shapes:
        model = whole(case, (None,) * (len(shape) - 1) + shape[-1:])
        for extra in (0, 4):  # a U-Net halves twice
            larger = (*(extent + extra for extent in shape[:-1]), shape[-1])
            x = case.inputs(2, larger)
            outputs = model.predict(x, verbose=0)
            assert_finite(outputs)
            expected = tensors(model.layers[-1].compute_output_spec(keras.KerasTensor(x.shape)))
            for array, spec in zip(arrays(outputs), expected, strict=True):
                assert array.shape == declared(case, spec.shape, array.shape)


def layer_gradients(case):
    """Of the inputs and of all weights, and no weight is hidden from Keras."""
    model = functional(case)
    x, y = case.data(model)
    x = tf.constant(x)
    loss_of = case.target.loss(from_logits=True)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = loss_of(y, model(x, training=True)) + sum(model.losses)
    tracked = {id(variable.value) for variable in model.trainable_variables}
    assert all(id(variable) in tracked for variable in tape.watched_variables())
    sources = {"inputs": x, **{v.path: v.value for v in model.trainable_variables}}
    for path, gradient in tape.gradient(loss, sources).items():
        assert gradient is not None, f"{path} has no gradient"
        assert_finite(gradient)
        idle = path.split("/")[-1] in case.idle
        assert np.any(gradient != 0) != idle, f"the gradient of {path} is zero: {not idle}"


def global_randomness():
    """Fingerprints of Python's, NumPy's, TensorFlow's and Keras' global random states."""
    from keras.src.random.seed_generator import global_seed_generator

    numpy_state = np.random.get_state()  # noqa: NPY002 (the global state is what is looked at)
    return {
        "python": random.getstate(),
        "numpy": (numpy_state[1].tolist(), numpy_state[2:]),
        "tensorflow": tf.random.get_global_generator().state.numpy().tolist(),
        "keras": ops.convert_to_numpy(global_seed_generator().state).tolist(),
    }


def layer_leaves_global_seeds(case):
    layer, x = case.make(), case.inputs()
    tf.random.set_seed(1)
    expected = [tf.random.uniform([]).numpy() for _ in range(2)]
    tf.random.set_seed(1)
    drawn = [tf.random.uniform([]).numpy()]
    before = global_randomness()
    layer(x)
    before["python"] = random.getstate()  # Keras' own initializers seed themselves from it
    layer(x), layer(x, training=True)
    assert global_randomness() == before
    drawn.append(tf.random.uniform([]).numpy())
    assert drawn == expected, "TensorFlow's global seed or its counter was touched"


def layer_two_devices(case):
    single = compile_for(functional(case), case, jit_compile=False)
    with two_devices().scope():
        mirrored = compile_for(functional(case), case)
    copy_variables(single, mirrored)
    # Of 33 the last batch leaves the second device without an example.
    x = case.inputs(33 if case.takes_none else 32)
    if case.repeats:
        assert_close(mirrored.predict(x, batch_size=8, verbose=0), single(x))
    fit_must_learn(mirrored, case, batch=len(x))


def layer_subclassed_weights(case):
    model, fresh = subclassed(case), subclassed(case)
    perturb(model)
    with tempfile.TemporaryDirectory() as folder:
        model.save_weights(f"{folder}/a.weights.h5")
        fresh.load_weights(f"{folder}/a.weights.h5")
    for old, new in zip(model.weights, fresh.weights, strict=True):
        np.testing.assert_array_equal(old, new)
    if case.repeats:
        assert_close(fresh(case.inputs()), model(case.inputs()))


def keras_layer_test(case):
    """Keras' own test of a layer. Private, so its absence is a failure that says so."""
    try:
        from keras.src.testing import TestCase
    except ImportError as error:
        raise AssertionError(
            f"keras {keras.__version__} has no keras.src.testing.TestCase: find where "
            "run_layer_test went and mend this import, the only one"
        ) from error

    class Runner(TestCase):
        def runTest(self):
            pass

    with warnings.catch_warnings():  # it fits from a generator, and layers without weights
        warnings.filterwarnings("ignore", message="`shuffle=True` was passed")
        warnings.filterwarnings("ignore", message="The model does not have any trainable weights")
        Runner().run_layer_test(case.layer, case.kwargs, input_shape=(2, *case.shape))


# What makes up the plain life of a layer, in less than a second a check.
PLAIN_CHECKS = {
    "output_spec": layer_output_spec,
    "config": layer_config,
    "batches": layer_batches,
    "gradients": layer_gradients,
    "global_seeds": layer_leaves_global_seeds,
    "subclassed_weights": layer_subclassed_weights,
    "mixed_float16": functools.partial(layer_mixed_precision, name="mixed_float16"),
    "functional_plain": functools.partial(layer_trains, kind="functional", jit=False),
}
# Other ways to run it, which trace or compile for seconds each.
WAYS = {
    "unknown_extents": layer_unknown_extents,
    "keras_layer_test": keras_layer_test,
    "mixed_bfloat16": functools.partial(layer_mixed_precision, name="mixed_bfloat16"),
    **{
        f"{name}_trains": functools.partial(layer_trains_in_mixed_precision, name=name)
        for name in POLICIES
    },
    "two_devices": layer_two_devices,
    "functional_jit": functools.partial(layer_trains, kind="functional", jit=True),
    "sequential_plain": functools.partial(layer_trains, kind="sequential", jit=False),
    "subclassed_plain": functools.partial(layer_trains, kind="subclassed", jit=False),
    "batches_jit": layer_batches_compiled,
}
LAYER_CHECKS = {**PLAIN_CHECKS, **WAYS}
# XLA and another way at once, for one case of each family: those that share a base class.
FAMILY_CHECKS = {
    "sequential_jit": functools.partial(layer_trains, kind="sequential", jit=True),
    "subclassed_jit": functools.partial(layer_trains, kind="subclassed", jit=True),
    **{
        f"{name}_jit": functools.partial(layer_trains_in_mixed_precision, name=name, jit=True)
        for name in POLICIES
    },
}
# Of the first case of each class; the checks of `PLAIN_CHECKS` that train or build two networks
# are of the first case of each family.
CLASS_CHECKS = ("output_spec", "config", "batches", "gradients", "global_seeds", "mixed_float16")
# Of further cases of a class, and of twins, those that see what arguments change.
FURTHER_CASE_CHECKS = ("config", "gradients")


def layer_checks(cases):
    """Every check to run, as `(case, name, check, whether it is slow)`.

    `make test` runs the plain checks of the first case of each family, most of them of the first
    of each class, those of `WAYS` for the cases that are examples, and a few of every other case.
    The rest is slow.
    """
    layers, families = set(), set()
    for case in cases:
        quick = set(FURTHER_CASE_CHECKS)
        if case.layer not in layers and not case.is_twin:
            quick |= set(CLASS_CHECKS)
        if case.is_example:
            quick |= set(LAYER_CHECKS)
        layers.add(case.layer)
        checks = LAYER_CHECKS
        family = case.layer.__bases__[0]
        if family not in families and not case.is_twin:
            families.add(family)
            quick |= set(PLAIN_CHECKS)
            checks = {**LAYER_CHECKS, **FAMILY_CHECKS}
        for name, check in checks.items():
            yield case, name, check, name not in quick


# Of whole networks, which consist of layers that `layer_checks` has seen.
NETWORK_CHECKS = {
    "batches": layer_batches,
    "functional_plain": functools.partial(layer_trains, kind="functional", jit=False),
    "gradients": layer_gradients,
    "subclassed_weights": layer_subclassed_weights,
    "global_seeds": layer_leaves_global_seeds,
    **{name: LAYER_CHECKS[name] for name in POLICIES},
    **{name: check for name, check in WAYS.items() if name != "keras_layer_test"},
    "sequential_jit": FAMILY_CHECKS["sequential_jit"],
    "subclassed_jit": FAMILY_CHECKS["subclassed_jit"],
}


def network_checks(cases):
    """Every check of whole networks, as `(case, name, check, whether it is slow)`."""
    for case in cases:
        for name, check in NETWORK_CHECKS.items():
            yield case, name, check, not (case.is_example and name == "batches")
