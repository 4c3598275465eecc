"""Contestants in processes of their own that take turns, and what their memory grows by.

A benchmark calls `serve(step)` in each process that it starts, as `Process` does, and asks the
processes for times in turns: within a round the machine is the same for all, between rounds of
minutes it is not. A ratio is therefore the median of the rounds' ratios.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from typing import NamedTuple

WARM_UP = 3


def serve(step):
    """Says how far memory grew at the first steps; then, for each number read, times so many."""
    before = peak_memory()
    for _ in range(WARM_UP):
        step()
    peak = peak_memory()
    _say({"grown": peak - before, "peak": peak})
    for line in sys.stdin:
        count, clocks = int(line), (time.perf_counter, time.process_time)
        starts = [clock() for clock in clocks]
        for _ in range(count):
            step()
        spent = [
            (clock() - start) / count * 1e3 for clock, start in zip(clocks, starts, strict=True)
        ]
        _say(dict(zip(("ms", "processor_ms"), spent, strict=True)))


def _say(answer):
    print("answer " + json.dumps(answer), flush=True)


def peak_memory():
    """Peak memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Process:
    """A contestant at work in its own process; `grown` is the growth of its memory, MB.

    `peak` is the peak of the whole process after its first steps.
    """

    def __init__(self, *command, python=sys.executable, environment=()):
        self.process = subprocess.Popen(
            [python, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **dict(environment)},
        )
        answer = self._answer()
        self.grown, self.peak = answer["grown"], answer["peak"]

    def _answer(self):
        for line in self.process.stdout:
            if line.startswith("answer "):
                return json.loads(line[len("answer ") :])
        raise RuntimeError(f"The worker ended. Command: {self.process.args}")

    def milliseconds(self, repeats):
        """Of the clock and of the processor, all threads of it together."""
        self.process.stdin.write(f"{repeats}\n")
        self.process.stdin.flush()
        answer = self._answer()
        return answer["ms"], answer["processor_ms"]

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Turns(NamedTuple):
    """Medians over the rounds, one for each process; ratios are those to the first."""

    times: list
    ratios: list
    processor_ratios: list
    """Of the time of the processor, which other work on the same cores lengthens little."""


def take_turns(processes, rounds, repeats=1):
    """Median milliseconds of each process, and of its ratios to the first; ends them all."""
    found = [[process.milliseconds(repeats) for process in processes] for _ in range(rounds)]
    for process in processes:
        process.close()
    by_clock, by_processor = (
        list(zip(*([both[clock] for both in row] for row in found), strict=True))
        for clock in (0, 1)
    )
    medians = [statistics.median(column) for column in by_clock]
    return Turns(medians, _ratios(by_clock), _ratios(by_processor))


def _ratios(columns):
    return [
        statistics.median(own / first for own, first in zip(column, columns[0], strict=True))
        for column in columns
    ]


def verdict(reached):
    return "yes" if reached else "**no**"
