"""Whether bfloat16 is worth timing here: only where both sides' matrix products gain from it."""

from __future__ import annotations

import time

import numpy as np

GAIN = 1.1


def worth_timing(width: int = 1024) -> tuple[str, ...]:
    """("float32",), and "bfloat16" where products of [width, width] are GAIN times faster in it for XLA and for torch."""
    import jax
    import jax.numpy as jnp
    import torch

    def gain(product, one, two) -> float:
        seconds = []
        for operand in (one, two):
            product(operand)
            rounds = []
            for _ in range(7):
                start = time.perf_counter()
                product(operand)
                rounds.append(time.perf_counter() - start)
            seconds.append(float(np.median(rounds)))
        return seconds[0] / seconds[1]

    square = jax.random.normal(jax.random.key(0), (width, width))
    multiply = jax.jit(lambda x: x @ x)
    xla = gain(lambda x: multiply(x).block_until_ready(), square, square.astype(jnp.bfloat16))
    other = torch.tensor(np.asarray(square))
    eager = gain(lambda x: x @ x, other, other.bfloat16())
    return ("float32", "bfloat16") if min(xla, eager) >= GAIN else ("float32",)
