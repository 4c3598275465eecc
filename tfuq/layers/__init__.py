"""Layers that stand in for Keras' own and express uncertainty."""

from tfuq._arguments import public_dir
from tfuq.layers.attention import MCMultiHeadAttention, MultiHeadAttentionVariational
from tfuq.layers.batch_ensemble import BatchEnsembleConv2D, BatchEnsembleDense
from tfuq.layers.heteroscedastic import MCSigmoidDenseFA, MCSoftmaxDenseFA
from tfuq.layers.last_layer_laplace import LastLayerLaplace, LastLayerLaplaceRegression
from tfuq.layers.mc_dropout import MCDropout, MCGaussianDropout
from tfuq.layers.mc_recurrent import MCGRU, MCLSTM, MCSimpleRNN
from tfuq.layers.post_processing import PostProcessing
from tfuq.layers.pre_logit_noise import MCSigmoidDenseXL, MCSoftmaxDenseXL
from tfuq.layers.recurrent import GRUVariational, LSTMVariational, SimpleRNNVariational
from tfuq.layers.regression import (
    EvidentialDense,
    LaplaceDense,
    MixtureDense,
    MultivariateNormalDense,
    NormalDense,
    QuantileDense,
    StudentTDense,
)
from tfuq.layers.sngp import SNGPDense
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
    Conv3DVariational,
    DenseVariational,
    DepthwiseConv1DVariational,
    DepthwiseConv2DVariational,
    EinsumDenseVariational,
    SeparableConv1DVariational,
    SeparableConv2DVariational,
)
from tfuq.layers.vbll import VBLLDense
from tfuq.layers.vbll_generative import VBLLGenerativeDense
from tfuq.layers.vbll_regression import VBLLRegression

__all__ = [
    "MCGRU",
    "MCLSTM",
    "BatchEnsembleConv2D",
    "BatchEnsembleDense",
    "Conv1DVariational",
    "Conv2DTransposeVariational",
    "Conv2DVariational",
    "Conv3DVariational",
    "DenseVariational",
    "DepthwiseConv1DVariational",
    "DepthwiseConv2DVariational",
    "EinsumDenseVariational",
    "EvidentialDense",
    "GRUVariational",
    "LSTMVariational",
    "LaplaceDense",
    "LastLayerLaplace",
    "LastLayerLaplaceRegression",
    "MCDropout",
    "MCGaussianDropout",
    "MCMultiHeadAttention",
    "MCSigmoidDenseFA",
    "MCSigmoidDenseXL",
    "MCSimpleRNN",
    "MCSoftmaxDenseFA",
    "MCSoftmaxDenseXL",
    "MixtureDense",
    "MultiHeadAttentionVariational",
    "MultivariateNormalDense",
    "NormalDense",
    "PostProcessing",
    "QuantileDense",
    "SNGPDense",
    "SeparableConv1DVariational",
    "SeparableConv2DVariational",
    "SimpleRNNVariational",
    "SparseBayesConv1D",
    "SparseBayesConv2D",
    "SparseBayesConv2DTranspose",
    "SparseBayesConv3D",
    "SparseBayesDense",
    "SparseBayesDepthwiseConv2D",
    "StudentTDense",
    "VBLLDense",
    "VBLLGenerativeDense",
    "VBLLRegression",
]
__dir__ = public_dir(__all__)
