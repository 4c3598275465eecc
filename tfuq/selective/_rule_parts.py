"""Rejection rules whose thresholds are found for each label, class or group."""

from __future__ import annotations

import functools

from tfuq.selective._declared_thresholds import check_against_scores, declared_thresholds
from tfuq.selective._joint_fitting import fit_of_part
from tfuq.selective._losses import first_of, known_by, said_of
from tfuq.selective._reading import columns_of
from tfuq.selective._repeated_rows import warn_of_repeated_in
from tfuq.selective._rule_fitting import known_parts, parts_of, report_of
from tfuq.selective._rule_reading import read_labelled


class FittedByParts:
    """Rules that find the threshold of each part of labelled data."""

    def _fit_parts(self, rows, promises, several, goal, by, groups, simultaneous):
        """The rule with the threshold of each part of `rows`, arguments of `read_labelled`."""
        grows = self.grows_with_trust
        goes_with = goal.wanted, goal.method, grows
        goal = goal._replace(thresholds=declared_thresholds(goal.thresholds, *goes_with))
        again = functools.partial(read_labelled, self, **rows, fits=True)
        read = again(loss=first_of(promises))
        warn_of_repeated_in(read)
        check_against_scores(goal.thresholds, read.score, grows)
        parts = parts_of(read, by, groups, columns_of(rows["probs"]))
        parts = known_parts(read, parts, by)
        goal = goal._replace(delta=goal.delta / (len(parts) if simultaneous else 1))
        fit_one = fit_of_part(self, read, promises if several else None, again)
        found = {key: fit_one(part, goal, by) for key, part in parts.items()}
        report = report_of(found, read, goal, said_of(promises, several))
        return known_by(self._with_parts(found, report, by, simultaneous), promises)

    def _with_parts(self, found, report, by, simultaneous):
        """The same rule with what was found of each part, and all of it in its report."""
        if by is None:
            sums = found[None].sums
            names = [name for name in ("risk", "risk_bound", "losses") if name in sums]
            return self._with(found[None].threshold, {**report, **{n: sums[n] for n in names}})
        report["simultaneous"] = bool(simultaneous)
        report["parts"] = {str(key): part.sums for key, part in found.items()}
        thresholds = [part.threshold for part in found.values()]
        return self._with(thresholds, report, by=by, keys=list(found))

    def _with(self, threshold, report, **parts):
        """The same rule with the thresholds that were found."""
        config = {**self.get_config(), "threshold": threshold, "fitted_to": report, **parts}
        return type(self)(**config)
