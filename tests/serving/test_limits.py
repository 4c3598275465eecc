"""Limits of the server: memory and time are counted before they are taken.

Each of these was seen once: brackets that held a reader for seconds, a header whose lengths were
truth values, a PNG of 49 KB that became 201 MB, slow clients that took all places, half of a head
that was kept for ever.
"""

import asyncio
import contextlib
import io
import itertools
import json
import pathlib
import signal
import socket
import struct
import sys
import time
import types
import zlib

import keras
import numpy as np
import pytest
from PIL import Image

from tfuq import serving
from tfuq.export import export
from tfuq.selective import RejectionRule
from tfuq.serving import command, json_texts, reading
from tfuq.serving.application import application
from tfuq.serving.budget import Budget
from tfuq.serving.refusals import Refused

pytestmark = pytest.mark.xdist_group("serving")

ROOT = pathlib.Path(__file__).parents[2]
NPY, PNG, JSON = "application/x-npy", "image/png", "application/json"
SPEC = reading.InputSpec((8, 8, 1), np.dtype("float32"), (0.0, 1.0))
ANY = reading.InputSpec((None, None, 3), np.dtype("float32"), (0.0, 1.0))
SIZE = 3_900_000  # bytes of a body


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    keras.utils.set_random_seed(0)
    path = tmp_path_factory.mktemp("limits") / "served"
    layers = [keras.layers.Flatten(), keras.layers.Dense(3, activation="softmax")]
    model = keras.Sequential([keras.Input((8, 8, 1)), *layers])
    export(model, path, rule=RejectionRule("confidence", 0.4))
    return path


def refused(kind, body, spec=SPEC):
    with pytest.raises(Refused) as raised:
        reading.read(kind, body, spec)
    return raised.value.status, raised.value.error


# --- JSON ---------------------------------------------------------------------------------------

BRACKETS = {
    "open": b"[" * SIZE,
    "instances open": b'{"instances": ' + b"[" * SIZE,
    "pairs": b'{"instances": [' + b"[]," * (SIZE // 3) + b"[]]}",
    "objects": b'{"instances": [' + b"{}," * (SIZE // 3) + b"{}]}",
    "deep ones": b'{"instances": [' + (b"[" * 500 + b"]" * 500 + b",") * (SIZE // 1001) + b"0]}",
    "ragged": b'{"instances": [' + b"[1],2," * (SIZE // 6) + b"2]}",
    "numbers": b'{"instances": [' + b"0," * (SIZE // 2) + b"0]}",
    "texts": b'{"instances": [' + b'"",' * (SIZE // 3) + b"0]}",
    "keys": b'{"instances": {' + b'"a":0,' * (SIZE // 6) + b'"a":0}}',
    "hidden by texts": b'{"instances": ["' + b"]" * 2000 + b'"' + b",[" * (SIZE // 2),
}


@pytest.mark.every_case
@pytest.mark.parametrize("spec", [SPEC, ANY], ids=["size", "any size"])
@pytest.mark.parametrize("kind", BRACKETS)
def test_brackets_are_counted_before_they_are_parsed(kind, spec, monkeypatch, counts):
    """`json.loads` holds Python's lock: with these it did for up to three seconds each."""

    def loads(*arguments, **options):
        raise AssertionError("parsed")

    monkeypatch.setattr(json_texts.json, "loads", loads)
    limit = json_texts.MOST_ITEMS
    body = BRACKETS[kind]
    is_few = body.count(b",") + body.count(b"[") + body.count(b"{") < limit
    if spec is ANY and is_few and kind not in ("deep ones",):
        with pytest.raises(AssertionError, match="parsed"):  # within what is read in half a second
            reading.read(JSON, body, spec)
        return
    assert refused(JSON, body, spec) in [(400, "malformed"), (413, "too_large")]
    counts("requests refused")


@pytest.mark.parametrize(
    "body",
    [
        b'{"instances": [[[[0.1]]]], "instances": [[[[0.2]]]]}',
        b'{"instances": [], "' + b"n" * 2000 + b'": 0, "' + b"n" * 2000 + b'": 1}',
    ],
)
def test_names_that_come_twice_are_refused(body):
    """Python keeps the last: of a label that is given twice it would take one, silently."""
    with pytest.raises(Refused, match=r"names '.{1,40}' twice in one object") as raised:
        json_texts.parsed(body)
    assert (raised.value.status, raised.value.error) == (400, "malformed")


def test_json_of_all_inputs_that_are_taken():
    """The most that the model takes is within the limit; one input more is refused."""
    most = [np.zeros((8, 8, 1)).tolist()] * 32
    assert len(reading.read(JSON, json.dumps({"instances": most}).encode(), SPEC)[0]) == 32
    more = json.dumps({"instances": [*most, most[0]]}).encode()
    assert refused(JSON, more) in [(413, "too_large"), (422, "wrong_shape")]
    assert refused(JSON, b'{"instances": [[[[[[0]]]]]]}') == (422, "wrong_shape")  # a batch of one
    assert refused(JSON, json.dumps({"instances": [0]}).encode("utf-16")) == (400, "malformed")
    assert refused(JSON, b'{"instances": [' + b"9" * 10_000 + b"]}") == (400, "malformed")


@pytest.mark.parametrize("text", ["[]", "{}", "[[1, 2], [3]]", '{"a": [1, {"b": 2}]}', "0"])
def test_cost_counts_what_there_is(text):
    """Numbers, texts, lists and objects of small texts, counted by hand."""
    items = {"[]": 1, "{}": 1, "[[1, 2], [3]]": 6, '{"a": [1, {"b": 2}]}': 5, "0": 1}[text]
    cost = json_texts.cost_of(text.encode(), 9, 99)
    assert cost >= json_texts.ITEM * items
    depth = {"[]": 1, "{}": 1, "[[1, 2], [3]]": 2, '{"a": [1, {"b": 2}]}': 3, "0": 0}[text]
    json_texts.cost_of(text.encode(), depth, 99)
    if depth:
        with pytest.raises(Refused, match=f"deeper than {depth - 1} levels"):
            json_texts.cost_of(text.encode(), depth - 1, 99)


# --- Headers of .npy files ----------------------------------------------------------------------


def npy(shape, descr="'<f4'", order="False", data=b"\0" * 256):
    header = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"
    header = header.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data


HEADERS = {
    "(8, 8, True)": npy("(8, 8, True)"),
    "(True, True, True)": npy("(True, True, True)", data=b"\0" * 4),
    "(8, 8, 1.0)": npy("(8, 8, 1.0)"),
    "(8, 8, -1)": npy("(8, 8, -1)"),
    "(-8, -8, 1)": npy("(-8, -8, 1)"),
    "(8, 8, None)": npy("(8, 8, None)"),
    "(8, 8, '1')": npy("(8, 8, '1')"),
    "[8, 8, 1]": npy("[8, 8, 1]"),
    "8": npy("8"),
    "order of 2": npy("(8, 8, 1)", order="2"),
    "no dtype": npy("(8, 8, 1)", descr="'nothing'"),
    "dtype of a number": npy("(8, 8, 1)", descr="8"),
    "names": npy("(8, 8, abc)"),
    "a call": npy("(8, 8, exit())"),
    "no end": npy("(8, 8, 1"),
}


@pytest.mark.every_case
@pytest.mark.parametrize("spec", [SPEC, ANY], ids=["size", "any size"])
@pytest.mark.parametrize("header", HEADERS)
def test_headers_that_are_none(header, spec, counts):
    assert refused(NPY, HEADERS[header], spec) == (400, "malformed")
    counts("requests refused")


@pytest.mark.parametrize(
    "shape, descr, status",
    [
        ("(8, 8, 10**9)", "'<f4'", 400),  # no literal
        ("(8, 8, 1000000000000)", "'<f4'", 422),
        ("(8, 8, " + "9" * 300 + ")", "'<f4'", 422),
        ("(8, 8, " + "9" * 600 + ")", "'<f4'", 400),  # a header longer than is read
        ("(8, 8, 1)", "[]", 422),
        ("(8, 8, 1)", "'<c8'", 422),
        ("(8, 8, 1)", "'<M8[s]'", 422),
        ("(8, 8, 1)", "[('a', '<f4')]", 422),
        ("(8, 8, 1)", "'|O'", 422),
        ("(8, 8, 1)", "'|b1'", 422),
        ("()", "'<f4'", 422),
    ],
    ids=range(11),
)
def test_headers_of_other_arrays(shape, descr, status, counts):
    assert refused(NPY, npy(shape, descr))[0] == status
    counts("requests refused")


def test_headers_of_any_words():
    """Literals of all kinds at each place of a header: read or refused, nothing else."""
    words = ["True", "None", "1e9", "-1", "'8'", "(8,)", "[]", "{}", "b'8'", "1j", "..."]
    for place, word in itertools.product(range(3), words):
        shape = ["8", "8", "1"]
        shape[place] = word
        assert refused(NPY, npy(f"({', '.join(shape)})"))[0] in (400, 422)


# --- What bodies become -------------------------------------------------------------------------


def png_of(width, height):
    """A PNG in colour that is small and claims, and holds, that many pixels."""
    raw = zlib.compress(b"\0" * (height * (1 + 3 * width)), 9)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))]
    parts += [(b"IDAT", raw), (b"IEND", b"")]
    chunks = (
        struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_a_png_that_becomes_201_mb(monkeypatch):
    body = png_of(4096, 4096)
    assert len(body) < 60_000
    monkeypatch.setattr(Image.Image, "load", lambda self: 1 / 0)  # nothing is decoded
    assert refused(PNG, body, ANY) == (413, "too_large")
    with pytest.raises(Refused, match="201326592 bytes once decoded"):
        reading.prepared(PNG, body, ANY)
    assert reading.prepared(PNG, body, ANY._replace(max_decoded=2**28)).cost > 201326592


@pytest.mark.parametrize("kind", [PNG, NPY])
def test_the_cost_covers_what_is_taken(kind):
    """Of an image and an array: the memory that NumPy says reading takes is less."""
    import tracemalloc

    pixels = np.random.default_rng(0).integers(256, size=(300, 400, 3), dtype="uint8")
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG") if kind == PNG else np.save(file, pixels)
    spec = ANY if kind == PNG else ANY._replace(pixel_range=None)
    found = reading.prepared(kind, file.getvalue(), spec)
    tracemalloc.start()
    (array,) = found.read()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert array.nbytes < peak < found.cost < 12 * array.nbytes


def test_budget():
    budget = Budget(100)
    with budget.account() as first, budget.account() as second:
        first.take(60)
        with pytest.raises(Refused) as busy:
            second.take(50)
        assert (busy.value.status, budget.held) == (503, 60)
        second.take(40)
        with pytest.raises(Refused) as never:
            second.take(61)
        assert never.value.status == 413
        assert not budget.has(1)
    assert budget.held == 0


# --- In one process -----------------------------------------------------------------------------


def asked(app, receive, kind=PNG):
    """Status and content of the application's answer to one POST, without a socket."""
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "http_version": "1.1", "method": "POST", "path": "/predict"}
    scope |= {"query_string": b"", "scheme": "http", "server": ("here", 1), "root_path": ""}
    scope |= {"headers": [(b"content-type", kind.encode())], "client": ("here", 2)}

    async def ask():
        await app(scope, receive, send)
        content = b"".join(message.get("body", b"") for message in sent)
        return sent[0]["status"], json.loads(content)

    return ask()


def service_of(folder, **options):
    return command.service_of(command.checked(model=folder, **options))


def whole(body):
    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


def array_body():
    file = io.BytesIO()
    np.save(file, np.full((8, 8, 1), 0.5, "float32"))
    return file.getvalue()


def half_of(body):
    """The first half of a body, and then nothing."""
    parts = iter([{"type": "http.request", "body": body[:100], "more_body": True}])

    async def receive():
        found = next(parts, None)
        return found or await asyncio.Event().wait()

    return receive


def test_slow_clients_take_nobodys_place(folder):
    """64 bodies that stop halfway; each good request is answered, and the slowest are given up."""
    service = service_of(folder, max_waiting=4, max_bodies=16, body_timeout=600)
    app, body = application(service), array_body()

    async def several():
        slow = [asyncio.create_task(asked(app, half_of(body), NPY)) for _ in range(64)]
        while not all(task.done() for task in slow[:48]):
            await asyncio.sleep(0)
        good = [await asked(app, whole(body), NPY) for _ in range(8)]
        coming = len(service.bodies.coming)
        for task in slow:
            task.cancel()
        given_up = [task.result() for task in slow if task.done()]
        await asyncio.gather(*slow, return_exceptions=True)
        return good, coming, given_up

    good, coming, given_up = asyncio.run(several())
    assert [status for status, _ in good] == [200] * 8
    assert coming < 16 and len(given_up) >= 48
    assert {(status, content["error"]) for status, content in given_up} == {(408, "timeout")}
    assert service.budget.held == 0 and service.under_way == 0


def test_bodies_that_fill_the_memory_give_way(folder):
    """Bytes of bodies that stopped are given back to one that comes."""
    body = array_body()
    limits = {"max_bytes": len(body), "max_waiting_bytes": 10 * len(body)}
    service = service_of(folder, body_timeout=600, **limits)
    app = application(service)

    async def several():
        slow = [asyncio.create_task(asked(app, half_of(body), NPY)) for _ in range(200)]
        while service.budget.held < 9 * len(body):
            await asyncio.sleep(0)
        found = await asked(app, whole(body), NPY)
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
        return found

    status, content = asyncio.run(several())
    assert status in (200, 503), content
    assert service.budget.held == 0


def test_decoded_inputs_that_wait_are_bounded(folder):
    """What would be more than there is memory for is told to come again, and that is counted."""
    body = array_body()
    service = service_of(folder, max_waiting_bytes=2500, max_bytes=1000)
    app = application(service)

    async def several():
        held, batcher = asyncio.Event(), service.batcher

        async def waits(*given):
            await held.wait()
            return await batcher(*given)

        service.batcher = waits
        first = asyncio.create_task(asked(app, whole(body), NPY))
        while service.budget.held < 1000:
            await asyncio.sleep(0)
        second = await asked(app, whole(body), NPY)
        held.set()
        return await first, second

    first, second = asyncio.run(several())
    assert first[0] == 200 and second[0] == 503 and second[1]["error"] == "busy"
    text = service.figures.text().decode()
    assert 'tfuq_refusals_total{error="busy",status="503"} 1.0' in text


def test_a_request_that_never_fits(folder):
    service = service_of(folder, max_waiting_bytes=800, max_bytes=800)
    status, content = asyncio.run(asked(application(service), whole(array_body()), NPY))
    assert (status, content["error"]) == (413, "too_large")


# --- Connections of a process -------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(folder):
    """A server with short times and four connections."""
    sys.path.insert(0, str(ROOT / "examples" / "serving"))
    try:
        from load_test import running_server
    finally:
        sys.path.remove(str(ROOT / "examples" / "serving"))
    options = ("--head-timeout", "1", "--body-timeout", "1", "--max-connections", "4")
    with running_server(folder, *options) as running:
        yield running


@contextlib.contextmanager
def connected(server):
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=120) as connection:
        yield connection


def received(connection):
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while block := connection.recv(2**16):
            data += block
    return data


HEAD = b"POST /predict HTTP/1.1\r\nHost: here\r\nContent-Type: application/x-npy\r\n"


@pytest.mark.parametrize(
    "sent, status",
    [
        (b"", b""),
        (b"POST", b"408"),
        (HEAD, b"408"),
        (HEAD + b"Content-Length: 900\r\n\r\nhalf", b"408"),
        # A refused body that goes on for ever.
        (HEAD + b"Content-Encoding: gzip\r\nContent-Length: 900\r\n\r\nhalf", b"415"),
        # A second head that stops halfway.
        (b"GET /live HTTP/1.1\r\nHost: here\r\n\r\nGET /li", b"200"),
    ],
    ids=["nothing", "a word", "a head", "a body", "a refused body", "the next head"],
)
def test_half_of_a_request_is_not_kept(server, sent, status):
    """The server closes the connection by itself: `received` waits for that."""
    with connected(server) as connection:
        connection.sendall(sent)
        found = received(connection)
    assert found[9:12] == status
    assert sent or not found
    if status == b"408":
        assert json.loads(found.rpartition(b"\r\n\r\n")[2])["error"] == "timeout"


def test_drops_of_a_head_do_not_keep_a_connection(server):
    """A byte now and then moves no clock."""
    with connected(server) as connection, contextlib.suppress(ConnectionError):
        for byte in itertools.cycle(b"x"):
            connection.sendall(bytes([byte]))
            time.sleep(0.05)
    with connected(server) as connection:
        connection.sendall(b"GET /live HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
        assert received(connection)[9:12] == b"200"


def test_connections_that_send_nothing_make_room(server):
    """Ten at a server that takes four; a good request is answered meanwhile."""
    with contextlib.ExitStack() as opened:
        for _ in range(10):
            opened.enter_context(connected(server))
        with connected(server) as connection:
            connection.sendall(b"GET /ready HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
            assert b'{"status":"ready"}' in received(connection)


# --- Options ------------------------------------------------------------------------------------


@pytest.mark.every_case
@pytest.mark.parametrize(
    "options, says",
    [
        ({"max_bytes": 0}, "--max-bytes must be a number above 0"),
        ({"max_batch": -1}, "--max-batch"),
        ({"max_batch": 2.5}, "--max-batch"),
        ({"max_waiting": True}, "--max-waiting"),
        ({"max_decoded": "many"}, "--max-decoded"),
        ({"body_timeout": float("nan")}, "--body-timeout"),
        ({"head_timeout": float("inf")}, "--head-timeout"),
        ({"drain": -1.0}, "--drain must be a number at least 0"),
        ({"port": 70_000}, "--port must be from 0 to 65535"),
        ({"port": "8000"}, "--port must be a whole number"),
        ({"max_waiting_bytes": 100}, "--max-waiting-bytes must be at least --max-bytes"),
        ({"max_size": 5, "max_bytes": 5}, "Options must be among .*Received: max_size"),
        ({"pixel_range": (1.0, 0.0)}, "--pixel-range must be two numbers"),
        ({"pixel_range": (0.0,)}, "--pixel-range must be two numbers"),
        ({"monitor": "nowhere.json"}, "nowhere.json"),
        ({"class_names": "a,b"}, "--class-names must name 3 classes"),
        ({"class_names": "a,a,b"}, "--class-names must name each class once"),
        ({"threads": 4}, "are of the server that runs it. Received: threads"),
        ({"port": 8000, "drain": 5.0}, "Received: drain, port"),
    ],
)
def test_options_that_cannot_be(options, says, folder, counts):
    with pytest.raises((ValueError, OSError), match=says):
        serving.make_app(folder, **options)
    counts("misuse rows, refused")


@pytest.mark.filterwarnings("ignore:--threads is not applied")
def test_serve_refuses_what_it_cannot_serve(folder, tmp_path, counts):
    with pytest.raises(OSError):
        serving.serve(tmp_path / "none")
    with pytest.raises(ValueError, match="--threads"):
        serving.serve(folder, threads=0)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError):
        serving.serve(folder, port=taken.getsockname()[1])
    counts("misuse rows, refused", 3)


def test_says_what_to_install(monkeypatch, folder):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    for name in ("application", "command"):
        monkeypatch.delitem(sys.modules, f"tfuq.serving.{name}")
        monkeypatch.delattr(serving, name, raising=False)
    for call in (serving.make_app, serving.serve):
        with pytest.raises(ImportError, match=r'pip install "tfuq\[serving\]"'):
            call(folder)


def test_not_ready_before_it_ends(folder):
    """At the first signal the server says so, and listens on while it drains."""
    service = service_of(folder, drain=5.0)
    server = command.Server(types.SimpleNamespace(lifespan="off"))
    server.service = service
    later = []
    server._running = types.SimpleNamespace(
        call_soon_threadsafe=lambda function, *arguments: later.append(arguments),
        call_later=None,
    )
    server.handle_exit(signal.SIGTERM, None)
    assert service.stopping and not service.is_ready and not server.should_exit
    (seconds, end, *signals), *_ = later
    assert seconds == 5.0
    end(*signals)
    assert server.should_exit
    again = command.Server(types.SimpleNamespace(lifespan="off"))
    again.service = service_of(folder)
    again.handle_exit(signal.SIGTERM, None)
    assert again.should_exit
