"""A threshold, explained to a colleague
=====================================

::

    python examples/tutorials/04_threshold_for_a_colleague.py            # ten seconds
    python examples/tutorials/04_threshold_for_a_colleague.py --quick    # the same

Measurements of cells say whether a tumour is benign or malignant. A colleague asks: "How often does
it refuse, how often is it wrong then, and who has the extra work?" This needs the extra `examples`.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import tfuq

# %%
# Any model will do, such as one of scikit-learn: the rule takes its probabilities. The data are 569
# real cases with 30 measurements; we keep only two of these, so that the model has doubts.
data = load_breast_cancer()
x, y = data.data[:, :2], data.target
order = np.random.default_rng(0).permutation(len(x))
train, fit, test = np.split(order, [150, 400])
model = make_pipeline(StandardScaler(), LogisticRegression()).fit(x[train], y[train])
probs, new = model.predict_proba(x[fit]), model.predict_proba(x[test])
print(f"accuracy without rejection: {np.mean(new.argmax(-1) == y[test]):.3f}")

# %%
# The rule, and the sentence for the colleague.
rule = tfuq.selective.RejectionRule.fit(probs, y[fit], target_risk=0.1)
print(rule.describe())

# %%
# Who has the extra work? The table compares the model alone, an expert who is right 97 times in
# 100, and both together.
table = tfuq.selective.simulate_deferral(rule, new, y[test], expert=0.97)
print(table.to_markdown())

# %%
# Does it treat the two kinds of tumours alike?
kinds = data.target_names[y[test]]
print(tfuq.selective.subgroup_report(rule, new, y[test], kinds).to_markdown())

# %%
# Risk against coverage, on cases that the rule has not seen: further left, it refuses more.
figure, axis = plt.subplots(figsize=(6, 3.5), layout="constrained")
tfuq.plots.risk_coverage(new, y[test], rule=rule, ax=axis)

# %%
# **What was learned.** The promise is one number for all cases. The table of groups shows whether
# one kind of tumour pays for the other: look at it before you agree. See
# :doc:`/explanation/promises`.
