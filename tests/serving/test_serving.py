"""The server, in a process that has neither the rest of tfuq nor Keras, under load."""

import asyncio
import contextlib
import importlib
import io
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import struct
import sys
import time
from typing import NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_digits

from tfuq.export import export
from tfuq.layers import MCDropout, MCSoftmaxDenseFA, NormalDense
from tfuq.ood import Mahalanobis
from tfuq.predictive import declare, predict_uncertainty
from tfuq.selective import ConformalPredictor, RegressionRule, RejectionRule
from tfuq.serving import answers as answering
from tfuq.serving import batching, command, reading, served_model
from tfuq.serving.application import application

pytestmark = pytest.mark.xdist_group("serving")  # one process trains the model and starts servers

ROOT = pathlib.Path(__file__).parents[2]
HIDDEN = pathlib.Path(__file__).with_name("hidden_server.py")
LIMIT = 2**18  # bytes of a body, little so that huge bodies are quick
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
PREDICT = b"POST /predict HTTP/1.1\r\nHost: here\r\nContent-Type: image/png\r\n"


def scripts():
    """The scripts of `examples/serving` as modules."""
    folder = str(ROOT / "examples" / "serving")
    sys.path.insert(0, folder)
    try:
        return {
            name: importlib.import_module(name) for name in ("client", "load_test", "malformed")
        }
    finally:
        sys.path.remove(folder)


SCRIPTS = scripts()
load_test, malformed = SCRIPTS["load_test"], SCRIPTS["malformed"]
KINDS = malformed.kinds(np.arange(64, dtype="uint8").reshape(8, 8, 1) * 4, LIMIT)


class Served(NamedTuple):
    """An exported model, a folder of images, and what Python says of these."""

    path: pathlib.Path
    images: pathlib.Path
    uncertainty: object
    accept: np.ndarray
    ood_score: np.ndarray


def digits():
    """Pixels `(n, 8, 8, 1)` from 0 to 255 and labels."""
    found = load_digits()
    return np.round(255 / 16 * found.images[..., None]).astype("uint8"), found.target


def trained(x, y):
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(32, activation="relu"),
            MCDropout(0.2),
            MCSoftmaxDenseFA(10, num_factors=3, logits_only=True),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, jit_compile=False)
    model.fit(x, y, batch_size=64, epochs=25, verbose=0)
    return model


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """80 digits that the model has not seen, 10 in black and white, and 10 of nothing but noise."""
    keras.utils.set_random_seed(0)
    folder = tmp_path_factory.mktemp("serving")
    pixels, labels = digits()
    x = (pixels / 255).astype("float32")
    model = trained(x[:1200], labels[:1200])
    detector = Mahalanobis().fit(model, x[:1200], labels[:1200])
    threshold = detector.threshold_at(0.99)
    rule = RejectionRule("confidence", 0.7)
    declare(model, class_names=NAMES, value_range=(0, 1))
    export(model, folder / "saved_model", rule=rule, ood=detector, num_samples=10, seed=4)
    rng = np.random.default_rng(0)
    shown = pixels[1200:1300].copy()
    shown[80:90] = 255 * (shown[80:90] > 0)
    shown[90:] = rng.integers(256, size=(10, 8, 8, 1), dtype="uint8")
    (folder / "images").mkdir()
    for number, image in enumerate(shown):
        Image.fromarray(image[..., 0]).save(folder / "images" / f"{number:03}.png")
    inputs = shown.astype("float32") / 255
    found = predict_uncertainty(model, inputs, num_samples=10, seed=4, from_logits=True)
    score = detector.score(inputs)
    accept = rule.accept(found.probs) & (score <= threshold.value)
    return Served(folder / "saved_model", folder / "images", found, accept, score)


@pytest.fixture(scope="module")
def server(served):
    command = (sys.executable, str(HIDDEN))
    options = ("--max-bytes", str(LIMIT))
    with load_test.running_server(served.path, *options, command=command) as running:
        yield running


@pytest.fixture
def client(server):
    found = SCRIPTS["client"].Client(server.url)
    yield found
    found.close()


def image_of(served, number):
    return (served.images / f"{number:03}.png").read_bytes()


def get(client, path):
    connection = client._connection()
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


# --- Under load -------------------------------------------------------------------------------


def loaded(served, server, count, limit, counts):
    """What `load_test` finds, after its expectations were held against Python's."""
    files = sorted(served.images.glob("*.png"))
    good = load_test.good_requests(served.path, files)
    for kind in (malformed.PNG, malformed.NPY, malformed.JSON):  # JPEG loses something
        of_kind = [request for request in good if request.content_type == kind]
        probs = np.stack([request.probabilities for request in of_kind])
        np.testing.assert_allclose(probs, served.uncertainty.probs, atol=1e-5)
        assert [request.accept for request in of_kind] == served.accept.tolist()
    assert 0.1 < np.mean([request.accept for request in good]) < 0.9
    bad = load_test.bad_requests(served.path, files[0], limit)
    found = load_test.run(server, load_test.mixed(good, bad, count))
    print("\n".join(load_test.report(found)))
    assert found["faults"] == {}
    assert found["counts"]["good"] == count - count // 10
    assert sum(found["refusals"].values()) == count // 10
    assert set(found["counts"]) == {"good", *bad}
    assert found["alive"]
    counts("requests answered", found["counts"]["good"])
    counts("requests refused", sum(found["refusals"].values()))
    return found


@pytest.mark.dear
def test_load(served, server, counts):
    """The quick form: too short for the memory to settle, long enough to see bodies kept."""
    found = loaded(served, server, 600, LIMIT, counts)
    assert found["memory"][-1] < found["warm"] + 60


@pytest.mark.slow
def test_load_whole(served, counts):
    """10,000 requests; the 60 bodies of 4 MB among them would be 240 MB if they were kept."""
    command = (sys.executable, str(HIDDEN))
    limit = load_test.LIMIT
    options = ("--max-bytes", str(limit))
    with load_test.running_server(served.path, *options, command=command) as running:
        found = loaded(served, running, 10_000, limit, counts)
        assert load_test.is_flat(found)
        assert found["open_files"][0] + 4 >= found["open_files"][1]


def test_a_wrong_answer_is_counted(served):
    """What the load test would say of other answers than those that are due."""
    (good, *_) = load_test.good_requests(served.path, [served.images / "000.png"])
    label = int(np.argmax(good.probabilities))
    right = {
        "probabilities": good.probabilities.tolist(),
        "label": label,
        "accept": good.accept,
        "reasons": ["why"],
    }
    assert load_test.fault("good", good, 200, right) is None
    shifted = [p + 2e-5 for p in right["probabilities"]]
    nothing = [None] * 10
    for wrong in (
        {"probabilities": shifted},
        {"probabilities": nothing},
        {"label": label + 1},
        {"accept": not good.accept},
        {"reasons": []},
    ):
        assert load_test.fault("good", good, 200, right | wrong)
    assert load_test.fault("good", good, 503, {"error": "busy", "reason": "busy"})
    bad = KINDS["empty"]
    refusal = {"error": bad.error, "reason": "the body is empty"}
    assert load_test.fault("empty", bad, bad.status, refusal) is None
    assert load_test.fault("empty", bad, 500, refusal)
    assert load_test.fault("empty", bad, bad.status, {"error": bad.error})
    assert not load_test.is_flat({"memory": [100, 110], "warm": 100})
    assert load_test.is_flat({"memory": [80, 105], "warm": 100})


# --- Answers ----------------------------------------------------------------------------------


def test_decision_and_reasons(served, client):
    """All that Python says of an accepted image, of an unsure one and of one of another kind."""
    expected = served.uncertainty
    sure = expected.confidence >= 0.7
    inside = served.ood_score <= served.ood_score[served.accept].max()
    cases = {
        "accepted": np.flatnonzero(served.accept)[0],
        "unsure": np.flatnonzero(~sure & inside)[0],
        "outside": np.flatnonzero(~served.accept & sure)[0],
    }
    for case, i in cases.items():
        status, answer = client.post(image_of(served, i), "image/png")
        assert status == 200
        assert answer["accept"] is (case == "accepted")
        assert answer["decision"] == ("accepted" if case == "accepted" else "refer to an expert")
        assert answer["label"] == expected.label[i]
        assert answer["class"] == NAMES[expected.label[i]]
        np.testing.assert_allclose(answer["probabilities"], expected.probs[i], atol=1e-5)
        np.testing.assert_allclose(answer["confidence"], expected.confidence[i], atol=1e-5)
        np.testing.assert_allclose(answer["ood_score"], served.ood_score[i], rtol=1e-4)
        for name, value in answer["uncertainty"].items():
            np.testing.assert_allclose(value, getattr(expected, name)[i], atol=1e-5)
        assert len(answer["uncertainty"]) == 3
        sides = {
            "accepted": ["at least the threshold 0.7", "score [0-9.]+ at most the threshold"],
            "unsure": ["below the threshold 0.7"],
            "outside": ["out-of-distribution score [0-9.]+ above the threshold"],
        }
        assert len(answer["reasons"]) == len(sides[case])
        for side, reason in zip(sides[case], answer["reasons"], strict=True):
            assert re.search(side, reason), reason


def test_several_instances(served, client):
    inputs = [np.asarray(Image.open(served.images / f"{i:03}.png")) / 255 for i in range(5)]
    body = json.dumps({"instances": [each[..., None].tolist() for each in inputs]}).encode()
    status, answer = client.post(body, "application/json; charset=utf-8")
    assert status == 200
    labels = [each["label"] for each in answer["predictions"]]
    assert labels == served.uncertainty.label[:5].tolist()
    body = json.dumps({"instances": [[0]] * 33}).encode()
    assert client.post(body, "application/json")[1]["error"] == "wrong_shape"


def test_numbers_without_measure_are_not_accepted(served, client):
    """Finite inputs for which the network overflows: the server refuses them, and so the model."""
    array = np.full((8, 8, 1), 3e38, "float32")
    status, answer = client.post(malformed.npy_file(array), "application/x-npy")
    assert (status, answer["error"]) == (422, "wrong_range")
    model = served_model.ServedModel(served.path)
    decision = answering.Decision.of(model.metadata)
    (answer,) = answering.answers(model.predict([array]), decision)
    assert answer["accept"] is False
    assert answer["reasons"]


@pytest.mark.parametrize("kind", KINDS)
def test_refuses(client, kind):
    body, content_type, status, error = KINDS[kind]
    found = client.post(body() if callable(body) else body, content_type)
    assert found[0] == status
    assert found[1]["error"] == error
    assert set(found[1]) == {"error", "reason"}
    assert len(found[1]["reason"]) > 10


def test_health_and_metadata(served, client):
    status, health = get(client, "/health")
    assert (status, health["status"]) == (200, "ok")
    metadata = json.loads((served.path / "metadata.json").read_text())
    assert get(client, "/metadata") == (200, metadata)


@pytest.mark.parametrize(
    "path",
    [
        "/../../../../etc/passwd",
        "/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/metadata/../../etc/passwd",
        "/metadata/%2e%2e/saved_model.pb",
        "//etc/passwd",
        "/predict/",
        "/",
    ],
)
def test_there_are_no_other_paths(client, path):
    status, answer = get(client, path)
    assert status == 404
    assert answer == {"error": "http", "reason": "Not Found"}


def test_other_methods(client):
    assert get(client, "/predict")[0] == 405
    assert client.post(b"", "image/png", "/health")[0] == 405


def test_client_prints_a_table(served, server, tmp_path, capsys):
    shutil.copy(served.images / "000.png", tmp_path / "good.png")
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "bad.jpg").write_bytes(b"nothing")
    SCRIPTS["client"].main([str(tmp_path), "--url", server.url])
    bad, good, counts = capsys.readouterr().out.splitlines()[1:]
    decision = "accepted" if served.accept[0] else "refer to an expert"
    assert re.match(rf"good.png +\| {decision} +\| +{NAMES[served.uncertainty.label[0]]}", good)
    assert re.match(r"deeper/bad.jpg +\| refused \(415\) .* not_an_image: ", bad)
    assert counts == f"1 {decision}, 1 refused (415)"
    with pytest.raises(SystemExit, match="no image"):
        SCRIPTS["client"].main([str(tmp_path / "none"), "--url", server.url])


# --- Clients that misbehave -------------------------------------------------------------------


@contextlib.contextmanager
def connected(server):
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        yield connection


def received(connection):
    """All that comes until the server closes: statuses, and the last body."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while block := connection.recv(2**16):
            data += block
    return [int(s) for s in re.findall(rb"HTTP/1.1 (\d+)", data)], data.rpartition(b"\r\n\r\n")[2]


def until(condition):
    """Waits for what other processes do; fails after two minutes."""
    for _ in range(2400):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come about")


def under_way(server):
    client = SCRIPTS["client"].Client(server.url)
    try:
        return get(client, "/health")[1]["under_way"]
    finally:
        client.close()


def test_slow_body(served, server):
    body = image_of(served, 0)
    with connected(server) as connection:
        connection.sendall(PREDICT + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body))
        for i in range(len(body)):
            connection.sendall(body[i : i + 1])
            time.sleep(0.001)
        statuses, content = received(connection)
    assert statuses == [200]
    assert json.loads(content)["label"] == served.uncertainty.label[0]


def test_clients_that_go_away(served, server, client):
    """In the middle of a head, of a body, and before the answer."""
    body = image_of(served, 0)
    whole = PREDICT + b"Content-Length: %d\r\n\r\n" % len(body) + body
    for end in (1, len(PREDICT) // 2, len(whole) - 1, len(whole)):
        for _ in range(10):
            with connected(server) as connection:
                connection.sendall(whole[:end])
                # Closes with a reset, as a process that is killed.
                linger = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    until(lambda: under_way(server) == 0)
    assert client.post(body, "image/png")[0] == 200


@pytest.mark.parametrize(
    "head, sent, statuses",
    [
        # Less is announced than comes: the rest is no request.
        (b"Content-Length: 5\r\n\r\n", b"x" * 100 + b"\r\n\r\n", [415, 400]),
        (b"Content-Length: -5\r\n\r\n", b"", [400]),
        (b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n", b"x" * 6, [400]),
        (b"Transfer-Encoding: chunked\r\n\r\n", b"zz\r\n", [400]),
        # Whoever asks before sending much is told at once.
        (b"Content-Length: 99999999999\r\nExpect: 100-continue\r\n\r\n", b"", [413]),
        (b"X: " + b"y" * 2**18 + b"\r\n\r\n", b"", [400]),
        (b"Content-Encoding: gzip\r\nContent-Length: 1\r\nConnection: close\r\n\r\n", b"x", [415]),
    ],
    ids=["less", "negative", "two", "chunks", "asks", "head", "gzip"],
)
def test_heads_that_lie(server, client, head, sent, statuses):
    with connected(server) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(PREDICT + head + sent)
        found, _ = received(connection)
    assert found == statuses
    assert get(client, "/health")[0] == 200


def test_announced_body_that_ends_early(served, server, client):
    with connected(server) as connection:
        connection.sendall(PREDICT + b"Content-Length: 1000\r\n\r\n" + b"x" * 10)
        connection.shutdown(socket.SHUT_WR)
        received(connection)
    until(lambda: under_way(server) == 0)
    assert client.post(image_of(served, 0), "image/png")[0] == 200


@pytest.mark.slow
def test_ends_when_all_are_answered(served):
    """SIGTERM while a body is on its way: it is answered, nobody else is let in, status 0."""
    body = image_of(served, 0)
    patient = ("--body-timeout", "300", "--grace", "300")
    with load_test.running_server(served.path, *patient) as running:
        with connected(running) as connection:
            head = PREDICT + b"Content-Length: %d\r\n\r\n" % len(body)
            connection.sendall(head + body[:50])
            until(lambda: under_way(running) == 1)
            running.process.send_signal(signal.SIGTERM)
            until(lambda: not _listens(running))
            connection.sendall(body[50:])
            statuses, content = received(connection)
        assert running.process.wait(120) == 0
    assert statuses == [200]
    assert json.loads(content)["label"] == served.uncertainty.label[0]


def _listens(server):
    try:
        with connected(server):
            return True
    except ConnectionRefusedError:
        return False


# --- Parts, in this process -------------------------------------------------------------------


def asked(app, receive, *headers):
    """Status, headers and content of the application's answer to one POST, without a socket."""
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "http_version": "1.1", "method": "POST", "path": "/predict"}
    scope |= {"query_string": b"", "scheme": "http", "server": ("here", 1), "root_path": ""}
    scope |= {"headers": [(b"content-type", b"image/png"), *headers], "client": ("here", 2)}

    async def ask():
        await app(scope, receive, send)
        content = b"".join(message.get("body", b"") for message in sent)
        return sent[0]["status"], dict(sent[0]["headers"]), json.loads(content)

    return ask()


def service_of(served, *options):
    return command.service_of(command.parse([str(served.path), *options]))


def test_a_body_that_does_not_come(served):
    service = service_of(served, "--body-timeout", "0.01")

    async def never():
        await asyncio.Event().wait()

    found = asyncio.run(asked(application(service), never))
    status, headers, content = found
    assert (status, content["error"], headers[b"connection"]) == (408, "timeout", b"close")
    assert service.under_way == 0


def test_too_many_are_told_to_wait(served):
    """A body that is still coming takes no place; a request that waits for the model does."""
    service = service_of(served, "--max-waiting", "1")
    app, body = application(service), image_of(served, 0)

    async def whole():
        return {"type": "http.request", "body": body, "more_body": False}

    async def some():
        come, model = asyncio.Event(), service.batcher
        entered, released = asyncio.Event(), asyncio.Event()

        async def slow():
            await come.wait()
            return await whole()

        async def held(*given):
            entered.set()
            await released.wait()
            return await model(*given)

        slowly = asyncio.create_task(asked(app, slow))
        while not service.bodies.coming:
            await asyncio.sleep(0)
        before = await asked(app, whole)
        service.batcher = held
        first = asyncio.create_task(asked(app, whole))
        await entered.wait()
        ready, second = service.is_ready, await asked(app, whole)
        released.set()
        first = await first
        come.set()
        return before, first, second, await slowly, ready

    before, first, second, slowly, ready = asyncio.run(some())
    assert [each[0] for each in (before, first, second, slowly)] == [200, 200, 503, 200]
    assert second[1][b"retry-after"] == b"1"
    assert second[2]["error"] == "busy"
    assert not ready and service.is_ready


def test_a_body_without_end_is_cut_off(served):
    service = service_of(served, "--max-bytes", "1000")
    taken = []

    async def endless():
        taken.append(1)
        return {"type": "http.request", "body": b"x" * 1000, "more_body": True}

    found = asyncio.run(asked(application(service), endless))
    assert found[0] == 413
    assert len(taken) < 30


@pytest.mark.filterwarnings("ignore:Exception in ASGI")
def test_a_failing_model_is_no_end(served):
    service = service_of(served)
    predict, service.model.predict = service.model.predict, lambda inputs: 1 / 0
    app = application(service)

    async def image():
        return {"type": "http.request", "body": image_of(served, 0), "more_body": False}

    async def failed_and_mended():
        with contextlib.suppress(ZeroDivisionError):  # raised again, for the log
            await asked(app, image)
        service.model.predict = predict
        return await asked(app, image)

    assert asyncio.run(failed_and_mended())[0] == 200


def test_batches():
    """One at first, then what came meanwhile; never more than allowed, never of two shapes."""
    batches = []

    def predict(inputs, beside):
        assert beside == [f"of {each[0]}" for each in inputs]
        batches.append([len(each) for each in inputs])
        if len(inputs[0]) == 4:
            raise OSError("out of order")
        return [each.sum() for each in inputs]

    batcher = batching.Batcher(predict, 3)
    inputs = [np.full(n, i) for i, n in enumerate((2, 2, 2, 2, 2, 3, 4, 4, 2))]

    async def all_at_once():
        beside = [f"of {each[0]}" for each in inputs]
        return await asyncio.gather(*map(batcher, inputs, beside), return_exceptions=True)

    found = asyncio.run(all_at_once())
    assert batches == [[2, 2, 2], [2, 2], [3], [4, 4], [2]]
    assert [f for f in found if not isinstance(f, OSError)] == [0, 2, 4, 6, 8, 15, 16]
    assert [isinstance(f, OSError) for f in found] == [n == 4 for n in map(len, inputs)]
    batcher.close()


def row(**more):
    found = {
        "probabilities": np.array([[0.6, 0.3, 0.1]]),
        "label": np.array([0]),
        "confidence": np.array([0.6]),
        "predictive_entropy": np.array([0.898]),
        "accept": np.array([True]),
    }
    return found | {name: np.array([value]) for name, value in more.items()}


def rule(score="confidence", threshold=0.5, by=None, keys=None):
    return {"score": score, "threshold": threshold, "by": by, "keys": keys}


@pytest.mark.parametrize(
    "parts, outputs, accept, reasons",
    [
        ((rule(), None, None), {}, True, ["confidence 0.6 at least the threshold 0.5"]),
        (
            (rule("entropy", 0.5), None, None),
            {"accept": False},
            False,
            ["entropy 0.898 above the threshold 0.5"],
        ),
        ((rule("margin", 0.2), None, None), {}, True, ["margin 0.3 at least the threshold 0.2"]),
        (
            (rule("variation_ratio", 0.2), None, None),
            {},
            True,
            ["variation ratio at most the threshold 0.2"],
        ),
        (
            (rule(threshold=[0.9, 0.4], by="class", keys=[0, 1]), None, None),
            {"accept": False},
            False,
            ["confidence 0.6 below the threshold 0.9"],
        ),
        (
            (rule(threshold=[0.4], by="class", keys=[1]), None, None),
            {"accept": False},
            False,
            ["class 0 has no threshold: it is never accepted"],
        ),
        (
            (None, {"alpha": 0.1}, None),
            {"accept": False, "prediction_set": [True, True, False]},
            False,
            ["the prediction set holds 2 classes; it must hold 1"],
        ),
        (
            (None, None, 3.0),
            {"ood_score": 3.5},
            False,
            ["out-of-distribution score 3.5 above the threshold 3"],
        ),
        (
            (rule(), None, 3.0),
            {"ood_score": np.inf},
            False,
            ["the out-of-distribution score is not finite: the input is unlike any known"],
        ),
        (
            (rule(), None, None),
            {"probabilities": [np.nan, 0.5, 0.5], "confidence": np.nan},
            False,
            ["the model's probabilities are not finite numbers"],
        ),
    ],
)
def test_reasons(parts, outputs, accept, reasons):
    decision = answering.Decision(*parts)
    (answer,) = answering.answers(row(**outputs), decision)
    assert answer["accept"] is accept
    assert answer["reasons"] == reasons
    json.dumps(answer, allow_nan=False)


@pytest.mark.parametrize("by", [None, "class"])
def test_a_rule_that_accepts_nothing_is_answered(by, tmp_path):
    """Metadata have its infinite threshold as a text, by which each answer was an error 500."""
    told = {"threshold": np.inf} if by is None else {"threshold": [np.inf, 0.2], "keys": [0, 1]}
    made = RejectionRule("confidence", by=by, **told)
    export(keras.Sequential([keras.Input((4,)), keras.layers.Softmax()]), tmp_path / "m", rule=made)
    model = served_model.ServedModel(tmp_path / "m")
    outputs = model.predict([np.array([3, 0, 0, 0], "float32")])
    (answer,) = answering.answers(outputs, answering.Decision.of(model.metadata))
    assert answer["accept"] is False and answer["decision"] == answering.REFER
    assert answer["reasons"][0].endswith("below the threshold inf")
    kept = answering.with_numbers(model.metadata["rule"]["config"])["threshold"]
    np.testing.assert_array_equal(kept, made.threshold)


def refused(error, content_type, body, spec):
    with pytest.raises(reading.Refused) as raised:
        reading.read(content_type, body, spec)
    assert raised.value.error == error
    return raised.value


def test_reads_images_of_any_size_in_colour():
    spec = reading.InputSpec((None, None, 3), np.dtype("uint8"), max_pixels=100)
    pixels = np.arange(5 * 7 * 3, dtype="uint8").reshape(5, 7, 3)
    for body, kind in (
        (malformed.image_file(pixels, "PNG"), "image/png"),
        (malformed.npy_file(pixels), "application/x-npy"),
        (malformed.npy_file(np.asfortranarray(pixels)), "application/x-npy"),
        (malformed.npy_file(pixels.astype(">i8")), "application/x-npy"),
        (json.dumps({"instances": [pixels.tolist()]}).encode(), "application/json"),
    ):
        (found,), _ = reading.read(kind, body, spec)
        assert found.dtype == "uint8"
        np.testing.assert_array_equal(found, pixels)
    palette = io.BytesIO()
    Image.fromarray(pixels).convert("P").save(palette, "PNG")
    assert reading.read("image/png", palette.getvalue(), spec)[0][0].shape == (5, 7, 3)
    larger = np.zeros((10, 11, 3), "uint8")
    for body, kind in (
        (malformed.image_file(larger, "PNG"), "image/png"),
        (malformed.npy_file(larger), "application/x-npy"),
    ):
        refused("too_large", kind, body, spec)
    for wrong in (pixels + 0.5, pixels.astype("int64") + 200, pixels.astype("int64") - 1):
        refused("wrong_dtype", "application/x-npy", malformed.npy_file(wrong), spec)
    refused("wrong_dtype", "application/json", b'{"instances": [[[[0.5, 1, 2]]]]}', spec)
    refused("wrong_shape", "application/x-npy", malformed.npy_file(pixels[:0]), spec)


def test_reads_pixels_as_the_model_takes_them():
    pixels = np.array([[0, 255], [51, 102]], "uint8")
    body = malformed.image_file(pixels, "PNG")
    spec = reading.InputSpec((2, 2, 1), np.dtype("float32"), (-1.0, 1.0))
    (found,), _ = reading.read("IMAGE/PNG; q=1", body, spec)
    np.testing.assert_allclose(found[..., 0], [[-1, 1], [-0.6, -0.2]], atol=1e-6)
    spec = reading.InputSpec((2, 2), np.dtype("float32"), (0.0, 1.0))
    (found,), _ = reading.read("image/png", body, spec)
    np.testing.assert_allclose(found, [[0, 1], [0.2, 0.4]], atol=1e-6)
    spec = reading.InputSpec((4,), np.dtype("float32"))
    refused("unsupported_media_type", "image/png", body, spec)


def test_numbers_outside_of_what_is_declared_are_refused():
    spec = reading.InputSpec((2, 2, 1), np.dtype("float32"), (0.0, 1.0), value_range=(0.0, 1.0))
    floats = np.array([[[0.0], [1.0]], [[0.2], [0.4]]])
    assert len(reading.read("application/x-npy", malformed.npy_file(floats), spec)[0]) == 1
    for wrong in (255 * floats, (255 * floats).astype("uint8"), np.zeros((2, 2, 1), "uint8")):
        refused("wrong_range", "application/x-npy", malformed.npy_file(wrong), spec)
    body = json.dumps({"instances": [(255 * floats).tolist()]}).encode()
    refused("wrong_range", "application/json", body, spec)
    image = malformed.image_file(np.zeros((2, 2), "uint8"), "PNG")
    undeclared = reading.InputSpec((2, 2, 1), np.dtype("float32"))
    assert "--pixel-range" in str(refused("unsupported_media_type", "image/png", image, undeclared))


def test_images_are_read_as_the_command_line_reads_them(tmp_path):
    """Two pieces of code, as the server imports no tfuq: what they make of a file is the same."""
    from tfuq._images.inputs import InputSpec
    from tfuq.predictive.inputs import decoder

    pixels = np.random.default_rng(0).integers(256, size=(6, 5, 3), dtype="uint8")
    (tmp_path / "a.png").write_bytes(malformed.image_file(pixels, "PNG"))
    model = keras.Sequential([keras.Input((6, 5, 3)), keras.layers.Flatten()])
    for low, high, channels in ((0.0, 1.0, "rgb"), (-1.0, 1.0, "bgr"), (0.0, 255.0, "rgb")):
        found = decoder(model, InputSpec((low, high), None, channels))(str(tmp_path / "a.png"))
        spec = (6, 5, 3), np.dtype("float32"), (low, high)
        spec = reading.InputSpec(*spec, is_bgr=channels == "bgr")
        (served,), _ = reading.read("image/png", (tmp_path / "a.png").read_bytes(), spec)
        np.testing.assert_allclose(served, found, atol=1e-5 * (high - low))


def test_files_cut_anywhere_are_refused():
    """Of a PNG and a .npy each length, of a JPEG too; none is taken, none raises anything else."""
    pixels = np.arange(64, dtype="uint8").reshape(8, 8, 1)
    spec = reading.InputSpec((8, 8, 1), np.dtype("float32"), (0.0, 1.0))
    files = {
        "image/png": malformed.image_file(pixels, "PNG"),
        "image/jpeg": malformed.image_file(pixels, "JPEG"),
        "application/x-npy": malformed.npy_file(pixels),
        "application/json": json.dumps({"instances": [pixels.tolist()]}).encode(),
    }
    for kind, body in files.items():
        assert len(reading.read(kind, body, spec)[0]) == 1
        for end in range(len(body)):
            with pytest.raises(reading.Refused):
                reading.read(kind, body[:end], spec)


def test_altered_bytes_raise_nothing_else():
    """2,000 files with some bytes changed: read or refused."""
    rng = np.random.default_rng(0)
    pixels = np.arange(64, dtype="uint8").reshape(8, 8, 1)
    spec = reading.InputSpec((8, 8, 1), np.dtype("float32"), (0.0, 1.0))
    files = {
        "image/png": malformed.image_file(pixels, "PNG"),
        "image/jpeg": malformed.image_file(pixels, "JPEG"),
        "application/x-npy": malformed.npy_file(pixels.astype("float32")),
        "application/json": json.dumps({"instances": [pixels.tolist()]}).encode(),
    }
    refusals = 0
    for kind, body in files.items():
        for _ in range(500):
            altered = np.frombuffer(body, "uint8").copy()
            places = rng.integers(len(altered), size=rng.integers(1, 6))
            altered[places] = rng.integers(256, size=len(places))
            try:
                (found,), _ = reading.read(kind, altered.tobytes(), spec)
                assert np.all(np.isfinite(found))
            except reading.Refused as refusal:
                refusals += 1
                assert 400 <= refusal.status < 500
    assert refusals > 500


# --- Starting ---------------------------------------------------------------------------------


def small(path, **options):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3, activation="softmax")])
    export(model, path, **options)
    return model


@pytest.mark.slow
def test_does_not_start_with_what_it_cannot_serve(served, tmp_path):
    def load(path, *options):
        return command.load(command.parse([str(path), *options]))

    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none")
    small(tmp_path / "undecided")
    with pytest.raises(ValueError, match="export it with a `rule`"):
        load(tmp_path / "undecided")
    with pytest.raises(ValueError, match="those of the model"):
        load(served.path, "--class-names", "a,b")
    with pytest.raises(ValueError, match="must be left out, or those of the model"):
        load(served.path, "--class-names", ",".join(NAMES[::-1]))
    with pytest.raises(ValueError, match="--pixel-range must be left out"):
        load(served.path, "--pixel-range", "0", "255")
    load(served.path, "--class-names", ",".join(NAMES), "--pixel-range", "0", "1")
    inputs = [keras.Input((3,), name=name) for name in ("a", "b")]
    joined = keras.layers.Dense(3, activation="softmax")(keras.layers.Concatenate()(inputs))
    export(keras.Model(inputs, joined), tmp_path / "two", rule=RejectionRule("confidence", 0.5))
    with pytest.raises(ValueError, match="one input"):
        load(tmp_path / "two")


def test_does_not_start_with_altered_files(served, tmp_path):
    options = command.parse([str(tmp_path / "altered")])
    shutil.copytree(served.path, options.model)
    metadata = options.model / "metadata.json"
    text = metadata.read_text()
    metadata.write_text(text.replace('"threshold": 0.7', '"threshold": 0.1'))
    with pytest.raises(ValueError, match=r"metadata.json was altered"):
        command.load(options)
    metadata.write_text(text)
    command.load(options)
    (weights,) = (options.model / "variables").glob("*.data*")
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ValueError, match=r"variables.data.* was altered"):
        command.load(options)


@pytest.mark.slow
def test_a_process_does_not_start_with_altered_files(served, tmp_path):
    shutil.copytree(served.path, tmp_path / "altered")
    (weights,) = (tmp_path / "altered" / "variables").glob("*.data*")
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with (
        pytest.raises(RuntimeError, match="did not start: exit status 1"),
        load_test.running_server(tmp_path / "altered"),
    ):
        pass


def test_models_of_a_fixed_batch_size(tmp_path):
    probs = np.eye(3)[np.arange(30) % 3] * 0.8 + 0.2 / 3
    sets = ConformalPredictor.fit(probs, np.arange(30) % 3, "lac", alpha=0.2)
    model = small(tmp_path / "fixed", conformal=sets, batch_size=4)
    x = np.random.default_rng(0).normal(size=(6, 3)).astype("float32")
    found = served_model.ServedModel(tmp_path / "fixed").predict(list(x))
    expected = keras.ops.convert_to_numpy(model(tf.constant(x)))
    np.testing.assert_allclose(found["probabilities"], expected, atol=1e-5)
    assert found["accept"].shape == (6,)


def test_a_regression_is_answered_with_its_interval(tmp_path):
    """The number, both ends and the decision are those of Python; nothing known is referred."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), MCDropout(0.3), NormalDense(1)])
    x = np.random.default_rng(0).normal(size=(12, 3)).astype("float32")
    found = predict_uncertainty(model, x, num_samples=8, seed=4)
    rule = RegressionRule("std", float(np.median(found.std)), level=0.8)
    export(model, tmp_path / "numbers", rule=rule, num_samples=8, seed=4)
    served = served_model.ServedModel(tmp_path / "numbers")
    decision = answering.Decision.of(served.metadata)
    assert served.of_numbers and decision.decides
    told = answering.answers(served.predict(list(x)), decision)
    lower, upper = found.interval(0.8)
    expected = {"mean": found.mean, "std": found.std, "lower": lower, "upper": upper}
    for name, values in expected.items():
        np.testing.assert_allclose([row[name] for row in told], values[:, 0], rtol=1e-4, atol=1e-5)
    assert [row["accept"] for row in told] == rule.accept(found)[:, 0].tolist()
    assert all("std" in row["reasons"][0] for row in told)
    (unknown,) = answering.answers(served.predict([np.full(3, np.nan, "float32")]), decision)
    assert unknown["accept"] is False and unknown["mean"] is None
    assert "not finite" in unknown["reasons"][0]


def test_commands_of_the_readme():
    """Each script that it names is there, and each takes the options that it shows."""
    text = (ROOT / "examples" / "serving" / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"python (examples/serving/(\w+)\.py)((?: +[^\s&\\]+)*)", text)
    assert {name for _, name, _ in shown} == {"server", "client", "load_test"}
    for path, name, arguments in shown:
        source = (ROOT / path).read_text(encoding="utf-8")
        for option in re.findall(r"--[\w-]+", arguments) if name != "server" else ():
            assert f'"{option}"' in source, option
    served = re.findall(r"(?:tfuq serve|serving/server\.py) ([^\n`]+)", text)
    assert len(served) > 2
    for words in served:
        assert command.parse(words.split()).model
    assert os.path.exists(ROOT / "examples" / "serving" / "requirements.txt")
