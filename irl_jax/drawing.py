"""One token from its logits: temperature and filters, and the draw by the inverse of the cumulative distribution."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from irl_jax.types import Array

_BLOCK = 64  # tokens of the vocabulary summed together in the inverse CDF


def filter_logits(logits, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Array:
    """The logits of the distribution drawn from: divided by the temperature, then -inf outside top-k, then outside top-p.

    Args:
        logits: float32 [..., V].
        temperature: above 0.
        top_k: tokens kept (and those tied with the last of them); 0 keeps all.
        top_p: keeps the fewest likeliest tokens whose probability reaches it (and ties); 1 keeps all.
    """
    if temperature != 1.0:
        logits = logits / temperature
    if 0 < top_k < logits.shape[-1]:
        smallest = lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits >= smallest, logits, -jnp.inf)
    if top_p < 1.0:
        falling = jnp.sort(logits, axis=-1, descending=True)
        probabilities = jax.nn.softmax(falling, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities  # what the likelier tokens have already
        kept = (before < top_p).at[..., 0].set(True)
        smallest = jnp.min(jnp.where(kept, falling, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits >= smallest, logits, -jnp.inf)
    return logits


def draw(logits, uniform) -> tuple[Array, Array]:
    """The token where the cumulative distribution passes `uniform`, never one of probability 0, and its log-prob.

    The vocabulary is summed in blocks of tokens, the block is found and then the token in it: one pass over the
    vocabulary, and the float32 sums stay short.

    Args:
        logits: float32 [..., V]; -inf is a probability of 0.
        uniform: float32 [...], in [0, 1).

    Returns:
        int32 [...] and float32 [...], nats.
    """
    V, axes = logits.shape[-1], logits.ndim - 1
    largest = jnp.max(logits, axis=-1, keepdims=True)
    # a window's sum, for a reshape to blocks would first write the padded weights out
    window = (1,) * axes + (_BLOCK,)
    sums = lax.reduce_window(jnp.exp(logits - largest), 0.0, lax.add, window, window, [(0, 0)] * axes + [(0, -V % _BLOCK)])
    total = jnp.sum(sums, axis=-1)
    block, rest = _passing(sums, uniform * total)
    index = block[..., None] * _BLOCK + jnp.arange(_BLOCK)
    within = jnp.take_along_axis(logits, jnp.minimum(index, V - 1), axis=-1)
    place, _ = _passing(jnp.where(index < V, jnp.exp(within - largest), 0.0), rest)
    picked = jnp.take_along_axis(within, place[..., None], axis=-1)
    return (block * _BLOCK + place).astype(jnp.int32), (picked - largest)[..., 0] - jnp.log(total)


def _passing(weights, target) -> tuple[Array, Array]:
    """The first positive weight at which the running sum exceeds `target`, and what of the target is left before it.

    Sums round: where none exceeds it, the last positive weight is the one meant.
    """
    running = jnp.cumsum(weights, axis=-1)
    positive = weights > 0
    passed = (running > target[..., None]) & positive
    last = weights.shape[-1] - 1 - jnp.argmax(jnp.flip(positive, axis=-1), axis=-1)
    index = jnp.where(jnp.any(passed, axis=-1), jnp.argmax(passed, axis=-1), last)
    before = jnp.take_along_axis(running - weights, index[..., None], axis=-1)[..., 0]
    return index, target - before


def logprob(logits, token) -> Array:
    """Log-prob of one token of each distribution: float32 [..., V] and int32 [...] -> float32 [...], nats."""
    picked = jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0]
    return picked - jax.nn.logsumexp(logits, axis=-1)
