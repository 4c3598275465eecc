"""Detectors of out-of-distribution inputs as parts of a graph, in float64 as in `tfuq.ood`."""

import numpy as np
import tensorflow as tf

from tfuq import ood
from tfuq._models.feature_arrays import BLOCK
from tfuq._models.finite import finite_rows
from tfuq.export._samples import EXACT
from tfuq.ood.base import Detector

# --- Scores of tensors ------------------------------------------------------------------------


def max_softmax(logits, temperature=1.0):
    """1 - max_c softmax(z / T)_c, as the sum of all others."""
    scaled = logits / temperature
    is_top = tf.one_hot(tf.argmax(scaled, -1), scaled.shape[-1], True, False, dtype="bool")
    others = tf.where(is_top, tf.cast(-np.inf, scaled.dtype), scaled)
    return tf.sigmoid(tf.reduce_logsumexp(others, -1) - tf.reduce_max(scaled, -1))


def max_logit(logits):
    return -tf.reduce_max(logits, -1)


def energy(logits, temperature=1.0):
    """-T log sum_c exp(z_c / T)."""
    return -temperature * tf.reduce_logsumexp(logits / temperature, -1)


def entropy(logits):
    log_probs = tf.nn.log_softmax(logits)
    return -tf.reduce_sum(tf.exp(log_probs) * log_probs, -1)


LOGIT_SCORES = {
    "max_softmax": max_softmax,
    "max_logit": max_logit,
    "energy": energy,
    "entropy": entropy,
}


def squared_distances(rows, points):
    """|a - b|^2 of each row and point, `(n, points)`."""
    center = tf.reduce_mean(points, 0)  # what is far from the origin keeps its digits, in float32
    rows, points = rows - center, points - center
    squares = tf.reduce_sum(rows**2, 1)[:, None] + tf.reduce_sum(points**2, 1)
    return tf.maximum(squares - 2 * tf.matmul(rows, points, transpose_b=True), 0)


def closest(features, centers, whitening):
    """Squared Mahalanobis distance to the closest of `centers`, which are whitened, `(n,)`."""
    return tf.reduce_min(squared_distances(features @ whitening, centers), 1)


def kth_distance(rows, bank, k):
    """Distance `(n,)` of each row to the k-th nearest row of `bank`, a block of it at a time."""
    nearest = None
    for start in range(0, bank.shape[0], BLOCK):
        block = squared_distances(rows, tf.cast(bank[start : start + BLOCK], rows.dtype))
        nearest = block if nearest is None else tf.concat([nearest, block], 1)
        if nearest.shape[1] > k:
            nearest = -tf.math.top_k(-nearest, k).values
    return tf.sqrt(tf.reduce_max(nearest, 1))


# --- Detectors --------------------------------------------------------------------------------
# Each takes the detector, tensors of what it has fitted (means of Gaussians are whitened), what
# `Tap` found, and the batch; it returns the scores, and the tensors that these need to be finite.


def _of_logits(score):
    def scored(detector, state, found, batch):
        del detector, state, batch
        return score(_wide(found.logits)), [found.logits]

    return scored


def _of_energy(detector, state, found, batch):
    del state, batch
    return energy(_wide(found.logits), detector.temperature), [found.logits]


def _of_odin(detector, state, found, batch):
    del state
    logits = found.logits if detector.epsilon == 0 else detector._logits_of_moved(batch)
    return max_softmax(_wide(logits), detector.temperature), [logits]


def _of_mahalanobis(detector, state, found, batch):
    numbers = range(len(found.features))
    gaussians = [(state[f"means_{i}"], state[f"whitening_{i}"]) for i in numbers]
    features = found.features
    if detector.epsilon != 0:
        features = detector._features_of_moved(batch, gaussians)
    pairs = zip(features, gaussians, strict=True)
    distances = [closest(_wide(rows), *gaussian) for rows, gaussian in pairs]
    if detector.layers is None:
        return distances[0], features
    standard = (tf.stack(distances, 1) - state["center"]) / state["scale"]
    return tf.linalg.matvec(standard, state["weights"]) + state["bias"], features


def _of_relative_mahalanobis(detector, state, found, batch):
    del detector, batch
    rows = _wide(found.features[0])
    to_class = closest(rows, state["means"], state["whitening"])
    to_all = closest(rows, state["background_means"], state["background_whitening"])
    return to_class - to_all, found.features


def _of_knn(detector, state, found, batch):
    del batch
    rows = _wide(found.features[0])
    norms = tf.norm(rows, axis=1, keepdims=True)
    rows /= tf.where(norms > 0, norms, tf.ones_like(norms))
    return kth_distance(rows, state["bank"], detector.k), found.features


def _of_vim(detector, state, found, batch):
    del detector, batch
    rows = _wide(found.features[0])
    virtual = tf.norm((rows - state["origin"]) @ state["residual"], axis=1)
    return state["alpha"] * virtual + energy(_head(rows, state)), found.features


def _of_grad_norm(detector, state, found, batch):
    del batch
    rows, temperature = _wide(found.features[0]), detector.temperature
    probs = tf.nn.softmax(_head(rows, state) / temperature)
    gap = tf.reduce_sum(tf.abs(probs - 1 / probs.shape[-1]), 1)
    return -tf.reduce_sum(tf.abs(rows), 1) * gap / temperature, found.features


def _of_react(detector, state, found, batch):
    found = detector._find_rectified(batch, state["limit"])
    score = LOGIT_SCORES[detector.base](_wide(found.logits))
    return score, [found.features[0], found.logits]


_SCORES = {
    ood.MaxSoftmax: _of_logits(max_softmax),
    ood.MaxLogit: _of_logits(max_logit),
    ood.Entropy: _of_logits(entropy),
    ood.Energy: _of_energy,
    ood.ODIN: _of_odin,
    ood.Mahalanobis: _of_mahalanobis,
    ood.RelativeMahalanobis: _of_relative_mahalanobis,
    ood.KNN: _of_knn,
    ood.ViM: _of_vim,
    ood.GradNorm: _of_grad_norm,
    ood.ReAct: _of_react,
}


def _wide(tensor):
    return tf.cast(tensor, "float64")


def _head(rows, state):
    return rows @ state["kernel"] + state["bias"]


def _arrays(state):
    """What a detector has fitted, float64 but for the features that it keeps."""
    state = {k: v if k == "bank" else np.asarray(v, "float64") for k, v in state.items()}
    for name in [name for name in state if "means" in name]:
        state[name] = state[name] @ state[name.replace("means", "whitening")]
    return state


class GraphScore:
    """The score of a detector as a function of a batch, in a graph.

    Args:
        detector: A fitted detector of `tfuq.ood`.
        inputs: A batch to find the layers with, where the detector has not seen one.
        hold: Makes a variable of an array that is to be part of the file.
    """

    def __init__(self, detector, inputs, hold):
        self.detector = detector
        # Now, because a function that is traced must not make variables.
        self.held = {name: hold(array) for name, array in _arrays(detector._state).items()}
        self.tap = detector._tap
        self.tap.prepare(inputs)

    def reads(self, output):
        """Whether it looks at this output of the model."""
        return self.detector.output == output

    def __call__(self, batch):
        return self._score(batch, self.tap.forward(batch))

    def with_outputs(self, batch):
        """Outputs of the model as it predicts, float32, and the scores, from one pass."""
        found = self.tap.forward(batch)
        return found.outputs, [self._score(batch, found)]

    def _score(self, batch, found):
        with tf.name_scope(EXACT):
            return self._scored(batch, found)

    def _scored(self, batch, found):
        state = {name: tf.convert_to_tensor(array) for name, array in self.held.items()}
        score, arrays = _SCORES[type(self.detector)](self.detector, state, found, batch)
        known = finite_rows(batch) & finite_rows(list(arrays)) & ~tf.math.is_nan(score)
        # What is not finite is unknown, and further out than all else.
        return tf.cast(tf.where(known, score, tf.cast(np.inf, score.dtype)), "float32")


def check_detector(detector, members, options):
    """The model of the detector, one of `members` (None: it scores samples); or ValueError."""
    if not isinstance(detector, Detector):
        raise ValueError(
            f"Argument `ood` must be a fitted detector of `tfuq.ood`. Received: ood={detector!r}"
        )
    detector._check_fitted()
    if isinstance(detector, ood.MutualInformation):
        _check_samples(detector, members, options)
        detector._check_model()
        return None
    if type(detector) not in _SCORES:
        known = ", ".join(sorted(each.__name__ for each in (*_SCORES, ood.MutualInformation)))
        raise ValueError(
            f"Argument `ood` must be a detector that runs in a graph: {known}. "
            f"Received: a {type(detector).__name__}"
        )
    if detector.model is None and len(members) == 1:
        detector.model = members[0]
    if not any(detector.model is member for member in members):
        raise ValueError(
            "Argument `ood` must be fitted to the model that is exported, or to a member of it. "
            f"Received: a {type(detector).__name__} of {detector.model}"
        )
    detector._check_model()
    return detector.model


def _check_samples(detector, members, options):
    """Raises ValueError unless the score is the mutual information of the exported samples."""
    wanted = (detector.num_samples, detector.seed)
    given = (options.num_samples, options.seed)
    is_ensemble = len(members) > 1 and options.num_samples is None
    if options.predictive != "fixed_samples" or not (is_ensemble or wanted == given):
        raise ValueError(
            "Argument `ood` may be a MutualInformation of the samples that are exported: with "
            f"predictive='fixed_samples', num_samples={wanted[0]} and seed={wanted[1]}. Received: "
            f"predictive={options.predictive!r}, num_samples={given[0]}, seed={given[1]}"
        )
