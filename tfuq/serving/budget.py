"""The memory that requests may hold at once, counted before it is taken."""

import contextlib
import threading

from tfuq.serving.refusals import Refused


class Budget:
    """Bytes that all requests under way may hold together: bodies, and what they are decoded to.

    Args:
        limit: How many bytes at most.
    """

    def __init__(self, limit):
        self.limit, self.held = limit, 0
        self._lock = threading.Lock()

    def has(self, size):
        """Whether `size` more bytes are left."""
        return self.held + size <= self.limit

    @contextlib.contextmanager
    def account(self):
        """An `Account` of one request, whose bytes are given back at the end."""
        account = Account(self)
        try:
            yield account
        finally:
            self._change(-account.size)

    def _change(self, size):
        with self._lock:
            if size > 0 and not self.has(size):
                return False
            self.held += size
            return True


class Account:
    """What one request holds of a budget."""

    def __init__(self, budget):
        self.budget, self.size = budget, 0

    def take(self, size):
        """Takes `size` bytes, or raises `Refused`: 413 if there are never so many, else 503."""
        if self.size + size > self.budget.limit:
            raise Refused(
                413,
                "too_large",
                f"the request would take {self.size + size} bytes of memory, there are "
                f"{self.budget.limit} for all requests",
            )
        if not self.budget._change(size):
            raise Refused(
                503, "busy", "the memory for requests is taken by others: try again later"
            )
        self.size += size
