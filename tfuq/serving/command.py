"""The command `tfuq serve`: options, and a server that runs until it is told to end."""

import argparse
import asyncio
import os
import signal
import socket
import sys
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf
import uvicorn

from tfuq.serving.answers import Decision
from tfuq.serving.application import application
from tfuq.serving.connections import ANSWERING, Limits
from tfuq.serving.options import add_options, check
from tfuq.serving.served_model import ServedModel
from tfuq.serving.service import Service, input_spec


def parse(arguments=None):
    """Options from the words of a command line."""
    parser = argparse.ArgumentParser(prog="serve", description=__doc__.splitlines()[0])
    add_options(parser)
    return check(parser.parse_args(arguments))


def checked(**given):
    """Options from keywords; those that are not given have the values of the command line."""
    parser = argparse.ArgumentParser()
    add_options(parser)
    options = parser.parse_args([os.fspath(given.pop("model"))])
    unknown = sorted(set(given) - set(vars(options)))
    if unknown:
        known = ", ".join(sorted(set(vars(options)) - {"model"}))
        raise ValueError(f"Options must be among {known}. Received: {', '.join(unknown)}")
    for name, value in given.items():
        setattr(options, name, value)
    return check(options)


def class_names(model, options):
    """Names of the classes as the metadata and the options say; ValueError if they disagree."""
    known, given = model.metadata.get("class_names"), options.class_names
    given = given.split(",") if isinstance(given, str) else given and list(given)
    if known and given and known != given:
        raise ValueError(f"--class-names must be left out, or those of the model, {known}: {given}")
    names = known or given
    if names and model.of_numbers:
        raise ValueError(f"--class-names must be left out for a regression: {names}")
    if names and len(names) != model.num_classes:
        raise ValueError(f"--class-names must name {model.num_classes} classes, not {len(names)}")
    if names and len(set(names)) != len(names):
        raise ValueError(f"--class-names must name each class once: {names}")
    return names and tuple(names)


def load(options):
    """The model and what decides; ValueError if it does not decide, or what is known disagrees."""
    model = ServedModel(options.model)
    names = class_names(model, options)
    input_spec(model, options)
    decision = Decision.of(model.metadata, names or None)
    if not decision.decides:
        raise ValueError(f"{options.model} makes no decisions: export it with a `rule`")
    return model, decision


def watch_of(model, options):
    """The monitor that the options ask for, or None."""
    if options.monitor is None:
        return None
    from tfuq.serving.watching import Watch  # of tfuq, which the server does without otherwise

    return Watch(options.monitor, model.metadata, class_names(model, options) or None)


def service_of(options):
    """The `Service` that options describe, its model loaded and its files checked."""
    model, decision = load(options)
    return Service(model, decision, options, watch_of(model, options))


class Server(uvicorn.Server):
    """uvicorn, which says that it will end before it lets nobody in."""

    service = None
    _told = False

    def handle_exit(self, sig, frame):
        """At the first signal not ready, and after `--drain` seconds no longer listening."""
        self.service.ask_to_stop()
        drain = self.service.options.drain
        if self._told or not drain:
            super().handle_exit(sig, frame)
            return
        self._told = True
        later = super().handle_exit
        self._running.call_soon_threadsafe(self._running.call_later, drain, later, sig, frame)

    async def startup(self, sockets=None):
        """As uvicorn's; keeps the loop, which a signal needs."""
        self._running = asyncio.get_running_loop()
        await super().startup(sockets=sockets)


def run(options, say=print):
    """Serves until SIGTERM or SIGINT; returns the counts.

    Args:
        options: As `checked` or `parse` gives them.
        say: Function that is told the address, in one line.
    """
    _use_threads(options.threads)
    service = service_of(options)
    limits = Limits(options.head_timeout, options.body_timeout + ANSWERING, options.max_connections)
    listening = socket.create_server((options.host, options.port), backlog=128)
    host, port = listening.getsockname()[:2]
    say(f"Serving {options.model} at http://{host}:{port}")
    config = uvicorn.Config(
        application(service),
        loop="asyncio",
        http=limits.protocol(),
        ws="none",
        log_level="warning",
        timeout_graceful_shutdown=options.grace,
    )
    server = Server(config)
    server.service = service
    # uvicorn finishes what is under way, and then raises the signal again.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    server.run(sockets=[listening])
    return {"answered": service.figures.requests, "refused": service.figures.refused}


def _use_threads(number):
    try:
        tf.config.threading.set_intra_op_parallelism_threads(number)
        tf.config.threading.set_inter_op_parallelism_threads(number)
    except RuntimeError:
        warnings.warn(
            "--threads is not applied: TensorFlow has begun to compute in this process",
            stacklevel=3,
        )


def main(arguments=None):
    """Serves as words of a command line say; ends the process with 1 if that cannot be."""
    options = parse(arguments)
    try:
        run(options, lambda line: print(line, flush=True))
    except (OSError, ValueError, LookupError, ImportError) as error:
        sys.exit(f"serve: {type(error).__name__}: {error}")
