"""Detectors by the logits of a classifier, which fit nothing."""

import tensorflow as tf

from tfuq._arguments import check_positive, register, shown
from tfuq._models.feature_arrays import check_logits
from tfuq.ood._input_processing import check_epsilon, descended
from tfuq.ood._logit_scores import energy, entropy, max_logit, max_softmax
from tfuq.ood.base import Detector


class _LogitDetector(Detector):
    """Base of the detectors whose features are logits `(n, classes)`."""

    def _read(self, batch):
        return (self._tap(batch).logits,)

    def _check(self, features):
        return (check_logits("features", features),)

    def _graph_score(self, state, found, batch):
        return self._score((found.logits,)), [found.logits]


class _OwnLogitDetector(_LogitDetector):
    """Base of those for which logarithms of probabilities will not do."""

    def _read(self, batch):
        logits = self._tap(batch).own_logits
        self._tap.check_knows_logits()
        return (logits,)

    def _graph_score(self, state, found, batch):
        return self._score((found.own_logits,)), [found.own_logits]


@register
class MaxSoftmax(_LogitDetector):
    """The baseline: how far the largest probability is from 1.

    Formula:
        score = 1 - max_c p(c | x)                               (Hendrycks and Gimpel 2017)
    in [0, 1). It is computed from logits, so that probabilities next to 1 stay apart.

    `fit_features` and `score_features` take logits `(n, classes)`; of one column, those of class 1
    of two. Labels are not needed.

    Args:
        output: Which output of the model is the classification, when it has several: an index, a
            key or a field of a named tuple.
        from_logits: Whether that holds logits. By default what the last layer declares, else what
            the compiled loss says.

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
    """

    def _score(self, arrays):
        return max_softmax(arrays[0])


@register
class MaxLogit(_OwnLogitDetector):
    """The largest logit, which unlike the probability knows how large all of them are.

    Formula:
        score = -max_c z_c(x)                                    (Hendrycks et al. 2022)

    `fit_features` and `score_features` take logits `(n, classes)`. A single logit z of class 1
    counts as (-z / 2, z / 2). Labels are not needed.

    Args:
        output: Which output of the model to score, as for `MaxSoftmax`.
        from_logits: Whether that holds logits, as for `MaxSoftmax`. Of a model of probabilities the
            logits are those that its last layer makes them from; of a head that averages over
            draws, such as `tfuq.layers.VBLLDense`, those of its mean: `mean_logits`.

    Raises:
        ValueError: If an argument is not as described; in `fit`, if the model has no logits.

    Example:

    >>> from tfuq.ood import MaxLogit
    >>> print(MaxLogit().score_features([[3.0, 1.0], [0.5, 0.25]]))
    [-3.  -0.5]

    References:
        - Hendrycks, Basart, Mazeika, Zou, Kwon, Mostajabi, Steinhardt and Song, "Scaling
          Out-of-Distribution Detection for Real-World Settings", ICML 2022.
    """

    def _score(self, arrays):
        return max_logit(arrays[0])


@register
class Energy(_OwnLogitDetector):
    """The free energy of the logits.

    Formula:
        score = E(x; T) = -T log sum_c exp(z_c(x) / T)           (Liu et al. 2020, equation 4)

    `fit_features` and `score_features` take logits `(n, classes)`. A single logit z of class 1
    counts as (-z / 2, z / 2). Labels are not needed.

    Args:
        temperature: T, above 0; 1 in the paper.
        output: Which output of the model to score, as for `MaxSoftmax`.
        from_logits: Whether that holds logits, as for `MaxSoftmax`. Of a model of probabilities the
            logits are those that its last layer makes them from; of a head that averages over
            draws, such as `tfuq.layers.VBLLDense`, those of its mean: `mean_logits`.

    Raises:
        ValueError: If an argument is not as described; in `fit`, if the model has no logits.

    Example:

    >>> from tfuq.ood import Energy
    >>> print(Energy().score_features([[3.0, 1.0], [0.5, 0.25]]).round(3))
    [-3.127 -1.076]

    References:
        - Liu, Wang, Owens and Li, "Energy-based Out-of-distribution Detection", NeurIPS 2020.
    """

    def __init__(self, temperature=1.0, *, output=None, from_logits=None):
        super().__init__(output=output, from_logits=from_logits)
        check_positive("temperature", temperature)
        self.temperature = temperature

    def get_config(self):
        return {**super().get_config(), "temperature": self.temperature}

    def _score(self, arrays):
        return energy(arrays[0], self.temperature)


@register
class Entropy(_LogitDetector):
    """The entropy of the predicted probabilities, in nats.

    Formula:
        score = H[p(. | x)] = -sum_c p(c | x) log p(c | x)
    in [0, log classes].

    `fit_features` and `score_features` take logits `(n, classes)`; of one column, those of class 1
    of two. Labels are not needed.

    Args:
        output: Which output of the model to score, as for `MaxSoftmax`.
        from_logits: Whether that holds logits, as for `MaxSoftmax`.

    Raises:
        ValueError: If an argument is not as described.

    Example:

    >>> from tfuq.ood import Entropy
    >>> print(Entropy().score_features([[3.0, 1.0], [0.0, 0.0]]).round(3))
    [0.365 0.693]
    """

    def _score(self, arrays):
        return entropy(arrays[0])


@register
class ODIN(_LogitDetector):
    """The largest probability at a high temperature, once the input is moved to raise it.

    Each input takes a small step towards more confidence in its own prediction, which raises it
    more for inputs in distribution. A pass forward and backward, and another forward.

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
        from_logits: Whether that holds logits, as for `MaxSoftmax`. Of a head that averages over
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
    """

    def __init__(self, temperature=1000.0, epsilon=0.0014, *, output=None, from_logits=None):
        super().__init__(output=output, from_logits=from_logits)
        check_positive("temperature", temperature)
        check_epsilon(epsilon)
        self.temperature = temperature
        self.epsilon = epsilon

    def get_config(self):
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
            scaled = self._tap.forward(batch).own_logits / self.temperature
            return -self.temperature * tf.reduce_max(tf.nn.log_softmax(scaled), axis=-1)

        moved = descended(self.model, batch, surprise, self.epsilon)
        return self._tap.forward(moved).own_logits

    def _score_batch(self, batch):
        if self.epsilon == 0:
            return super()._score_batch(batch)
        self._tap.prepare(batch)
        return self._scores_of((self._moved(batch).numpy(),))

    def _graph_score(self, state, found, batch):
        logits = found.own_logits if self.epsilon == 0 else self._logits_of_moved(batch)
        return self._score((logits,)), [logits]

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
