"""Detectors by the last layer of a classifier and the features that it takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfuq._arguments import (
    ArrayLike,
    Output,
    Self,
    check_choice,
    check_integer,
    check_positive,
    register,
    shown,
)
from tfuq._math.pseudo_inverse import ULPS, precision, pseudo_inverse
from tfuq._models.feature_arrays import check_rows, in_blocks
from tfuq._models.features import linear
from tfuq._models.logit_layer import linear_map
from tfuq.ood._last_layer_formulas import (
    check_percentile,
    grad_norm,
    residual_space,
    sparse_kernel,
    virtual_logit,
)
from tfuq.ood._logit_scores import LOGIT_SCORES, energy, generalized_entropy
from tfuq.ood.base import Detector

HEAD_SHAPES = {"kernel": ("features_0", "classes"), "bias": ("classes",)}


def head_logits(features, state):
    """f W + b, float64, of a detector's arrays or of their tensors in a graph."""
    return tf.cast(features, "float64") @ state["kernel"] + state["bias"]


def check_head(head):
    """`Linear` from a built layer with a linear map or a pair of arrays, or a ValueError."""
    if isinstance(head, keras.layers.Layer) and head.built:
        head = linear_map(head)
    error = ValueError(
        "Argument `head` must be a built Dense layer or head, or a pair (kernel, bias): a kernel "
        "(features, classes), and a bias (classes,) or None, both finite. "
        f"Received: head={head!r}"
    )
    if not isinstance(head, (list, tuple)) or len(head) != 2:
        raise error
    kernel, bias = (None if w is None else keras.ops.convert_to_numpy(w) for w in head)
    kernel = check_rows("head", kernel).astype("float64")
    bias = np.zeros(kernel.shape[1]) if bias is None else check_rows("head", bias, ndim=1)
    if bias.shape != kernel.shape[1:] or not np.all(np.isfinite(np.vstack([kernel, bias]))):
        raise error
    return linear(kernel, bias.astype("float64"))


class LastLayerDetector(Detector):
    """Base of the detectors that take penultimate features `(n, d)`, and fit to the last layer."""

    def _tapped(self):
        return {"layers": (None,)}

    def _read(self, batch):
        return self._tap(batch).features

    def _check(self, features):
        return (check_rows("features", features),)

    def _from_model(self):
        head = self._tap.last_layer()
        if head is None:
            raise ValueError(
                "Argument `model` must end in a Dense layer, and perhaps its activation, or in a "
                "head whose mean logits are linear in its inputs, for "
                f"{type(self).__name__}. Received: model={shown(self.model)}"
            )
        return {"head": head}

    def fit_features(
        self, features: ArrayLike | Sequence[ArrayLike], y: ArrayLike | None = None, *, head: Any
    ) -> Self:
        """Fits to arrays instead of a model and its inputs.

        Args:
            features: Penultimate features `(n, d)`.
            y: Ignored.
            head: The last layer that takes them: a built `Dense` or head, or a pair `(kernel,
                bias)` of arrays `(d, classes)` and `(classes,)` or None.

        Returns:
            The detector. `score` needs a model: assign `detector.model`.

        Raises:
            ValueError: If arrays are empty, not finite, or of a wrong shape.
        """
        return self._learn("features", self._given(features), y, head=check_head(head))

    def _shapes(self):
        return HEAD_SHAPES

    def _fit(self, arrays, y, head):
        if head.kernel.shape[0] != arrays[0].shape[1]:
            raise ValueError(
                f"Argument `head` must take {arrays[0].shape[1]} features. "
                f"Received: a kernel of shape {head.kernel.shape}"
            )
        return head._asdict()

    def _formula(self, features, state):
        """Scores of features, of arrays and in a graph."""
        raise NotImplementedError

    def _score(self, arrays):
        return self._formula(arrays[0], self._state)

    def _graph_score(self, state, found, batch):
        return self._formula(found.features[0], state), found.features


@register
class ViM(LastLayerDetector):
    """Virtual-logit matching (ViM): the part of the features outside the main subspace, as a logit.

    The virtual logit is the length of the features outside the subspace spanned by the `dim`
    principal axes of the training data, scaled to the size of their largest logits.

    Formula:

    ```
    v(x)  = alpha ||R^T (f(x) - o)||,   o = -(W^T)^+ b
    alpha = sum_i max_c z_c(x_i) / sum_i ||R^T (f(x_i) - o)||
    score = v(x) - log sum_c exp(z_c(x))                         (Wang et al. 2022, section 4)
    ```

    R holds the eigenvectors of sum_i (f(x_i) - o)(f(x_i) - o)^T past the `dim` largest. The paper's
    score is the soft-max of the virtual logit among the others, sigmoid of this one, and orders
    inputs the same way.

    `fit_features(features, head=...)` and `score_features` take penultimate features `(n, d)`.
    Labels are not needed.

    Args:
        dim: Dimension of the subspace, below d. By default that of the authors' code, 1000 for
            d >= 2048 and 512 below, or d // 2 if d < 768.
        output: Which output of the model is the classification, as for `MaxSoftmax`.
        from_logits: Whether that holds logits, as for `MaxSoftmax`.

    Raises:
        ValueError: If an argument is not as described; in `fit`, if `dim` is not below d, or the
            model does not end in a `Dense` layer.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.ood import ViM

    x = np.random.normal(size=(64, 8))
    layers = [keras.layers.Dense(6, activation="relu"), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((8,)), *layers])
    detector = ViM(dim=4, from_logits=True).fit(model, x)
    print(detector.score(x).shape)
    ```

    References:
        - Wang, Li, Feng and Zhang, "ViM: Out-Of-Distribution with Virtual-logit Matching", CVPR
          2022.

    See also: `tfuq.ood.Energy`, `tfuq.ood.Mahalanobis`.
    """

    def __init__(
        self,
        dim: int | None = None,
        *,
        output: Output | None = None,
        from_logits: bool | None = None,
    ) -> None:
        super().__init__(output=output, from_logits=from_logits)
        if dim is not None:
            check_integer("dim", dim, 1)
        self.dim = dim

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "dim": self.dim}

    def _shapes(self):
        own = {"origin": ("features_0",), "residual": ("features_0", "rest"), "alpha": ()}
        return {**super()._shapes(), **own}

    def _fit(self, arrays, y, head):
        state, features = super()._fit(arrays, y, head), arrays[0]
        origin = -pseudo_inverse(head.kernel.T) @ head.bias
        residual = residual_space(features, origin, self._dim_of(features.shape[1]))
        largest = in_blocks(lambda rows: (rows @ head.kernel + head.bias).max(1), features)
        length = in_blocks(lambda rows: virtual_logit(rows, origin, residual), features).mean()
        whole = in_blocks(lambda rows: np.linalg.norm(rows, axis=1), features).mean()
        eps = precision(features, *self._dtypes[:1])
        if length <= ULPS * eps * (whole + np.linalg.norm(origin)):
            raise ValueError(
                "Argument `dim` must be below the rank of the features, to which units that never "
                f"fire do not contribute. Received: dim={shown(self.dim)}"
            )
        own = {"origin": origin, "residual": residual, "alpha": np.array(largest.mean() / length)}
        return {**state, **own}

    def _dim_of(self, width):
        dim = self.dim
        if dim is None:
            dim = 1000 if width >= 2048 else 512 if width >= 768 else width // 2
        if dim >= width:
            raise ValueError(
                f"Argument `dim` must be below the number of features, {width}. Received: dim={dim}"
            )
        return dim

    def _formula(self, features, state):
        virtual = virtual_logit(features, state["origin"], state["residual"])
        return state["alpha"] * virtual + energy(head_logits(features, state))


@register
class GradNorm(LastLayerDetector):
    """Norm of the last layer's gradient towards the uniform distribution.

    The divergence between the uniform distribution and the prediction has a larger gradient for
    in-distribution inputs, so the score is minus its norm. It has a closed form.

    Formula:

    ```
    score = -|| d KL(u || softmax(z / T)) / d W ||_1
          = -||f(x)||_1 ||softmax(z(x) / T) - u||_1 / T          (Huang et al. 2021, section 4)
    ```

    `fit_features(features, head=...)` and `score_features` take penultimate features `(n, d)`.
    Labels are not needed. A last layer of one column z counts as one of (-z / 2, z / 2).

    Args:
        temperature: T, above 0; 1 in the paper.
        output: Which output of the model is the classification, as for `MaxSoftmax`.
        from_logits: Whether that holds logits, as for `MaxSoftmax`.

    Raises:
        ValueError: If an argument is not as described; in `fit`, if the model does not end in a
            `Dense` layer.

    Example:

    ```python
    import numpy as np
    from tfuq.ood import GradNorm

    features, kernel = np.random.normal(size=(64, 8)), np.random.normal(size=(8, 3))
    detector = GradNorm().fit_features(features, head=(kernel, None))
    print(detector.score_features(features).shape)
    ```

    References:
        - Huang, Geng and Li, "On the Importance of Gradients for Detecting Distributional Shifts
          in the Wild", NeurIPS 2021.

    See also: `tfuq.ood.ExGrad`, `tfuq.ood.GradientFeatures`.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        *,
        output: Output | None = None,
        from_logits: bool | None = None,
    ) -> None:
        super().__init__(output=output, from_logits=from_logits)
        check_positive("temperature", temperature)
        self.temperature = temperature

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "temperature": self.temperature}

    def _formula(self, features, state):
        return -grad_norm(features, head_logits(features, state), self.temperature)


@register
class ExGrad(LastLayerDetector):
    """Expected norm of the last layer's gradient, for a label drawn from the prediction.

    If the network is sure of its answer, that label would change its weights little. The norm has a
    closed form: no gradient is computed. It is the norm for the kernel; the authors' program adds
    the bias, which makes ||f(x)||_1 + 1 of ||f(x)||_1.

    Formula:

    ```
    score = sum_c p_c || d log p_c / d W ||_1 = 2 ||f(x)||_1 sum_c p_c (1 - p_c)
                                                                 (Igoe et al. 2022)
    ```

    `fit_features(features, head=...)` and `score_features` take penultimate features `(n, d)`.
    Labels are not needed. A last layer of one column z counts as one of (-z / 2, z / 2).

    Args:
        output: Which output of the model is the classification, as for `MaxSoftmax`.
        from_logits: Whether that holds logits, as for `MaxSoftmax`.

    Raises:
        ValueError: If an argument is not as described; in `fit`, if the model does not end in a
            `Dense` layer.

    Example:

    ```python
    import numpy as np
    from tfuq.ood import ExGrad

    features, kernel = np.random.normal(size=(64, 8)), np.random.normal(size=(8, 3))
    detector = ExGrad().fit_features(features, head=(kernel, None))
    print(detector.score_features(features).shape)
    ```

    References:
        - Igoe, Chung, Char and Schneider, "How Useful are Gradients for OOD Detection Really?",
          arXiv 2205.10439, 2022.

    See also: `tfuq.ood.GradNorm`, `tfuq.ood.GAIA`.
    """

    def _formula(self, features, state):
        spread = generalized_entropy(head_logits(features, state), 1.0)
        return 2 * tf.reduce_sum(tf.abs(tf.cast(features, "float64")), 1) * spread


@register
class DICE(LastLayerDetector):
    """A score of the logits of a sparse last layer, which keeps only its important weights.

    Weights that contribute little to the logits of the training data carry noise, most of all for
    inputs out of distribution.

    Formula:

    ```
    V_jc  = mean over i of f_j(x_i) W_jc
    score = that of the logits f(x) W', W' = W where V is above its percentile, else 0
                                                                 (Sun and Li 2022)
    ```

    `fit_features(features, head=...)` and `score_features` take penultimate features `(n, d)`.
    Labels are not needed. A last layer of one column z counts as one of (-z / 2, z / 2).

    Args:
        percentile: 0, or at least 1 and below 100: how many percent of the weights are left out.
        base: `"energy"`, `"max_softmax"`, `"max_logit"` or `"entropy"`, as the detectors of these
            names.
        output: Which output of the model is the classification, as for `MaxSoftmax`.
        from_logits: Whether that holds logits, as for `MaxSoftmax`.

    Raises:
        ValueError: If an argument is not as described; in `fit`, if the model does not end in a
            `Dense` layer, or no weight is above the percentile.

    Example:

    ```python
    import numpy as np
    from tfuq.ood import DICE

    features, kernel = np.random.uniform(size=(64, 20)), np.random.normal(size=(20, 3))
    detector = DICE().fit_features(features, head=(kernel, None))
    print(detector.score_features(features).shape)
    ```

    References:
        - Sun and Li, "DICE: Leveraging Sparsification for Out-of-Distribution Detection", ECCV
          2022.

    See also: `tfuq.ood.ReAct`, `tfuq.ood.ASH`, `tfuq.ood.Energy`.
    """

    def __init__(
        self,
        percentile: float = 70,
        base: str = "energy",
        *,
        output: Output | None = None,
        from_logits: bool | None = None,
    ) -> None:
        super().__init__(output=output, from_logits=from_logits)
        check_percentile(percentile)
        check_choice("base", base, tuple(LOGIT_SCORES))
        self.percentile = percentile
        self.base = base

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "percentile": self.percentile, "base": self.base}

    def _fit(self, arrays, y, head):
        state = super()._fit(arrays, y, head)
        sums = in_blocks(lambda rows: rows.sum(0, "float64")[None], arrays[0])
        kernel = sparse_kernel(head.kernel, sums.sum(0) / len(arrays[0]), self.percentile)
        if not np.any(kernel):
            raise ValueError(
                "Argument `percentile` must leave some weights of the last layer, and here all "
                "contribute the same: use a lower one. Received: "
                f"percentile={shown(self.percentile)}"
            )
        return {**state, "kernel": kernel}

    def _formula(self, features, state):
        return LOGIT_SCORES[self.base](head_logits(features, state))
