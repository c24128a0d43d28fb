"""The scalar head of rewards and values."""

from __future__ import annotations

import jax.numpy as jnp

from irl_jax.models.transformer import ModelConfig
from irl_jax.types import Array, PyTree


def init_head(rng, config: ModelConfig) -> PyTree:
    """A head that is zero everywhere, so that the first logit is 0 and the first discriminator 1/2.

    Args:
      rng: not used: there is nothing to draw; here so that all leaves are made alike.
      config: the architecture.
    Returns: {"kernel": [D, 1], "bias": [1]}, float32.
    """
    del rng
    return {"kernel": jnp.zeros((config.width, 1), jnp.float32), "bias": jnp.zeros((1,), jnp.float32)}


def scalar(head: PyTree, hidden) -> Array:
    """h = w . hidden + b, in float32.

    Args:
      head: from `init_head`.
      hidden: [..., D], states after the final norm.
    Returns: float32 [...].
    """
    return (hidden.astype(jnp.float32) @ head["kernel"] + head["bias"])[..., 0]
