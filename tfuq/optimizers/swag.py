"""Moments of the weights along a training (SWAG), kept by what stands around the optimizer."""

import warnings

import keras
import tensorflow as tf

from tfuq._arguments import check_integer, check_positive, register, shown
from tfuq._random import points
from tfuq._random.draws import TakesDraws

LEAST = 2  # networks, without which there is no deviation


def next_moments(mean, squares, weights, count):
    """Mean and sum of squared deviations with one more array of weights (Welford's recursion).

    `count` is how many arrays there were before.
    """
    step = weights - mean
    mean += step / (count + 1)
    return mean, squares + step * (weights - mean)


def check_moments(rank, scale):
    """Raises ValueError unless the numbers of a posterior are in their ranges."""
    check_integer("rank", rank, 0)
    if rank == 1:
        raise ValueError(
            "Argument `rank` must be 0 (only the diagonal) or at least 2: one deviation has no "
            "covariance. Received: rank=1"
        )
    check_positive("scale", scale)


@register
class SWAGMoments(TakesDraws, keras.optimizers.Optimizer):
    """A Keras optimizer, and beside it the Gaussian over the weights that `SWAG` has found.

    `tfuq.callbacks.SWAG` puts it around the optimizer of a model. It trains as that one does, and
    the Gaussian is saved with the model, as all state of an optimizer.

    Formula (Maddox et al. 2019, equation 1):

    ```
    w ~ N(mean, scale / 2 * (diag(var) + D D^T / (K - 1)))          D: the last K = rank deviations
    w = mean + sqrt(scale / 2) * (sqrt(var) z1 + D z2 / sqrt(K - 1)),      z1, z2 ~ N(0, I)
    ```

    Column i of D is the weights of network i less the mean of the first i. With a rank of 0 the
    covariance is `scale * diag(var)`. K is the number of networks while these are fewer.

    Args:
        optimizer: The optimizer that trains.
        rank: Number of deviations that are kept, 0 or at least 2.
        scale: Factor of the covariance.
        name: Name of the optimizer.
    """

    kept_by = "SWAG"

    def __init__(self, optimizer, rank=20, scale=1.0, name=None):
        if not isinstance(optimizer, keras.optimizers.Optimizer) or isinstance(
            optimizer, (TakesDraws, keras.optimizers.LossScaleOptimizer)
        ):
            raise ValueError(
                "Argument `optimizer` must be a Keras optimizer that keeps no posterior and scales "
                f"no loss. Received: optimizer={shown(optimizer)}"
            )
        check_moments(rank, scale)
        super().__init__(learning_rate=0.0, name=name)
        self.inner_optimizer = optimizer
        self.rank, self.scale = rank, scale
        self._moments = []
        if optimizer.built:
            self.build(optimizer._trainable_variables)

    def build(self, variables):
        if self.built:
            return
        self.inner_optimizer.build(variables)
        super().build(variables)
        self._count = self._counter("networks")
        self._is_posterior = self._counter("is_posterior")
        self._make_moments()

    def _make_moments(self):
        """Makes room for the moments of the trainable variables as they are now."""
        for old in self._moments[2:]:  # behind the counters
            self._untrack_variable(old)
        self._means, self._squares, self._deviations = [], [], []
        variables = self._trainable_variables
        for variable in variables:
            self._means.append(self._like(variable, "mean"))
            self._squares.append(self._like(variable, "squares"))
            if self.rank:
                self._deviations.append(self._like(variable, "deviations", (self.rank,)))
        counters = [self._count, self._is_posterior]
        self._moments = [*counters, *self._means, *self._squares, *self._deviations]
        self._places = list(self._trainable_variables_indices)

    def _counter(self, name):
        return self.add_variable((), "zeros", "int32", "only_first_replica", name=name)

    def _like(self, variable, name, leading=()):
        is_double = keras.backend.standardize_dtype(variable.dtype) == "float64"
        return self.add_variable(
            (*leading, *variable.shape),
            "zeros",
            "float64" if is_double else "float32",  # a mean of many numbers, in full precision
            name=f"{name}_{len(self._means)}",
        )

    def apply(self, grads, trainable_variables=None):
        """Updates the variables, as the optimizer inside does, and drops the posterior."""
        if trainable_variables is not None:
            trainable_variables = list(trainable_variables)
            self.build(trainable_variables)
        if self.is_random():
            warnings.warn(
                "SWAG's posterior is dropped, because the model is trained further and it is not "
                "one of the new weights. Train with `tfuq.callbacks.SWAG` to have another",
                stacklevel=2,
            )
        self.assign(self._is_posterior, tf.zeros((), "int32"))
        self.inner_optimizer.apply(grads, trainable_variables)

    # --- What SWAG does -----------------------------------------------------------------------

    def begin(self):
        """Forgets all networks."""
        for variable in self._moments:
            variable.assign(keras.ops.zeros_like(variable))

    def collect(self):
        """Takes the weights as they are now for one network.

        Raises:
            ValueError: If other variables are trained than those of the networks before.
        """
        count = self.num_networks()
        if self._places != list(self._trainable_variables_indices):  # it was rebuilt
            if count:
                raise ValueError(
                    "The trainable variables of the model must stay the same while SWAG averages "
                    "over them: `start` SWAG after layers are unfrozen or weights are selected. "
                    f"Received: other variables after {count} networks"
                )
            self._make_moments()
        slot = count % max(self.rank, 1)
        for index, variable in enumerate(self._trainable_variables):
            mean, squares = self._means[index], self._squares[index]
            weights = tf.cast(tf.convert_to_tensor(variable), mean.dtype)
            found = next_moments(
                tf.convert_to_tensor(mean), tf.convert_to_tensor(squares), weights, count
            )
            mean.assign(found[0])
            squares.assign(found[1])
            if self.rank:
                kept = tf.convert_to_tensor(self._deviations[index])
                is_slot = tf.reshape(tf.range(self.rank) == slot, (-1, *[1] * len(variable.shape)))
                self._deviations[index].assign(tf.where(is_slot, (weights - found[0])[None], kept))
        self._count.assign(count + 1)

    def end(self):
        """Makes what was collected a posterior; returns whether it is enough for one."""
        is_enough = self.num_networks() >= LEAST
        self._is_posterior.assign(int(is_enough))
        return is_enough

    def set_means(self):
        """Sets the trainable variables to the means."""
        for variable, mean in zip(self._trainable_variables, self._means, strict=True):
            variable.assign(tf.cast(tf.convert_to_tensor(mean), variable.dtype))

    # --- The posterior ------------------------------------------------------------------------

    def is_random(self):
        """Whether there is a posterior: since the last `fit` with SWAG, until another trains."""
        if not self.built:
            return False
        with tf.init_scope():  # also while a graph is built
            return bool(self._is_posterior.numpy())

    def num_networks(self):
        """How many networks were collected."""
        if not self.built:
            return 0
        with tf.init_scope():
            return int(self._count.numpy())

    def drawn(self, seed):
        """Weights of one network from the posterior.

        Args:
            seed: Integer tensor `(2,)`.

        Returns:
            List of pairs of each variable and a tensor for it.
        """
        seed, shared = points.split_seed(seed, 2)
        found, scales = [], self._scales()
        z2 = points.normal((max(self.rank, 1),), seed=shared)  # of all variables alike
        for index, variable in enumerate(self._trainable_variables):
            own = tf.random.fold_in(seed, index, alg=points.ALGORITHM)
            mean = tf.convert_to_tensor(self._means[index])
            noise = points.normal(mean.shape, seed=own, dtype=mean.dtype) * scales[index]
            if self.rank:
                deviations = tf.convert_to_tensor(self._deviations[index])
                z = tf.cast(z2, mean.dtype) * self._low_rank_scale(mean.dtype)
                noise += tf.tensordot(z, deviations, 1)
            found.append((variable, tf.cast(mean + noise, variable.dtype)))
        return found

    def posterior_state(self):
        """Arrays that `drawn` follows from, beside the weights."""
        return [*self._moments, tf.constant([self.scale], "float64")]

    def _scales(self):
        """sqrt(scale / 2 * var) of each variable, or sqrt(scale * var) for a rank of 0."""
        half = 2.0 if self.rank else 1.0
        scales = []
        for squares in self._squares:
            squares = tf.convert_to_tensor(squares)
            count = tf.cast(tf.maximum(tf.convert_to_tensor(self._count), 1), squares.dtype)
            scales.append(tf.sqrt(self.scale / half * squares / count))
        return scales

    def _low_rank_scale(self, dtype):
        """sqrt(scale / 2 / (K - 1)), with K the deviations that there are."""
        kept = tf.minimum(tf.convert_to_tensor(self._count), self.rank)
        return tf.sqrt(self.scale / 2 / tf.cast(tf.maximum(kept - 1, 1), dtype))

    def means(self):
        """Means of the trainable variables, tensors in their order."""
        return [tf.convert_to_tensor(each) for each in self._means]

    def standard_deviations(self):
        """Standard deviations of the posterior, tensors in the order of the trainable variables."""
        found = []
        for index, scale in enumerate(self._scales()):
            variance = tf.square(scale)
            if self.rank:
                deviations = self._low_rank_scale(scale.dtype) * self._deviations[index]
                variance += tf.reduce_sum(tf.square(deviations), axis=0)
            found.append(tf.sqrt(variance))
        return found

    # --- The rest is the optimizer inside -----------------------------------------------------

    @property
    def optimizer(self):
        """The inner optimizer, by the name of the constructor's argument."""
        return self.inner_optimizer

    @property
    def variables(self):
        return [*self.inner_optimizer.variables, *self._moments]

    @property
    def iterations(self):
        return self.inner_optimizer.iterations

    @property
    def learning_rate(self):
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate):
        self.inner_optimizer.learning_rate = learning_rate

    @property
    def loss_scale_factor(self):
        return self.inner_optimizer.loss_scale_factor

    @loss_scale_factor.setter
    def loss_scale_factor(self, loss_scale_factor):
        if "inner_optimizer" in vars(self):  # the constructor of Keras sets it before there is one
            self.inner_optimizer.loss_scale_factor = loss_scale_factor

    def exclude_from_weight_decay(self, var_list=None, var_names=None):
        """As that of the inner optimizer."""
        self.inner_optimizer.exclude_from_weight_decay(var_list, var_names)

    def finalize_variable_values(self, var_list):
        """As that of the inner optimizer."""
        self.inner_optimizer.finalize_variable_values(var_list)

    def set_weights(self, weights):
        """Sets the state, in the order of `variables`."""
        weights = list(weights)
        split = len(weights) - len(self._moments)
        self.inner_optimizer.set_weights(weights[:split])
        for variable, value in zip(self._moments, weights[split:], strict=True):
            variable.assign(value)

    def save_own_variables(self, store):
        for index, variable in enumerate(self._moments):
            store[str(index)] = keras.ops.convert_to_numpy(variable)

    def load_own_variables(self, store):
        stored = list(store.keys())
        if len(stored) != len(self._moments):
            raise ValueError(
                f"The file holds {len(stored)} moments of SWAG where the model has "
                f"{len(self._moments)}: it was written for another model or rank, or without SWAG"
            )
        for index, variable in enumerate(self._moments):
            variable.assign(store[str(index)])

    def get_config(self):
        return {
            "name": self.name,
            "optimizer": keras.saving.serialize_keras_object(self.inner_optimizer),
            "rank": self.rank,
            "scale": self.scale,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        inner = keras.saving.deserialize_keras_object(config.pop("optimizer"), custom_objects)
        return cls(inner, **config)
