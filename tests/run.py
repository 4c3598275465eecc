"""Runs the tests in forks of one process that has imported all there is to import.

    python tests/run.py [-n WORKERS] [pytest's options] [files and folders]

Importing TensorFlow takes seconds, and a process that builds and traces models grows by some 40 MB
with each and gives nothing back. So this process imports, once, and does nothing more; each file of
tests runs in a fork of it, and `PARTS = 3` in a file shares its tests among three. A fork starts in
a tenth of a second, knows nothing of the other files, and takes its memory with it. What tests
start themselves is forked as well (see `processes.py`).
"""

import collections
import faulthandler
import gc
import importlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback

import costs
import processes
import pytest
from quick import SPANNING

TESTS = pathlib.Path(__file__).parent
PACKAGES = {
    "keras": ("tensorflow", "keras"),
    "tfuq": (
        *("numpy", "scipy.stats", "scipy.optimize", "scipy.ndimage", "matplotlib.pyplot"),
        *("sklearn.metrics", "sklearn.linear_model", "PIL.Image", "skimage.exposure"),
        *("imblearn.over_sampling", "tensorflow_datasets"),
        *("hypothesis.internal.observability", "hypothesis.strategies"),
        *("tfuq", "tfuq.plots", "tfuq.report", "tfuq.cli", "tfuq.export"),
    ),
}
# Not `onnxruntime`, which starts threads, nor plugins of pytest, which must be imported by pytest.
PLUGINS = {"hypothesis": "_hypothesis_pytestplugin"}  # by the word in a file that asks for it
COUNTED = "counted: "  # begins the user properties that `counts` of conftest.py writes
PATIENCE = 3600  # seconds after which a process that hangs says where, and ends
GIGABYTE = 2**20  # in the kilobytes of `ru_maxrss`


class Tally:
    """A plugin of pytest that remembers what the summary of all processes needs."""

    def __init__(self, part, parts):
        self.part, self.parts = part, parts
        self.outcomes, self.counted, self.reasons, self.durations, self.cpu = (
            collections.Counter() for _ in range(5)
        )

    def found(self):
        names = ("outcomes", "counted", "reasons", "durations", "cpu")
        return {name: getattr(self, name) for name in names}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        """Keeps the part of the file that this process runs; a group has the first to itself."""
        if self.parts == 1:
            return
        grouped = [item for item in items if item.get_closest_marker("xdist_group")]
        free = [item for item in items if item not in set(grouped)]
        part, parts = (self.part - 1, self.parts - 1) if grouped else (self.part, self.parts)
        start, stop = (len(free) * index // parts for index in (part, part + 1))
        items[:] = grouped if part < 0 else free[start:stop]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        """Measures what `--costs` writes: see costs.py."""
        since = time.process_time()
        found = yield
        if not item.get_closest_marker("every_case"):
            self.cpu[item.nodeid] = time.process_time() - since
        return found

    def pytest_deselected(self, items):
        self.outcomes["deselected"] += len(items) if self.part == 0 else 0

    def pytest_collectreport(self, report):
        self._count(report, "collect")

    def pytest_runtest_logreport(self, report):
        self._count(report, report.when)
        self.durations[report.nodeid] += report.duration
        for name, number in report.user_properties if report.when == "teardown" else ():
            if name.startswith(COUNTED):
                self.counted[name.removeprefix(COUNTED)] += number

    def _count(self, report, when):
        if report.skipped:
            is_expected = hasattr(report, "wasxfail")
            self.outcomes["xfailed" if is_expected else "skipped"] += 1
            if not is_expected:
                self.reasons[report.longrepr[2].removeprefix("Skipped: ")] += 1
        elif report.failed:
            self.outcomes["failed" if when == "call" else "errors"] += 1
        elif when == "call":
            self.outcomes["xpassed" if hasattr(report, "wasxfail") else "passed"] += 1


def units(paths):
    """`(file, part, parts)` of all that is to run, what takes longest first as far as is known."""
    files = []
    for path in map(pathlib.Path, paths or [TESTS]):
        files += sorted(path.rglob("test_*.py")) if path.is_dir() else [path]
    found = []
    for file in dict.fromkeys(files):
        path = pathlib.Path(str(file).split("::")[0])
        if not path.is_file():
            sys.exit(f"There is no file {path}.")
        text = path.read_text()
        declared = re.search(r"^PARTS = (\d+)", text, re.MULTILINE)
        parts = int(declared.group(1)) if declared else 1
        found += [(len(text), str(file), part, parts) for part in range(parts)]
    return [unit for _, *unit in sorted(found, key=_rank)]


def _rank(unit):
    length, file, _, parts = unit
    return -parts, not SPANNING & set(pathlib.Path(file).parts), -length


def plugins_of(file):
    """Options for the plugins that a file needs; loading all that are installed takes a second."""
    text = pathlib.Path(file.split("::")[0]).read_text()
    return [option for word, name in PLUGINS.items() if word in text for option in ("-p", name)]


def run_unit(file, part, parts, options, folder):
    """Runs tests in this process and ends it; beside what it says it writes the `Tally`."""
    status = 3
    try:
        said = os.open(folder / "said", os.O_WRONLY | os.O_CREAT)
        for number in (1, 2):
            os.dup2(said, number)
        faulthandler.dump_traceback_later(PATIENCE, exit=True)
        tally = Tally(part, parts)
        arguments = [*options, *plugins_of(file), f"--basetemp={folder / 'tmp'}", file]
        status = int(pytest.main(arguments, plugins=[tally]))
        (folder / "tally.json").write_text(json.dumps(tally.found()))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # what ends a process belongs to the one that imported all


class Run:
    """All units, `workers` at a time."""

    def __init__(self, options, workers, folder):
        self.options, self.workers, self.folder = options, workers, pathlib.Path(folder)
        self.running, self.failed, self.usage = {}, [], []
        self.totals = Tally(0, 1)

    def go(self, todo):
        for index, unit in enumerate(todo):
            if len(self.running) >= self.workers:
                self.wait()
            self.fork(unit, self.folder / f"{index:03d}")
        while self.running:
            self.wait()

    def fork(self, unit, folder):
        folder.mkdir()
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            run_unit(*unit, self.options, folder)
        self.running[pid] = (unit, folder, time.monotonic())

    def wait(self):
        """Waits for one process, whichever ends first, and adds up what it did."""
        pid, status, used = os.wait4(-1, 0)
        if pid not in self.running:  # the server of processes
            return
        (file, part, parts), folder, since = self.running.pop(pid)
        name = file + (f" ({part + 1} of {parts})" if parts > 1 else "")
        code, tally = os.waitstatus_to_exitcode(status), folder / "tally.json"
        self.usage.append((used.ru_utime + used.ru_stime, used.ru_maxrss / GIGABYTE, name))
        if tally.exists():
            found = json.loads(tally.read_text())
            for each, counter in self.totals.found().items():
                counter.update(found[each])
            said = ", ".join(f"{n} {word}" for word, n in found["outcomes"].items())
        else:
            said = f"ended with status {code}"
        shutil.rmtree(folder / "tmp", ignore_errors=True)
        if code not in (0, 5):  # 5: all tests were deselected
            self.failed.append(name)
            print((folder / "said").read_text(errors="replace"))
        seconds, memory, _ = self.usage[-1]
        wall = time.monotonic() - since
        print(
            f"{name}: {said or 'nothing'}; {wall:.1f} s, CPU {seconds:.1f} s, {memory:.1f} GB",
            flush=True,
        )

    def summary(self, since):
        """Says what all processes did together."""
        totals = self.totals
        for title, counter in (("counts", totals.counted), ("skipped", totals.reasons)):
            if counter:
                print(f"\n{title}")
                for name, number in sorted(counter.items()):
                    print(f"  {number}  {name}")
        print("\nlongest")
        for name, seconds in totals.durations.most_common(10):
            print(f"  {seconds:.1f} s  {name}")
        for seconds, _, name in sorted(self.usage, reverse=True)[:10]:
            print(f"  {seconds:.1f} s of CPU  {name}")
        for _, memory, name in sorted(self.usage, key=lambda used: -used[1])[:3]:
            print(f"  {memory:.1f} GB  {name}")
        said = ", ".join(f"{number} {word}" for word, number in sorted(totals.outcomes.items()))
        cpu = sum(used[0] for used in self.usage)
        ordered = self.folder / processes.USED
        more = sum(map(float, ordered.read_text().split())) if ordered.exists() else 0.0
        seconds = f"CPU {cpu:.0f} s, and {more:.0f} s of processes that tests ordered"
        print(f"\n{said} in {time.monotonic() - since:.0f} s ({seconds})")
        for name in self.failed:
            print(f"FAILED {name}")


def keep_bytecode(folder):
    """Compiles what tests import once for all processes, also where Python writes no `.pyc`.

    Those that tests start themselves would compile all of TensorFlow, 15 seconds each.
    """
    if sys.dont_write_bytecode:
        sys.dont_write_bytecode, sys.pycache_prefix = False, str(folder)
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = str(folder)


def import_all(packages):
    """Imports what tests import; what is not installed is missed by those that need it."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError:
            continue


def split(arguments):
    """The number of workers, pytest's options and the paths of a command line."""
    workers, options, paths = os.cpu_count(), [], []
    arguments = iter(arguments)
    for argument in arguments:
        if argument == "-n":
            workers = int(next(arguments))
        elif argument in ("-m", "-k", "-p"):
            options += [argument, next(arguments)]
        else:
            (options if argument.startswith("-") else paths).append(argument)
    return workers, options, paths


def main(arguments):
    sys.path.insert(0, str(TESTS.resolve().parent))  # the tfuq beside these tests
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    for threads in ("TF_NUM_INTRAOP_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(threads, "1")  # of several workers more would wait for each other
    os.environ["MPLBACKEND"] = "Agg"
    since = time.monotonic()
    workers, options, paths = split(arguments)
    if not hasattr(os, "fork"):
        return subprocess.call([sys.executable, "-m", "pytest", *options, *paths])
    with tempfile.TemporaryDirectory(prefix="tfuq_tests_") as folder:
        keep_bytecode(pathlib.Path(folder) / "bytecode")
        processes.serve_tensorflow(folder)
        for world, packages in PACKAGES.items():
            import_all(packages)
            gc.freeze()  # or each fork looks through all of it, again and again
            gc.set_threshold(20_000, 20, 20)  # tracing a graph makes many objects that stay
            processes.serve(folder, world)
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        run = Run(options, workers, folder)
        run.go(units(paths))
        run.summary(since)
        if "--costs" in options:
            costs.write(run.totals.cpu)
    return 1 if run.failed or not run.totals.outcomes["passed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
