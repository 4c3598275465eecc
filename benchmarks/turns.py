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

WARM_UP = 3


def serve(step):
    """Says how far memory grew at the first steps; then, for each number read, times so many."""
    before = peak_memory()
    for _ in range(WARM_UP):
        step()
    _say({"grown": peak_memory() - before})
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            step()
        _say({"ms": (time.perf_counter() - start) / int(line) * 1e3})


def _say(answer):
    print("answer " + json.dumps(answer), flush=True)


def peak_memory():
    """Peak memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Process:
    """A contestant at work in its own process; `grown` is the growth of its memory, MB."""

    def __init__(self, *command, python=sys.executable, environment=()):
        self.process = subprocess.Popen(
            [python, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **dict(environment)},
        )
        self.grown = self._answer()["grown"]

    def _answer(self):
        for line in self.process.stdout:
            if line.startswith("answer "):
                return json.loads(line[len("answer ") :])
        raise RuntimeError(f"The worker ended. Command: {self.process.args}")

    def milliseconds(self, repeats):
        self.process.stdin.write(f"{repeats}\n")
        self.process.stdin.flush()
        return self._answer()["ms"]

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def take_turns(processes, rounds, repeats=1):
    """Median milliseconds of each process, and of its ratios to the first; ends them all."""
    times = [[process.milliseconds(repeats) for process in processes] for _ in range(rounds)]
    for process in processes:
        process.close()
    columns = list(zip(*times, strict=True))
    ratios = [
        statistics.median(own / first for own, first in zip(column, columns[0], strict=True))
        for column in columns
    ]
    return [statistics.median(column) for column in columns], ratios


def verdict(reached):
    return "yes" if reached else "**no**"
