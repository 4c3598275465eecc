"""Loads a server of its own with good and bad requests, and counts what it gets wrong.

    python load_test.py demo_output/saved_model demo_output/images

Starts `server.py` as a process of its own on this machine; posts 10,000 requests, 32 at a time, a
tenth of them malformed, in an order that a seed shuffles; ends it. A good request is right if
probabilities (to 1e-5), label and decision are those of the SavedModel on the same image, a bad one
if it is refused as it should be, with a reason. Ends with an error if one was not, if the server
did not live, or if its memory grew after the first fifth of the requests.
"""

import argparse
import collections
import contextlib
import io
import json
import os
import pathlib
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
from client import Client
from malformed import JPEG, JSON, NPY, PNG, image_file, kinds, npy_file
from PIL import Image

SERVER = pathlib.Path(__file__).with_name("server.py")
LIMIT = 2**22  # bytes of a body
WARM = 0.2  # share of the requests after which memory should not grow
TOLERANCE = 1e-5
SLACK = (0.02, 4.0)  # growth of the memory that is still flat: a share, and MB


class Good(NamedTuple):
    """A request to be answered, and the answer by the SavedModel itself."""

    body: bytes
    content_type: str
    probabilities: np.ndarray
    accept: bool


# --- The server -------------------------------------------------------------------------------


class Server(NamedTuple):
    url: str
    process: subprocess.Popen

    def rss(self):
        """Resident memory in MB."""
        return _status(self.process.pid, "VmRSS") / 1024

    def peak(self):
        return _status(self.process.pid, "VmHWM") / 1024

    def open_files(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def threads(self):
        return _status(self.process.pid, "Threads")


def _status(pid, name):
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith(name)).split()[1])


@contextlib.contextmanager
def running_server(model, *options, command=(sys.executable, str(SERVER))):
    """A server on a free port of this machine, in a process that does not outlive this."""
    arguments = [*command, str(model), "--port", "0", *options]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()  # printed when it can be reached
        if not line.startswith("Serving "):
            raise RuntimeError(f"the server did not start: exit status {process.wait(30)}")
        yield Server(line.split()[-1], process)
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.terminate()
            process.wait(30)
        process.kill()
        process.wait()
        process.stdout.close()


# --- Requests ---------------------------------------------------------------------------------


def good_requests(model, files):
    """Each image as the file that it is, as PNG, JPEG, array and JSON, with what is expected."""
    loaded = tf.saved_model.load(str(model))
    metadata = _metadata(model)
    low, high = (metadata["inputs"] or {}).get("value_range", (0.0, 255.0))
    (spec,) = metadata["signature"]["inputs"].values()
    bodies, inputs = [], []
    for file in files:
        pixels = pixels_of(file, spec)
        jpeg = image_file(pixels, "JPEG")
        lossy = np.asarray(Image.open(io.BytesIO(jpeg))).reshape(pixels.shape)
        scaled = [low + (high - low) * each.astype("float32") / 255 for each in (pixels, lossy)]
        if spec["dtype"] == "uint8":
            scaled = [pixels, lossy]
        as_json = json.dumps({"instances": [scaled[0].tolist()]}).encode()
        bodies += [(image_file(pixels, "PNG"), PNG), (jpeg, JPEG)]
        bodies += [(npy_file(scaled[0]), NPY), (as_json, JSON)]
        inputs += [scaled[0], scaled[1], scaled[0], scaled[0]]
    probs, accept = reference(loaded, np.stack(inputs), metadata["ood"])
    return [Good(*body, *found) for *body, found in _joined(bodies, probs, accept)]


def _metadata(model):
    return json.loads((pathlib.Path(model) / "metadata.json").read_text(encoding="utf-8"))


def pixels_of(file, spec):
    """The pixels of an image in the shape of the model's inputs; ValueError if they do not fit."""
    return np.asarray(Image.open(file)).reshape(spec["shape"][1:])


def bad_requests(model, file, limit=LIMIT):
    """Malformed requests, made from one good image; `limit` is the server's."""
    (spec,) = _metadata(model)["signature"]["inputs"].values()
    return kinds(pixels_of(file, spec), limit)


def _joined(bodies, probs, accept):
    for (body, kind), row, decision in zip(bodies, probs, accept, strict=True):
        yield body, kind, (row, bool(decision))


def reference(loaded, inputs, ood):
    """Probabilities and decisions of the SavedModel, called as a function."""
    outputs = loaded.serve(tf.constant(inputs))
    accept = np.ones(len(inputs), bool)
    if "accept" in outputs:
        accept &= outputs["accept"].numpy().reshape(len(inputs))
    if ood is not None and ood["threshold"] is not None:
        accept &= outputs["ood_score"].numpy() <= ood["threshold"]
    return outputs["probabilities"].numpy(), accept


def mixed(good, bad, count, seed=0, share=0.1):
    """`count` requests `(kind, request)`, a share malformed, each kind about equally often."""
    number = int(count * share)
    names = list(bad)
    chosen = [(names[i % len(names)], bad[names[i % len(names)]]) for i in range(number)]
    chosen += [("good", good[i % len(good)]) for i in range(count - number)]
    random.Random(seed).shuffle(chosen)
    return chosen


# --- Judging ----------------------------------------------------------------------------------


def fault(kind, request, status, content):
    """What is wrong with an answer, None if nothing is."""
    if kind != "good":
        due = (request.status, request.error)
        found = (status, content.get("error"))
        return None if found == due and content.get("reason") else f"{found}, due was {due}"
    if status != 200:
        return f"refused: {status} {content}"
    if request.content_type == JSON:
        (content,) = content["predictions"]
    difference = np.max(np.abs(np.array(content["probabilities"], "float64") - request[2]))
    if not difference <= TOLERANCE:
        return f"probabilities differ by {difference}"
    if content["label"] != _label(request.probabilities):
        return f"label {content['label']}"
    if content["accept"] is not request.accept or not content["reasons"]:
        return f"decision {content['accept']}, {content['reasons']}"
    return None


def _label(probs):
    return int(np.argmax(probs)) if len(probs) > 1 else int(probs[0] > 0.5)


def run(server, requests, at_a_time=32):
    """Posts the requests; returns a dict of what was found, for `report`."""
    client, lock = Client(server.url), threading.Lock()
    every = max(len(requests) // 10, 1)
    memory, seconds, of_good = [server.rss()], [], []

    def post(item):
        kind, request = item
        body = request.body() if callable(request.body) else request.body
        start = time.perf_counter()
        try:
            found = client.post(body, request.content_type)
        except Exception as error:  # no answer at all is a fault to be counted
            found = (0, {"error": repr(error)})
        with lock:
            seconds.append(time.perf_counter() - start)
            if kind == "good":
                of_good.append(seconds[-1])
            if len(seconds) % every == 0:
                memory.append(server.rss())
        return found

    start, files = time.perf_counter(), server.open_files()
    try:
        with ThreadPoolExecutor(at_a_time) as threads:
            answers = list(threads.map(post, requests))
    finally:
        client.close()
    faults = collections.defaultdict(list)
    counts = collections.Counter(kind for kind, _ in requests)
    for (kind, request), (status, content) in zip(requests, answers, strict=True):
        wrong = fault(kind, request, status, content)
        if wrong:
            faults[kind].append(wrong)
    return {
        "counts": counts,
        "faults": dict(faults),
        "refusals": collections.Counter((s, c.get("error")) for s, c in answers if s != 200),
        "accepted": sum(r.accept for kind, r in requests if kind == "good"),
        "memory": memory,
        "warm": memory[min(round(WARM * 10), len(memory) - 1)],
        "peak": server.peak(),
        "open_files": (files, server.open_files()),
        "threads": server.threads(),
        "alive": server.process.poll() is None,
        "took": time.perf_counter() - start,
        "latency": np.percentile(seconds, [50, 90, 99, 100]) * 1000,
        "of_good": np.percentile(of_good or [0.0], [50, 99]) * 1000,
    }


def is_flat(found):
    share, slack = SLACK
    return found["memory"][-1] <= found["warm"] * (1 + share) + slack


def report(found):
    """The figures as lines of text."""
    counts, faults = found["counts"], found["faults"]
    yield f"{'kind':22} | requests | wrong"
    for kind in sorted(counts, key=lambda k: (k != "good", k)):
        yield f"{kind:22} | {counts[kind]:8} | {len(faults.get(kind, ())):5}"
    for kind, wrong in faults.items():
        yield f"WRONG, {kind}: {wrong[0]}"
    total = sum(counts.values())
    yield f"{total} requests, {sum(map(len, faults.values()))} wrong answers"
    yield f"good: {counts['good']}, of which {found['accepted']} are to be accepted"
    refusals = sorted(found["refusals"].items(), key=str)
    yield "refusals: " + ", ".join(f"{n} x {s} {error}" for (s, error), n in refusals)
    memory = found["memory"]
    yield "memory of the server at each tenth, MB: " + " ".join(f"{m:.1f}" for m in memory)
    yield (
        f"memory at the start {memory[0]:.1f} MB, after a fifth {found['warm']:.1f} MB, at the end "
        f"{memory[-1]:.1f} MB ({memory[-1] - found['warm']:+.1f} MB), peak {found['peak']:.1f} MB"
    )
    before, after = found["open_files"]
    yield f"open files {before} before, {after} after; {found['threads']} threads"
    latency = " / ".join(f"{ms:.1f}" for ms in found["latency"])
    yield f"latency, 50 / 90 / 99 / 100 %: {latency} ms; {total / found['took']:.0f} requests/s"
    yield f"the process is {'alive' if found['alive'] else 'DEAD'}"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument(
        "images", type=pathlib.Path, help="folder of PNG images that the model fits"
    )
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--at-a-time", type=int, default=32)
    options = parser.parse_args(arguments)
    files = sorted(options.images.rglob("*.png"))
    if not files:
        sys.exit(f"load_test.py: no PNG in {options.images}")
    good = good_requests(options.model, files)
    bad = bad_requests(options.model, files[0])
    with running_server(options.model, "--max-bytes", str(LIMIT)) as server:
        found = run(server, mixed(good, bad, options.requests), options.at_a_time)
    print("\n".join(report(found)))
    if found["faults"] or not found["alive"] or not is_flat(found):
        sys.exit("load_test.py: not as it should be, see above")


if __name__ == "__main__":
    main()
