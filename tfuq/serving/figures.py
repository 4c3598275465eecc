"""Figures of a service for Prometheus: answers, refusals, how long they took, the monitor."""

import math

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
DECISIONS = ("accepted", "referred")
# Gauges of the monitor: what it is called in what `Watch.said` says, and what it is.
OF_MONITOR = {
    "alarm": "Whether the monitor has raised an alarm: the rule's promise may no longer hold.",
    "promised_risk": "The risk that the rule was fitted to.",
    "risk_bound": "Upper bound of the risk among labelled cases.",
    "cases": "Cases that the monitor has counted.",
    "labelled": "Accepted cases whose label has come.",
    "waiting_for_labels": "Cases whose label has not come.",
    "repeated": "Cases that came again and were not counted again, since the server began.",
    "unidentified": "Cases of so few values that they would be counted again without a key.",
    "unsaved": "Cases and labels that are not in the monitor's file yet.",
}


class Figures:
    """Counts of one service, in a registry of their own.

    Args:
        service: The `Service`, asked for its state whenever the figures are read.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, service):
        self.registry = CollectorRegistry()
        known = {"registry": self.registry}
        self._answers = Counter("tfuq_answers", "Answers, by decision.", ["decision"], **known)
        self._refusals = Counter("tfuq_refusals", "Refused, by why.", ["status", "error"], **known)
        self._seconds = Histogram(
            "tfuq_answer_seconds",
            "Seconds from the head of an answered request to its answer.",
            buckets=SECONDS,
            **known,
        )
        for decision in DECISIONS:
            self._answers.labels(decision)  # there from the start, as 0
        self.accepted = self.answered = self.requests = self.refused = 0
        state = {
            "tfuq_accepted_share": ("Accepted of all answers; NaN before one.", self._share),
            "tfuq_requests_under_way": ("Requests under way.", lambda: service.under_way),
            "tfuq_waiting_bytes": ("Memory that they may take.", lambda: service.budget.held),
            "tfuq_ready": ("Whether new requests are answered.", lambda: service.is_ready),
        }
        for name, (text, value) in state.items():
            Gauge(name, text, **known).set_function(value)
        if service.watch is not None:
            self._monitor = {
                name: Gauge(f"tfuq_monitor_{name}", text, **known)
                for name, text in OF_MONITOR.items()
            }
        self._watch = service.watch

    def _share(self):
        return self.accepted / self.answered if self.answered else math.nan

    def count(self, answers, seconds):
        """Counts the answers of one request."""
        accepted = sum(answer["accept"] for answer in answers)
        for decision, number in zip(DECISIONS, (accepted, len(answers) - accepted), strict=True):
            self._answers.labels(decision).inc(number)
        self.accepted += accepted
        self.answered += len(answers)
        self.requests += 1
        self._seconds.observe(seconds)

    def count_refusal(self, status, error):
        """Counts a request that was refused."""
        self.refused += 1
        self._refusals.labels(str(status), error).inc()

    def text(self):
        """All figures in Prometheus' text format."""
        if self._watch is not None:
            said = self._watch.said()
            for name, gauge in self._monitor.items():
                gauge.set(math.nan if said[name] is None else said[name])
        return generate_latest(self.registry)
