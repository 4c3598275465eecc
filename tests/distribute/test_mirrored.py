"""MirroredStrategy over several logical CPUs finds what one device finds on the same batches."""

import pathlib

import numpy as np
import processes
import pytest
from test_contract import LAYERS

from tfuq import layers

PROCESS = pathlib.Path(__file__).with_name("mirrored_process.py")
QUICK = ("vbll",)
NETWORKS = {"vbll", "vbll_low_rank", "variational", "sparse", "heteroscedastic", "converted"}


def run(path, devices, *cases):
    """`{case: (what one device found, what all of them found)}`."""
    done = processes.run(PROCESS, devices, path, *cases)
    assert done.returncode == 0, done.stderr
    found = {}
    for key, array in np.load(path).items():
        case, which, name = key.split("/", 2)
        found.setdefault(case, {}).setdefault(which, {})[name] = array
    return {case: (both["one"], both["all"]) for case, both in found.items()}


def assert_agree(found):
    for case, (one, several) in found.items():
        assert set(one) == set(several)
        if case in NETWORKS:
            has_kl = any(name.startswith("kl/") for name in one)
            assert has_kl == (case != "heteroscedastic")
        if "predict" in one:
            assert np.ptp(one["predict"]) > 0
        for name, expected in one.items():
            np.testing.assert_allclose(
                several[name], expected, rtol=2e-4, atol=2e-5, err_msg=f"{case}: {name}"
            )


@pytest.mark.slow
def test_four_devices_find_what_one_finds(tmp_path, counts):
    found = run(tmp_path / "found.npz", 4, *QUICK)
    assert set(found) == set(QUICK)
    assert_agree(found)
    counts("networks alike on several devices and one", len(found))


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 4])
def test_layers_conversions_and_ensembles_agree(tmp_path, devices, counts):
    found = run(tmp_path / "found.npz", devices)
    parts = {case.removeprefix("layer:") for case in found if case.startswith("layer:")}
    assert set(found) - {f"layer:{name}" for name in parts} == {*NETWORKS, "ensemble"}
    tested = {each.layer.__name__ for each in LAYERS if each.name in parts}
    assert set(layers.__all__) <= tested
    assert_agree(found)
    counts("networks alike on several devices and one", len(found))
    print(f"{devices} devices and one agree: {', '.join(sorted(found))}")
