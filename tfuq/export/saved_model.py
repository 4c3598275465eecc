"""Export as one SavedModel, which TensorFlow alone loads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tfuq._arguments import ModelLike, Output, PathLike, check_flags
from tfuq._files.writing import folder_written_whole
from tfuq._predictions.family import Family
from tfuq.export._files import check_path, write_metadata
from tfuq.export._metadata import metadata, signature_of_folder
from tfuq.export._networks import networks
from tfuq.export._request import checked_request
from tfuq.export._runtimes import try_out_served
from tfuq.export._server_files import check_serving, write_serving
from tfuq.export._serving import graph

__all__ = ["export"]


def export(
    model: ModelLike,
    path: PathLike,
    rule: Any = None,
    num_samples: int | None = None,
    ood: Any = None,
    predictive: str = "fixed_samples",
    batch_size: int | None = None,
    preprocessing: Any = None,
    *,
    calibration: Any = None,
    conformal: Any = None,
    output: Output | None = None,
    from_logits: bool | None = None,
    multi_label: bool | None = None,
    family: str | Mapping[str, Any] | Family | None = None,
    level: float | None = None,
    seed: int = 0,
    input_signature: Any = None,
    example: Any = None,
    serving: str | None = None,
    monitor: Any = None,
    card: dict[str, Any] | None = None,
    overwrite: bool = False,
    verbose: int = False,
) -> None:
    """Writes a model, its uncertainty and its decision as one SavedModel.

    TensorFlow alone loads it, `tf.saved_model.load(path)`, without tfuq or Keras. Its `serve`, and
    the signature `"serving_default"`, take a batch of inputs of any size and return a dict with
    those of these outputs that the model has:

    ```
    name                dtype    shape                  what it is
    probabilities       float32  (batch, ..., classes)  mean probabilities, calibrated
    label               int64    (batch, ...)           the most probable class, -1 if unknown
    confidence          float32  (batch, ...)           the largest probability, in [0, 1]
    predictive_entropy  float32  (batch, ...)           H[probabilities], total, nats
    expected_entropy    float32  (batch, ...)           mean H of the samples, aleatoric, nats
    mutual_information  float32  (batch, ...)           their disagreement, epistemic, nats
    accept              bool     (batch, ...)           whether the rule accepts the prediction
    prediction_set      bool     (batch, ..., classes)  which classes are in the conformal set
    mask                bool     as probabilities       whether a pixel is in the mask
    ood_score           float32  (batch,)               larger is further out; inf if unknown
    ```

    As in `tfuq.predictive`, predictions of one column have a label, a confidence and entropies of
    shape `(batch, ..., 1)`, and those of several labels of `(batch, ..., labels)`. `accept` and
    `prediction_set` have the shapes that `RejectionRule.accept` and
    `ConformalPredictor.predict_set` give. `expected_entropy` and `mutual_information` need samples:
    random layers, or an ensemble. They describe the samples before calibration. Their sum is the
    entropy of the samples' mean, which without a calibration is `predictive_entropy`.

    A regression (a head such as `tfuq.layers.NormalDense`, a loss of numbers, `family`) returns the
    figures of `tfuq.predictive.RegressionUncertainty`, of shape `(batch, ..., units)`:

    ```
    mean                float32  E[y]; the median of quantiles
    std                 float32  standard deviation of y: both parts, added as variances
    aleatoric_std       float32  that of the noise in the labels, where the family has noise
    epistemic_std       float32  that of the mean, of several networks or where the head says it
    lower, upper        float32  interval: of `conformal`, else the central one of `level`
    score               float32  what the rule compares with its threshold
    accept              bool     whether the rule accepts the number
    ```

    An input with NaN or infinity counts as unknown: its probabilities are NaN (for a regression its
    numbers are NaN, and a conformal interval is the whole line), it is never accepted, and its
    `ood_score` is inf. The same holds for inputs outside the declared range of the model
    (`tfuq.predictive.declare`), such as 0 to 255 instead of 0 to 1.

    The noise is part of the file. So predictions repeat, and equal those of
    `tfuq.predictive.predict_uncertainty` with the same `num_samples` and `seed`. The layers before
    the first random one run once, not per sample.

    In the folder, `metadata.json` describes the export: versions, signature, outputs, declared
    class names and inputs, the rule and the number of examples that it was fitted to, hashes of the
    weights and of each file. `verify_export` reads it. `MODEL_CARD.md` says the same for people,
    and adds `card`. You may move the folder.

    Args:
        model: A Keras model of any style; or a `tfuq.ensembles.DeepEnsemble`, a
            `tfuq.callbacks.SnapshotEnsemble` after training, or a list of models, whose members are
            the samples.
        path: Folder to write, new or empty. It gets its name when it is complete.
        rule: A `tfuq.selective.RejectionRule`, for a regression a `RegressionRule`, or the path of
            one. A rule on the disagreement of samples gets the samples as the networks return them;
            every other rule gets the calibrated probabilities. Scores within rounding (1e-6) of its
            threshold are accepted. A rule for numbers must be fitted to as many networks as are
            exported.
        num_samples: Number of networks to draw from a model with random layers, 30 by default. For
            an ensemble, the default draws none from its members; a number draws as many from each.
            For a regression whose only random layer is a `VBLLRegression` none are drawn, as in
            `predict_uncertainty`.
        ood: A fitted detector of `tfuq.ood` of this model. All but the two on gradients run in a
            graph. `MutualInformation` must have the samples that are exported.
        predictive: How a network predicts:

            - `"fixed_samples"`: draws from `seed`, the same in each call. A model without random
              layers has one prediction.
            - `"probit"`: mean / sqrt(1 + pi var / 8) of the logits (MacKay 1992), without samples,
              of a model whose one random layer is a `VBLLDense` or a heteroscedastic head.
            - `"mean"`: the means of all random weights, without dropout.
            - `"fresh_samples"`: new draws in each call, from a counter in the loaded model. Calls
              do not repeat.
        batch_size: None for batches of any size; an integer fixes it, for compilers that need that.
        preprocessing: Turns raw inputs into the model's: a Keras layer or model, a function of
            tensors that TensorFlow can trace, or a list of these. Its lookup tables become part of
            the file.
        calibration: A fitted calibration of `tfuq.selective`, applied first.
        conformal: A fitted `ConformalPredictor`, applied to the calibrated probabilities. Without a
            `rule`, predictions with one class in their set are accepted. For a regression a fitted
            `ConformalRegressor`, which gives the intervals; for masks a fitted `MaskRiskControl`.
        output: Which output, when the model has several: an index, a key or a function; by default
            the `logits` of a named tuple that has such.
        from_logits: Whether the output holds logits. By default what the last layer declares, else
            what the compiled loss says.
        multi_label: Whether each entry of the last axis is a binary prediction of its own.
        family: For a regression with undeclared outputs: the family of their parameters, as in
            `predict_uncertainty`; `"point"` for plain numbers.
        level: For a regression: probability of the central interval, by default that of the rule,
            else 0.9; left out with `conformal`.
        seed: Integer that determines the drawn networks.
        input_signature: `tf.TensorSpec`, or a structure of these, of the inputs. By default those
            of `preprocessing` or of the model, if that is functional or `Sequential`; several in a
            list are called as the model's inputs. For encoded images, which `preprocessing`
            decodes, `tf.TensorSpec((None,), tf.string)`.
        example: A batch of inputs as they are served, to try the written file with. Without it,
            `preprocessing` is traced and nothing is run.
        serving: `"tensorflow-serving"` or `"kserve"` writes a configuration for that server into
            the folder of the model's versions; `path` is then a version, such as `models/digits/1`.
            (`tfuq serve` needs no configuration.)
        monitor: A `tfuq.selective.Monitor` of the rule, or the path of one: the metadata and the
            card report its state.
        card: Texts for the model card, beside what tfuq knows of the model: a dict with some of
            `"use"`, `"data"`, `"not_tested_on"` (texts, or lists of texts), `"figures"` (a dict of
            numbers) and `"groups"` (the result of `tfuq.selective.subgroup_report`). The card says
            which of these are missing.
        overwrite: Whether to replace an exported model at `path`.
        verbose: Whether to print what is written.

    Returns:
        None.

    Raises:
        ValueError: If `path` holds something, an argument is out of its range or does not fit the
            model (such as a rule on samples for a model without samples), or a layer cannot be
            exported, which the error names.
        OSError: If there is no space; nothing is left behind.

    Example:

    ```python
    import keras
    import numpy as np
    import tensorflow as tf
    from tfuq.export import export, verify_export
    from tfuq.layers import VBLLDense
    from tfuq.predictive import predict_uncertainty
    from tfuq.selective import RejectionRule

    model = keras.Sequential([keras.Input((8,)), VBLLDense(3, kl_weight=0.01)])
    export(model, "served", rule=RejectionRule("confidence", 0.7), num_samples=10)
    x = np.random.rand(5, 8).astype("float32")
    print(verify_export("served", x, predict_uncertainty(model, x, num_samples=10)))
    served = tf.saved_model.load("served")  # to be kept: its weights go with it
    print(served.serve(x)["accept"])
    ```

    For a regression:

    ```python
    import keras
    import numpy as np
    from tfuq.export import export, verify_export
    from tfuq.layers import NormalDense
    from tfuq.predictive import predict_uncertainty
    from tfuq.selective import RejectionRule

    x = np.random.rand(50, 8).astype("float32")
    model = keras.Sequential([keras.Input((8,)), NormalDense(1)])
    found = predict_uncertainty(model, x)
    rule = RejectionRule.fit(found, x[:, 0], tolerance=0.5, target_coverage=0.8)
    export(model, "numbers", rule=rule)
    print(verify_export("numbers", x, found).differences)  # mean, std, lower, upper, ...
    ```

    References:
        - MacKay, "The evidence framework applied to classification networks", 1992.

    See also: `tfuq.export.verify_export`, `tfuq.export.export_litert`, `tfuq.export.export_onnx`,
    `tfuq.serving.serve`.
    """
    arguments = locals()
    check_flags(overwrite=overwrite)
    path = check_path(path, overwrite)
    check_serving(serving, path)
    request = checked_request(arguments)
    served = graph(request, networks(request))
    with folder_written_whole(path) as folder:
        served.write(folder, verbose)
        # What cannot be read, or run, must not take the place of anything.
        loaded = tf.saved_model.load(str(folder))
        about = {**metadata(request), **signature_of_folder(folder)}
        if request.inputs.example is not None:
            about["agreement"] = try_out_served(loaded.serve, served)
        write_metadata(folder, about, request.card)
    write_serving(serving, path)
