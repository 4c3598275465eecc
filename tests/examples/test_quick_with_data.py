"""Quick runs of the examples that take real files where they are: they end, draw, and say which."""

import os
import pathlib
import re
import sys

import pytest
from matplotlib.figure import Figure
from PIL import Image
from test_examples import ROOT, load_script

pytestmark = [pytest.mark.slow, pytest.mark.every_case]
FOLDER = pathlib.Path(os.environ.get("TFUQ_DATA") or ROOT.parent / "shared" / "data")
# Of each example the file that it takes, and what it says of that.
TAKES = {
    "diabetic_retinopathy": ("idrid_grading_128_jpeg.npz", "IDRiD, from"),
    "label_noise": ("cifar10_human.npz", r"CIFAR-10 with the labels .*, from"),
    "nuclei_count": ("dsb2018_nuclei_128_jpeg.npz", r"\| another kind \| 107 \|"),
    "sparse_bayes_classification": ("pneumoniamnist_28.npz", "pneumonia: .*(?s:.*)mean nothing"),
    "sparse_bayes_segmentation": ("dsb2018_nuclei_128_jpeg.npz", "nuclei: .*(?s:.*)mean nothing"),
}


@pytest.mark.parametrize("name", TAKES)
def test_ends_with_a_picture_that_says_what_it_is(name, tmp_path, monkeypatch, capsys):
    file, said = TAKES[name]
    if not (FOLDER / file).is_file():
        pytest.skip(f"needs {file}: name its folder in TFUQ_DATA")
    monkeypatch.setenv("TFUQ_DATA", str(FOLDER))
    monkeypatch.syspath_prepend(ROOT / "examples")
    titles = []
    suptitle = Figure.suptitle
    monkeypatch.setattr(
        Figure, "suptitle", lambda self, t, **kw: titles.append(t) or suptitle(self, t, **kw)
    )
    try:
        load_script(f"examples/{name}.py").main(["--quick", "--output", str(tmp_path)])
    finally:
        sys.modules.pop("_sparse_bayes", None)
    out = capsys.readouterr().out
    assert re.search(said, out) and "SYNTHETIC" not in out
    assert re.search(r"\b0?\.\d{2,}|\d %|\d%", out), "says no figure"
    pictures = list(tmp_path.glob("**/*.png"))
    assert len(pictures) == sum("means nothing" in title for title in titles)
    for picture in pictures:
        with Image.open(picture) as image:
            assert min(image.size) > 200 and len(image.convert("L").getcolors()) > 20
