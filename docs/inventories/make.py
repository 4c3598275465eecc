"""Inventories of Keras, TensorFlow, NumPy and SciPy, made offline, for the links of the site.

    python docs/inventories/make.py

keras.io and tensorflow.org publish no inventory, and `make docs` must work offline. So each `.inv`
beside this file holds the names that docstrings and pages of tfuq write, with their addresses. The
table below has those of keras.io; the others follow from the name. A name without a page raises.
"""

import pathlib
import re
import zlib

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
NAME = re.compile(r"`((?:keras|tf|tfp|numpy|scipy)\.\w[\w.]*)(?:\(\))?`")
PROJECTS = {
    "keras": "https://keras.io/api/",
    "tensorflow": "https://www.tensorflow.org/",
    "numpy": "https://numpy.org/doc/stable/",
    "scipy": "https://docs.scipy.org/doc/scipy/",
}
# Base classes that the site names, though no docstring does.
BASES = (
    "keras.callbacks.Callback",
    "keras.constraints.Constraint",
    "keras.metrics.Metric",
    "keras.optimizers.Optimizer",
)
UNDOCUMENTED = {"keras.StatelessScope", "tf.data.Options.distribute_options"}
# The page of keras.io that documents what begins like this; the longest beginning decides.
KERAS = {
    "keras.Input": "layers/core_layers/input/",
    "keras.Model": "models/model/",
    "keras.Model.fit": "models/model_training_apis/",
    "keras.Sequential": "models/sequential/",
    "keras.applications": "applications/",
    "keras.callbacks": "callbacks/",
    "keras.callbacks.BackupAndRestore": "callbacks/backup_and_restore/",
    "keras.callbacks.Callback": "callbacks/base_callback/",
    "keras.callbacks.ProgbarLogger": "callbacks/progbar_logger/",
    "keras.callbacks.TerminateOnNaN": "callbacks/terminate_on_nan/",
    "keras.constraints": "layers/constraints/",
    "keras.layers": "layers/",
    "keras.layers.Conv1D": "layers/convolution_layers/convolution1d/",
    "keras.layers.Conv2D": "layers/convolution_layers/convolution2d/",
    "keras.layers.Conv2DTranspose": "layers/convolution_layers/convolution2d_transpose/",
    "keras.layers.Conv3D": "layers/convolution_layers/convolution3d/",
    "keras.layers.Dense": "layers/core_layers/dense/",
    "keras.layers.DepthwiseConv1D": "layers/convolution_layers/depthwise_convolution1d/",
    "keras.layers.DepthwiseConv2D": "layers/convolution_layers/depthwise_convolution2d/",
    "keras.layers.Dropout": "layers/regularization_layers/dropout/",
    "keras.layers.EinsumDense": "layers/core_layers/einsum_dense/",
    "keras.layers.GRU": "layers/recurrent_layers/gru/",
    "keras.layers.GaussianDropout": "layers/regularization_layers/gaussian_dropout/",
    "keras.layers.LSTM": "layers/recurrent_layers/lstm/",
    "keras.layers.Layer": "layers/base_layer/",
    "keras.layers.MultiHeadAttention": "layers/attention_layers/multi_head_attention/",
    "keras.layers.SeparableConv1D": "layers/convolution_layers/separable_convolution1d/",
    "keras.layers.SeparableConv2D": "layers/convolution_layers/separable_convolution2d/",
    "keras.layers.SimpleRNN": "layers/recurrent_layers/simple_rnn/",
    "keras.losses": "losses/",
    "keras.metrics": "metrics/",
    "keras.models.clone_model": "models/model_saving_apis/model_config_serialization/",
    "keras.models.load_model": "models/model_saving_apis/model_saving_and_loading/",
    "keras.ops": "ops/",
    "keras.optimizers": "optimizers/",
    "keras.saving": "models/model_saving_apis/serialization_utils/",
    "keras.utils": "utils/",
    "keras.utils.image_dataset_from_directory": "data_loading/image/",
}


def referred():
    """All names of these projects that code and pages write between backticks, sorted."""
    files = [*(ROOT / "tfuq").rglob("*.py"), *(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
    built = {"_build", "names", "scripts"}
    texts = [each.read_text(encoding="utf-8") for each in files if not built & {*each.parts}]
    written = {name for text in texts for name in NAME.findall(text)}
    return sorted(written - UNDOCUMENTED | {*BASES})


def address(name):
    """The project of a name, and its page below the project's address."""
    first, *rest = name.split(".")
    if first == "keras":
        known = [start for start in KERAS if f"{name}.".startswith(f"{start}.")]
        if not known:
            raise KeyError(f"{name}: say in KERAS which page documents it")
        return "keras", KERAS[max(known, key=len)]
    if first in ("tf", "tfp"):
        folder = "api_docs" if first == "tf" else "probability/api_docs"
        owner, last = rest[:-1], rest[-1]
        if owner and owner[-1][0].isupper():  # a method stands on the page of its class
            return "tensorflow", f"{folder}/python/{'/'.join([first, *owner])}#{last}"
        return "tensorflow", f"{folder}/python/{'/'.join([first, *rest])}"
    return first, f"reference/generated/{name}.html#{name}"


def contents(project):
    """The bytes of an inventory, as Sphinx reads them."""
    head = f"# Sphinx inventory version 2\n# Project: {project}\n# Version: \n"
    head += "# The remainder of this file is compressed using zlib.\n"
    lines = []
    for name in referred():
        owner, page = address(name)
        if owner == project:
            last = name.split(".")[-1]
            kind = "class" if last[0].isupper() else "function"
            lines.append(f"{name} py:{kind} 1 {page} -\n")
    return head.encode() + zlib.compress("".join(lines).encode(), 9)


def read(path):
    """What an inventory holds: the page of each name."""
    body = zlib.decompress(path.read_bytes().split(b"\n", 4)[4]).decode()
    return {line.split()[0]: line.split()[3] for line in body.splitlines()}


if __name__ == "__main__":
    for each in PROJECTS:
        (HERE / f"{each}.inv").write_bytes(contents(each))
