"""The service: a model, its queue, and how much of both requests may take."""

import asyncio
import contextlib
import time
from concurrent.futures import ThreadPoolExecutor

from tfuq.serving import json_texts
from tfuq.serving.answers import answers
from tfuq.serving.batching import Batcher
from tfuq.serving.budget import Budget
from tfuq.serving.cases import HEADER
from tfuq.serving.figures import Figures
from tfuq.serving.reading import InputSpec, prepared
from tfuq.serving.refusals import Refused

READERS = 2  # threads that decode
DRAINED = 16  # how many times the limit is read and dropped, so that the sender hears the refusal
LABELS = 2**16  # how many labels one request may bring


class Service:
    """What the requests share: the model, its queue, limits and counts.

    Args:
        model: A `ServedModel`.
        decision: A `Decision`.
        options: The options of `tfuq serve`, as `tfuq.serving.command` checks them.
        watch: A `Watch` of the rule, or None.
    """

    def __init__(self, model, decision, options, watch=None):
        self.model, self.options, self.watch = model, options, watch
        self.spec = input_spec(model, options)

        def answered(inputs, marks):
            outputs = model.predict(inputs)
            found = answers(outputs, decision)
            if watch is not None:
                watch.take(outputs, found, marks)
            return found

        self.batcher = Batcher(answered, options.max_batch, options.max_decoded)
        self.readers = ThreadPoolExecutor(READERS, "read")
        self.budget = Budget(options.max_waiting_bytes)
        self.bodies = Bodies(options)
        self.answering = 0
        self.stopping = False
        self.figures = Figures(self)

    @property
    def under_way(self):
        """Requests whose bodies are coming, and those that wait for their answers."""
        return len(self.bodies.coming) + self.answering

    @property
    def is_ready(self):
        """Whether a request that came now would be answered."""
        return not self.stopping and self.answering < self.options.max_waiting

    def ask_to_stop(self):
        """From now on the service says that it is not ready; what comes is still answered."""
        self.stopping = True

    def close(self):
        """Ends threads, and writes the monitor."""
        self.batcher.close()
        self.readers.shutdown()
        if self.watch is not None:
            self.watch.close()

    async def predict(self, request):
        """The content of the answer to a request; `Refused` if there is none."""
        start = time.perf_counter()
        with self.budget.account() as account:
            body = await self.bodies.whole(request, account)
            kind = request.headers.get("content-type", "")
            with self._place():
                key = request.headers.get(HEADER)
                read = await self._in_thread(self._read, kind, body, key, account)
                inputs, marks, several = read
                found = await asyncio.gather(*map(self.batcher, inputs, marks))
        self.figures.count(found, time.perf_counter() - start)
        return {"predictions": found} if several else found[0]

    def _read(self, kind, body, key, account):
        found = prepared(kind, body, self.spec)
        account.take(found.cost)
        inputs = found.read()
        is_watched = self.watch is not None
        marks = self.watch.marks(inputs, key) if is_watched else [None] * len(inputs)
        return inputs, marks, found.is_list

    async def label(self, request):
        """What the monitor says once it has taken the labels of a request."""
        if self.watch is None:
            raise Refused(404, "no_monitor", "the server was started without --monitor")
        with self.budget.account() as account:
            body = await self.bodies.whole(request, account)
            with self._place():
                return await self._in_thread(self._take_labels, body, account)

    def _take_labels(self, body, account):
        account.take(json_texts.cost_of(body, 3, LABELS))
        content = json_texts.parsed(body)
        try:
            labels = content["labels"]
        except (KeyError, TypeError) as error:
            reason = 'the body must be JSON, {"labels": {id: label, ...}}'
            raise Refused(400, "malformed", reason) from error
        return self.watch.label(labels)

    def _in_thread(self, function, *arguments):
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(self.readers, function, *arguments)

    @contextlib.contextmanager
    def _place(self):
        """A place among those that are answered; bodies that are still coming take none."""
        if self.answering >= self.options.max_waiting:
            raise Refused(503, "busy", f"{self.answering} requests are waiting: try again later")
        self.answering += 1
        try:
            yield
        finally:
            self.answering -= 1


class Bodies:
    """Bodies that are coming in: each in its time, and slow ones never in the way of others.

    Where there are as many as there may be, or their bytes take all memory for requests, the one
    that has been coming for longest is given up.

    Args:
        options: With `max_bytes` of a body, `max_bodies` at a time, `body_timeout` in seconds.
    """

    def __init__(self, options):
        self.options = options
        self.coming = {}  # task: whether it is given up; in the order in which they came

    async def whole(self, request, account):
        """The body of a request, its bytes taken from the account."""
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise Refused(415, "unsupported_media_type", "the body must not be compressed")
        while len(self.coming) >= self.options.max_bodies:
            await self._give_up_oldest()
        reading = asyncio.ensure_future(self._read(request, account))
        self.coming[reading] = False
        seconds = self.options.body_timeout
        try:
            return await asyncio.wait_for(reading, seconds)
        except asyncio.TimeoutError as error:
            reason = f"the body did not come within {seconds:g} seconds"
            raise Refused(408, "timeout", reason) from error
        except asyncio.CancelledError as error:
            if not self.coming.get(reading):
                raise
            reason = "the body came too slowly while other requests were waiting"
            raise Refused(408, "timeout", reason) from error
        finally:
            self.coming.pop(reading, None)

    async def _read(self, request, account):
        """A body of at most `max_bytes`, whatever it says of its own length."""
        limit, body, size = self.options.max_bytes, bytearray(), 0
        refused = Refused(413, "too_large", f"the body is larger than the limit of {limit} bytes")
        is_asking = "expect" in request.headers  # whether to send at all
        if is_asking and int(request.headers.get("content-length", 0)) > limit:
            raise refused
        async for chunk in request.stream():
            size += len(chunk)
            if size <= limit:
                await self._make_room(account, len(chunk))
                account.take(len(chunk))
                body += chunk
            else:
                body.clear()
            if size > DRAINED * limit:
                break
        if size > limit:
            raise refused
        return bytes(body)

    async def _make_room(self, account, size):
        while not account.budget.has(size) and await self._give_up_oldest():
            pass

    async def _give_up_oldest(self):
        """Whether there is one to give up, or to wait for, other than the one that asks."""
        mine = asyncio.current_task()
        oldest = next((task for task, given_up in self.coming.items() if not given_up), mine)
        if oldest is not mine:
            self.coming[oldest] = True
            oldest.cancel()
        elif not any(given_up for task, given_up in self.coming.items() if task is not mine):
            return False
        await asyncio.sleep(0)  # until its request has heard, and given back its bytes
        return True


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
        options.max_decoded,
    )
