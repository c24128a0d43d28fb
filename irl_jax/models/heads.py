"""The scalar head of rewards and values: linear, or with one hidden layer."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from irl_jax.models.transformer import ModelConfig
from irl_jax.types import Array, PyTree


def init_head(rng, config: ModelConfig, hidden: int = 0) -> PyTree:
    """Initialises a head that outputs zero, so the first logit is 0 and the first discriminator is 1/2.

    Args:
      rng: a PRNG key for the hidden layer's kernel (unused without one).
      config: the architecture.
      hidden: units M of the hidden layer; 0 makes a linear head.
    Returns: {"kernel": [D, 1], "bias": [1]}, or {"hidden": {"kernel": [D, M] ~ N(0, 1 / D), "bias": [M]}, "kernel": [M, 1],
      "bias": [1]}, float32.
    """
    width = hidden or config.width
    head: dict[str, PyTree] = {"kernel": jnp.zeros((width, 1), jnp.float32), "bias": jnp.zeros((1,), jnp.float32)}
    if hidden:
        kernel = jax.random.normal(rng, (config.width, hidden), jnp.float32) * config.width**-0.5
        head["hidden"] = {"kernel": kernel, "bias": jnp.zeros((hidden,), jnp.float32)}
    return head


def scalar(head: PyTree, hidden) -> Array:
    """h = w . z + b in float32. z is the hidden state, or gelu(hidden W + c) if the head has a hidden layer.

    Args:
      head: from `init_head`.
      hidden: [..., D], states after the final norm.
    Returns: float32 [...].
    """
    z = hidden.astype(jnp.float32)
    if "hidden" in head:
        z = jax.nn.gelu(z @ head["hidden"]["kernel"] + head["hidden"]["bias"])
    return (z @ head["kernel"] + head["bias"])[..., 0]
