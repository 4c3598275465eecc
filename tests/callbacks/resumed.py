"""What tests of killed trainings share: running them, and comparing what they left to the bit."""

import json

import h5py
import processes


def run(script, folder, kills, seed=0):
    """Runs `script`, which trains in `folder` in peace and with so many kills."""
    done = processes.run(script, folder, kills, seed)
    assert done.returncode == 0, done.stderr


def arrays(path):
    """All that is in a file of weights, by name."""
    found = {}

    def note(name, item):
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]

    with h5py.File(path) as file:
        file.visititems(note)
    return found


def assert_same_bits(path, other):
    found, expected = arrays(path), arrays(other)
    assert found.keys() == expected.keys()
    for name, array in found.items():
        assert array.dtype == expected[name].dtype, name
        assert array.tobytes() == expected[name].tobytes(), name


def listed(folder):
    return [
        entry["file"] for entry in json.loads((folder / "snapshots.json").read_text())["snapshots"]
    ]
