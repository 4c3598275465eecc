"""Cards, signatures and keys that are damaged, missing or another's: each in one clear sentence."""

import json
import shutil

import keras
import pytest

from tfuq.cli import main
from tfuq.export import export
from tfuq.export.signing import sign

pytest.importorskip("cryptography")
CARD = "MODEL_CARD.md"


def write_keys(folder):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

    pem, kind = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    none = serialization.NoEncryption()
    for name in ("own", "other"):
        key = ed25519.Ed25519PrivateKey.generate()
        (folder / f"{name}.pem").write_bytes(key.private_bytes(pem, kind, none))
        (folder / f"{name}.pub").write_bytes(key.public_key().public_bytes(pem, form))
    large = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
    (folder / "rsa.pub").write_bytes(large.public_bytes(pem, form))
    whole = (folder / "own.pub").read_bytes()
    (folder / "cut.pub").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.pub").write_bytes(b"")
    (folder / "text.pub").write_text("no key")
    (folder / "folder.pub").mkdir()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Two exports that are signed, and keys of all kinds."""
    folder = tmp_path_factory.mktemp("signed")
    write_keys(folder)
    for number, name in enumerate(("m", "other")):
        keras.utils.set_random_seed(number)
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "softmax")])
        export(model, folder / name, card={"use": f"the {name} one"})
        sign(folder / name, folder / "own.pem")
    return folder


@pytest.fixture
def copy(written, tmp_path):
    shutil.copytree(written / "m", tmp_path / "m")
    return tmp_path / "m"


def cut(name, at=0.5):
    def damage(path, _):
        whole = (path / name).read_bytes()
        (path / name).write_bytes(whole[: int(at * len(whole))])

    return damage


def without(name):
    return lambda path, _: (path / name).unlink()


def of_another(name):
    return lambda path, written: shutil.copy(written / "other" / name, path / name)


def texts(name, text):
    return lambda path, _: (path / name).write_text(text)


def with_algorithm(path, _):
    file = path / "metadata.json.sig"
    file.write_text(json.dumps({**json.loads(file.read_text()), "algorithm": "none"}))


SIGNED = "must be signed by the owner of the key"
DAMAGES = {  # what happens to the folder, and what the sentence says
    "a card that was changed": (texts(CARD, "It was tested everywhere."), f", {CARD} "),
    "a card that was cut off": (cut(CARD), f", {CARD} "),
    "a card that is empty": (texts(CARD, ""), f", {CARD} "),
    "a card of another model": (of_another(CARD), f", {CARD} "),
    "no card": (without(CARD), f"no {CARD}"),
    "metadata of another model": (of_another("metadata.json"), "altered|truncated|missing|signed"),
    "metadata that were cut off": (cut("metadata.json"), "metadata"),
    "a graph that was cut off": (cut("saved_model.pb"), "saved_model.pb truncated"),
    "no graph": (without("saved_model.pb"), "no saved_model.pb|did not write"),
    "no signature": (without("metadata.json.sig"), "without metadata.json.sig"),
    "a signature of another model": (of_another("metadata.json.sig"), SIGNED),
    "a signature that was cut off": (cut("metadata.json.sig"), SIGNED),
    "a signature that is empty": (texts("metadata.json.sig", ""), SIGNED),
    "a signature that is a list": (texts("metadata.json.sig", "[]"), SIGNED),
    "a signature of no letters": (
        texts("metadata.json.sig", '{"algorithm": "ed25519", "signature": 3}'),
        SIGNED,
    ),
    "a signature of no algorithm": (with_algorithm, SIGNED),
    "a signature that is no text": (
        lambda path, _: (path / "metadata.json.sig").write_bytes(b"\xff\xfe\0"),
        SIGNED,
    ),
}
KEYS = {
    "other.pub": SIGNED,
    "own.pem": "must be a PEM file of a public key",
    "rsa.pub": "must be a public key of Ed25519",
    "cut.pub": "must be a PEM file of a public key",
    "empty.pub": "must be a PEM file of a public key",
    "text.pub": "must be a PEM file of a public key",
    "folder.pub": "folder.pub",
    "missing.pub": "missing.pub",
}


def refused(path, key, says, capfd):
    """`tfuq verify` and `tfuq predict` end with 2 and one line that says so."""
    for command in (("verify",), ("predict", path.parent / "d.npz", path.parent / "o.csv")):
        given = [command[0], path, *command[1:], "--key", key]
        capfd.readouterr()
        assert main([str(each) for each in given]) == 2
        said = [line for line in capfd.readouterr().err.splitlines() if line]
        assert len(said) == 1 and "Traceback" not in said[0], said
        assert any(word in said[0] for word in says.split("|")), said
    assert not (path.parent / "o.csv").exists()


@pytest.mark.parametrize("damage", DAMAGES)
def test_is_named_in_one_sentence(damage, written, copy, capfd, counts):
    change, says = DAMAGES[damage]
    change(copy, written)
    refused(copy, written / "own.pub", says, capfd)
    counts("files of exports, all refused")


@pytest.mark.parametrize("key", KEYS)
def test_keys_that_do_not_fit(key, written, copy, capfd, counts):
    refused(copy, written / key, KEYS[key], capfd)
    counts("files of exports, all refused")


def test_what_is_whole_is_told(written, copy, capfd):
    assert main(["verify", str(copy), "--key", str(written / "own.pub")]) == 0
    assert "signed     by the key" in capfd.readouterr().out
