"""Connections of the server: heads in their time, and none that holds a place for nothing."""

import json

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

ANSWERING = 120.0  # seconds that a request may take, once its body is there


class Limits:
    """What the connections of one server share.

    Args:
        head_timeout: Seconds from the opening of a connection, or from the last answer, within
            which the head of a request must have come.
        request_timeout: Seconds from the head of a request to the end of its answer.
        max_connections: How many at a time. One more closes the one that has been waiting for
            a head for longest; if none is, it is closed itself.
    """

    def __init__(self, head_timeout, request_timeout, max_connections):
        self.head_timeout, self.request_timeout = head_timeout, request_timeout
        self.max_connections = max_connections
        self.waiting = {}  # connections that wait for a head, oldest first
        self.given_up = 0

    def protocol(self):
        """A class of connections for `uvicorn.Config(http=...)`."""
        return type("LimitedConnection", (_Connection,), {"limits": self})


class _Connection(H11Protocol):
    """A connection that is closed when a head does not come, or an answer is not taken, in time.

    uvicorn closes connections that are idle after an answer; one that sends nothing at first, or
    half of a head, or bytes of a refused body one by one, it would keep for ever.
    """

    limits = None
    _timer = _timed = None

    def connection_made(self, transport):
        super().connection_made(transport)
        limits = self.limits
        if len(self.connections) > limits.max_connections:
            oldest = next(iter(limits.waiting), self)
            limits.given_up += 1
            oldest.transport.abort()
            if oldest is self:
                return
        self._settle()

    def data_received(self, data):
        super().data_received(data)
        self._settle()

    def on_response_complete(self):
        super().on_response_complete()
        self._settle()

    def connection_lost(self, exc):
        self._cancel()
        super().connection_lost(exc)

    def _settle(self):
        """Starts the clock that is due: that of a head, or that of a request."""
        is_running = self.cycle is not None and not self.cycle.response_complete
        timed = self.cycle if is_running else h11.IDLE
        after = None if is_running or self.cycle is None else self.cycle
        if self._timed == (timed, after) or self.transport.is_closing():
            return
        self._cancel()
        self._timed = (timed, after)
        seconds = self.limits.request_timeout if is_running else self.limits.head_timeout
        self._timer = self.loop.call_later(seconds, self._give_up, is_running)
        if not is_running:
            self.limits.waiting[self] = None

    def _cancel(self):
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._timed = None
        self.limits.waiting.pop(self, None)

    def _give_up(self, is_running):
        self.limits.given_up += 1
        if is_running:  # what was answered is not taken
            self.transport.abort()
            return
        if self.conn.trailing_data[0] and self.conn.our_state is h11.IDLE:
            self.transport.write(_late(self.limits.head_timeout))
        self.transport.close()


def _late(seconds):
    reason = f"the head of the request did not come within {seconds:g} seconds"
    body = json.dumps({"error": "timeout", "reason": reason}).encode()
    head = (
        "HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
