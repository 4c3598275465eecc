"""What every test starts from: two logical CPUs, no display, a known seed, a float32 policy."""

import collections
import fnmatch
import os
import sys

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


FAST_XLA = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"

# Run by `make test-slow`: what takes seconds, and has a sibling in `make test` that would find most
# of the same faults.
SLOW = (
    "test_heteroscedastic.py::test_probabilities_agree*[[]*True-100]",
    "test_heteroscedastic.py::test_probabilities_agree*[[]1-False-100]",
    "test_heteroscedastic.py::test_training_samples_are_unbiased[[]True-*",
    "test_heteroscedastic.py::test_training_samples_are_unbiased*MCSigmoidDenseFA]",
    "test_rejection_scores.py::test_accepts_by*[[]predictive_entropy]",
    "test_rejection_scores.py::test_accepts_by*[[]variation_ratio]",
    "test_logistic_normal.py::test_noise_beyond*[[]True-sigmoid]",
    "test_predictive.py::test_samples_are_networks*[[]sequential]",
    "test_predictive.py::test_uncertainty_is_that*[[]sequential]",
    "test_saliency.py::test_deterministic_first_then_random[[]False]",
    "test_saliency.py::test_optimizer_keeps_its_state*[[]nadam-ema]",
    "test_saliency.py::test_several_steps*",
    "test_saliency.py::test_with_unfreezing*[[]layer]",
    "test_saliency.py::test_gradients_over_other_data_select[[]arrays]",
    "test_sparse_bayes.py::test_outputs_have_the_moments*[[]depthwise-*",
    "test_sparse_bayes_examples.py::test_segmentation_draws*",
    "test_posterior_sampling.py::test_step_is_the_mean*[[]options2-1]",
    "test_unfreezing.py::test_resumes_where_it_was[[]0-*",
    "test_contract.py::test_layer[[]clahe-functional_plain]",
    "test_contract.py::test_layer[[]clahe-mixed_float16]",
    "test_contract.py::test_layer[[]confounders-functional_plain]",
    "test_contract.py::test_layer[[]confounders-mixed_float16]",
    "test_contract.py::test_layer[[]gamma-two_devices]",
    "test_scalings.py::test_ride_in_a_model_into_a_new_process",
    "test_conformal.py::test_models_with_sets_live_on_in_a_new_process",
    "test_metric_streaming.py::test_graph_says_the_same*[[]True]",
)


def pytest_configure(config):
    """Leaves the graphs of `make test` as they are traced.

    They have a handful of operations, run a few times, and optimizing them takes a third of the
    time. `make test-slow` runs TensorFlow and XLA with all that users have.
    """
    if config.getoption("markexpr") != "slow":
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
        os.environ["XLA_FLAGS"] = FAST_XLA  # read when XLA is first used


def pytest_collection_modifyitems(items):
    for item in items:
        if any(fnmatch.fnmatchcase(item.nodeid, f"*{pattern}") for pattern in SLOW):
            item.add_marker(pytest.mark.slow)


COUNTED = "counted: "


@pytest.fixture
def counts(request):
    """`counts("kills", 4)`: how much a test has done, which the summary of the run adds up."""

    def add(name, number=1):
        request.node.user_properties.append((COUNTED + name, int(number)))

    return add


def pytest_terminal_summary(terminalreporter):
    """Tells the totals of `counts`; the reports have them from the workers too."""
    totals = collections.Counter()
    reports = (report for kind in terminalreporter.stats.values() for report in kind)
    for report in reports:
        if getattr(report, "when", None) == "teardown":  # each test has one, with all that it told
            for name, number in report.user_properties:
                if name.startswith(COUNTED):
                    totals[name.removeprefix(COUNTED)] += number
    if totals:
        terminalreporter.section("counts")
        for name, total in sorted(totals.items()):
            terminalreporter.line(f"{name}: {total}")


@pytest.fixture
def optimized_graphs():
    """For a test that counts what runs: Grappler drops what nobody asks for."""
    before = tf.config.optimizer.get_experimental_options()["disable_meta_optimizer"]
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False})
    yield
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": before})


@pytest.fixture(autouse=True)
def known_start():
    """Gives every test the same seeds, and the default policy whatever the one before it did."""
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture(autouse=True)
def figures_are_closed():
    """What examples and docstrings leave open in pyplot; more than 20 would be a warning."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
