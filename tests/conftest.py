"""What every test starts from: two logical CPUs, no display, a known seed, a float32 policy."""

import collections
import fnmatch
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# One thread each, as there are as many workers as cores: more only wait for each other.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ["MPLBACKEND"] = "Agg"  # also for the processes that the tests start

import costs
import keras
import pytest
import quick
import tensorflow as tf
from run import COUNTED

for name in ("", "_callbacks", "_layers", "_metrics", "_process"):
    pytest.register_assert_rewrite(f"contract{name}")

# Devices are fixed once TensorFlow has run anything, so this stands at import, in every worker.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


FAST_XLA = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def pytest_configure(config):
    """Leaves the graphs of `make test` as they are traced.

    They have a handful of operations, run a few times, and optimizing them takes a third of the
    time. `make test-slow` runs TensorFlow and XLA with all that users have.
    """
    if config.getoption("markexpr") != "slow":
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
        os.environ["XLA_FLAGS"] = FAST_XLA  # read when XLA is first used


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="what one runs while writing: quick.py")
    parser.addoption("--costs", action="store_true", help="measures what costs.py goes by")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    for item in items:
        case = item.callspec.id if hasattr(item, "callspec") else ""
        if item.get_closest_marker("dear"):
            item.add_marker(pytest.mark.slow)
        for mark in item.iter_markers("slow_cases"):
            if any(fnmatch.fnmatchcase(case, pattern) for pattern in mark.args):
                item.add_marker(pytest.mark.slow)
        if is_beyond(item) or is_beside_diagonal(item):
            item.add_marker(pytest.mark.slow)
    if not config.getoption("costs"):
        leave_out_what_costs(items)
    if config.getoption("quick"):
        chosen = quick.chosen(items)
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = [item for item in items if item in chosen]


def leave_out_what_costs(items):
    """Marks as slow the cases that are beyond the budget of their function: see costs.py."""
    fast = [item for item in items if not item.get_closest_marker("slow")]
    fast = [item for item in fast if not item.get_closest_marker("every_case")]
    names = [costs.function_of(item.nodeid) for item in fast]
    for place in costs.beyond_budget(names, costs.read()):
        fast[place].add_marker(pytest.mark.slow)


def is_beyond(item):
    """Whether `slow_after(n)` leaves a case out: any of its parameters is beyond the first n."""
    mark = item.get_closest_marker("slow_after")
    return mark is not None and any(place >= mark.args[0] for place, _ in places(item))


def is_beside_diagonal(item):
    """Whether `slow_product` leaves a case out: it keeps a diagonal that has each value once."""
    if item.get_closest_marker("slow_product") is None:
        return False
    found = places(item)
    longest = max(found, key=lambda each: each[1])[0]
    return any(place != longest % count for place, count in found)


def places(item):
    """Of each `parametrize` of a test, the place of this case and the number of all."""
    marks = list(item.iter_markers("parametrize"))
    first = marks[0].args[0]
    name = (first.split(",") if isinstance(first, str) else first)[0].strip()
    number, found = item.callspec.indices[name], []  # pytest counts cases through the product
    for mark in reversed(marks):  # the one on top changes fastest
        number, place = divmod(number, len(mark.args[1]))
        found.append((place, len(mark.args[1])))
    return found


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
