"""Running mean and variance as a small pytree, to normalise rewards over a whole training."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from irl_jax.types import Array


class Running(NamedTuple):
    """count: weights seen; mean; m2: sum of squared deviations from the mean. float32 scalars."""

    count: Array
    mean: Array
    m2: Array


def start() -> Running:
    """Nothing seen yet."""
    return Running(*(jnp.zeros((), jnp.float32) for _ in Running._fields))


def update(running: Running, values: Array, weights: Array) -> Running:
    """Adds values to the statistics (Chan, Golub & LeVeque 1983: exact for any split into parts).

    Args:
        running: before. values: any shape. weights: the same shape; values with weight 0 are ignored, NaN included.
    """
    values = jnp.where(weights > 0, values, 0.0)
    count = jnp.sum(weights)
    mean = jnp.sum(weights * values) / jnp.maximum(count, 1e-30)
    m2 = jnp.sum(weights * jnp.square(values - mean))
    total = jnp.maximum(running.count + count, 1e-30)
    shift = mean - running.mean
    return Running(
        running.count + count,
        running.mean + shift * count / total,
        running.m2 + m2 + jnp.square(shift) * running.count * count / total,
    )


def normalise(running: Running, values: Array, epsilon: float = 1e-8) -> Array:
    """(values - mean) / sqrt(variance + epsilon), the variance with 1/count; the values unchanged if nothing was seen yet."""
    deviation = jnp.sqrt(running.m2 / jnp.maximum(running.count, 1e-30) + epsilon)
    return jnp.where(running.count > 0, (values - running.mean) / deviation, values)
