"""A wheel in clean environments: other versions of Python, and the lowest versions of packages.

    python tests/versions.py [--folder DIR] [--wheel FILE] [3.10 3.12 3.13 lowest]

Of each the wheel with its extra `serving` is installed, and no more; `tests/smoke.py` runs; with
the extra `examples` the server answers photographs, the JPEG files of scikit-learn, and README's
snippets run; and then, with pytest, a slice of the tests from a folder without the source. A Python
that is not there is skipped by name. Ends with an error, and the end of its log, if one failed.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[1]
NAMES = ("3.10", "3.11", "3.12", "3.13", "lowest")
LOWEST = "3.10"  # with which the lowest versions run
SLICE = (  # not serving/: its servers are those of the source; tests/smoke.py has one of the wheel
    "metrics/test_scoring.py",
    "layers/test_vbll.py",
    "selective/test_rule.py",
)
LOGGED = 40  # lines of a log that are shown: a folder of its own is gone at the end
NEEDED = ("pytest>=8,<9", "hypothesis>=6.100")


def interpreter(version):
    """Path of a Python of that version, None if there is none."""
    root = pathlib.Path(os.environ.get("PYENV_ROOT", pathlib.Path.home() / ".pyenv"))
    found = sorted(root.glob(f"versions/{version}.*/bin/python"))
    if found:
        return str(found[-1])
    found = shutil.which(f"python{version}")
    works = found and subprocess.run([found, "-c", ""], capture_output=True).returncode == 0
    return found if works else None


def lowest_versions(text):
    """Constraints `name==version`, of the requirements in a setup.py."""
    required = re.search(r"install_requires=\[(.*?)\n    \]", text, re.DOTALL).group(1)
    found = re.findall(r'"([\w-]+)(?:\[\w+\])?>=([\d.]+)"', required)
    return [f"{name}=={version}{'.*' * (version.count('.') < 2)}" for name, version in found]


def run(words, log, **options):
    """Whether a command ended well; what it printed goes to the log."""
    with open(log, "a", encoding="utf-8") as file:
        print("$", *words, file=file, flush=True)
        done = subprocess.run(words, stdout=file, stderr=subprocess.STDOUT, **options)
    return done.returncode == 0


def tried(name, wheel, folder):
    """What became of one environment, in words."""
    python = interpreter(LOWEST if name == "lowest" else name)
    if python is None:
        return f"skipped: no Python {name} here"
    home, log = folder / name, folder / f"{name}.log"
    shutil.rmtree(home, ignore_errors=True)
    log.unlink(missing_ok=True)
    here = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    env = {**here, "PYTHONDONTWRITEBYTECODE": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    constraints = folder / f"{name}.txt"
    lowest = lowest_versions((ROOT / "setup.py").read_text(encoding="utf-8"))
    constraints.write_text("\n".join(lowest if name == "lowest" else []), encoding="utf-8")
    tool = str(home / "venv" / "bin" / "python")
    install = [tool, "-m", "pip", "install", "--quiet", "--no-compile", "-c", str(constraints)]
    copied = shutil.copytree(folder / "project", home / "project")
    tests = [f"tests/{each}" for each in SLICE]
    steps = {
        "venv": [python, "-m", "venv", str(home / "venv")],
        "install": [*install, f"{wheel}[serving]"],
        "smoke": [tool, "tests/smoke.py"],
        "install examples": [*install, f"{wheel}[serving,examples]"],
        "photographs": [tool, "tests/smoke.py", "--photo"],
        "README": [tool, "tests/smoke.py", "--readme"],
        "install pytest": [*install, *NEEDED],
        "tests": [tool, "-m", "pytest", "-q", "-m", "not slow", "-W", "default", *tests],
    }
    for step, words in steps.items():
        if not run(words, log, cwd=copied, env=env):
            end = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOGGED:]
            return "\n".join([f"FAILED at {step}: see {log}, which ends:", *end])
    said = log.read_text(encoding="utf-8")
    smoke = re.findall(r"^smoke: right\. (.*);", said, re.MULTILINE)
    passed = re.findall(r"^.*\d+ passed.*$", said, re.MULTILINE)
    told = re.findall(r"^tfuq --help: .*$", said, re.MULTILINE)
    return f"right: {smoke[-1]}; {told[-1]}; {passed[-1].strip('= ')}"


def keep_tests(folder):
    """What the environments run, as it is when the wheel is built: the last begins much later."""
    copied = folder / "project"
    shutil.rmtree(copied, ignore_errors=True)
    for each in ("tests", "examples"):  # without the package, so that the wheel is what runs
        shutil.copytree(ROOT / each, copied / each)
    for each in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / each, copied)


def built(folder):
    """A wheel of the source, in `folder`."""
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder)]
    subprocess.run([*build, str(ROOT)], check=True)
    return max(folder.glob("tfuq-*.whl"), key=os.path.getmtime)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="VERSION", help=", ".join(NAMES))
    parser.add_argument("--folder", type=pathlib.Path, help="kept afterwards")
    parser.add_argument("--wheel", type=pathlib.Path, help="a wheel that is there, not a new one")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"VERSION must be among {', '.join(NAMES)}: {', '.join(unknown)}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = (options.folder or pathlib.Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        wheel = options.wheel.resolve() if options.wheel else built(folder)
        keep_tests(folder)
        failed = False
        for name in options.names or NAMES:
            start = time.time()
            said = tried(name, wheel, folder)
            failed |= said.startswith("FAILED")
            print(f"{name:7} {said} ({time.time() - start:.0f} s)", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
