"""Batches prepared ahead of the updates that take them, and profiler traces of updates."""

from __future__ import annotations

import collections
import pathlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax

AHEAD = 2  # batches prepared, or being prepared, besides the one in use


class Ahead:
    """Calls feed(number) for the numbers from `first` to `last` - 1, in order, in one thread, up to AHEAD before they are asked for.

    A batch depends only on its number, so unused batches change nothing. An error of feed is raised when its batch is asked for, not
    before.
    """

    def __init__(self, feed: Callable[[int], Any], first: int, last: int):
        self._feed, self._next, self._last = feed, first, last
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._batches: collections.deque[tuple[int, Future[Any]]] = collections.deque()

    def __call__(self, number: int) -> Any:
        """The batch of `number`, which must be the next one. Waits if it isn't ready."""
        if not self._batches:
            self._prepare(1)
        expected, batch = self._batches.popleft()
        if number != expected:
            raise ValueError(f"batch {number} was asked for where {expected} is the next")
        self._prepare(AHEAD)
        with jax.profiler.TraceAnnotation("wait_for_batch"):
            return batch.result()

    def _prepare(self, count: int) -> None:
        while len(self._batches) < count and self._next < self._last:
            self._batches.append((self._next, self._thread.submit(self._annotated, self._next)))
            self._next += 1

    def _annotated(self, number: int) -> Any:
        with jax.profiler.TraceAnnotation("prepare_batch", number=number):
            return self._feed(number)

    def close(self) -> None:
        """Ends the thread and drops what it prepared."""
        self._thread.shutdown(wait=True, cancel_futures=True)


class Trace:
    """jax.profiler's trace of the updates `profile.first` to `profile.first + profile.steps - 1`, into a folder."""

    def __init__(self, directory: pathlib.Path, profile: Any):
        self._directory, self._running = directory, False
        self._first: int = profile.first if profile else 1
        self._steps: int = profile.steps if profile else 0

    def before(self, number: int) -> None:
        """Starts the trace if update `number` is one to trace."""
        if not self._running and self._first <= number < self._first + self._steps:
            jax.profiler.start_trace(str(self._directory))
            self._running = True

    def after(self, number: int, state) -> None:
        """Stops the trace after its last update, when that update's work is done."""
        if self._running and number + 1 >= self._first + self._steps:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        """Stops the trace if it is running."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
