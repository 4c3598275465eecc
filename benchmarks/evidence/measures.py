"""The figures of `benchmarks/methods.py`, of the predictions of one network or of several seeds."""

import warnings

import numpy as np
import scipy.stats

from tfuq import metrics, selective

CONFIDENCE, COVERAGE = 0.95, 0.8
RESAMPLES = 400
COLUMNS = {  # of runs: title, digits, whether more is better (None: neither)
    "accuracy": ("accuracy", 3, True),
    "nll": ("NLL", 3, False),
    "brier": ("Brier", 3, False),
    "ece": ("ECE", 3, False),
    "confidence": ("confidence", 3, None),
    "aurc": ("AURC", 3, False),
    "augrc": ("AUGRC", 4, False),
    "risk80": ("risk at 80 %", 3, False),
    "coverage": ("coverage of the rule", 2, True),
    "realized": ("risk of accepted", 3, None),
    "dice": ("Dice", 3, True),
    "near": ("near AUROC", 3, True),
    "far": ("far AUROC", 3, True),
    "shift_accuracy": ("accuracy, shift", 3, True),
    "shift_accepted_wrong": ("accepted and wrong, shift", 3, False),
}
PAIRED = ("accuracy", "nll", "brier", "augrc", "near", "far")


def entropy(probs):
    return scipy.stats.entropy(probs, axis=-1)


def rounded(values):
    return {name: None if v is None else round(float(v), 5) for name, v in values.items()}


def nll_of(probs, labels):
    """-mean log p of the label, in nats; probabilities of float32 that are 0 count 1e-12."""
    found = probs[np.arange(len(labels)), labels]
    return float(-np.mean(np.log(np.maximum(found, 1e-12))))


def figures(probs, labels, target_risk):
    """All columns of a run; both arguments are dictionaries by the names of parts."""
    return of_answers(probs, labels) | rounded(
        {
            "shift_accuracy": np.mean(probs["shift"].argmax(-1) == labels["shift"]),
            **decided(probs, labels, target_risk),
        }
    )


def of_answers(probs, labels):
    """The columns that need the test rows and, where there are, near and far ones."""
    p, y = probs["test"], labels["test"]
    found = {
        "accuracy": np.mean(p.argmax(-1) == y),
        "nll": metrics.negative_log_likelihood(y, p),
        "brier": metrics.brier_score(y, p),
        "ece": metrics.expected_calibration_error(y, p),
        "confidence": np.mean(p.max(-1)),
        "aurc": selective.aurc(p, y),
        "augrc": selective.augrc(p, y),
        "risk80": selective.risk_at_coverage(p, y, COVERAGE),
    }
    for name in ("near", "far"):
        if name in probs:
            inside, outside = entropy(p), entropy(probs[name])
            truth = np.repeat([0, 1], [len(inside), len(outside)])
            found[name] = metrics.auroc(truth, np.concatenate([inside, outside]))
    return rounded(found)


def decided(probs, labels, target_risk):
    """Of a rule fitted to the calibration rows: what it accepts, and what of that is wrong."""
    fit = probs["calibration"]
    if len(np.unique(np.round(fit, 4), axis=0)) <= fit.shape[1]:
        # All rows are certain, those of the validation as well: tfuq would take them for the rows
        # that the temperature was fitted to. They are others; a hair makes them so.
        fit = fit * 0.999 + 0.001 / fit.shape[1]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rule = selective.RejectionRule.fit(
                fit, labels["calibration"],
                target_risk=target_risk, confidence=CONFIDENCE,
            )  # fmt: skip
    except selective.UnattainableRisk:
        return {"coverage": 0.0, "realized": None, "shift_accepted_wrong": 0.0}
    taken = {name: np.asarray(rule.accept(probs[name])) for name in ("test", "shift")}
    wrong = {name: probs[name].argmax(-1) != labels[name] for name in taken}
    on_test = wrong["test"][taken["test"]]
    return {
        "coverage": taken["test"].mean(),
        "realized": on_test.mean() if len(on_test) else None,
        "shift_accepted_wrong": np.mean(taken["shift"] & wrong["shift"]),
    }


# --- Differences with Dense, on the same rows ---------------------------------------------------


def drawn(count, resamples, rng):
    """How often each row is in each resample, after one of all rows: (1 + resamples, count)."""
    times = rng.multinomial(count, np.full(count, 1 / count), size=resamples)
    return np.concatenate([np.ones((1, count)), times]).astype("float32")


def augrc_of(weights, confidence, wrong):
    """AUGRC of resamples: the wrong that are accepted, as a mean over coverages by trapezoids."""
    order = np.argsort(-confidence, kind="stable")
    w = weights[:, order]
    bad = np.cumsum(w * wrong[order], axis=1)
    middle = bad - 0.5 * w * wrong[order]
    return (middle * w).sum(axis=1) / weights.shape[1] ** 2


def auroc_of(inside, outside, scores_in, scores_out):
    """AUROC of resamples of both kinds of rows; equal scores count half."""
    scores = np.concatenate([scores_in, scores_out])
    order = np.argsort(scores, kind="stable")
    is_in = (order < len(scores_in))[None]
    w = np.concatenate([inside, outside], axis=1)[:, order]
    ordered = scores[order]
    until = np.pad(np.cumsum(w * is_in, axis=1), ((0, 0), (1, 0)))
    first, last = (np.searchsorted(ordered, ordered, side) for side in ("left", "right"))
    below = (until[:, first] + until[:, last]) / 2  # with half of those that are equal
    return (below * w * ~is_in).sum(axis=1) / inside.shape[1] / outside.shape[1]


def resampled(probs, labels, weights):
    """Each of `PAIRED` under resamples of the rows: (resamples,)."""
    p, y = probs["test"].astype("float64"), labels["test"]
    rows = np.arange(len(y))
    one_hot = np.eye(p.shape[1])[y]
    wrong = (p.argmax(-1) != y).astype("float32")
    by_row = {
        "accuracy": 1 - wrong,
        "nll": -np.log(np.maximum(p[rows, y], 1e-12)),
        "brier": ((p - one_hot) ** 2).sum(axis=-1),
    }
    found = {name: weights["test"] @ values / len(y) for name, values in by_row.items()}
    found["augrc"] = augrc_of(weights["test"], p.max(axis=-1), wrong)
    for name in ("near", "far"):
        if name in probs:
            scores = entropy(p), entropy(probs[name].astype("float64"))
            found[name] = auroc_of(weights["test"], weights[name], *scores)
    return found


def differences(runs, labels, comparisons, resamples=RESAMPLES, seed=0, base="Dense"):
    """Row less the row `base` for `PAIRED`, with an interval that holds for all rows at once.

    `runs`: {row: [probs of a seed, ...]}. Test rows and seeds are drawn with replacement, the same
    for both; the intervals are normal, with the standard deviation over the resamples, and
    Bonferroni's for so many `comparisons`: 95 % together.
    """
    rng = np.random.default_rng(seed)
    probs = runs[base][0]
    weights = {
        k: drawn(len(probs[k]), resamples, rng) for k in ("test", "near", "far") if k in probs
    }
    seeds = len(runs[base])
    chosen = drawn(seeds, resamples, rng) / seeds

    def over_seeds(row):
        each = [resampled(p, labels, weights) for p in runs[row]]
        return {k: (np.stack([e[k] for e in each], 1) * chosen).sum(axis=1) for k in each[0]}

    theirs, found = over_seeds(base), {}
    width = scipy.stats.norm.isf(0.025 / comparisons)
    for row in runs:
        if row == base:
            continue
        mine = over_seeds(row)
        found[row] = {
            name: [round(float(v), 5) for v in interval(mine[name] - theirs[name], width)]
            for name in theirs
        }
    return found


def interval(values, width):
    """The first value, that of all rows, and `width` standard deviations of the others around."""
    spread = width * values[1:].std(ddof=1)
    return values[0], values[0] - spread, values[0] + spread


# --- Ranks over data sets -----------------------------------------------------------------------


def ranked(values, more_is_better):
    """Ranks along the last axis, 1 for the best; equal values share theirs."""
    values = np.asarray(values, float)
    return scipy.stats.rankdata(-values if more_is_better else values, axis=-1)


def ranks(table, more_is_better):
    """Mean ranks (1 is best) of columns over rows, Friedman's p, Nemenyi's critical difference."""
    table = np.asarray(table, float)
    sets, rows = table.shape
    each = ranked(table, more_is_better)
    p = scipy.stats.friedmanchisquare(*table.T).pvalue if sets > 1 and rows > 2 else np.nan
    q = scipy.stats.studentized_range.ppf(0.95, rows, np.inf) / np.sqrt(2)
    return each.mean(axis=0), float(p), float(q * np.sqrt(rows * (rows + 1) / (6 * sets)))


# --- Controls: no network, or all of its features, with examples of what is strange --------------


def control(inside, outside, seed=0):
    """AUROC of a logistic regression told both kinds, on the half of each that it has not seen."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x = np.concatenate([inside, outside])
    y = np.repeat([0, 1], [len(inside), len(outside)])
    half = np.random.default_rng(seed).random(len(y)) < 0.5
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300))
    model.fit(x[half], y[half])
    return round(float(metrics.auroc(y[~half], model.decision_function(x[~half]))), 4)
