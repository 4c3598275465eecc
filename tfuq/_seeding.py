"""Global random numbers from a seed, put back afterwards."""

import contextlib
import random

import keras
import numpy as np

# Nothing public says where these two keep their random state, and it has to be put back.
from keras.src.backend.common import global_state
from tensorflow.python.eager import context as eager_context


def seed_of(seed, number, purpose):
    """A seed of 32 bits for a member's building (purpose 0) or its n-th training (n)."""
    sequence = np.random.SeedSequence(seed, spawn_key=(number, purpose))
    return int(sequence.generate_state(1)[0])


@contextlib.contextmanager
def seeded(seed):
    """Starts all global random numbers from `seed`, and puts back what was there."""
    names = ("global_random_seed", "global_seed_generator")
    of_keras = {name: global_state.get_global_attribute(name) for name in names}
    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    context = eager_context.context()
    of_tensorflow = context._seed, getattr(context, "_rng", None)
    keras.utils.set_random_seed(seed)
    try:
        yield
    finally:
        context._set_global_seed(of_tensorflow[0])
        if of_tensorflow[1] is not None:
            context._rng = of_tensorflow[1]
        random.setstate(of_python)
        np.random.set_state(of_numpy)  # noqa: NPY002
        for name, value in of_keras.items():
            global_state.set_global_attribute(name, value)
