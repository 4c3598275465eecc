"""Batches of requests that wait: the model runs on several as fast as on one."""

import asyncio
import collections
from concurrent.futures import ThreadPoolExecutor


class Batcher:
    """Calls `predict` with lists of what came while it was busy, and what came with it.

    Nobody waits for a batch to fill: an input that comes alone is answered alone.

    Args:
        predict: Function of a list of inputs of one shape, and a list of what came with each, that
            returns a list of answers.
        max_batch: How many inputs at most.
        max_bytes: How many bytes they may have together; one input alone may have more.
    """

    def __init__(self, predict, max_batch, max_bytes=2**26):
        self.predict, self.max_batch, self.max_bytes = predict, max_batch, max_bytes
        self._waiting = collections.deque()
        self._thread = ThreadPoolExecutor(1, "predict")
        self._worker = None

    async def __call__(self, array, beside=None):
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append((array, beside, answer))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await answer

    async def _work(self):
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch = self._next_batch()
            try:
                inputs, beside, _ = zip(*batch, strict=True)
                given = list(inputs), list(beside)
                found = await loop.run_in_executor(self._thread, self.predict, *given)
            except Exception as error:
                for *_, answer in batch:
                    if not answer.done():
                        answer.set_exception(error)
                continue
            for (*_, answer), content in zip(batch, found, strict=True):
                if not answer.done():  # its request may have been given up
                    answer.set_result(content)

    def _next_batch(self):
        batch = [self._waiting.popleft()]
        shape, size = batch[0][0].shape, batch[0][0].nbytes
        most = min(self.max_batch, max(self.max_bytes // max(size, 1), 1))
        while self._waiting and len(batch) < most:
            if self._waiting[0][0].shape != shape:
                break
            batch.append(self._waiting.popleft())
        return batch

    def close(self):
        self._thread.shutdown()
