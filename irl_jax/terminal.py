"""The standard streams while a verb runs: what cannot be printed ends no work."""

from __future__ import annotations

import contextlib
import io
import os
import sys

from irl_jax.errors import UserError


class _Steady:
    """A stream to print to. What it cannot take is left out or, of a `needed` one, refused; letters that its encoding lacks are escaped."""

    def __init__(self, stream, needed: bool):
        self._stream, self._needed = stream, needed
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """As every stream's."""
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """As every stream's."""
        self._attempt(self._stream.flush)

    def _attempt(self, what) -> None:
        try:
            what()
        except (OSError, ValueError) as error:  # ValueError: it is closed
            if self._needed and isinstance(error, BrokenPipeError):
                raise
            if self._needed:
                raise UserError(f"standard output: cannot be written ({getattr(error, 'strerror', None) or error})") from None


@contextlib.contextmanager
def steady(needed: bool):
    """While entered, printing to standard output and standard error never fails.

    Args:
      needed: what goes to standard output is all that the verb makes. Then a failure there is a UserError, and nobody's reading it the
        BrokenPipeError that it is.
    """
    _fill()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Steady(sys.stdout, needed), _Steady(sys.stderr, False)  # type: ignore[assignment]
    try:
        yield
    finally:
        for stream in before:
            try:
                stream.flush()
            except (OSError, ValueError):
                _drop(stream)
        sys.stdout, sys.stderr = before


def _fill() -> None:
    """Puts something that takes nothing where a standard stream was closed, or the next file to be opened would get its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)
        if getattr(sys, name) is None:
            setattr(sys, name, io.TextIOWrapper(io.FileIO(number, "r" if name == "stdin" else "w", closefd=False), encoding="utf-8"))


def _drop(stream) -> None:
    """Sends what a stream still holds nowhere, or Python complains of it once more as it ends."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
