"""A mark planted on one class: maps point at it, and its removal brings the accuracy back."""

import numpy as np
import pytest
from test_ood_example import ROOT, load_script

from tfuq.interpret import grad_cam, occlusion


@pytest.fixture(scope="module")
def example():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "examples"))
        yield load_script("examples/why_it_errs.py")


def test_ham10000(example):
    """Ink on all nevi in training; on all other lesions in the test.

    The network with ink answers nevus wherever there is ink; without the ink it is as good as one
    that has never seen any. Accuracies have a standard error of 1.8 points (800 images).
    """
    folder = example.base.default_folder()
    if not (folder / example.FILE).exists():
        pytest.skip(f"needs {example.FILE} in {folder}: set TFUQ_DATA to its folder")
    settings = example.Settings(epochs=6, width=8, stages=2)
    data = example.load_lesions(folder)
    rows = np.random.default_rng(0).permutation(len(data.train[0]))[:1000]
    train, test = (tuple(array[rows] for array in data.train), tuple(a[:800] for a in data.test))
    data = data._replace(train=train, test=test)
    nevus = data.names.index("nv")
    train, test, where = example.inked(data, nevus)
    with_ink = example.train_network(*train, settings, seed=0)
    assert example.accuracy(with_ink, *test) < 0.15
    chosen = np.flatnonzero(where.any(axis=(1, 2)))[:50]
    x, where = test[0][chosen], where[chosen]
    assert example.share_pointing_at(grad_cam(with_ink, x, nevus), where) > 0.9
    maps = occlusion(with_ink, x, 8, 4, x.mean(axis=(0, 1, 2)), class_index=nevus)
    assert example.share_pointing_at(maps, where) > 0.9
    clean = example.accuracy(example.train_network(*data.train, settings, seed=0), *data.test)
    removed = example.train_network(example.without_ink(train[0]), train[1], settings, seed=0)
    assert example.accuracy(example.behind_removal(removed), *test) > clean - 0.07
