"""Two tutorials as the notebooks that the site offers, in a real Jupyter kernel.

Skips, saying so, where the site is not built, or nbclient or ipykernel is not installed.
"""

import importlib.util
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
DOWNLOADS = ROOT / "docs" / "_build" / "html" / "_downloads"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DOWNLOADS.exists(), reason="`make docs` has not been run"),
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in ("nbclient", "ipykernel")),
        reason="needs the packages nbclient and ipykernel",
    ),
]
# What a cell must have printed: a sentence of the rule, a figure.
TUTORIALS = {
    "01_first_rejection": "are wrong",
    "04_threshold_for_a_colleague": "of 100 cases",
}


def executed(path, folder):
    """The notebook after all of its cells ran in `folder`, in a kernel of this Python."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    options = {"timeout": 900, "kernel_name": "python3"}
    return NotebookClient(notebook, resources={"metadata": {"path": folder}}, **options).execute()


def outputs(notebook):
    return [each for cell in notebook.cells for each in cell.get("outputs", ())]


@pytest.mark.parametrize("name", TUTORIALS)
def test_runs_in_jupyter(name, tmp_path, monkeypatch):
    """No cell fails (nbclient would raise), figures stand in the notebook, words are printed."""
    paths = list(DOWNLOADS.rglob(f"{name}.ipynb"))
    assert len(paths) == 1, "the site offers no notebook, or several"
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the notebook draws into itself
    found = outputs(executed(paths[0], str(tmp_path)))
    assert any("image/png" in each.get("data", {}) for each in found)
    said = "".join(each["text"] for each in found if each.output_type == "stream")
    assert TUTORIALS[name].lower() in said.lower()


def test_a_cell_that_fails_is_found(tmp_path):
    import nbformat
    from nbclient.exceptions import CellExecutionError

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("nothing_of_the_kind")])
    path = tmp_path / "wrong.ipynb"
    nbformat.write(notebook, path)
    with pytest.raises(CellExecutionError, match="NameError"):
        executed(path, str(tmp_path))
