"""Base of heads that say a number and how far off it may be."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfuq._arguments import Tensor, check_flags, check_integer, check_positive, shown
from tfuq._predictions.family import LEAST_SCALE, Family
from tfuq.layers._training import calling_model, compiled_metrics
from tfuq.layers.heads import OutputMeaning, is_last
from tfuq.layers.shapes import checked_features
from tfuq.losses import CRPS, NegativeLogLikelihood


class NumberHead(keras.layers.Layer):
    """A layer that stands in for the last `Dense` of a regression.

    It returns one tensor, the parameters of a distribution of each of `units` numbers, and says
    their family. A subclass has the arguments `units` and `mean_only`, and the property `family`.
    """

    def __init__(self, units: int, mean_only: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_integer("units", units, minimum=1)
        check_flags(mean_only=mean_only)
        self.units = units
        self.mean_only = mean_only
        self.input_spec = keras.layers.InputSpec(min_ndim=2)
        self.supports_masking = True

    @property
    def family(self) -> Family:
        """The `Family` of what is returned."""
        raise NotImplementedError

    def output_meaning(self, field: str | None = None) -> OutputMeaning:
        """The output is no logit and no probability, but parameters of `family`."""
        del field  # there is one output
        return OutputMeaning("mean" if self.mean_only else "parameters", False, family=self.family)

    def negative_log_likelihood(self, **kwargs: Any) -> keras.losses.Loss:
        """The loss to compile the model with: `tfuq.losses.NegativeLogLikelihood` of this family.

        Args:
            **kwargs: `reduction` and `name` of the loss.

        Raises:
            ValueError: If the layer returns the mean alone, or its family has no density.
        """
        self._check_has_parameters("negative_log_likelihood")
        return NegativeLogLikelihood(self.family, **kwargs)

    def crps(self, **kwargs: Any) -> keras.losses.Loss:
        """The loss `tfuq.losses.CRPS` of this family. Arguments as `negative_log_likelihood`."""
        self._check_has_parameters("crps")
        return CRPS(self.family, **kwargs)

    def distribution(self, params: Tensor) -> Any:
        """TFP distribution with the batch shape `(..., units)`; of `MultivariateNormalDense` with
        the batch shape `(...)` and the event shape `(units,)`.

        Args:
            params: What the layer returned, `(..., units * parameters)`.
        """
        self._check_has_parameters("distribution")
        return self.family.distribution(tf.convert_to_tensor(params))

    def _check_has_parameters(self, method):
        if self.mean_only:
            raise ValueError(
                f"Argument `mean_only` must be False for `{method}`, which needs a distribution. "
                f"Received: mean_only=True of {self.name!r}"
            )

    def _check_loss(self, training):
        """Raises ValueError where the model that is trained has a loss or metrics that misread it.

        It is asked in each call, so that the first step of `fit` tells, not a useless network.
        """
        model = calling_model()
        loss = getattr(model, "loss", None)
        if not training or self.mean_only or loss is None or not is_last(model, self):
            return
        if keras.tree.is_nested(loss):
            return
        if _is_of_keras(loss):
            raise ValueError(
                f"Argument `loss` must take the parameters that {self.name!r} returns: "
                "`head.negative_log_likelihood()` or another of `tfuq.losses`. For a loss of the "
                f"mean pass mean_only=True. Received: loss={shown(loss)}"
            )
        family = getattr(loss, "family", None)
        if family is not None and family != self.family:
            raise ValueError(
                f"Argument `loss` must be of the family {shown(self.family)} of {self.name!r}. "
                f"Received: a {type(loss).__name__} of {shown(family)}"
            )
        misread = [shown(m) for m in compiled_metrics(model) if _is_of_keras(m)]
        if misread:
            raise ValueError(
                f"Argument `metrics` must take the parameters that {self.name!r} returns: those of "
                "Keras would compare labels with all of them. Wrap them as `tfuq.metrics.OfMean("
                f"'mae', head.family)`. Received: metrics={misread}"
            )

    def _sampling_dtype(self):
        return "float64" if self.compute_dtype == "float64" else "float32"

    def _width(self):
        return self.units if self.mean_only else self.units * self.family.size

    def _output(self, params):
        return self.family.mean(params) if self.mean_only else params

    def compute_output_shape(self, input_shape: Any) -> Any:
        return (*input_shape[:-1], self._width())

    def compute_output_spec(
        self, inputs: Tensor, training: bool = False, mask: Tensor | None = None
    ) -> Any:
        shape = self.compute_output_shape(inputs.shape)
        return keras.KerasTensor(shape, dtype=self._sampling_dtype())

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units, "mean_only": self.mean_only}


def _is_of_keras(part):
    """Whether a loss or metric is a name, or a function or class of Keras itself."""
    kind = part if callable(part) and hasattr(part, "__name__") else type(part)
    return isinstance(part, str) or kind.__module__.split(".")[0] == "keras"


class ParameterDense(NumberHead):
    """A head whose parameters are a linear map of its inputs, brought into their range."""

    def __init__(
        self,
        units: int,
        *,
        mean_only: bool = False,
        min_scale: float = LEAST_SCALE,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(units, mean_only, **kwargs)
        check_positive("min_scale", min_scale)
        check_flags(use_bias=use_bias)
        self.min_scale = min_scale
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)
        self.bias_constraint = keras.constraints.get(bias_constraint)

    def build(self, input_shape: Any) -> None:
        features, width = checked_features(self, input_shape), self.units * self.family.size
        self.kernel = self.add_weight(
            name="kernel",
            shape=(features, width),
            initializer=self.kernel_initializer,
            regularizer=self.kernel_regularizer,
            constraint=self.kernel_constraint,
        )
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias",
                shape=(width,),
                initializer=self.bias_initializer,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )

    def call(self, inputs: Tensor, training: bool = False) -> Any:
        self._check_loss(training)
        raw = keras.ops.matmul(inputs, self.kernel)
        raw = tf.cast(raw + self.bias if self.use_bias else raw, self._sampling_dtype())
        return self._output(self.family.constrain(raw, self.min_scale))

    def get_config(self) -> dict[str, Any]:
        config = {**super().get_config(), "min_scale": self.min_scale, "use_bias": self.use_bias}
        for name in ("kernel_initializer", "bias_initializer"):
            config[name] = keras.initializers.serialize(getattr(self, name))
        for name in ("kernel_regularizer", "bias_regularizer"):
            config[name] = keras.regularizers.serialize(getattr(self, name))
        for name in ("kernel_constraint", "bias_constraint"):
            config[name] = keras.constraints.serialize(getattr(self, name))
        return config
