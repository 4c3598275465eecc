"""Predictions of random networks, what their uncertainty is made of, and files of it.

A stack of predictions is `(samples, batch, ..., classes)`, probabilities, whoever made it: draws of
a Bayesian network, of dropout, an ensemble, snapshots, or augmented images. All entropies are in
nats; all measures of uncertainty grow with it.

Binary predictions have one class in the last axis, several labels have `multi_label=True`: each is
then a distribution over two classes, and the last axis stays in what is per example.
"""

from tfuq._arguments import public_dir, shown
from tfuq._predictions.numbers import Interval, RegressionUncertainty
from tfuq._predictions.uncertainty import Sums as _Sums  # noqa: F401
from tfuq._predictions.uncertainty import (
    Uncertainty,
    decompose,
    entropy,
    expected_entropy,
    mutual_information,
    predictive_entropy,
    variation_ratio,
)
from tfuq._predictions.uncertainty import uncertainty_of as _uncertainty  # noqa: F401
from tfuq.predictive.augmentation import test_time_augmentation
from tfuq.predictive.declarations import Declared, declare, declared
from tfuq.predictive.draws import (
    predict_uncertainty,
    sample_predictions,
    uncertainty_with_labels,  # noqa: F401 (of other parts of tfuq)
)
from tfuq.predictive.sampler import Sampler as _Sampler  # noqa: F401
from tfuq.predictive.sampler import sampler_of as _sampler  # noqa: F401
from tfuq.predictive.scoring import ScoredDataset, read_scores, score_dataset

__all__ = [
    "Declared",
    "Interval",
    "RegressionUncertainty",
    "ScoredDataset",
    "Uncertainty",
    "declare",
    "declared",
    "decompose",
    "entropy",
    "expected_entropy",
    "mutual_information",
    "predict_uncertainty",
    "predictive_entropy",
    "read_scores",
    "sample_predictions",
    "score_dataset",
    "test_time_augmentation",
    "variation_ratio",
]
__dir__ = public_dir(__all__)


def __getattr__(name):
    """`ScoreDoFn`, for which Apache Beam is imported."""
    if name != "ScoreDoFn":
        raise AttributeError(f"module {shown(__name__)} has no attribute {name!r}")
    from tfuq.predictive.beam import ScoreDoFn

    return ScoreDoFn
