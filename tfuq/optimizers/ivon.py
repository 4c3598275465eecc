"""Variational online Newton (IVON): an optimizer whose state is a Gaussian over the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfuq._arguments import (
    Tensor,
    check_flags,
    check_integer,
    check_positive,
    is_finite,
    register,
    shown,
)
from tfuq._random import points
from tfuq._random.draws import TakesDraws, posterior_optimizer

_ARGUMENTS = (
    "num_data", "beta_1", "beta_2", "prior_precision", "hessian_init", "clip_radius",
    "rescale_learning_rate", "seed",
)  # fmt: skip
_OF_STEPS, _OF_STARTS = 0, 1  # whose noise a seed is of


def mark_of(weight):
    """A number that changes with any bit of an array: the sum of its words, in any order."""
    words = {2: tf.int16, 4: tf.int32, 8: tf.int32}[weight.dtype.size]
    return tf.reduce_sum(tf.cast(tf.bitcast(weight, words), tf.int32))


def next_hessian(hessian, found, precision, beta_2):
    """h' = b h + (1 - b) f + (1 - b)^2 (h - f)^2 / (2 (h + d)), with `precision` h + d."""
    rest = 1 - beta_2
    correction = rest**2 / 2 * tf.square(hessian - found) / precision
    return beta_2 * hessian + rest * found + correction


def hessians_of(model, variables):
    """h of each of `variables`, arrays, from the `IVON` that has trained `model`.

    Raises:
        ValueError: If no IVON has trained the model, or not all of the variables.
    """
    optimizer = posterior_optimizer(model)
    if not isinstance(optimizer, IVON) or not optimizer.built or not int(optimizer.iterations):
        raise ValueError(
            "Argument `saliency` may be 'ivon' only if `tfuq.optimizers.IVON` has trained the "
            "model: that saliency is the optimizer's Hessian. Received: saliency='ivon' for a "
            f"model with optimizer={shown(getattr(model, 'optimizer', None))}"
        )
    trained, found = optimizer._trainable_variables, optimizer.hessians()
    known = {id(v): h for v, h in zip(trained, found, strict=True)}
    unknown = [v.path for v in variables if id(v) not in known]
    if unknown:
        raise ValueError(
            "Argument `saliency` may be 'ivon' for weights that IVON has trained, not for frozen "
            f"ones or copies. Received: saliency='ivon' for {shown(unknown)}"
        )
    return [known[id(v)].numpy() for v in variables]


def _check_of_keras(learning_rate, gradient_accumulation_steps, name, options):
    """Raises ValueError of arguments that Keras would take, or refuse with another error."""
    is_schedule = isinstance(learning_rate, keras.optimizers.schedules.LearningRateSchedule)
    is_number = is_finite(learning_rate) and learning_rate >= 0
    if not (is_schedule or is_number or isinstance(learning_rate, dict) or callable(learning_rate)):
        raise ValueError(
            "Argument `learning_rate` must be a number of at least 0 or a schedule. "
            f"Received: learning_rate={shown(learning_rate)}"
        )
    if gradient_accumulation_steps is not None:
        check_integer("gradient_accumulation_steps", gradient_accumulation_steps, minimum=2)
    for argument, value in options.items():
        if value is not None:
            check_positive(argument, value)
    if name is not None and not isinstance(name, str):
        raise ValueError(f"Argument `name` must be a string. Received: name={shown(name)}")


@register
class IVON(TakesDraws, keras.optimizers.Optimizer):
    """Learns a Gaussian over all weights at about the cost of Adam, with no layer changed.

    Each step takes its gradient at weights drawn from the Gaussian, and moves its mean and
    variance. `tfuq.predictive.sample_predictions`, `predict_uncertainty` and exports draw networks
    from it; `predict` uses the mean.

    **While it trains, the weights of the model hold a draw.** At the end of `fit` they are the
    mean. To let validation, checkpoints and early stopping see the mean at the end of each epoch,
    train with `tfuq.callbacks.PosteriorMean()`; in your own loop call `to_mean()` before you
    evaluate. Weights that you set or load count as the mean. Under a strategy all replicas draw one
    network in a step; the authors draw one for each.

    Formula (Shen et al. 2024, algorithm 1):

    ```
    theta = m + e / sqrt(n (h + d)),  e ~ N(0, I)        n: num_data, d: prior_precision
    g  <- b1 g + (1 - b1) grad(theta)
    f  =  n (h + d) (theta - m) grad(theta)
    h  <- b2 h + (1 - b2) f + (1 - b2)^2 (h - f)^2 / (2 (h + d))
    m  <- m - rate (h0 + d) clip((g / (1 - b1^t) + d m) / (h + d))
    ```

    The loss has to be a mean over examples, as in Keras. A step from weights without drawn noise,
    such as the first step of a `fit`, leaves h unchanged.

    Args:
        learning_rate: A number or a schedule; about that of SGD.
        num_data: How many examples the training data hold (times labels or pixels, where the loss
            is a mean over those, too). Required: it says how narrow the Gaussian is.
        beta_1: Momentum of gradients, in [0, 1).
        beta_2: Momentum of the Hessian, in [0, 1).
        prior_precision: d, the weight decay: the prior of each weight is N(0, 1 / (n d)). The
            optimizer's own; `weight_decay` of Keras, which no posterior knows of, is not taken.
        hessian_init: h0, what h starts from: small ones start wide.
        clip_radius: Largest step of a weight before the rate, or None.
        rescale_learning_rate: Whether the rate is multiplied by h0 + d, so that the first steps are
            those of SGD.
        seed: Integer that determines the noise.
        clipnorm, clipvalue, global_clipnorm, gradient_accumulation_steps, loss_scale_factor, name:
            As in Keras' optimizers.

    Raises:
        ValueError: If an argument is out of its range, or `num_data` is missing.

    Example:

    ```python
    import keras
    import numpy as np
    import tfuq

    x, y = np.random.rand(64, 8), np.random.randint(3, size=64)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tfuq.optimizers.IVON(0.1, num_data=len(x)), loss)
    model.fit(x, y, validation_split=0.2, callbacks=[tfuq.callbacks.PosteriorMean()], verbose=0)
    print(tfuq.predictive.sample_predictions(model, x, num_samples=4).shape)  # (4, 64, 3)
    ```

    References:
        - Shen et al.: "Variational Learning is Effective for Large Deep Networks", ICML 2024.

    See also: `tfuq.callbacks.PosteriorMean`, `tfuq.callbacks.SWAG`,
    `tfuq.predictive.predict_uncertainty`.
    """

    kept_by = "IVON"

    def __init__(
        self,
        learning_rate: Any,
        num_data: int | None = None,
        beta_1: float = 0.9,
        beta_2: float = 0.99999,
        prior_precision: float = 1e-4,
        hessian_init: float = 1.0,
        clip_radius: float | None = None,
        rescale_learning_rate: bool = True,
        seed: int = 0,
        *,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        gradient_accumulation_steps: int | None = None,
        loss_scale_factor: float | None = None,
        name: str = "ivon",
    ) -> None:
        if num_data is None:
            raise ValueError(
                "Argument `num_data` is required: how many examples the training data hold, times "
                "labels or pixels where the loss is a mean over those, too. Received: num_data=None"
            )
        check_positive("num_data", num_data)
        if num_data % 1 != 0:
            raise ValueError(
                "Argument `num_data` must be how many examples the training data hold, not "
                f"batches. Received: num_data={shown(num_data)}, which is no whole number"
            )
        for argument, value in (("beta_1", beta_1), ("beta_2", beta_2)):
            if not is_finite(value) or not 0 <= value < 1:
                raise ValueError(
                    f"Argument `{argument}` must be in [0, 1). Received: {argument}={shown(value)}"
                )
        if not is_finite(prior_precision) or prior_precision < 0:
            raise ValueError(
                "Argument `prior_precision` must be a finite number of at least 0. "
                f"Received: prior_precision={shown(prior_precision)}"
            )
        check_positive("hessian_init", hessian_init)
        if clip_radius is not None:
            check_positive("clip_radius", clip_radius)
        check_flags(rescale_learning_rate=rescale_learning_rate)
        check_integer("seed", seed, minimum=0)
        options = {
            "clipnorm": clipnorm,
            "clipvalue": clipvalue,
            "global_clipnorm": global_clipnorm,
            "loss_scale_factor": loss_scale_factor,
        }
        _check_of_keras(learning_rate, gradient_accumulation_steps, name, options)
        options["gradient_accumulation_steps"] = gradient_accumulation_steps
        super().__init__(learning_rate, name=name, **options)
        self.num_data = num_data
        self.beta_1, self.beta_2 = beta_1, beta_2
        self.prior_precision, self.hessian_init = prior_precision, hessian_init
        self.clip_radius, self.rescale_learning_rate = clip_radius, rescale_learning_rate
        self.seed = seed

    def build(self, variables: Sequence[Any]) -> None:
        if self.built:
            return
        super().build(variables)
        start = keras.initializers.Constant(self.hessian_init)
        self._momenta, self._hessians, self._noises = self.add_optimizer_variables(
            variables, ["momentum", "hessian", "noise"], ["zeros", start, "zeros"]
        )
        self._marks = [
            self.add_variable((), "zeros", "int32", "only_first_replica", name=f"mark_{index}")
            for index in range(len(variables))
        ]

    def update_step(self, gradient: Tensor, variable: Any, learning_rate: Any) -> None:
        """Moves mean and Hessian by the gradient at the drawn weight, and draws another one."""
        index, dtype = self._get_variable_index(variable), variable.dtype
        momentum, hessian = (
            tf.convert_to_tensor(each[index]) for each in (self._momenta, self._hessians)
        )
        noise = self._noise_in(variable, index)
        gradient = tf.cast(tf.convert_to_tensor(gradient), dtype)
        rate = tf.cast(learning_rate, dtype)
        mean = tf.convert_to_tensor(variable) - noise
        precision = hessian + self.prior_precision
        found = self.num_data * precision * noise * gradient
        found = tf.where(noise == 0, hessian, found)  # no noise says nothing of it
        momentum = self.beta_1 * momentum + (1 - self.beta_1) * gradient
        hessian = next_hessian(hessian, found, precision, self.beta_2)
        step = tf.cast(self.iterations + 1, dtype)
        average = momentum / (1 - tf.pow(tf.constant(self.beta_1, dtype), step))
        step = (average + self.prior_precision * mean) / (hessian + self.prior_precision)
        if self.clip_radius is not None:
            step = tf.clip_by_value(step, -self.clip_radius, self.clip_radius)
        if self.rescale_learning_rate:
            rate *= self.hessian_init + self.prior_precision
        noise = self._noise(index, hessian, self._seed(_OF_STEPS))
        self.assign(self._momenta[index], momentum)
        self.assign(self._hessians[index], hessian)
        weight = mean - rate * step + noise
        self.assign(self._noises[index], noise)
        self.assign(self._marks[index], mark_of(weight))
        self.assign(variable, weight)

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """Updates the variables."""
        super().apply(grads, trainable_variables)
        for index, variable in enumerate(self._trainable_variables):
            if variable.constraint is not None:  # which moves the weight after the step
                moved = mark_of(tf.convert_to_tensor(variable))
                self.assign(self._marks[index], moved)

    def _noise_in(self, variable, index):
        """Noise that a variable holds: none if others have set it since the optimizer did."""
        noise = tf.convert_to_tensor(self._noises[index])
        mark = tf.convert_to_tensor(self._marks[index])
        is_ours = mark_of(tf.convert_to_tensor(variable)) == mark
        return tf.where(is_ours, noise, tf.zeros_like(noise))

    def _seed(self, kind):
        """Seed `(2,)` of the noise after the step that is running."""
        seed = tf.stack([tf.constant(self.seed % 2**31), tf.cast(self._iterations, "int32")])
        return tf.random.fold_in(seed, kind, alg=points.ALGORITHM)

    def _noise(self, index, hessian, seed):
        """theta - m of one variable, e / sqrt(n (h + d))."""
        seed = tf.random.fold_in(seed, index, alg=points.ALGORITHM)
        normal = points.normal(tf.shape(hessian), seed=seed, dtype=hessian.dtype)
        return normal * tf.math.rsqrt(self.num_data * (hessian + self.prior_precision))

    # --- The posterior -----------------------------------------------------------------------

    def is_random(self) -> bool:
        """Whether there is a posterior: once it is built."""
        return self.built

    def drawn(self, seed: int) -> list[tuple[Any, Tensor]]:
        """Weights of one network from the posterior.

        Args:
            seed: Integer tensor `(2,)`.

        Returns:
            List of pairs of each variable and a tensor for it.
        """
        found = []
        for index, variable in enumerate(self._trainable_variables):
            hessian = self._hessians[index]
            mean = tf.convert_to_tensor(variable.value) - self._noise_in(variable.value, index)
            found.append((variable, mean + self._noise(index, tf.convert_to_tensor(hessian), seed)))
        return found

    def posterior_state(self) -> list[Any]:
        """Arrays that `drawn` follows from, beside the weights."""
        return [*self.hessians(), tf.constant([self.num_data, self.prior_precision], "float64")]

    def standard_deviations(self) -> list[Tensor]:
        """Standard deviations of the posterior, tensors in the order of the trainable variables.

        Raises:
            ValueError: If the optimizer is not built.
        """
        self._check_built()
        precisions = [tf.convert_to_tensor(h) + self.prior_precision for h in self._hessians]
        return [tf.math.rsqrt(self.num_data * each) for each in precisions]

    def hessians(self) -> list[Tensor]:
        """h of each trainable variable, tensors: how much the loss bends in each weight.

        Raises:
            ValueError: If the optimizer is not built.
        """
        self._check_built()
        return [tf.convert_to_tensor(each) for each in self._hessians]

    def to_mean(self) -> None:
        """Sets the model's weights to the mean of the posterior. Does nothing if they are it."""
        for index, noise in enumerate(self._noises_or_none()):
            variable = self._trainable_variables[index]
            variable.assign(variable - self._noise_in(variable, index))
            noise.assign(keras.ops.zeros_like(noise))

    def to_sample(self) -> None:
        """Sets the model's weights to a draw, which the next step takes its gradient at."""
        self.to_mean()
        seed = self._seed(_OF_STARTS)
        for index, noise in enumerate(self._noises_or_none()):
            noise.assign(self._noise(index, tf.convert_to_tensor(self._hessians[index]), seed))
            variable = self._trainable_variables[index]
            variable.assign(variable + noise)
            self._marks[index].assign(mark_of(tf.convert_to_tensor(variable)))

    def _noises_or_none(self):
        return self._noises if self.built else []

    def _check_built(self):
        if not self.built:
            raise ValueError(
                "The optimizer has no posterior before it has trained a model. "
                "Received: built=False"
            )

    def finalize_variable_values(self, var_list: Any) -> None:
        """Sets the weights to the mean, as Keras asks for at the end of `fit`."""
        super().finalize_variable_values(var_list)
        self.to_mean()

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        for name in ("weight_decay", "use_ema", "ema_momentum", "ema_overwrite_frequency"):
            config.pop(name, None)
        return {**config, **{name: getattr(self, name) for name in _ARGUMENTS}}
