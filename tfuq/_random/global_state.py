"""Global random numbers from a seed, put back afterwards."""

import contextlib
import random
import threading

import keras
import numpy as np

# Nothing public says where these keep their random state, and it has to be put back.
from keras.src.backend.common import global_state
from tensorflow.python.eager import context as eager_context
from tensorflow.python.ops import stateful_random_ops

_LOCK = threading.RLock()


def derived_seed(seed, number, purpose):
    """A seed of 32 bits for a member's building (purpose 0) or its n-th training (n)."""
    sequence = np.random.SeedSequence(seed, spawn_key=(number, purpose))
    return int(sequence.generate_state(1)[0])


@contextlib.contextmanager
def seeded(seed):
    """Starts all global random numbers from `seed`, and puts back what was there."""
    with kept_random_state():
        keras.utils.set_random_seed(seed)
        yield


@contextlib.contextmanager
def kept_random_state():
    """Puts all global random numbers back to where they are now, when it closes.

    One thread at a time, since all have the same.
    """
    with _LOCK, _kept():
        yield


@contextlib.contextmanager
def _kept():
    names = ("global_random_seed", "global_seed_generator")
    of_keras = {name: global_state.get_global_attribute(name) for name in names}
    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    context = eager_context.context()
    seed, numbers = context._seed, getattr(context, "_rng", None)
    of_context = numbers and numbers.getstate()
    generator = stateful_random_ops.global_generator
    found = [each.state for each in (of_keras["global_seed_generator"], generator) if each]
    states = [(variable, keras.ops.convert_to_numpy(variable)) for variable in found]
    try:
        yield
    finally:
        if getattr(context, "_rng", None) is not numbers:  # a new seed was set
            context._set_global_seed(seed)
        if numbers is not None:
            context._rng = numbers
            numbers.setstate(of_context)
        stateful_random_ops.global_generator = generator
        for variable, value in states:
            variable.assign(value)
        random.setstate(of_python)
        np.random.set_state(of_numpy)  # noqa: NPY002
        for name, value in of_keras.items():
            global_state.set_global_attribute(name, value)
