"""Memory mappings: Linux grants a process so many, and every program that XLA compiles for a CPU takes some."""

from __future__ import annotations

import pathlib

import jax

LIMIT, OWN = pathlib.Path("/proc/sys/vm/max_map_count"), pathlib.Path("/proc/self/maps")


def spare(share: float = 0.5) -> bool:
    """Drops jax's compiled programs where this process has more than `share` of the memory mappings that it may have.

    XLA crashes where no more are to be had. What is dropped is compiled again, or read from the compilation cache, when it is next called.

    Returns: whether it did; never where the system does not tell (it is no Linux).
    """
    try:
        limit, own = int(LIMIT.read_text()), OWN.read_bytes().count(b"\n")
    except OSError:
        return False
    if own <= share * limit:
        return False
    jax.clear_caches()
    return True
