"""Serves a model of `tfuq.export` over HTTP, with TensorFlow alone: neither tfuq nor Keras.

    python server.py demo_output/saved_model --port 8000

POST /predict takes an image (PNG, JPEG), a .npy file or {"instances": [...]}, and answers with the
decision and its reasons; what it cannot answer it refuses with a reason. GET /health says whether
the process is alive, GET /metadata what is served. With --monitor the server counts its cases and
takes their labels by POST /labels, and GET /monitor says whether the rule still keeps its promise;
that takes tfuq as well.
"""

import argparse
import asyncio
import contextlib
import json
import os
import pathlib
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf
import uvicorn
from answers import Decision, answers
from batching import Batcher
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from reading import TAKEN, InputSpec, Refused, read
from served_model import ServedModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

READERS = 2  # threads that decode
DRAINED = 16  # how many times the limit is read and dropped, so that the sender hears the refusal
CLOSING = (408, 413)  # after these the rest of the body may still be on its way


class Service:
    """What the requests share: the model, its queue, and counts."""

    def __init__(self, model, decision, options, watch=None):
        self.model, self.options, self.watch = model, options, watch
        self.spec = input_spec(model, options)

        def answered(inputs):
            outputs = model.predict(inputs)
            found = answers(outputs, decision)
            if watch is not None:
                watch.take(outputs, found)
            return found

        self.batcher = Batcher(answered, options.max_batch)
        self.readers = ThreadPoolExecutor(READERS, "read")
        self.under_way = 0
        self.counts = {"answered": 0, "refused": 0}

    async def predict(self, request):
        """The content of the answer to a request; `Refused` if there is none."""
        with self._place():
            body = await self._body(request)
            kind = request.headers.get("content-type", "")
            loop = asyncio.get_running_loop()
            inputs, several = await loop.run_in_executor(self.readers, read, kind, body, self.spec)
            found = await asyncio.gather(*map(self.batcher, inputs))
        self.counts["answered"] += 1
        return {"predictions": found} if several else found[0]

    async def label(self, request):
        """What the monitor says once it has taken the labels of a request."""
        if self.watch is None:
            raise Refused(404, "no_monitor", "the server was started without --monitor")
        with self._place():
            body = await self._body(request)
            try:
                labels = json.loads(body)["labels"]
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                reason = 'the body must be JSON, {"labels": {id: label, ...}}'
                raise Refused(400, "malformed", reason) from error
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self.readers, self.watch.label, labels)

    @contextlib.contextmanager
    def _place(self):
        """A place among the requests under way, whose number bounds the memory."""
        if self.under_way >= self.options.max_waiting:
            raise Refused(503, "busy", f"{self.under_way} requests are under way: try again later")
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1

    async def _body(self, request):
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise Refused(415, "unsupported_media_type", "the body must not be compressed")
        seconds = self.options.body_timeout
        try:
            reading = read_body(request, self.options.max_bytes)
            return await asyncio.wait_for(reading, seconds)
        except asyncio.TimeoutError as error:
            raise Refused(
                408, "timeout", f"the body did not come within {seconds:g} seconds"
            ) from error


async def read_body(request, limit):
    """The body of a request of at most `limit` bytes, whatever it says of its own length."""
    body, size = bytearray(), 0
    refused = Refused(413, "too_large", f"the body is larger than the limit of {limit} bytes")
    is_asking = "expect" in request.headers  # whether to send at all
    if is_asking and int(request.headers.get("content-length", 0)) > limit:
        raise refused
    async for chunk in request.stream():
        size += len(chunk)
        if size <= limit:
            body += chunk
        else:
            body.clear()
        if size > DRAINED * limit:
            break
    if size > limit:
        raise refused
    return bytes(body)


# --- The application --------------------------------------------------------------------------


def refusal(status, error, reason, headers=None):
    headers = dict(headers or {})
    if status == 503:
        headers["Retry-After"] = "1"
    if status in CLOSING:
        headers["Connection"] = "close"
    return JSONResponse({"error": error, "reason": reason}, status, headers)


def make_app(service):
    @contextlib.asynccontextmanager
    async def lifespan(app):
        yield
        service.batcher.close()
        service.readers.shutdown()
        if service.watch is not None:
            service.watch.close()

    app = FastAPI(title="A model that knows when it does not know", lifespan=lifespan)
    app.router.redirect_slashes = False
    content = {"content": {kind: {} for kind in TAKEN}, "required": True}

    @app.post("/predict", openapi_extra={"requestBody": content})
    async def predict(request: Request):
        return JSONResponse(await service.predict(request))

    @app.post("/labels")
    async def labels(request: Request):
        return JSONResponse(await service.label(request))

    @app.get("/monitor")
    async def monitor():
        if service.watch is None:
            raise Refused(404, "no_monitor", "the server was started without --monitor")
        return JSONResponse(service.watch.said())

    @app.get("/health")
    async def health():
        counts = {**service.counts, "under_way": service.under_way}
        return JSONResponse({"status": "ok", "pid": os.getpid(), **counts})

    @app.get("/metadata")
    async def metadata():
        return JSONResponse(service.model.metadata)

    @app.exception_handler(Refused)
    async def refused(request, error):
        service.counts["refused"] += 1
        return refusal(error.status, error.error, error.reason)

    @app.exception_handler(ClientDisconnect)
    async def gone(request, error):
        return refusal(400, "gone", "the client went away")  # nobody reads it

    @app.exception_handler(HTTPException)
    async def of_http(request, error):  # no such path, no such method
        return refusal(error.status_code, "http", str(error.detail), error.headers)

    @app.exception_handler(Exception)
    async def failed(request, error):  # uvicorn writes down the traceback
        return refusal(500, "internal", f"the model failed: {type(error).__name__}")

    return app


# --- The command line -------------------------------------------------------------------------


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("model", type=pathlib.Path, help="folder that tfuq.export.export wrote")
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=8000, help="0 takes a free one, which is printed")
    add("--class-names", help="names of the classes in their order, with commas between")
    add(
        "--pixel-range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="what 0 and 255 of an image become, if the model takes floating point numbers and "
        "does not declare it",
    )
    add(
        "--monitor",
        type=pathlib.Path,
        metavar="FILE",
        help="a monitor of the rule, as `rule.monitor().save(FILE)` writes it; needs tfuq",
    )
    add("--max-bytes", type=int, default=2**22, help="of a body")
    add("--max-pixels", type=int, default=2**24, help="of an image")
    add("--max-batch", type=int, default=32, help="inputs that are predicted together")
    add("--max-waiting", type=int, default=64, help="requests under way; more are told to wait")
    add("--body-timeout", type=float, default=20.0, help="seconds that a body may take to come")
    add("--grace", type=int, default=10, help="seconds for what is under way at the end")
    add("--threads", type=int, default=1, help="of each operation of TensorFlow")
    return parser.parse_args(arguments)


def input_spec(model, options):
    """What the model takes, as its metadata and the options say; ValueError if they disagree."""
    declared = model.metadata.get("inputs") or {}
    known, given = declared.get("value_range"), options.pixel_range
    if known and given and list(known) != list(given):
        raise ValueError(f"--pixel-range must be left out: the model declares {known}, not {given}")
    pixel_range = known or given
    return InputSpec(
        model.shape,
        model.dtype,
        pixel_range and tuple(pixel_range),
        options.max_pixels,
        options.max_batch,
        known and tuple(known),
        declared.get("channels") == "bgr",
        declared.get("bounds"),
        declared.get("takes_integers", False),
    )


def class_names(model, options):
    """Names of the classes as the metadata and the options say; ValueError if they disagree."""
    known, given = model.metadata.get("class_names"), options.class_names
    given = given and given.split(",")
    if known and given and known != given:
        raise ValueError(f"--class-names must be left out, or those of the model, {known}: {given}")
    names = known or given
    if names and model.of_numbers:
        raise ValueError(f"--class-names must be left out for a regression: {names}")
    if names and len(names) != model.num_classes:
        raise ValueError(f"--class-names must name {model.num_classes} classes, not {len(names)}")
    return names and tuple(names)


def load(options):
    """The model and what decides; ValueError if it does not decide, or what is known disagrees."""
    model = ServedModel(options.model)
    names = class_names(model, options)
    input_spec(model, options)
    decision = Decision.of(model.metadata, names or None)
    if not decision.decides:
        raise ValueError(f"{options.model} decides nothing: export it with a `rule`")
    return model, decision


def watch_of(model, options):
    """The monitor that the options ask for, or None."""
    if options.monitor is None:
        return None
    from watching import Watch  # of tfuq, which the server does without otherwise

    return Watch(options.monitor, model.metadata, class_names(model, options) or None)


def main(arguments=None):
    options = parse(arguments)
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    tf.config.threading.set_inter_op_parallelism_threads(options.threads)
    try:
        model, decision = load(options)
        watch = watch_of(model, options)
    except (OSError, ValueError, LookupError, ImportError) as error:
        sys.exit(f"server.py: {type(error).__name__}: {error}")
    app = make_app(Service(model, decision, options, watch))
    listening = socket.create_server((options.host, options.port), backlog=128)
    host, port = listening.getsockname()[:2]
    print(f"Serving {options.model} at http://{host}:{port}", flush=True)
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http="h11",
        ws="none",
        log_level="warning",
        timeout_graceful_shutdown=options.grace,
    )
    # uvicorn finishes what is under way, and then raises the signal again.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
