"""Posts a folder of images to the server, several at a time, and prints what it decides.

    python client.py demo_output/images --url http://127.0.0.1:8000

The standard library is all it needs.
"""

import argparse
import collections
import http.client
import json
import pathlib
import sys
import threading
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".npy": "application/x-npy",
    ".json": "application/json",
}
TIMEOUT = 60.0


class Client:
    """Connections to one server, one for each thread, kept open between requests."""

    def __init__(self, url):
        self.address = urllib.parse.urlsplit(url).netloc
        self._own = threading.local()
        self._all = []

    def post(self, body, content_type, path="/predict"):
        """Status and content of the answer. A body that is an iterator goes without its length."""
        headers = {"Content-Type": content_type} if content_type else {}
        connection = self._connection()
        try:
            connection.request("POST", path, body, headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        except Exception:
            connection.close()  # it opens again with the next request
            raise

    def _connection(self):
        if not hasattr(self._own, "connection"):
            self._own.connection = http.client.HTTPConnection(self.address, timeout=TIMEOUT)
            self._all.append(self._own.connection)
        return self._own.connection

    def close(self):
        for connection in self._all:
            connection.close()


def post_all(client, requests, at_a_time=32):
    """Answers `(status, content)` to bodies and their types, in order."""
    with ThreadPoolExecutor(at_a_time) as threads:
        return list(threads.map(lambda request: client.post(*request), requests))


def files_of(folder):
    """The files of a folder, and of those in it, that the server takes."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in TYPES)


def line_of(status, content):
    if status != 200:
        return f"refused ({status})", "", "", f"{content['error']}: {content['reason']}"
    is_number = "mean" in content
    label = content["mean"] if is_number else content.get("class", content["label"])
    sureness = content.get("std" if is_number else "confidence")
    said = "" if sureness is None else f"{sureness:.3f}"
    return content["decision"], str(label), said, "; ".join(content["reasons"])


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--at-a-time", type=int, default=8)
    options = parser.parse_args(arguments)
    files = files_of(options.folder)
    if not files:
        sys.exit(f"client.py: no image in {options.folder}")
    client = Client(options.url)
    try:
        bodies = ((path.read_bytes(), TYPES[path.suffix.lower()]) for path in files)
        found = post_all(client, bodies, options.at_a_time)
    finally:
        client.close()
    names = [path.relative_to(options.folder).as_posix() for path in files]
    width = max(map(len, names))
    print(f"{'file':{width}} | {'decision':18} | label | confidence | reasons")
    counts = collections.Counter()
    for name, (status, content) in zip(names, found, strict=True):
        decision, label, confidence, reasons = line_of(status, content)
        print(f"{name:{width}} | {decision:18} | {label:>5} | {confidence:>10} | {reasons}")
        counts[decision] += 1
    print(", ".join(f"{count} {decision}" for decision, count in sorted(counts.items())))


if __name__ == "__main__":
    main()
