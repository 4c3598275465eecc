"""What every test starts from: two logical CPUs, no display, a known seed, a float32 policy."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# One thread each, as there are as many workers as cores: more only wait for each other.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ["MPLBACKEND"] = "Agg"  # also for the processes that the tests start

import keras
import pytest
import tensorflow as tf

for name in ("", "_callbacks", "_layers", "_metrics", "_process"):
    pytest.register_assert_rewrite(f"contract{name}")

# Devices are fixed once TensorFlow has run anything, so this stands at import, in every worker.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


@pytest.fixture(autouse=True)
def known_start():
    """Gives every test the same seeds, and the default policy whatever the one before it did."""
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")
