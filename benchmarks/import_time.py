"""Seconds that `import tfuq` adds to importing TensorFlow, Keras and TensorFlow Probability.

    make bench-import-time

Fresh processes with and without tfuq take turns; the figure is the median of the differences within
each pair. It must stay under 0.5 s.
"""

import argparse
import statistics
import subprocess
import sys
import time

PEERS = "import tensorflow, keras, tensorflow_probability"


def seconds(statement):
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7)
    pairs = parser.parse_args().pairs
    seconds(f"{PEERS}, tfuq")  # the first run reads from the disk
    runs = [(seconds(PEERS), seconds(f"{PEERS}, tfuq")) for _ in range(pairs)]
    without, with_tfuq = (statistics.median(column) for column in zip(*runs, strict=True))
    added = statistics.median(b - a for a, b in runs)
    print(f"without tfuq {without:.2f} s, with tfuq {with_tfuq:.2f} s, added {added:.2f} s")
    if added > 0.5:
        raise SystemExit("import tfuq adds more than 0.5 s")


if __name__ == "__main__":
    main()
