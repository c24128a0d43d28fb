"""Libraries import what names in foreign files say. This package lets them take only what belongs there."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

_LOCK = threading.RLock()  # a replaced attribute is the library's, so every thread sees it


@contextlib.contextmanager
def replaced(owner: Any, attribute: str, value: Any) -> Iterator[None]:
    """While entered, a library's class or module has `value` as its `attribute`. Other threads wait to enter."""
    with _LOCK:
        before = vars(owner)[attribute]
        setattr(owner, attribute, value)
        try:
            yield
        finally:
            setattr(owner, attribute, before)
