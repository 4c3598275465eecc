"""Layers that stand in for Keras' own and express uncertainty."""

from tfuq._arguments import public_dir
from tfuq.layers.heteroscedastic import MCSigmoidDenseFA, MCSoftmaxDenseFA
from tfuq.layers.mc_dropout import MCDropout
from tfuq.layers.post_processing import PostProcessing
from tfuq.layers.regression import (
    EvidentialDense,
    LaplaceDense,
    MixtureDense,
    NormalDense,
    QuantileDense,
    StudentTDense,
)
from tfuq.layers.sparse_bayes import (
    SparseBayesConv1D,
    SparseBayesConv2D,
    SparseBayesConv2DTranspose,
    SparseBayesConv3D,
    SparseBayesDense,
    SparseBayesDepthwiseConv2D,
)
from tfuq.layers.variational import (
    Conv1DVariational,
    Conv2DTransposeVariational,
    Conv2DVariational,
    DenseVariational,
)
from tfuq.layers.vbll import VBLLDense

__all__ = [
    "Conv1DVariational",
    "Conv2DTransposeVariational",
    "Conv2DVariational",
    "DenseVariational",
    "EvidentialDense",
    "LaplaceDense",
    "MCDropout",
    "MCSigmoidDenseFA",
    "MCSoftmaxDenseFA",
    "MixtureDense",
    "NormalDense",
    "PostProcessing",
    "QuantileDense",
    "SparseBayesConv1D",
    "SparseBayesConv2D",
    "SparseBayesConv2DTranspose",
    "SparseBayesConv3D",
    "SparseBayesDense",
    "SparseBayesDepthwiseConv2D",
    "StudentTDense",
    "VBLLDense",
]
__dir__ = public_dir(__all__)
