"""The choice of `make test` among the cases of one test function, by what they cost.

`costs.json` holds, for each function with many cases, the seconds of CPU that a case takes on
average, as `python tests/run.py -m "not slow" --costs` measured them once. Of such a function
`make test` runs the first cases, as many as fit into `BUDGET`, and at least one; the others are
slow. So the choice is the same on every machine, and what is new runs whole until the next
measurement. `every_case` keeps all cases of a function.
"""

import collections
import json
import pathlib

BUDGET = 0.15  # seconds of CPU
CHEAP = 0.1  # a function whose cases take less runs whole
FILE = pathlib.Path(__file__).with_name("costs.json")


def function_of(nodeid):
    """The name of a test without its case, from the folder of the tests on."""
    return nodeid.split("[")[0].rsplit("tests/", 1)[-1]


def beyond_budget(names, costs, budget=BUDGET):
    """The places in `names`, functions of cases in their order, of those that are slow."""
    seen = collections.Counter()
    for place, name in enumerate(names):
        seen[name] += 1
        if seen[name] > 1 and seen[name] * costs.get(name, 0.0) > budget:
            yield place


def read():
    return json.loads(FILE.read_text()) if FILE.is_file() else {}


def write(seconds, budget=BUDGET):
    """Writes what is to be known of `{id: seconds}`: functions of which a case is left out."""
    cases = collections.defaultdict(list)
    for nodeid, spent in seconds.items():
        cases[function_of(nodeid)].append(spent)
    dear = {name: all_ for name, all_ in cases.items() if len(all_) > 1 and sum(all_) > budget}
    means = {name: round(sum(all_) / len(all_), 3) for name, all_ in sorted(dear.items())}
    costs = {name: mean for name, mean in means.items() if mean >= CHEAP}
    FILE.write_text(json.dumps(costs, indent=0) + "\n")
