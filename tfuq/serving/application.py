"""The FastAPI application of a service: paths, and how refusals and failures are told."""

import asyncio
import contextlib
import os

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from tfuq.serving import schemas
from tfuq.serving.refusals import Refused

CLOSING = (408, 413)  # after these the rest of the body may still be on its way


def refusal(status, error, reason, headers=None):
    """The response that says why a request is not answered."""
    headers = dict(headers or {})
    if status == 503:
        headers["Retry-After"] = "1"
    if status in CLOSING:
        headers["Connection"] = "close"
    return JSONResponse({"error": error, "reason": reason}, status, headers)


def application(service):
    """The application of a `Service`."""

    @contextlib.asynccontextmanager
    async def lifespan(app):
        yield
        service.close()

    app = FastAPI(
        title="A model that knows when it does not know",
        description=schemas.DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
    )
    app.state.service = service
    app.router.redirect_slashes = False
    _add_answers(app, service)
    _add_state(app, service)
    _add_refusals(app, service)
    return app


def _add_answers(app, service):
    @app.post(
        "/predict",
        openapi_extra={"requestBody": schemas.BODY, "parameters": [schemas.KEY]},
        responses=schemas.answer_responses(service.model.of_numbers),
    )
    async def predict(request: Request):
        return JSONResponse(await service.predict(request))

    @app.post("/labels", openapi_extra={"requestBody": schemas.LABELS}, responses=schemas.REFUSALS)
    async def labels(request: Request):
        return JSONResponse(await service.label(request))


def _add_state(app, service):
    @app.get("/monitor", responses=schemas.REFUSALS)
    async def monitor():
        if service.watch is None:
            raise Refused(404, "no_monitor", "the server was started without --monitor")
        loop = asyncio.get_running_loop()
        return JSONResponse(await loop.run_in_executor(service.readers, service.watch.said))

    @app.get("/live")
    async def live():
        return JSONResponse({"status": "ok"})

    @app.get("/ready")
    async def ready():
        if service.is_ready:
            return JSONResponse({"status": "ready"})
        why = "stopping" if service.stopping else "busy"
        return JSONResponse({"status": why}, 503)

    @app.get("/health")
    async def health():
        counts = {"answered": service.figures.requests, "refused": service.figures.refused}
        counts["under_way"] = service.under_way
        return JSONResponse({"status": "ok", "pid": os.getpid(), **counts})

    @app.get("/metrics")
    async def metrics():
        loop = asyncio.get_running_loop()
        text = await loop.run_in_executor(service.readers, service.figures.text)
        return Response(text, media_type=service.figures.content_type)

    @app.get("/metadata")
    async def metadata():
        return JSONResponse(service.model.metadata)


def _add_refusals(app, service):
    def counted(status, error, reason, headers=None):
        service.figures.count_refusal(status, error)
        return refusal(status, error, reason, headers)

    @app.exception_handler(Refused)
    async def refused(request, error):
        return counted(error.status, error.error, error.reason)

    @app.exception_handler(ClientDisconnect)
    async def gone(request, error):
        return counted(400, "gone", "the client went away")  # nobody reads it

    @app.exception_handler(HTTPException)
    async def of_http(request, error):  # no such path, no such method
        return counted(error.status_code, "http", str(error.detail), error.headers)

    @app.exception_handler(Exception)
    async def failed(request, error):  # uvicorn writes down the traceback
        return counted(500, "internal", f"the model failed: {type(error).__name__}")
