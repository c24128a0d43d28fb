"""Memory mappings: Linux limits them per process, and every program that XLA compiles for a CPU takes some."""

from __future__ import annotations

import pathlib

import jax

LIMIT, OWN = pathlib.Path("/proc/sys/vm/max_map_count"), pathlib.Path("/proc/self/maps")


def spare(share: float = 0.5) -> bool:
    """Drops jax's compiled programs if this process uses more than `share` of the memory mappings it may have.

    XLA crashes if none are left. A dropped program is recompiled, or read from the compilation cache, on its next call.

    Returns: whether they were dropped; False if the system doesn't report mappings (it isn't Linux).
    """
    try:
        limit, own = int(LIMIT.read_text()), OWN.read_bytes().count(b"\n")
    except OSError:
        return False
    if own <= share * limit:
        return False
    jax.clear_caches()
    return True
