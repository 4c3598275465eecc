"""Which part of tfuq works with which kind of network: the table of docs/compatibility.md.

    python benchmarks/compatibility.py            # what is missing, one process for each network
    python benchmarks/compatibility.py --only mobilenet vit --again
    python benchmarks/compatibility.py --table    # writes the page from the results

The smallest member of each family of `keras.applications`, without trained weights and with the
smallest images that it takes, a small vision transformer, a U-Net and a subclassed model. Each
network has a process and a file of results beside this script, so that a run that was ended goes on
where it was. A cell is "works" if what was asked for was done and agrees with the network itself;
"refused" if a `ValueError` said why not; "fails" if anything else happened, which is a fault; "not
run" if it was not tried.
"""

import argparse
import contextlib
import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
RESULTS = HERE / "compatibility"
PAGE = HERE.parent / "docs" / "compatibility.md"
DETECTORS = (
    *("MaxSoftmax", "MaxLogit", "Energy", "Entropy", "ODIN", "GradNorm", "ReAct", "ViM"),
    *("Mahalanobis", "RelativeMahalanobis", "KNN", "MutualInformation", "GEN", "KLMatching"),
    *("SHE", "NNGuide", "FDBD", "ASH", "SCALE", "DICE", "ExGrad", "GAIA", "Gram", "SIRC"),
)
FORMATS = {"export": "", "export_litert": ".tflite", "export_onnx": ".onnx"}
CLASSES, EXAMPLES = 3, 24
NOT_RUN, ENDED = "not run", "fails: the process ended"
FAMILIES = {  # of keras.applications: class, side, options
    "convnext": ("ConvNeXtTiny", 32, {}),
    "densenet": ("DenseNet121", 32, {}),
    "efficientnet": ("EfficientNetB0", 32, {}),
    "efficientnetv2": ("EfficientNetV2B0", 32, {}),
    "inceptionresnetv2": ("InceptionResNetV2", 75, {}),
    "inceptionv3": ("InceptionV3", 75, {}),
    "mobilenet": ("MobileNet", 32, {"alpha": 0.25}),
    "mobilenetv2": ("MobileNetV2", 32, {"alpha": 0.35}),
    "mobilenetv3": ("MobileNetV3Small", 32, {"alpha": 0.35, "minimalistic": True}),
    "nasnet": ("NASNetMobile", 32, {}),
    "resnet": ("ResNet50", 32, {}),
    "resnetv2": ("ResNet50V2", 32, {}),
    "vgg": ("VGG16", 32, {}),
    "xception": ("Xception", 71, {}),
}
CHEAPEST_FIRST = (
    *("vit", "unet", "subclassed", "mobilenet", "mobilenetv3", "mobilenetv2", "vgg", "resnet"),
    *("resnetv2", "convnext", "densenet", "efficientnet", "efficientnetv2", "xception"),
    *("inceptionv3", "nasnet", "inceptionresnetv2"),
)


# --- The networks -----------------------------------------------------------------------------


def small_vit(side=16, patch=4, width=16, depth=2):
    """A vision transformer with a class token left out: the mean over tokens classifies."""
    from keras import Input, Model, layers

    x = Input((side, side, 3))
    tokens = layers.Conv2D(width, patch, patch, name="patches")(x)
    tokens = layers.Reshape((-1, width))(tokens)
    for _ in range(depth):
        y = layers.LayerNormalization()(tokens)
        tokens = layers.Add()([tokens, layers.MultiHeadAttention(2, width // 2, dropout=0.1)(y, y)])
        y = layers.Dense(2 * width, activation="gelu")(layers.LayerNormalization()(tokens))
        tokens = layers.Add()([tokens, layers.Dropout(0.1)(layers.Dense(width)(y))])
    y = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(tokens))
    return Model(x, layers.Dense(CLASSES, activation="softmax")(y), name="vit")


def small_unet(side=16, width=4):
    """A U-Net of one level, whose last layer is a convolution of one pixel."""
    from keras import Input, Model, layers

    def double(x, filters):
        for _ in range(2):
            x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
            x = layers.ReLU()(layers.BatchNormalization()(x))
        return x

    x = Input((side, side, 3))
    skip = double(x, width)
    y = layers.Dropout(0.2)(double(layers.MaxPooling2D()(skip), 2 * width))
    y = layers.Concatenate()([skip, layers.Conv2DTranspose(width, 2, 2)(y)])
    y = layers.Conv2D(CLASSES, 1, activation="softmax")(double(y, width))
    return Model(x, y, name="unet")


def small_subclassed(dropout="Dropout"):
    """A model whose `call` is Python, as people write them; with `MCDropout` what they are told."""
    import keras

    from tfuq.layers import MCDropout

    @keras.saving.register_keras_serializable(package="compatibility")
    class Subclassed(keras.Model):
        def __init__(self, **options):
            super().__init__(**options)
            self.conv = keras.layers.Conv2D(8, 3, activation="relu")
            self.pool = keras.layers.GlobalAveragePooling2D()
            self.drop = MCDropout(0.2) if dropout == "MCDropout" else keras.layers.Dropout(0.2)
            self.top = keras.layers.Dense(CLASSES, activation="softmax")

        def call(self, x, training=False):
            return self.top(self.drop(self.pool(self.conv(x)), training=training))

    model = Subclassed()
    model(keras.ops.zeros((1, 16, 16, 3)))  # which builds it
    return model


def network(name):
    """The network, compiled, and the side of its images."""
    import keras

    keras.utils.set_random_seed(0)
    small = {"vit": small_vit, "unet": small_unet, "subclassed": small_subclassed}
    if name in small:
        model, side = small[name](), 16
    else:
        kind, side, options = FAMILIES[name]
        make = getattr(keras.applications, kind)
        model = make(input_shape=(side, side, 3), weights=None, classes=CLASSES, **options)
    model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
    return model, side


# --- What is asked of them --------------------------------------------------------------------


class Trial:
    """A network, and what is tried with it; each method is a cell and raises if it does not work.

    Args:
        name: Of the network.
    """

    def __init__(self, name):
        import numpy as np

        self.model, side = network(name)
        self.x = np.random.default_rng(0).uniform(-1, 1, (EXAMPLES, side, side, 3))
        self.x = self.x.astype("float32")
        self.expected = self.model.predict(self.x, verbose=0)
        self.y = np.arange(self.expected[..., 0].size).reshape(self.expected.shape[:-1]) % CLASSES
        self.random = None  # a copy of which draws differ

    def agree(self, found, expected, tolerance=1e-4):
        import numpy as np

        np.testing.assert_allclose(np.asarray(found), expected, atol=tolerance)

    def replace_head(self):
        import keras

        from tfuq import convert, layers

        new = convert.replace_head(
            self.model, layers.VBLLDense(CLASSES, kl_weight=0.01, predictive="mean")
        )
        self.agree(keras.ops.softmax(new(self.x[:4])), self.expected[:4])

    def mc_dropout(self):
        from tfuq import convert

        self.converted(convert.mc_dropout(self.model))

    def variational(self):
        from tfuq import convert

        self.converted(convert.variational(self.model, kl_weight=1e-6))

    def sparse_bayesian(self):
        from tfuq import convert

        data = (self.x[:8], self.y[:8])
        self.converted(convert.sparse_bayesian(self.model, data, kl_weight=1e-6))

    def converted(self, copy):
        self.agree(copy(self.x[:4]), self.expected[:4])
        self.random = copy if self.random is None else self.random

    def written_anew(self):
        """Of the network that no function converts, the one that its owner writes."""
        self.random = small_subclassed("MCDropout")
        self.random.set_weights(self.model.get_weights())
        self.agree(self.random(self.x[:4]), self.expected[:4])

    def detector(self, name):
        import numpy as np

        from tfuq import ood

        if name == "MutualInformation" and self.random is None:
            self.written_anew()
        model = self.random if name == "MutualInformation" else self.model
        options = {"MutualInformation": {"num_samples": 2}, "KNN": {"k": 5}, "ViM": {"dim": 2}}
        options |= {"NNGuide": {"k": 5}, "SIRC": {"detector": ood.MaxLogit()}}
        detector = getattr(ood, name)(**options.get(name, {}))
        # These know the classes that were rightly predicted, which none need be without training.
        y = self.expected.argmax(-1) if name in ("SHE", "Gram") else self.y
        scores = detector.fit(model, self.x, y).score(self.x[:4])
        assert np.isfinite(scores).all() and len(scores) == 4, f"scores {scores}"

    def laplace_head(self):
        import keras

        from tfuq import convert

        narrow = convert.laplace_head(self.model, (self.x, self.y), prior=1e-4)
        self.agree(keras.ops.softmax(narrow(self.x[:4])), self.expected[:4])

    def spectral_normalize(self):
        from tfuq import convert

        copy = convert.spectral_normalize(self.model, norm_bound=1e6)
        self.agree(copy(self.x[:4]), self.expected[:4])

    def grad_cam(self):
        import numpy as np

        from tfuq import interpret

        maps = interpret.grad_cam(self.model, self.x[:2])
        assert np.isfinite(np.asarray(maps)).all()

    def gradient_features(self):
        import numpy as np

        from tfuq import ood

        found = ood.GradientFeatures(self.model)(self.x[:4])
        count = len(self.model.trainable_variables)
        assert found.shape == (4, count) and np.isfinite(found).all()

    def saved(self):
        import keras

        copy = self.model if self.random is None else self.random
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "model.keras"
            copy.save(path)
            again = keras.models.load_model(path, compile=False)
        self.agree(again(self.x[:4]), self.expected[:4])

    def exported(self, name):
        import tensorflow as tf

        from tfuq import export

        options = {}
        if not isinstance(getattr(self.model, "inputs", None), list):
            options["input_signature"] = tf.TensorSpec((None, *self.x.shape[1:]), "float32")
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / f"model{FORMATS[name]}"
            getattr(export, name)(self.model, path, **options)
            export.verify_export(path, self.x[:4], self.expected[:4], tolerance=1e-4)


CELLS = {
    **{name: getattr(Trial, name) for name in ("replace_head", "mc_dropout", "variational")},
    "sparse_bayesian": Trial.sparse_bayesian,
    "laplace_head": Trial.laplace_head,
    "spectral_normalize": Trial.spectral_normalize,
    **{name: lambda trial, name=name: trial.detector(name) for name in DETECTORS},
    "grad_cam": Trial.grad_cam,
    "gradient_features": Trial.gradient_features,
    "saved": Trial.saved,
    **{name: lambda trial, name=name: trial.exported(name) for name in FORMATS},
}


def tried(trial, cell):
    """What a cell says: "works", "refused: why" or "fails: how"."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            CELLS[cell](trial)
    except Exception as error:  # whatever happened is the answer
        kind = "refused" if type(error) is ValueError else f"fails: {type(error).__name__}"
        return f"{kind}: {short(str(error))}"
    return "works"


def short(text):
    """What an error asks for, without what it has received."""
    line = " ".join(text.split(" Received: ")[0].split())
    return line if len(line) <= 400 else f"{line[:400]}..."


# --- Runs and the page ------------------------------------------------------------------------


def run(name, again=(), cells=None):
    """Tries the cells that have no result yet, and writes each result at once."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    found = results(name)
    wanted = [cell for cell in cells or CELLS if found.get(cell, ENDED) == ENDED or cell in again]
    if not wanted:
        return
    trial = Trial(name)
    needs_draws = {"MutualInformation", "saved"} & set(wanted)
    if needs_draws and not {"mc_dropout", "variational"} & set(wanted):
        tried(trial, "variational")
    for cell in wanted:
        start = time.perf_counter()
        note(path, found, cell, ENDED)
        note(path, found, cell, tried(trial, cell))
        print(f"{name} {cell}: {found[cell]} ({time.perf_counter() - start:.0f} s)", flush=True)


def note(path, found, cell, said):
    found[cell] = said
    path.write_text(json.dumps(found, indent=1) + "\n")


def results(name):
    """`{cell: what it says}` of a network, empty if it has not been run."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def page():
    """The text of the page, from all results."""
    found = {name: results(name) for name in CHEAPEST_FIRST}
    reasons, rows = [], []
    for cell in CELLS:
        marks = []
        for name in CHEAPEST_FIRST:
            said = found[name].get(cell, NOT_RUN)
            if said not in ("works", NOT_RUN):
                if said not in reasons:
                    reasons.append(said)
                said = f"{said.split(':')[0]} ({reasons.index(said) + 1})"
            marks.append(said)
        rows.append(f"| `{cell}` | " + " | ".join(marks) + " |")
    head = "| | " + " | ".join(CHEAPEST_FIRST) + " |\n|" + " --- |" * (len(CHEAPEST_FIRST) + 1)
    notes = "\n".join(f"{i}. {reason}" for i, reason in enumerate(reasons, 1))
    kinds = ", ".join(f"`{kind}` ({side} pixels)" for kind, side, _ in FAMILIES.values())
    return f"""# Which part works with which network

`python benchmarks/compatibility.py --table` writes this page. Networks: the smallest member of each
family of `keras.applications`, with `weights=None`, on the smallest images that it takes: {kinds};
a small vision transformer, a U-Net with a soft-max for each pixel, and a subclassed model. "works":
the result agrees with the network itself to 1e-4. "refused": a `ValueError` says why. "not run":
not tried yet; `python benchmarks/compatibility.py` continues there. `MutualInformation` and `saved`
use a converted copy; the subclassed model cannot be converted, so it is written with `MCDropout`
instead.

{head}
{chr(10).join(rows)}

{notes}
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=CHEAPEST_FIRST, default=CHEAPEST_FIRST)
    parser.add_argument("--again", nargs="*", choices=list(CELLS), help="cells to try again")
    parser.add_argument("--here", action="store_true", help="in this process")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    again = () if given.again is None else given.again or tuple(CELLS)
    if given.table:
        PAGE.write_text(page())
        return
    for name in given.only:
        if given.here:
            run(name, again)
            continue
        command = [sys.executable, __file__, "--here", "--only", name]
        if given.again is not None:
            command += ["--again", *given.again]
        # A second thread of linear algebra waits for the first where others use the cores.
        subprocess.run(command, check=False, env={"OPENBLAS_NUM_THREADS": "1", **os.environ})
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
