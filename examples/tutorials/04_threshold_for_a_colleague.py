"""A threshold, explained to a colleague
=====================================

::

    python examples/tutorials/04_threshold_for_a_colleague.py            # ten seconds
    python examples/tutorials/04_threshold_for_a_colleague.py --quick    # the same

Tumours from measurements of cells: benign or malignant. A colleague asks: "How often does it
refuse, how often is it wrong then, and who has the extra work?" It needs the extra `examples`.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import tfuq

# %%
# Any model will do, one of scikit-learn too: the rule takes its probabilities. The data are 569
# real cases with 30 measurements; we keep only two of them, so that the model has something to
# doubt.
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
# Who has the extra work: answers of the model alone, of an expert who is right 97 times in 100, and
# of both together. A wrong answer costs 1, a case that the expert sees 0.05.
table = tfuq.selective.simulate_deferral(rule, new, y[test], expert=0.97)
print(table.to_markdown())

# %%
# Does it treat the two kinds of tumours alike?
kinds = data.target_names[y[test]]
print(tfuq.selective.subgroup_report(rule, new, y[test], kinds).to_markdown())

# %%
# Risk against coverage on the cases that the rule has not seen; the further left, the more refused.
figure, axis = plt.subplots(figsize=(6, 3.5), layout="constrained")
tfuq.plots.risk_coverage(new, y[test], rule=rule, ax=axis)

# %%
# **What was learned.** The promise is one number over all cases. The table of groups shows whether
# one kind pays for the other: ask for it before you sign. See :doc:`/explanation/promises`.
