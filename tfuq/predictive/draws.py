"""Predictions of networks drawn from a model with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tfuq._arguments import Data, ModelLike, Output
from tfuq._models.batches import batches
from tfuq._models.outputs import select_output
from tfuq._predictions.family import Family
from tfuq._predictions.stacks import samples
from tfuq._predictions.uncertainty import concatenated
from tfuq.predictive.sampler import NUM_SAMPLES, sampler_of, uncertainty


def sample_predictions(
    model: ModelLike,
    x: Data,
    num_samples: int = NUM_SAMPLES,
    batch_size: int = 32,
    *,
    output: Output | None = None,
    from_logits: bool | None = None,
    multi_label: bool | None = None,
    seed: int = 0,
    verbose: int = 0,
    family: str | Mapping[str, Any] | Family | None = None,
) -> np.ndarray:
    """Probabilities of `num_samples` networks, drawn from a model with random weights.

    Every sample is one network: it has the same weights for all examples, whatever the batches. The
    layers before the first random one run once, not per sample. Label noise, as in
    `MCSoftmaxDenseFA` or a `VBLLDense` with `noise="learned"`, is averaged within each sample,
    because it is no property of the weights.

    Args:
        model: Keras model of any style with layers of `tfuq.layers` that have random weights or
            dropout. Or a `tfuq.ensembles.DeepEnsemble`: its members are the networks; leave out
            `num_samples` and `seed`.
        x: Inputs: an array (or what the model takes), `(x, y)`, a `tf.data.Dataset` or a
            `keras.utils.PyDataset` of batches of inputs or of pairs. Labels are ignored.
        num_samples: Number of networks. If the draws are members in turn
            (`tfuq.layers.BatchEnsembleDense`), a multiple of the number of members, by default that
            number.
        batch_size: Examples at a time, for arrays; datasets have their own.
        output: Which output, when the model has several: an index, a key, a field of a named
            tuple, or a function of the outputs.
        from_logits: Whether the output holds logits. By default what the last layer declares (a
            head of `tfuq.layers`, a soft-max, a sigmoid), else what the compiled loss says.
        multi_label: Whether each entry of the last axis is a binary prediction of its own. By
            default what the last layer declares, else what the compiled loss says, else False.
        seed: Integer that determines the drawn networks.
        verbose: 1 shows a progress bar.
        family: For a regression, if neither head nor loss declares the outputs: the distribution
            whose parameters they are, such as `"normal"`, or `"point"` for plain numbers. By
            default what the head (`tfuq.layers.NormalDense`) declares, else the compiled loss.

    Returns:
        Array `(samples, examples, ..., classes)`, float32; for a regression the parameters
        `(samples, examples, ..., parameters)`; NaN for inputs that are not finite. Its type marks
        it as a stack: rules and sets recognize it, also for binary predictions.

    Raises:
        ValueError: If the model holds no random layer, the data are empty, or an argument is out
            of its range.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.layers import VBLLDense
    from tfuq.predictive import sample_predictions

    model = keras.Sequential([keras.Input((8,)), VBLLDense(3, kl_weight=0.01)])
    print(sample_predictions(model, np.random.rand(5, 8), num_samples=4).shape)  # (4, 5, 3)
    ```

    See also: `tfuq.predictive.predict_uncertainty`, `tfuq.predictive.decompose`.
    """
    options = (output, from_logits, multi_label, seed, family)
    sampler = sampler_of(model, num_samples, *options, takes_numbers=True)
    stacks = [sampler.stack(batch) for batch, *_ in batches(x, batch_size, verbose, model=model)]
    return samples(np.concatenate(stacks, axis=1))


def predict_uncertainty(
    model: ModelLike,
    x: Data,
    num_samples: int = NUM_SAMPLES,
    batch_size: int = 32,
    *,
    output: Output | None = None,
    from_logits: bool | None = None,
    multi_label: bool | None = None,
    seed: int = 0,
    verbose: int = 0,
    family: str | Mapping[str, Any] | Family | None = None,
) -> Any:
    """Predicts with a model: mean prediction, and its aleatoric and epistemic uncertainty.

    The result is that of `decompose(sample_predictions(...))`, but the samples are not kept: memory
    does not grow with their number. Arguments and errors are those of `sample_predictions`, with
    one difference: any classifier will do. Without random layers it is a single network: all of its
    uncertainty is aleatoric, the epistemic part, `mutual_information`, is 0, and `Uncertainty.note`
    says so.

    For a regression (a head such as `tfuq.layers.NormalDense`, a loss of numbers, `family`) it
    returns means, intervals and quantiles. Those of several draws belong to the mixture of their
    distributions, whose parameters are kept. If `VBLLRegression` is the only random layer, nothing
    is drawn: its output is the mixture of all networks in closed form.

    Returns:
        `Uncertainty`, with arrays over all examples; for a regression `RegressionUncertainty`. An
        input or a prediction that is not finite counts as unknown: its probabilities and measures
        are NaN, its label is -1, and no rule accepts it.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.layers import VBLLDense
    from tfuq.predictive import predict_uncertainty

    model = keras.Sequential([keras.Input((8,)), VBLLDense(3, kl_weight=0.01)])
    found = predict_uncertainty(model, np.random.rand(5, 8))
    print(found.label, found.mutual_information)
    ```

    See also: `tfuq.predictive.sample_predictions`, `tfuq.predictive.decompose`,
    `tfuq.selective.RejectionRule`.
    """
    options = (output, from_logits, multi_label, seed, family)
    sampler = sampler_of(model, num_samples, *options, takes_one=True, takes_numbers=True)
    return uncertainty(
        sampler,
        [sampler.found(batch) for batch, *_ in batches(x, batch_size, verbose, model=model)],
    )


def uncertainty_with_labels(
    model,
    data,
    num_samples=NUM_SAMPLES,
    batch_size=32,
    *,
    output=None,
    from_logits=None,
    multi_label=None,
    seed=0,
    verbose=0,
    takes_numbers=False,
    family=None,
    also=None,
):
    """`predict_uncertainty`, and the labels and weights (or None) that stand beside the inputs.

    For a regression only with `takes_numbers`. With `also`, a function of inputs and their number,
    what that gives, too, `(n,)`.
    """
    options = (output, from_logits, multi_label, seed, family)
    sampler = sampler_of(model, num_samples, *options, takes_one=True, takes_numbers=takes_numbers)
    parts, beside = [], []
    for batch, *labels in batches(data, batch_size, verbose, model=model):
        parts.append(sampler.found(batch))
        row = [select_output(y, output) if keras.tree.is_nested(y) else y for y in labels]
        if also is not None:
            row.append(also(batch, len(keras.tree.flatten(batch)[0])))
        beside.append(row)
    return (uncertainty(sampler, parts), *concatenated(beside))
