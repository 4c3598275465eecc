"""The table of figures in README.md, from the results that benchmarks have written.

python benchmarks/readme.py           # writes it between its markers
python benchmarks/readme.py --check   # fails where the page says something else
"""

import argparse
import collections
import json
import pathlib
import statistics
import sys

HERE = pathlib.Path(__file__).parent
README = HERE.parent / "README.md"
START, END = "<!-- table: python benchmarks/readme.py -->\n", "<!-- end of table -->"
NAMES = {
    "Dense": "`Dense`",
    "diagonal": "`MCSoftmaxDenseFA`, diagonal noise",
    "full": "`MCSoftmaxDenseFA`, low rank plus diagonal",
}
FIGURES = {"accuracy": "accuracy", "nll": "NLL", "ece": "ECE"}
ABOUT = """CIFAR-10 with the wrong labels that people gave it (CIFAR-10N "worst", 40 % wrong),
judged on clean labels: a small CNN, six epochs, the same for each last layer. Mean ± standard
deviation of {seeds} seeds; `make bench-label-noise`.
"""
BELOW = """
The gain is small: no more than two standard deviations of `Dense`. More figures, also those that
speak against a method: [benchmarks](benchmarks/README.md).
"""


def chosen(runs):
    """The runs of each head at the temperature that most seeds ran with: the chosen one."""
    by_head = collections.defaultdict(lambda: collections.defaultdict(list))
    for run in runs:
        by_head[run["head"]][run["temperature"]].append(run)
    return {head: max(found.values(), key=len) for head, found in by_head.items()}


def table(results):
    """Markdown: a row for each head."""
    by_head = chosen(results["runs"])
    lines = [
        ABOUT.format(seeds=len(by_head["Dense"])),
        f"| last layer | {' | '.join(FIGURES.values())} |",
        "| --- |" + " --: |" * len(FIGURES),
    ]
    for head, name in NAMES.items():
        cells = []
        for figure in FIGURES:
            values = [run[figure] for run in by_head[head]]
            cells.append(f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n" + BELOW


def with_table(page, text):
    before, rest = page.split(START)
    return before + START + text + END + rest.split(END, 1)[1]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail where it differs")
    arguments = parser.parse_args(argv)
    results = json.loads((HERE / "label_noise.json").read_text(encoding="utf-8"))
    page = README.read_text(encoding="utf-8")
    wanted = with_table(page, table(results))
    if arguments.check:
        sys.exit("README.md: run python benchmarks/readme.py" if page != wanted else 0)
    README.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()
