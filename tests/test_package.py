"""The package as an index and a stranger get it: metadata, description, source, policies."""

import ast
import fnmatch
import importlib.util
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest
import yaml

import tfuq

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def given():
    """The arguments of `setup(...)`."""
    import setuptools

    found = {}
    real, setuptools.setup = setuptools.setup, found.update
    try:
        spec = importlib.util.spec_from_file_location("setup_of_tfuq", ROOT / "setup.py")
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    finally:
        setuptools.setup = real
    return found


def test_the_description_has_no_relative_links(given):
    """Each link and picture of README is absolute, and its target is there."""
    text = given["long_description"]
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert len(links) > 10
    assert all(re.match("https?://|#", link) for link in links)
    home = given["url"]
    own = [link.removeprefix(home) for link in links if link.startswith(home + "/")]
    assert any(link.startswith("/raw/main/") and link.endswith(".png") for link in own)
    for link in own:
        assert re.match("/(raw|blob)/main/", link), link
        assert (ROOT / re.sub("^/(raw|blob)/main/|#.*", "", link)).exists(), link
    assert re.sub(r"https?://\S+?/(raw|blob)/main/", "", text) == (ROOT / "README.md").read_text()


def test_metadata(given):
    assert given["version"] == tfuq.__version__
    assert given["author"] and {"Source", "Issues", "Changelog"} <= set(given["project_urls"])
    assert all(url.startswith(given["url"]) for url in given["project_urls"].values())
    assert (ROOT / "tfuq" / "py.typed").is_file()
    assert "py.typed" in given["package_data"]["tfuq"]
    assert "Typing :: Typed" in given["classifiers"]


def test_extras_have_what_is_imported(given):
    """Of `serving`: each package that its files import is a requirement."""
    named = {re.match(r"[\w-]+", word).group() for word in given["extras_require"]["serving"]}
    named |= {re.match(r"[\w-]+", word).group() for word in given["install_requires"]}
    known = {"PIL": "pillow", "starlette": "fastapi", "h11": "uvicorn", "tfuq": "numpy"}
    for path in (ROOT / "tfuq" / "serving").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [node.module] if isinstance(node, ast.ImportFrom) else ()
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else names
            for name in names:
                top = name.partition(".")[0]
                assert top in sys.stdlib_module_names or known.get(top, top) in named, name


def test_the_source_distribution_takes_what_tests_need():
    """Every file of the repository is in it, but for what only the repository needs."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("no repository here")
    lines = [line.split() for line in (ROOT / "MANIFEST.in").read_text().splitlines() if line]
    grafted = {words[1] for words in lines if words[0] == "graft"}
    included = {word for words in lines if words[0] == "include" for word in words[1:]}
    included |= {"setup.py", "pyproject.toml", "MANIFEST.in"}  # of themselves
    suffixes = {word for words in lines if words[0] == "recursive-include" for word in words[2:]}
    for name in listed.stdout.splitlines():
        top = name.partition("/")[0]
        if top == "tfuq":
            assert (
                name.endswith(".py")
                or name in included
                or any(fnmatch.fnmatch(name, f"*{suffix.lstrip('*')}") for suffix in suffixes)
            ), name
        elif ("/" not in name and name.startswith(".")) or top == ".github":
            continue  # settings of git and of hosts
        elif "/" in name:
            assert top in grafted, name
        else:
            assert name in included or name.startswith("mkdocs"), name
    assert all((ROOT / name).exists() for name in grafted | included)


def test_the_built_wheel_has_types_and_nothing_else(tmp_path):
    """Built as pip builds it: the package, no tests, no examples."""
    source = tmp_path / "source"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "tfuq", source / "tfuq", ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    build = "import setuptools.build_meta as b; b.build_wheel('..')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "tfuq/py.typed" in names and "tfuq/serving/command.py" in names
    assert any(name.startswith("tfuq/report/") and name.endswith(".css") for name in names)
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {"tfuq"}


def test_citation():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == tfuq.__version__ and cited["cff-version"] == "1.2.0"
    assert cited["license"] == "Apache-2.0" and cited["authors"] and cited["title"]
    assert cited["repository-code"] in (ROOT / "setup.py").read_text()


def test_security_and_policies_are_written_down():
    security = (ROOT / "SECURITY.md").read_text()
    for link in re.findall(r"\]\(([^)\s]+)\)", security):
        assert (ROOT / link).exists(), link
    assert "A SavedModel is code" in security
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    policy = changelog.partition("## Unreleased")[0]
    assert "DeprecationWarning" in policy and "semantic versioning" in policy
    assert re.findall(r"^## (.+)$", changelog, re.MULTILINE)[0] == "Unreleased"
    assert "## 0.1.0" in changelog


@pytest.mark.slow
def test_the_examples_have_the_types_of_the_package():
    """`make types`, where mypy is."""
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("mypy is not installed: it comes with the extra `dev`")
    files = sorted(map(str, (ROOT / "examples").glob("*.py")))
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *files], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def script_of_versions():
    spec = importlib.util.spec_from_file_location("versions", ROOT / "tests" / "versions.py")
    versions = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(versions)
    return versions


COMPILES = """
import pathlib, sys, warnings
warnings.simplefilter("error")
for path in pathlib.Path(sys.argv[1]).rglob("*.py"):
    compile(path.read_text(encoding="utf-8"), str(path), "exec")
print(*sys.version_info[:2], sep=".")
"""


@pytest.mark.dear
@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13"])
def test_each_python_reads_the_source_and_answers_help(version):
    """What CI has time for of `make test-versions`: without any package of theirs."""
    python = script_of_versions().interpreter(version)
    if python is None:
        pytest.skip(f"no Python {version} here")
    for words, says in (
        (["-c", COMPILES, str(ROOT / "tfuq")], version),
        (["-S", "-m", "tfuq", "--help"], "serve"),
    ):
        done = subprocess.run([python, *words], cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert says in done.stdout


def test_versions_script():
    """The lowest versions are those of setup.py; names that are unknown are refused."""
    versions = script_of_versions()
    text = (ROOT / "setup.py").read_text()
    lowest = versions.lowest_versions(text)
    assert "keras==3.10.*" in lowest and "tensorflow-probability==0.25.*" in lowest
    assert len(lowest) == 5
    assert versions.tried.__doc__ and versions.interpreter("2.99") is None
    assert all((ROOT / "tests" / each).is_file() for each in versions.SLICE)
    with pytest.raises(SystemExit):
        versions.main(["4.0"])
