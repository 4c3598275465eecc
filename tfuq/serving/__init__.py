"""Serving of an exported model over HTTP (extra `serving`): decisions with reasons, or a refusal.

No file of this package imports another of tfuq but for a monitor: it serves with TensorFlow alone,
without Keras, too, as `examples/serving/server.py` shows.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

__all__ = ["make_app", "serve"]

_MISSING = (
    "tfuq.serving needs FastAPI, uvicorn, Pillow and prometheus_client. Install them with: "
    'pip install "tfuq[serving]"'
)


def make_app(folder: str | os.PathLike[str], **options: Any) -> Any:
    """A FastAPI application that answers for one exported model.

    Run it in your own server. `serve` and `tfuq serve` run it in uvicorn, and also limit
    connections and heads.

    Args:
        folder: What `tfuq.export.export` wrote, with a rule, a conformal set or an
            out-of-distribution threshold: it must decide something.
        **options: The options of `tfuq serve` with underscores: `max_bytes=2**22`,
            `monitor="monitor.json"`, `pixel_range=(0, 1)`, ... Not those of the process and its
            connections (`host`, `port`, `threads`, `head_timeout`, `max_connections`, `grace`,
            `drain`): they are your server's.

    Returns:
        The application: `POST /predict`, `POST /labels`, `GET /live`, `/ready`, `/health`,
        `/metadata`, `/metrics`, `/monitor` and `/openapi.json`.

    Raises:
        ImportError: Without the extra `serving`.
        ValueError: If a file was altered, the model decides nothing, options contradict it, or
            are the server's.
        OSError: If a file is missing.

    Example:

    ```python
    import keras
    from tfuq.export import export
    from tfuq.selective import RejectionRule
    from tfuq.serving import make_app

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, activation="softmax")])
    export(model, "served", rule=RejectionRule("confidence", 0.7))
    app = make_app("served", max_bytes=2**16)
    print(sorted(app.openapi()["paths"])[:2])  # ['/health', '/labels']
    ```

    See also: `tfuq.serving.serve`, `tfuq.export.export`.
    """
    try:
        from tfuq.serving import application, command
        from tfuq.serving.options import OF_THE_SERVER
    except ImportError as error:
        raise ImportError(f"{_MISSING} ({error})") from error
    checked = command.checked(model=folder, **options)
    if others := sorted(set(options) & OF_THE_SERVER):
        raise ValueError(
            "Options of make_app must be of the application; those of the process and of its "
            f"connections are of the server that runs it. Received: {', '.join(others)}"
        )
    return application.application(command.service_of(checked))


def serve(
    folder: str | os.PathLike[str],
    host: str = "127.0.0.1",
    port: int = 8000,
    say: Callable[[str], Any] = print,
    **options: Any,
) -> dict[str, int]:
    """Serves one exported model until SIGTERM or SIGINT, as `tfuq serve` does.

    Args:
        folder: As for `make_app`.
        host: Address to listen at.
        port: Port to listen at; 0 takes a free one, which is printed.
        say: Function that is told the address, in one line, once the server can be reached.
        **options: As for `make_app`.

    Returns:
        Counts, once it has ended: `{"answered": ..., "refused": ...}`.

    Raises:
        ImportError: Without the extra `serving`.
        ValueError: If a file was altered, the model decides nothing, or options contradict it.
        OSError: If a file is missing, or the port is taken.

    Example:

    ```python
    from tfuq.serving import serve

    def main():
        print(serve("served", port=8501))  # answers until SIGTERM or SIGINT
    ```

    See also: `tfuq.serving.make_app`, `tfuq.export.export`, `tfuq.selective.Monitor`.
    """
    try:
        from tfuq.serving import command
    except ImportError as error:
        raise ImportError(f"{_MISSING} ({error})") from error
    return command.run(command.checked(model=folder, host=host, port=port, **options), say)


def __dir__():
    return sorted(__all__)
