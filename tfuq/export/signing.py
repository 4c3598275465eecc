"""Signatures of exports: who wrote a model, where hashes only say that it is whole.

Signed are the metadata, which hold the hashes of all files, with Ed25519 of the package
cryptography. A key is made by OpenSSL:

    openssl genpkey -algorithm ed25519 -out key.pem
    openssl pkey -in key.pem -pubout -out public.pem
"""

import base64
import pathlib

from tfuq._arguments import shown
from tfuq._files.reading import DAMAGE, json_text, read_json
from tfuq._files.writing import written_whole
from tfuq.export._files import metadata_of, read_metadata

ALGORITHM = "ed25519"


def signature_of(path):
    """Where the signature of an export is: beside its metadata."""
    beside = metadata_of(pathlib.Path(path))
    return beside.with_name(f"{beside.name}.sig")


def sign(path, key):
    """Signs an export that is whole with the private key in the PEM file `key`."""
    private = private_key(key)
    read_metadata(path)
    signature = private.sign(metadata_of(pathlib.Path(path)).read_bytes())
    content = {"algorithm": ALGORITHM, "signature": base64.b64encode(signature).decode()}
    with written_whole(signature_of(path)) as file:
        file.write_text(json_text(content) + "\n", encoding="utf-8")


def check_signature(path, key):
    """Raises ValueError unless the owner of the public key in the file `key` signed an export."""
    public = public_key(key)
    file = signature_of(path)
    if not file.is_file():
        raise ValueError(
            "Argument `path` must be an export that was signed (`tfuq export --sign KEY`). "
            f"Received: path={str(path)!r}, without {file.name}"
        )
    try:
        content = read_json(file)
        signature = base64.b64decode(content["signature"], validate=True)
        is_known = content["algorithm"] == ALGORITHM
    except DAMAGE:
        is_known, signature = False, b""
    from cryptography.exceptions import InvalidSignature

    try:
        public.verify(signature, metadata_of(pathlib.Path(path)).read_bytes())
    except InvalidSignature:
        is_known = False
    if not is_known:
        raise ValueError(
            "Argument `path` must be signed by the owner of the key and unchanged since. "
            f"Received: path={str(path)!r}, key={shown(str(key))}"
        )


def private_key(path):
    """The private Ed25519 key of a PEM file without a password, or a ValueError."""
    return _key(path, "load_pem_private_key", "private", password=None)


def public_key(path):
    """The public Ed25519 key of a PEM file, or a ValueError."""
    return _key(path, "load_pem_public_key", "public")


def _key(path, loader, kind, **options):
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise ImportError(
            'Signatures need the package cryptography: pip install "tfuq[signing]"'
        ) from error
    try:
        key = getattr(serialization, loader)(pathlib.Path(path).read_bytes(), **options)
    except OSError:
        raise
    except Exception as error:  # cryptography raises of all kinds at what is no key
        raise ValueError(
            f"Argument `key` must be a PEM file of a {kind} key of Ed25519, without a password. "
            f"Received: key={str(path)!r} ({error})"
        ) from error
    name = f"Ed25519{kind.capitalize()}Key"
    if not isinstance(key, getattr(ed25519, name)):
        raise ValueError(
            f"Argument `key` must be a {kind} key of Ed25519. Received: key={str(path)!r}, "
            f"a {type(key).__name__}"
        )
    return key
