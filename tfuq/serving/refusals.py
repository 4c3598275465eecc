"""Refusals: requests that are not answered, each with a status and a reason."""


class Refused(Exception):
    """A request that is not answered: an HTTP status, a word for programs, a reason for people."""

    def __init__(self, status, error, reason):
        super().__init__(reason)
        self.status, self.error, self.reason = status, error, reason
