"""tfuq: uncertainty for Keras 3 models on TensorFlow.

`tfuq.layers` holds what stands in for Keras' own layers, `tfuq.losses` the losses of numbers with
intervals, `tfuq.convert` puts layers into a trained model, `tfuq.predictive` draws networks and
decomposes their uncertainty, `tfuq.ensembles` trains several, `tfuq.training`, `tfuq.callbacks` and
`tfuq.optimizers` make training rapid, `tfuq.ood` detects inputs that are out of distribution,
`tfuq.corruptions` corrupts images, `tfuq.preprocessing` prepares them, `tfuq.metrics` measures,
`tfuq.selective` decides, `tfuq.interpret` explains, `tfuq.plots` (extra `plots`) draws,
`tfuq.report` writes one page for a person, `tfuq.datasets` loads.
"""

import importlib
import pathlib
import sys

from tfuq._version import __version__


def _is_command():
    """Whether this process is `tfuq` or `python -m tfuq`, which must answer `--help` at once."""
    started = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1]
    by_name = pathlib.Path(sys.argv[0] or "-").name in ("tfuq", "tfuq.exe", "tfuq-script.py")
    return by_name or (sys.argv[0] == "-m" and started[-2:] == ["-m", "tfuq"])


# Imported here, not on first use: importing registers the classes with Keras, so that `import
# tfuq` is all that `keras.models.load_model` needs. In the process of the command `tfuq` alone
# `__main__` does so, once it knows that it is not asked for help.
if not _is_command():
    from tfuq import (
        callbacks,
        convert,
        corruptions,
        datasets,
        distribute,
        ensembles,
        export,
        interpret,
        layers,
        losses,
        metrics,
        ood,
        optimizers,
        predictive,
        preprocessing,
        report,
        selective,
        training,
    )
    from tfuq.callbacks.lr_sweep import lr_range_test
    from tfuq.layers.kl_weight import kl_weight_for

__all__ = [
    "__version__",
    "callbacks",
    "convert",
    "corruptions",
    "datasets",
    "distribute",
    "ensembles",
    "export",
    "interpret",
    "kl_weight_for",
    "layers",
    "losses",
    "lr_range_test",
    "metrics",
    "ood",
    "optimizers",
    "plots",
    "predictive",
    "preprocessing",
    "report",
    "selective",
    "serving",
    "training",
]


def __dir__():
    return list(__all__)


def __getattr__(name):
    # On first use: what they are made of is optional, or of no use to most programs.
    if name == "cli":
        return importlib.import_module("tfuq.cli")
    if name == "plots":
        return importlib.import_module("tfuq.plots")
    if name == "serving":
        return importlib.import_module("tfuq.serving")
    raise AttributeError(f"module 'tfuq' has no attribute {name!r}")
