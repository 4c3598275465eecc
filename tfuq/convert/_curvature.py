"""Curvature of a loss in the weights of a last layer, summed over rows, and Gaussians made of it.

A row has the inputs x of the layer and the curvature L of its loss in the outputs, which is
`diag(diagonal) - outer outer^T`; `outer` is None where outputs do not depend on each other. Sums
are in float64. Weights stand unit by unit, features first, the bias last.
"""

import numpy as np

SMALLEST = 1e-12  # relative to the largest eigenvalue; below it there is rounding alone


class Curvature:
    """Sums over rows; a subclass says which, and what Gaussian they make."""

    def __init__(self, features, units, use_bias, coupled):
        self.shape = (features, units)
        self.use_bias, self.coupled = use_bias, coupled
        self.sums = {name: np.zeros(shape) for name, shape in self._shapes().items()}

    def add(self, x, diagonal, outer, weight):
        """Adds rows: x `(rows, features)`, L as described, times weights `(rows,)`."""
        diagonal = diagonal * weight[:, None]
        outer = None if outer is None else outer * np.sqrt(weight)[:, None]
        self._add(x, diagonal, outer, weight)

    def joined(self, other):
        """What the rows of both make."""
        return self._combined(other, np.add)

    def without(self, other):
        """What the rows that are not in `other` make."""
        return self._combined(other, np.subtract)

    def _combined(self, other, function):
        found = type(self)(*self.shape, self.use_bias, self.coupled)
        found.sums = {name: function(each, other.sums[name]) for name, each in self.sums.items()}
        return found

    def _with_one(self, x):
        return with_one(x, self.use_bias)


def with_one(x, use_bias):
    """Inputs with one more feature, which is 1, if there is a bias."""
    return np.pad(x, [(0, 0), (0, 1)], constant_values=1.0) if use_bias else x


class DiagonalCurvature(Curvature):
    """The diagonal alone, `(features + 1, units)`."""

    def _shapes(self):
        features, units = self.shape
        return {"diagonal": (features + self.use_bias, units)}

    def _add(self, x, diagonal, outer, weight):
        of_units = diagonal if outer is None else diagonal - outer**2
        self.sums["diagonal"] += (self._with_one(x) ** 2).T @ of_units

    def gaussian(self):
        return DiagonalGaussian(np.maximum(self.sums["diagonal"], 0.0), self.use_bias)


class KroneckerCurvature(Curvature):
    """(sum L) x (sum x x^T / N) of the kernel and sum L of the bias, as in KFAC."""

    def _shapes(self):
        features, units = self.shape
        return {"inputs": (features, features), "outputs": (units, units), "count": ()}

    def _add(self, x, diagonal, outer, weight):
        self.sums["inputs"] += (x * weight[:, None]).T @ x
        self.sums["count"] += weight.sum()
        of_outputs = np.diag(diagonal.sum(axis=0))
        self.sums["outputs"] += of_outputs if outer is None else of_outputs - outer.T @ outer

    def gaussian(self):
        inputs = _eigen(self.sums["inputs"] / self.sums["count"])
        outputs = self.sums["outputs"]
        outputs = _eigen(outputs) if self.coupled else (np.diag(outputs), np.eye(len(outputs)))
        return KroneckerGaussian(*inputs, *outputs, self.use_bias)


class FullCurvature(Curvature):
    """The whole matrix: a block for each unit, and what couples them."""

    def _shapes(self):
        features, units = self.shape
        rows = features + self.use_bias
        shapes = {"blocks": (units, rows, rows)}
        return {**shapes, "coupling": (units * rows,) * 2} if self.coupled else shapes

    def _add(self, x, diagonal, outer, weight):
        x = self._with_one(x)
        for block, of_unit in zip(self.sums["blocks"], diagonal.T, strict=True):
            block += (x * of_unit[:, None]).T @ x
        if outer is not None:
            each = (outer[:, :, None] * x[:, None]).reshape(len(x), -1)
            self.sums["coupling"] += each.T @ each

    def gaussian(self):
        blocks = self.sums["blocks"]
        units, rows, _ = blocks.shape
        if not self.coupled:
            values, bases = zip(*map(_eigen, blocks), strict=True)
            return FullGaussian(np.stack(values), np.stack(bases), self.use_bias)
        whole = -self.sums["coupling"].reshape(units, rows, units, rows)
        for unit, block in enumerate(blocks):
            whole[unit, :, unit] += block
        values, basis = _eigen(whole.reshape(units * rows, -1))
        return FullGaussian(values[None], basis.reshape(units, rows, -1), self.use_bias)


def _eigen(matrix):
    """Eigenvalues of at least 0, and the basis."""
    values, basis = np.linalg.eigh(matrix)
    return np.where(values > SMALLEST * values.max(initial=0.0), values, 0.0), basis


CURVATURES = {
    "diagonal": DiagonalCurvature,
    "kfac": KroneckerCurvature,
    "full": FullCurvature,
}


class Gaussian:
    """N(0, (H scale + precision I)^-1), in the eigenbasis of H.

    `scale` `(units,)` multiplies the curvature of each unit, where these are independent.
    """

    def by_unit(self):
        """Eigenvalues of each unit `(numbers, units)`, where units are independent."""
        raise NotImplementedError

    def eigenvalues(self, scale=1.0):
        """All eigenvalues of the curvature, one array."""
        raise NotImplementedError

    def variance(self, x, precision, scale=1.0):
        """Variances of the outputs `(rows, units)` of the inputs `(rows, features)`."""
        raise NotImplementedError

    def applied(self, matrix, precision, scale=1.0):
        """The covariance times weights, `(features + 1, units)`."""
        raise NotImplementedError

    def spread(self, precision, scale=1.0):
        """What a `LaplaceLastLayer` keeps, by the names of its weights."""
        raise NotImplementedError


class DiagonalGaussian(Gaussian):
    def __init__(self, values, use_bias):
        self.values, self.use_bias = values, use_bias

    def by_unit(self):
        return self.values

    def eigenvalues(self, scale=1.0):
        return (self.values * scale).ravel()

    def _variances(self, precision, scale):
        return 1 / (self.values * scale + precision)

    def variance(self, x, precision, scale=1.0):
        variances = self._variances(precision, scale)
        of_kernel = x**2 @ (variances[:-1] if self.use_bias else variances)
        return of_kernel + variances[-1] if self.use_bias else of_kernel

    def applied(self, matrix, precision, scale=1.0):
        return matrix * self._variances(precision, scale)

    def spread(self, precision, scale=1.0):
        return {"scale": np.sqrt(self._variances(precision, scale))}


class KroneckerGaussian(Gaussian):
    def __init__(self, of_inputs, basis_features, of_outputs, basis_units, use_bias):
        self.of_inputs, self.basis_features = of_inputs, basis_features
        self.of_outputs, self.basis_units = of_outputs, basis_units
        self.use_bias = use_bias

    def _products(self, scale):
        """Eigenvalues of the kernel `(features, units)` and of the bias `(units,)`."""
        of_outputs = self.of_outputs * scale
        return self.of_inputs[:, None] * of_outputs, of_outputs

    def by_unit(self):
        of_kernel, of_bias = self._products(1.0)
        return np.concatenate([of_kernel, of_bias[None]]) if self.use_bias else of_kernel

    def eigenvalues(self, scale=1.0):
        of_kernel, of_bias = self._products(scale)
        return np.concatenate([of_kernel.ravel(), of_bias]) if self.use_bias else of_kernel.ravel()

    def variance(self, x, precision, scale=1.0):
        of_kernel, of_bias = self._products(scale)
        turned = (x @ self.basis_features) ** 2 @ (1 / (of_kernel + precision))
        turned = turned + 1 / (of_bias + precision) if self.use_bias else turned
        return turned @ self.basis_units.T**2

    def applied(self, matrix, precision, scale=1.0):
        of_kernel, of_bias = self._products(scale)
        features = len(self.basis_features)
        turned = self.basis_features.T @ matrix[:features] @ self.basis_units
        found = self.basis_features @ (turned / (of_kernel + precision))
        if self.use_bias:
            bias = matrix[-1] @ self.basis_units / (of_bias + precision)
            found = np.concatenate([found, bias[None]])
        return found @ self.basis_units.T

    def spread(self, precision, scale=1.0):
        of_kernel, of_bias = self._products(scale)
        found = {
            "basis_features": self.basis_features,
            "basis_units": self.basis_units,
            "scale": 1 / np.sqrt(of_kernel + precision),
        }
        return {**found, "bias_scale": 1 / np.sqrt(of_bias + precision)} if self.use_bias else found


class FullGaussian(Gaussian):
    """`basis` `(units, features + 1, numbers)`, and eigenvalues `(units or 1, numbers)`.

    Of coupled units the numbers are common to all; of others each unit has its own.
    """

    def __init__(self, values, basis, use_bias):
        self.values, self.basis, self.use_bias = values, basis, use_bias

    def by_unit(self):
        return self.values.T

    def _scaled(self, scale):
        return self.values * np.reshape(scale, (-1, 1))

    def eigenvalues(self, scale=1.0):
        return self._scaled(scale).ravel()

    def variance(self, x, precision, scale=1.0):
        x = with_one(x, self.use_bias)
        turned = np.stack([x @ each for each in self.basis], axis=1)
        return np.sum(turned**2 / (self._scaled(scale) + precision), axis=-1)

    def applied(self, matrix, precision, scale=1.0):
        turned = np.einsum("ufn,fu->un", self.basis, matrix)
        if len(self.values) == 1:  # the numbers are common to all units
            turned = turned.sum(axis=0, keepdims=True)
        turned = turned / (self._scaled(scale) + precision)
        turned = np.broadcast_to(turned, (len(self.basis), turned.shape[1]))
        return np.einsum("ufn,un->fu", self.basis, turned)

    def spread(self, precision, scale=1.0):
        units, rows, numbers = self.basis.shape
        root = self.basis / np.sqrt(self._scaled(scale) + precision)[:, None]
        if numbers < units * rows:  # a block for each unit
            whole = np.zeros((units, rows, units, rows))
            whole[np.arange(units), :, np.arange(units)] = root
            root = whole.reshape(units, rows, -1)
        return {"covariance_root": root}
