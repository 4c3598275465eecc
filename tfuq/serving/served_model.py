"""An exported model as TensorFlow alone loads it, its files checked first."""

import hashlib
import json
import pathlib

import numpy as np
import tensorflow as tf

FORMAT = 1
OWN_HASH = "sha256_of_metadata"


def read_metadata(folder):
    """What `metadata.json` says of a model; ValueError unless files are as they were written."""
    folder = pathlib.Path(folder)
    metadata = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
    if metadata["format"] != FORMAT:
        raise ValueError(f"{folder} holds a model of format {metadata['format']}, not {FORMAT}")
    rest = {key: value for key, value in metadata.items() if key != OWN_HASH}
    text = json.dumps(rest, sort_keys=True).encode()
    if hashlib.sha256(text).hexdigest() != metadata[OWN_HASH]:
        raise ValueError(f"{folder / 'metadata.json'} was altered")
    for name, expected in metadata["files"].items():
        if hash_of(folder / name) != expected["sha256"]:
            raise ValueError(f"{folder / name} was altered")
    return metadata


def hash_of(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


class ServedModel:
    """A SavedModel of `tfuq.export`, of one input, that gives one decision for each.

    Attributes:
        metadata: The content of `metadata.json`.
        of_numbers: Whether it is a regression, of one number.
        shape: Shape of one input, None for an axis of any length.
        dtype: NumPy dtype of the inputs.

    Raises:
        ValueError: If a file was altered, or the model has several inputs or decisions.
        OSError: If a file is missing.
    """

    def __init__(self, folder):
        self.metadata = read_metadata(folder)
        signature = self.metadata["signature"]["inputs"]
        self.of_numbers = self.metadata.get("family") is not None
        outputs = self.metadata["outputs"]
        columns = outputs["mean" if self.of_numbers else "probabilities"]["shape"]
        accept = columns if self.of_numbers else outputs.get("accept", {"shape": [None]})["shape"]
        if len(signature) != 1 or len(columns) != 2 or accept[1:] not in ([], [1]):
            raise ValueError(
                f"{folder} must hold a model of one input that gives one decision for each. "
                f"It has the inputs {list(signature)}, and `accept` has shape {accept}"
            )
        ((self._name, spec),) = signature.items()
        self._batch_size, *shape = spec["shape"]
        self.shape, self.dtype = tuple(shape), np.dtype(spec["dtype"])
        self.num_classes = None if self.of_numbers else max(columns[-1], 2)
        self._loaded = tf.saved_model.load(str(folder))  # to be kept: its weights go with it
        self._serve = self._loaded.signatures["serving_default"]

    def predict(self, inputs):
        """Outputs `{name: array (batch, ...)}` for a list of inputs of one shape."""
        size = self._batch_size or len(inputs)
        found = [self._outputs(inputs[i : i + size], size) for i in range(0, len(inputs), size)]
        return {name: np.concatenate([part[name] for part in found]) for name in found[0]}

    def _outputs(self, inputs, size):
        """Of one batch; a model of a fixed batch size gets what is missing as repetitions."""
        batch = np.stack([*inputs, *[inputs[-1]] * (size - len(inputs))])
        outputs = self._serve(**{self._name: tf.constant(batch, self.dtype)})
        return {name: value.numpy()[: len(inputs)] for name, value in outputs.items()}
