"""Draws one token from its logits: temperature, filters, and the draw by inverse CDF."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from irl_jax.types import Array

_BLOCK = 64  # vocabulary tokens summed together in the inverse CDF


def filter_logits(logits, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Array:
    """The logits of the sampling distribution: divided by the temperature, then -inf outside top-k, then -inf outside top-p.

    Args:
        logits: float32 [..., V].
        temperature: above 0.
        top_k: number of tokens kept, plus ties with the last of them; 0 keeps all.
        top_p: keeps the fewest likeliest tokens whose total probability reaches it, plus ties; 1 keeps all.
    """
    if temperature != 1.0:
        logits = logits / temperature
    if 0 < top_k < logits.shape[-1]:
        logits = _likeliest(logits, jnp.ones_like(logits), jnp.full(logits.shape[:-1], float(top_k), logits.dtype))
    if top_p < 1.0:
        weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
        logits = _likeliest(logits, weights, top_p * jnp.sum(weights, axis=-1))
    return logits


def _likeliest(logits, weights, enough) -> Array:
    """Keeps the fewest largest logits (and ties) whose weights sum to `enough`. The others become -inf.

    weights: float32 [..., V]. enough: [...], at most the whole sum. Bisects for the threshold: 32 halvings of all float32 numbers, in
    order, leave one. Each halving is a pass over the vocabulary. Sorting it instead costs ten times as much on a CPU.
    """
    def halve(_, bounds):
        low, high = bounds  # there is enough at or above `low`, and not at or above `high`
        middle = (low >> 1) + (high >> 1) + (low & high & 1)  # their mean; the sum could overflow
        is_enough = jnp.sum(jnp.where(logits >= _float(middle)[..., None], weights, 0.0), axis=-1) >= enough
        return jnp.where(is_enough, middle, low), jnp.where(is_enough, high, middle)

    infinity = 0x7F800000  # its float32 bits
    lowest, highest = jnp.full(enough.shape, ~infinity, jnp.int32), jnp.full(enough.shape, infinity + 1, jnp.int32)
    smallest, _ = lax.fori_loop(0, 32, halve, (lowest, highest))
    return jnp.where(logits >= _float(smallest)[..., None], logits, -jnp.inf)


def _float(place) -> Array:
    """The float32 at a place (int32) in the order of all of them: 0.0 at 0, negatives below, -infinity at ~bits(infinity)."""
    return lax.bitcast_convert_type(jnp.where(place < 0, ~place | jnp.int32(-(2**31)), place), jnp.float32)


def draw(logits, uniform) -> tuple[Array, Array]:
    """The token at which the CDF passes `uniform`, never one of probability 0, and its log-prob.

    Sums the vocabulary in blocks of tokens, finds the block, then the token in it. This takes one pass over the vocabulary and keeps the
    float32 sums short.

    Args:
        logits: float32 [..., V]; -inf is a probability of 0.
        uniform: float32 [...], in [0, 1).

    Returns:
        int32 [...] and float32 [...], nats.
    """
    V, axes = logits.shape[-1], logits.ndim - 1
    largest = jnp.max(logits, axis=-1, keepdims=True)
    # sums windows, because a reshape to blocks would first write out the padded weights
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
    """The first positive weight at which the running sum exceeds `target`, and what is left of the target before it.

    Sums round. If none exceeds the target, the last positive weight is meant.
    """
    running = jnp.cumsum(weights, axis=-1)
    positive = weights > 0
    passed = (running > target[..., None]) & positive
    last = weights.shape[-1] - 1 - jnp.argmax(jnp.flip(positive, axis=-1), axis=-1)
    index = jnp.where(jnp.any(passed, axis=-1), jnp.argmax(passed, axis=-1), last)
    before = jnp.take_along_axis(running - weights, index[..., None], axis=-1)[..., 0]
    return index, target - before


def logprob(logits, token) -> Array:
    """Log-prob of one token per distribution: float32 [..., V] and int32 [...] -> float32 [...], nats."""
    picked = jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0]
    return picked - jax.nn.logsumexp(logits, axis=-1)
