"""Learning rates by depth: the first layers of a pretrained network move least."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras

from tfuq._arguments import (
    Tensor,
    check_choice,
    check_fraction,
    check_positive,
    register,
    shown,
)

SCHEMES = ("log", "linear", "thirds")


def layer_factors(num_layers, scheme="log", min_factor=0.01):
    """Factors of the learning rate of layers 1 to L = `num_layers`, the last of which is 1.

    ```
    log:     f_i = m * (1 / m)^((i - 1) / (L - 1))
    linear:  f_i = m + (1 - m) * (i - 1) / (L - 1)
    thirds:  f_i = m         for i <= L / 3
                   sqrt(m)   for L / 3 < i <= 2 L / 3
                   1         for i > 2 L / 3
    ```

    with m = `min_factor`; a single layer has the factor 1.
    """
    layers = range(1, num_layers + 1)
    if scheme == "thirds":
        steps = (min_factor, min_factor**0.5, 1.0)
        return [steps[(3 * i > num_layers) + (3 * i > 2 * num_layers)] for i in layers]
    depths = [(i - 1) / (num_layers - 1) if num_layers > 1 else 1.0 for i in layers]
    if scheme == "linear":
        return [min_factor + (1 - min_factor) * depth for depth in depths]
    return [min_factor ** (1 - depth) for depth in depths]


class Place(NamedTuple):
    """Where a variable is: the path of its layer, and its own name."""

    layer: str
    name: str

    def matches(self, pattern):
        """Whether it fits the path, or a part of it between slashes."""
        names = [*self.layer.split("/"), self.name]
        ends = range(1, len(names) + 1)
        parts = ("/".join(names[i:j]) for j in ends for i in range(j))
        return any(fnmatch.fnmatchcase(part, pattern) for part in parts)


def places(variables):
    """The place of each variable, in the order of `model.trainable_variables`.

    There the variables of a layer stand together. Another layer begins where the path up to the
    last `/` changes, and also where a name comes again: two layers may have one path, such as those
    of one name in two nested models. The second is then `path#2`.
    """
    found, seen = [], {}
    parent, names = None, ()
    for variable in variables:
        path = getattr(variable, "path", variable.name)
        above, _, name = path.rpartition("/")
        above = above or path
        if above != parent or name in names:
            parent, names = above, set()
            seen[parent] = seen.get(parent, 0) + 1
        names.add(name)
        found.append(Place(parent if seen[parent] == 1 else f"{parent}#{seen[parent]}", name))
    return found


def variable_factors(found, scheme, min_factor, groups):
    """The factor of each of the places `found`: of the first group that fits, or by depth."""
    layers = list(dict.fromkeys(place.layer for place in found))
    by_depth = dict.fromkeys(layers, 1.0)
    if scheme is not None:
        by_depth = dict(zip(layers, layer_factors(len(layers), scheme, min_factor), strict=True))
    for pattern in groups:
        if not any(place.matches(pattern) for place in found):
            raise ValueError(
                "Argument `groups` must name trainable variables or layers of the model, here "
                f"{layers}. Received: {shown(pattern)}, which fits none"
            )
    return [
        next((f for pattern, f in groups.items() if place.matches(pattern)), by_depth[place.layer])
        for place in found
    ]


def inner_optimizer_of(optimizer):
    """The optimizer that `optimizer` is or says, unless it has others inside."""
    try:
        found = keras.optimizers.get(optimizer)
    except (KeyError, TypeError, ValueError):
        found = None
    if found is None:
        raise ValueError(
            "Argument `optimizer` must be a Keras optimizer, or the name or configuration of one. "
            f"Received: optimizer={shown(optimizer)}"
        )
    if hasattr(found, "inner_optimizer") or hasattr(found, "optimizers"):
        raise ValueError(
            "Argument `optimizer` must not wrap another optimizer: put a LossScaleOptimizer "
            f"around DiscriminativeLearningRate instead. Received: optimizer={shown(optimizer)}"
        )
    return found


def check_groups(groups):
    """Raises ValueError unless `groups` has a factor above 0 for each pattern; `None` is fine."""
    if groups is None:
        return
    if not isinstance(groups, dict) or not all(isinstance(pattern, str) for pattern in groups):
        raise ValueError(
            "Argument `groups` must be a dict of patterns and their factors, or None. "
            f"Received: groups={shown(groups)}"
        )
    for pattern, factor in groups.items():
        check_positive(f"groups[{pattern!r}]", factor)


@register
class DiscriminativeLearningRate(keras.optimizers.Optimizer):
    """Gives each layer a learning rate by its depth, with any Keras optimizer.

    The last layer learns at the rate of `optimizer`, the first at `min_factor` times that. The
    factor scales the update, not the gradient: a step moves a layer with the factor f exactly f
    times as far as `optimizer` alone would. (A scaled gradient does not do that for Adam and
    similar optimizers.) Decoupled weight decay is scaled, too, as by any learning rate. Clipping,
    moving averages, gradient accumulation and constraints are those of `optimizer`.

    `learning_rate` is the rate of the last layer. It can be read, set or be a schedule, as that of
    any optimizer, so callbacks that move it move all layers.

    Formula:

    ```
    w^i_{t+1} = w^i_t - f_i rate u^i_t             u: the step of `optimizer` at rate 1 (eq. 2.6)

    thirds:  f_i = m, sqrt(m), 1                   each for a third of the layers        (eq. 2.7)
    linear:  f_i = m + (1 - m) * (i - 1) / (L - 1)                                       (eq. 2.8)
    log:     f_i = m * (1 / m)^((i - 1) / (L - 1))                                       (eq. 2.9)
    ```

    i counts the layers from 1 to L and m is `min_factor`. Equation numbers are those of paper 002,
    which prefers `"log"`. Its third formula counts from 0. In its first the middle rate is 0.1 with
    m = 0.01, and a layer on a boundary belongs to the lower third. Its second, as printed, is
    `(a_i - 0.01 a_i) / L * i`, which reaches neither end of what its text says: from a hundredth of
    the rate at layer 1, linearly, to the rate at the final layer. Here it does.

    Layers are counted as the optimizer is built, in the order of `model.trainable_variables`, and
    only if they have trainable weights. In functional models that order is topological, whatever
    order the layers were made in. Nested models count layer by layer where they stand, and a layer
    that is used several times counts once. In subclassed models it is the order of the attributes,
    with the model's own weights first. Layers that are frozen as the optimizer is built do not
    count; those that `tfuq.callbacks.GradualUnfreezing` freezes for a while do.

    All optimizers of Keras move in proportion to the rate that their `update_step` is given, and an
    optimizer of your own must, too. There are two exceptions. Adafactor caps its rate, so there the
    change of the weights is scaled, to the same end. Ftrl computes its weights from all gradients
    so far, whatever weights it finds. It gets the rate of each layer, which is the same if it
    starts from weights of 0, without its `l2` arguments.

    Args:
        optimizer: A Keras optimizer, or its name or configuration. It belongs to this one from then
            on. One that is built already keeps its state.
        scheme: `"log"`, `"linear"`, `"thirds"`, or `None`: the factor 1 for each layer that
            `groups` does not name.
        min_factor: Factor of the first layer, in (0, 1].
        groups: Factors by name, instead of those by depth: a dict of patterns, as in `fnmatch`, and
            factors above 0. A pattern fits a variable or layer by its name, its path or a part of
            the path, such as `"head"`, `"block1/*"` or `"bias"`, and the first that fits counts.
            What no pattern fits keeps its factor by depth. Paths are those of variables, where
            functional models leave no name. Set `trainable = False` to freeze a layer.
        name: Name of the optimizer.

    Attributes:
        inner_optimizer: The optimizer that does the work.
        factors: Dict of the factor of each layer by its path, in the order of depth, empty until
            the optimizer is built. If the variables of a layer have different factors, there is one
            entry for each. Where two layers have one path, the second is `path#2`.

    Raises:
        ValueError: If an argument is not as described. When it is built: if a pattern of `groups`
            fits no trainable variable.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.optimizers import DiscriminativeLearningRate

    x, y = np.random.rand(8, 4), np.random.randint(3, size=8)
    layers = [keras.layers.Dense(4, "relu", name=f"hidden{i}") for i in (1, 2)]
    model = keras.Sequential([keras.Input((4,)), *layers, keras.layers.Dense(3, name="head")])
    optimizer = DiscriminativeLearningRate(keras.optimizers.Adam(1e-3), min_factor=0.01)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, verbose=0)
    print(optimizer.factors)  # 0.01, 0.1 and 1
    ```

    See also: `tfuq.callbacks.GradualUnfreezing`, `tfuq.training.rapid_fit`.
    """

    def __init__(
        self,
        optimizer: Any,
        scheme: str | None = "log",
        min_factor: float = 0.01,
        groups: Mapping[str, float] | None = None,
        name: str | None = None,
    ) -> None:
        inner = inner_optimizer_of(optimizer)
        check_choice("scheme", scheme, (*SCHEMES, None))
        check_fraction("min_factor", min_factor)
        if min_factor == 0:
            raise ValueError(
                f"Argument `min_factor` must be in (0, 1]. Received: min_factor={shown(min_factor)}"
            )
        check_groups(groups)
        super().__init__(learning_rate=0.0, name=name)
        self.inner_optimizer = inner
        self.scheme = scheme
        self.min_factor = min_factor
        self.groups = groups
        self._saved_factors = None
        self._factor_of = {}
        self._decay_factor = 1.0
        if inner.built:
            self.build(inner._trainable_variables)
        # Its `apply` stays in charge of clipping, averages and counters, and comes back for these.
        inner.update_step = self.update_step
        inner._apply_weight_decay = self._apply_weight_decay
        inner._get_current_learning_rate = self._get_current_learning_rate

    def build(self, variables: Sequence[Any]) -> Any:
        if self.built:
            return
        factors = self._find_factors(variables)  # before anything is built, as it may raise
        self.inner_optimizer.build(variables)
        super().build(variables)
        self._assign_factors(factors)

    def apply(self, grads: Any, trainable_variables: Any = None) -> Any:
        """Updates the variables, each layer at its own rate."""
        if trainable_variables is not None:
            trainable_variables = list(trainable_variables)
            self.build(trainable_variables)
        if list(self._factor_of) != list(self._trainable_variables_indices):  # it was rebuilt
            self._assign_factors(self._find_factors(self._trainable_variables))
        self.inner_optimizer.apply(grads, trainable_variables)

    def update_step(self, gradient: Tensor, variable: Any, learning_rate: Any) -> Any:
        """The step of the inner optimizer for one variable, at the rate of its layer."""
        inner = self.inner_optimizer
        step, factor = type(inner).update_step, self._factor_of[self._var_key(variable)]
        if factor == 1:
            step(inner, gradient, variable, learning_rate)
        elif isinstance(inner, keras.optimizers.Adafactor):
            before = keras.ops.copy(variable)
            step(inner, gradient, variable, learning_rate)
            self.assign(variable, before + factor * (variable - before))
        else:
            step(inner, gradient, variable, learning_rate * factor)

    def _apply_weight_decay(self, variables):
        inner, by_factor = self.inner_optimizer, {}
        for variable in variables:
            by_factor.setdefault(self._factor_of[self._var_key(variable)], []).append(variable)
        try:  # replicas take turns inside, group by group, so they agree on the factor
            for factor, group in by_factor.items():
                self._decay_factor = factor
                type(inner)._apply_weight_decay(inner, group)
        finally:
            self._decay_factor = 1.0

    def _get_current_learning_rate(self):
        inner = self.inner_optimizer
        rate = type(inner)._get_current_learning_rate(inner)
        return rate if self._decay_factor == 1 else rate * self._decay_factor

    def _find_factors(self, variables):
        if self._saved_factors is not None and len(self._saved_factors) == len(variables):
            return self._saved_factors  # the paths of a loaded model may lack names of models
        return variable_factors(places(variables), self.scheme, self.min_factor, self.groups or {})

    def _assign_factors(self, factors):
        self._factor_of = dict(zip(self._trainable_variables_indices, factors, strict=True))

    @property
    def factors(self) -> dict[str, float]:
        if not self.built:
            return {}
        variables, of_layers = self._trainable_variables, {}
        for place, factor in zip(places(variables), self._find_factors(variables), strict=True):
            of_layers.setdefault(place.layer, {})[f"{place.layer}/{place.name}"] = factor
        found = {}
        for layer, of_variables in of_layers.items():
            same = len(set(of_variables.values())) == 1
            found.update({layer: next(iter(of_variables.values()))} if same else of_variables)
        return found

    @property
    def optimizer(self) -> Any:
        """The inner optimizer, by the name of the constructor's argument."""
        return self.inner_optimizer

    @property
    def variables(self) -> Any:
        return self.inner_optimizer.variables

    @property
    def iterations(self) -> Any:
        return self.inner_optimizer.iterations

    @property
    def learning_rate(self) -> Any:
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        self.inner_optimizer.learning_rate = learning_rate

    @property
    def loss_scale_factor(self) -> Any:
        return self.inner_optimizer.loss_scale_factor

    @loss_scale_factor.setter
    def loss_scale_factor(self, loss_scale_factor: float) -> None:
        if "inner_optimizer" in vars(self):  # the constructor of Keras sets it before there is one
            self.inner_optimizer.loss_scale_factor = loss_scale_factor

    def exclude_from_weight_decay(
        self, var_list: Any = None, var_names: Sequence[str] | None = None
    ) -> Any:
        """As that of the inner optimizer."""
        self.inner_optimizer.exclude_from_weight_decay(var_list, var_names)

    def finalize_variable_values(self, var_list: Any) -> Any:
        """As that of the inner optimizer."""
        self.inner_optimizer.finalize_variable_values(var_list)

    def set_weights(self, weights: Any) -> None:
        """Sets the state, in the order of `variables`."""
        self.inner_optimizer.set_weights(weights)

    def save_own_variables(self, store: Any) -> Any:
        """Saves nothing: all state is that of the inner optimizer, which Keras saves as well."""

    def load_own_variables(self, store: Any) -> Any:
        """Loads nothing, as nothing is saved."""

    def get_config(self) -> Any:
        config = {
            "name": self.name,
            "optimizer": keras.saving.serialize_keras_object(self.inner_optimizer),
            "scheme": self.scheme,
            "min_factor": self.min_factor,
            "groups": None if self.groups is None else dict(self.groups),
        }
        if self.built and self.groups is not None:
            config["factors"] = list(self._factor_of.values())
        return config

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> Any:
        config = dict(config)
        saved = config.pop("factors", None)
        inner = keras.saving.deserialize_keras_object(config.pop("optimizer"), custom_objects)
        optimizer = cls(inner, **config)
        optimizer._saved_factors = saved
        return optimizer
