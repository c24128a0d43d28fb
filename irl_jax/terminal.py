"""The standard streams while a command runs: output that cannot be printed stops no work."""

from __future__ import annotations

import contextlib
import io
import os
import sys

from irl_jax.errors import UserError


class _Steady:
    """A stream to print to. Output it cannot take is dropped or, if `needed`, refused. Characters that its encoding lacks are escaped."""

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
      needed: standard output is all that the command makes. A failure there then raises UserError, or BrokenPipeError if nobody reads it.
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
    """Opens the null device in place of each closed standard stream. Otherwise the next opened file would get its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)
        if getattr(sys, name) is None:
            setattr(sys, name, io.TextIOWrapper(io.FileIO(number, "r" if name == "stdin" else "w", closefd=False), encoding="utf-8"))


def _drop(stream) -> None:
    """Discards what a stream still holds. Otherwise Python complains about it again at exit."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
