"""Progress bars: how far, how fast, how much longer."""

from __future__ import annotations

import sys

from irl_jax import distributed


def bar(items=None, **how):
    """tqdm over `items` (or via its `update`). Shown only in process 0 on a terminal, and cleared at the end."""
    from tqdm import tqdm

    return tqdm(items, disable=not (distributed.is_primary() and sys.stderr.isatty()), leave=False, dynamic_ncols=True, **how)
