"""Tables of the layers that stand in for Keras' own, and reasons why others have none."""

import keras

from tfuq import layers as ours
from tfuq._random.draws import TakesDraws

_KERAS = keras.layers
VARIATIONAL = {
    _KERAS.Dense: ours.DenseVariational,
    _KERAS.EinsumDense: ours.EinsumDenseVariational,
    _KERAS.Conv1D: ours.Conv1DVariational,
    _KERAS.Conv2D: ours.Conv2DVariational,
    _KERAS.Conv3D: ours.Conv3DVariational,
    _KERAS.Conv2DTranspose: ours.Conv2DTransposeVariational,
    _KERAS.DepthwiseConv1D: ours.DepthwiseConv1DVariational,
    _KERAS.DepthwiseConv2D: ours.DepthwiseConv2DVariational,
    _KERAS.SeparableConv1D: ours.SeparableConv1DVariational,
    _KERAS.SeparableConv2D: ours.SeparableConv2DVariational,
    _KERAS.MultiHeadAttention: ours.MultiHeadAttentionVariational,
    _KERAS.GRU: ours.GRUVariational,
    _KERAS.LSTM: ours.LSTMVariational,
    _KERAS.SimpleRNN: ours.SimpleRNNVariational,
}
SPARSE = {
    _KERAS.Dense: ours.SparseBayesDense,
    _KERAS.Conv1D: ours.SparseBayesConv1D,
    _KERAS.Conv2D: ours.SparseBayesConv2D,
    _KERAS.Conv3D: ours.SparseBayesConv3D,
    _KERAS.Conv2DTranspose: ours.SparseBayesConv2DTranspose,
    _KERAS.DepthwiseConv2D: ours.SparseBayesDepthwiseConv2D,
}
MEMBERS = {
    _KERAS.Dense: ours.BatchEnsembleDense,
    _KERAS.Conv2D: ours.BatchEnsembleConv2D,
}
DROPPING = {  # of layers that hold their dropout themselves
    _KERAS.GaussianDropout: ours.MCGaussianDropout,
    _KERAS.MultiHeadAttention: ours.MCMultiHeadAttention,
    _KERAS.GRU: ours.MCGRU,
    _KERAS.LSTM: ours.MCLSTM,
    _KERAS.SimpleRNN: ours.MCSimpleRNN,
}
TWINS = {new: old for table in (VARIATIONAL, SPARSE, DROPPING) for old, new in table.items()}
# Beside the kernel and bias that most have.
WEIGHTS = ("kernel", "bias", "depthwise_kernel", "pointwise_kernel")

_NORMALIZATION = (
    _KERAS.BatchNormalization,
    _KERAS.GroupNormalization,
    _KERAS.LayerNormalization,
    _KERAS.RMSNormalization,
    _KERAS.UnitNormalization,
)
LORA = ("lora_rank", "lora_alpha")


def configuration(layer):
    """The arguments of a layer whose kernel is to be its `kernel`, with LoRA's part in it."""
    config = layer.get_config()
    return {name: value for name, value in config.items() if name not in LORA}


def is_quantized(layer):
    """Whether a layer has quantized weights, or one that it holds (attention's projections)."""
    held = layer._flatten_layers() if hasattr(layer, "_flatten_layers") else [layer]
    return any(getattr(each, "quantization_mode", None) is not None for each in held)


def why_no_twin(layer, table):
    """Why a layer with weights stays as it is, in a conversion by `table`."""
    if isinstance(layer, TakesDraws):
        return "it is random already"
    if is_quantized(layer):
        return "its weights are quantized"
    if isinstance(layer, _NORMALIZATION):
        return "normalization has no kernel"
    for kind in table:
        if isinstance(layer, kind):
            return f"it is a subclass of {kind.__name__}, which may override `call`"
    return f"there is no counterpart of {type(layer).__name__}"
