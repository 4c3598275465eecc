"""Picture of a monitor: the wealth it draws is its own, and where the alarm is."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from tfuq import plots
from tfuq.selective import Monitor, RejectionRule

RNG = np.random.default_rng(0)


def cases(count, wrong):
    probs = RNG.uniform(0.5, 1, size=count)
    return probs, (RNG.random(count) >= wrong).astype(int)


def test_draws_the_wealth_and_the_alarm():
    rule = RejectionRule.fit(*cases(2000, 0.05), target_risk=0.1)
    monitor = rule.monitor().update(*cases(100, 0.05))
    before = monitor.to_json()
    probs, labels = cases(400, 0.4)
    ax = plots.monitor_process(monitor, probs, labels, ax=Figure().subplots())
    assert monitor.to_json() == before  # it is left as it is
    other, wealth, alarm = Monitor.from_json(before), [], None
    for case, (prob, label) in enumerate(zip(probs, labels, strict=True)):
        other.update([prob], [label])
        wealth.append(other.wealth["risk"])
        alarm = alarm or ("risk" in other.alarms and case + 101)
    risk = next(line for line in ax.lines if line.get_label().startswith("risk"))
    np.testing.assert_array_equal(risk.get_xdata(), np.arange(101, 501))
    np.testing.assert_allclose(risk.get_ydata(), wealth)
    assert risk.get_label() == f"risk: alarm at case {alarm}"
    assert {line.get_ydata()[0] for line in ax.lines if line.get_label() == "_limit"} == {40, 80}
    assert "alarm" in ax.get_legend().get_title().get_text()  # what the limits are
    ax.figure.canvas.draw()


def test_refused():
    rule = RejectionRule.fit(*cases(2000, 0.05), target_risk=0.1)
    with pytest.raises(
        ValueError, match=r"Argument `monitor` must be a Monitor, from rule\.monitor"
    ):
        plots.monitor_process(rule, *cases(10, 0.1))
    with pytest.raises(ValueError, match="`labels` must hold one for each"):
        plots.monitor_process(rule.monitor(), [0.7, 0.8], [1])
