"""Logistic regression of two classes."""

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit


def logistic_regression(features, targets, l2=1.0):
    """Weights `(d,)` and bias of 0/1 targets `(n,)` for features `(n, d)`.

    min l2 / 2 ||w||^2 + sum_i log(1 + exp(-t_i (w . f_i + b))), t_i = -1 or 1. This is
    scikit-learn's `LogisticRegression` with `C=1 / l2`.
    """
    signs = 2.0 * np.asarray(targets) - 1

    def loss(parameters):
        weights, bias = parameters[:-1], parameters[-1]
        margins = signs * (features @ weights + bias)
        slopes = -signs * expit(-margins)
        value = np.logaddexp(0, -margins).sum() + l2 / 2 * weights @ weights
        return value, np.append(features.T @ slopes + l2 * weights, slopes.sum())

    start = np.zeros(features.shape[1] + 1)
    options = {"gtol": 1e-9, "ftol": 0, "maxiter": 1000}
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x
    return found[:-1], found[-1]
