"""Detectors by the logits of a classifier, which fit nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfuq._arguments import Data, Output, check_flags, check_kind, check_positive, register, shown
from tfuq._models.feature_arrays import check_logits, check_rows, two_classes
from tfuq.ood._input_processing import check_epsilon, descended
from tfuq.ood._logit_scores import LOGIT_SCORES, joint_score, label_scores, max_softmax
from tfuq.ood._parts import scores_of_parts
from tfuq.ood.base import Detector


class LogitDetector(Detector):
    """Base of the detectors whose features are logits `(n, classes)`."""

    def _read(self, batch):
        return (self._tap(batch).logits,)

    def _check(self, features):
        return (check_logits("features", features),)

    def _graph_score(self, state, found, batch):
        return self._score((found.logits,)), [found.logits]


class _ClasswiseDetector(LogitDetector):
    """Base of those that score labels that do not exclude one another, and pixels, too.

    A child names `_kind`, a key of `LOGIT_SCORES`.
    """

    _kind = None

    def __init__(
        self,
        *,
        output: Output | None = None,
        from_logits: bool | None = None,
        multi_label: bool | None = None,
    ) -> None:
        super().__init__(output=output, from_logits=from_logits)
        if multi_label is not None:
            check_flags(multi_label=multi_label)
        self.multi_label = multi_label

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "multi_label": self.multi_label}

    def _tapped(self):
        takes = ("pixels", "labels") if self.multi_label else ("pixels",)
        return {"multi_label": self.multi_label, "takes": takes}

    def _check(self, features):
        check_kind("features", features)
        rows = check_rows("features", features, ndim=max(2, np.ndim(features)))
        return (rows if self.multi_label else np.asarray(two_classes(rows)),)

    def _options(self):
        """Arguments of the score beside the logits."""
        return {}

    def _of_each(self, logits):
        """Scores of each prediction: of an example, `(n,)`, or of its pixels, `(n, ...)`."""
        if self.multi_label:
            return joint_score(logits, self._kind, **self._options())
        return LOGIT_SCORES[self._kind](logits, **self._options())

    def _score(self, arrays):
        scores = self._of_each(arrays[0])
        return tf.reduce_mean(scores, tuple(range(1, scores.shape.rank)))

    def score_each(self, x: Data, *, batch_size: int = 32, verbose: int = 0) -> np.ndarray:
        """Scores of each label, or of each pixel, of which `score` has one for each example.

        Args:
            x: Inputs, as for `score`.
            batch_size: Examples at a time, for arrays.
            verbose: 1 shows a progress bar.

        Returns:
            Array, float64: `(n, labels)` with `multi_label`; `(n, height, width)` of a model that
            predicts each pixel; `(n, height, width, labels)` of both. Each entry is what the
            formula says of this label or pixel alone; inf for inputs that are not finite. A
            threshold of them is `threshold_at(scores=found.ravel())`.

        Raises:
            ValueError: As `score`; if the model has one prediction of classes per example.
        """
        return scores_of_parts(self, x, self._of_parts, batch_size, verbose)

    def _of_parts(self, batch):
        logits = self._read(batch)[0]
        if logits.ndim == 2 and not self.multi_label:
            raise ValueError(
                "Argument `model` must predict each pixel, or several labels with "
                "multi_label=True; take `score` for one prediction per example. Received: "
                f"logits of shape {logits.shape}"
            )
        return self._labels_of(logits) if self.multi_label else self._of_each(logits)

    def _labels_of(self, logits):
        return label_scores(logits, self._kind, **self._options())


class _OwnLogitDetector(_ClasswiseDetector):
    """Base of those for which logarithms of probabilities will not do."""

    def _read(self, batch):
        logits = self._tap(batch).own_logits
        self._tap.check_knows_logits()
        return (logits,)

    def _graph_score(self, state, found, batch):
        return self._score((found.own_logits,)), [found.own_logits]


@register
class MaxSoftmax(_ClasswiseDetector):
    """The baseline: 1 minus the largest probability.

    Formula:
        score = 1 - max_c p(c | x)                               (Hendrycks and Gimpel 2017)
        score = 1 - prod_l max(p_l, 1 - p_l)                     with `multi_label`
    in [0, 1); of one label alone min(p_l, 1 - p_l). It is computed from logits, so that
    probabilities next to 1 stay apart.

    `fit_features` and `score_features` take logits `(n, classes)`; of one column, those of class 1
    of two. Labels are not needed.

    Args:
        output: Which output of the model is the classification, when it has several: an index, a
            key or a field of a named tuple.
        from_logits: Whether that holds logits. By default what the last layer declares, else what
            the compiled loss says.
        multi_label: True for labels that do not exclude one another: `score` scores the logits `(n,
            labels)` together, `score_each` each label. If the model predicts each pixel, `score` is
            the mean of the pixels' scores.

    Raises:
        ValueError: If an argument is not as described.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.ood import MaxSoftmax

    x = np.random.normal(size=(64, 8))
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3, activation="softmax")])
    detector = MaxSoftmax().fit(model, x)
    detector.threshold_at(0.95)  # accepts 95 % of x
    print(detector.score(x).shape, detector.detect(x).mean())
    ```

    References:
        - Hendrycks and Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution
          Examples in Neural Networks", ICLR 2017.

    See also: `tfuq.ood.MaxLogit`, `tfuq.ood.Energy`, `tfuq.ood.Mahalanobis`.
    """

    _kind = "max_softmax"


@register
class MaxLogit(_OwnLogitDetector):
    """Minus the largest logit, which unlike the probability keeps the size of the logits.

    Formula:
        score = -max_c z_c(x)                                    (Hendrycks et al. 2022)
    also with `multi_label`; of one label alone -z_l.

    `fit_features` and `score_features` take logits `(n, classes)`. A single logit z of class 1
    counts as (-z / 2, z / 2). Labels are not needed.

    Args:
        output: Which output of the model to score, as for `MaxSoftmax`.
        from_logits: Whether that holds logits, as for `MaxSoftmax`. Of a model of probabilities the
            logits are those that its last layer makes them from; of a head that averages over
            draws, such as `tfuq.layers.VBLLDense`, those of its mean: `mean_logits`.
        multi_label: As for `MaxSoftmax`.

    Raises:
        ValueError: If an argument is not as described; in `fit`, if the model has no logits.

    Example:

    >>> from tfuq.ood import MaxLogit
    >>> print(MaxLogit().score_features([[3.0, 1.0], [0.5, 0.25]]))
    [-3.  -0.5]

    References:
        - Hendrycks, Basart, Mazeika, Zou, Kwon, Mostajabi, Steinhardt and Song, "Scaling
          Out-of-Distribution Detection for Real-World Settings", ICML 2022.

    See also: `tfuq.ood.MaxSoftmax`, `tfuq.ood.Energy`.
    """

    _kind = "max_logit"


@register
class Energy(_OwnLogitDetector):
    """The free energy of the logits.

    Formula:
        score = E(x; T) = -T log sum_c exp(z_c(x) / T)           (Liu et al. 2020, equation 4)
        score = sum_l E_l(x; T) = -T sum_l log(1 + exp(z_l / T)) (Wang et al. 2021, equation 4)
    the latter, the joint energy, with `multi_label`; of one label alone E_l.

    `fit_features` and `score_features` take logits `(n, classes)`. A single logit z of class 1
    counts as (-z / 2, z / 2). Labels are not needed.

    Args:
        temperature: T, above 0; 1 in the paper.
        output: Which output of the model to score, as for `MaxSoftmax`.
        from_logits: Whether that holds logits, as for `MaxSoftmax`. Of a model of probabilities the
            logits are those that its last layer makes them from; of a head that averages over
            draws, such as `tfuq.layers.VBLLDense`, those of its mean: `mean_logits`.
        multi_label: As for `MaxSoftmax`.

    Raises:
        ValueError: If an argument is not as described; in `fit`, if the model has no logits.

    Example:

    >>> from tfuq.ood import Energy
    >>> print(Energy().score_features([[3.0, 1.0], [0.5, 0.25]]).round(3))
    [-3.127 -1.076]

    References:
        - Liu, Wang, Owens and Li, "Energy-based Out-of-distribution Detection", NeurIPS 2020.
        - Wang, Liu, Bocchieri and Li, "Can multi-label classification networks know what they
          don't know?", NeurIPS 2021.

    See also: `tfuq.ood.MaxLogit`, `tfuq.ood.ReAct`, `tfuq.losses.EnergyMargin`.
    """

    _kind = "energy"

    def __init__(
        self,
        temperature: float = 1.0,
        *,
        output: Output | None = None,
        from_logits: bool | None = None,
        multi_label: bool | None = None,
    ) -> None:
        super().__init__(output=output, from_logits=from_logits, multi_label=multi_label)
        check_positive("temperature", temperature)
        self.temperature = temperature

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "temperature": self.temperature}

    def _options(self):
        return {"temperature": self.temperature}


@register
class Entropy(_ClasswiseDetector):
    """The entropy of the predicted probabilities, in nats.

    Formula:
        score = H[p(. | x)] = -sum_c p(c | x) log p(c | x)
    in [0, log classes]; with `multi_label` the sum of the labels' entropies.

    `fit_features` and `score_features` take logits `(n, classes)`; of one column, those of class 1
    of two. Labels are not needed.

    Args:
        output: Which output of the model to score, as for `MaxSoftmax`.
        from_logits: Whether that holds logits, as for `MaxSoftmax`.
        multi_label: As for `MaxSoftmax`.

    Raises:
        ValueError: If an argument is not as described.

    Example:

    >>> from tfuq.ood import Entropy
    >>> print(Entropy().score_features([[3.0, 1.0], [0.0, 0.0]]).round(3))
    [0.365 0.693]

    See also: `tfuq.ood.MaxSoftmax`, `tfuq.ood.GEN`, `tfuq.ood.MutualInformation`.
    """

    _kind = "entropy"


@register
class ODIN(LogitDetector):
    """1 minus the largest probability at a high temperature, after a step of the input towards it.

    Each input takes a small step that raises the confidence in its own prediction. The confidence
    rises more for inputs in distribution. Cost: a forward and a backward pass, then another forward
    pass.

    Formula:

    ```
    x'    = x - epsilon sign(-grad_x log S_y(x; T)),   y = argmax_c S_c(x; T)
    score = 1 - max_c S_c(x'; T),   S(x; T) = softmax(z(x) / T)      (Liang et al. 2018)
    ```

    `fit_features` and `score_features` take logits `(n, classes)`, with `epsilon=0` only: an input
    cannot be moved without a model. Labels are not needed.

    Args:
        temperature: T, above 0.
        epsilon: Size of the step, at least 0, in the units of the model's inputs. The paper's
            0.0014 is for images of about unit variance.
        output: Which output of the model to score, as for `MaxSoftmax`.
        from_logits: Whether that holds logits, as for `MaxSoftmax`. For a head that averages over
            draws, S is the soft-max of its mean logits.

    Raises:
        ValueError: If an argument is not as described; in `score`, if the outputs have no gradient
            at the inputs, and `epsilon` is not 0.

    Example:

    ```python
    import keras
    import numpy as np
    from tfuq.ood import ODIN

    x = np.random.normal(size=(64, 8))
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3, "softmax")])
    detector = ODIN(temperature=1000, epsilon=0.0014).fit(model, x)
    detector.threshold_at(0.95, x)
    print(detector.detect(x).mean())
    ```

    References:
        - Liang, Li and Srikant, "Enhancing The Reliability of Out-of-distribution Image Detection
          in Neural Networks", ICLR 2018.

    See also: `tfuq.ood.MaxSoftmax`, `tfuq.ood.Mahalanobis`.
    """

    def __init__(
        self,
        temperature: float = 1000.0,
        epsilon: float = 0.0014,
        *,
        output: Output | None = None,
        from_logits: bool | None = None,
    ) -> None:
        super().__init__(output=output, from_logits=from_logits)
        check_positive("temperature", temperature)
        check_epsilon(epsilon)
        self.temperature = temperature
        self.epsilon = epsilon

    def get_config(self) -> dict[str, Any]:
        config = {"temperature": self.temperature, "epsilon": self.epsilon}
        return {**super().get_config(), **config}

    def _bind(self, model):
        super()._bind(model)
        self._moved = self._tap.compiled(self._logits_of_moved)

    def _read(self, batch):
        return (self._tap(batch).own_logits,)

    def _logits_of_moved(self, batch):
        def surprise(batch):
            # T times as large as in the paper, which the sign does not see.
            scaled = self._tap.forward(batch, moved=True).own_logits / self.temperature
            return -self.temperature * tf.reduce_max(tf.nn.log_softmax(scaled), axis=-1)

        moved = descended(batch, surprise, self.epsilon, self._tap.compute_dtype)
        return self._tap.forward(moved, moved=True).own_logits

    def _score_batch(self, batch):
        if self.epsilon == 0:
            return super()._score_batch(batch)
        self._tap.prepare(batch)
        return self._scores_of((self._moved(batch).numpy(),))

    def _graph_score(self, state, found, batch):
        logits = found.own_logits if self.epsilon == 0 else self._logits_of_moved(batch)
        return self._score((logits,)), [logits]

    @property
    def _needs_inputs(self):
        return self.epsilon != 0

    def _scores_of_fit(self, arrays):
        return super()._scores_of_fit(arrays) if self.epsilon == 0 else None

    def _check(self, features):
        if self.epsilon != 0:
            raise ValueError(
                "Argument `epsilon` must be 0 to score logits: inputs are moved with the model. "
                f"Received: epsilon={shown(self.epsilon)}"
            )
        return super()._check(features)

    def _score(self, arrays):
        return max_softmax(arrays[0], self.temperature)
