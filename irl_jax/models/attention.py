"""Causal attention within segments, in blocks of queries, for training, scoring and prefill.

A block of queries is multiplied only with the keys up to its own end, so most of the masked half is never computed. The backward
pass gets one number per query (the log of the softmax's sum) instead of the weights [B, H, T, T], and recomputes the scores. If
layers aren't scanned over, the compiler may keep the scores instead.

Axes: B rows, T tokens (Q of them queries of a block, S keys), H = G R heads, G key/value heads, R heads per key/value head, E head
width.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from irl_jax.types import Array

MASKED = -1e30  # attention score of a masked key; finite, so a row without any key gives no NaN
BLOCKS, SMALLEST = 4, 64  # at most this many blocks of queries per row, of at least this many tokens


class Scores(NamedTuple):
    """How products of queries and keys become scores: times `scale`, then cap tanh(score / cap) if cap > 0."""

    scale: float
    cap: float


def softcap(scores, cap: float):
    """cap tanh(scores / cap), or the scores unchanged if cap = 0."""
    return cap * jnp.tanh(scores / cap) if cap else scores


def attend(scores: Scores, q_BxTxHxE, k_BxTxGxE, v_BxTxGxE, segments_BxT, window=None) -> Array:
    """softmax(scores) v over a token's own segment up to itself. Reverse mode gives derivatives of any order.

    Args:
      scores: scale and cap. q_BxTxHxE, k_BxTxGxE, v_BxTxGxE: float32 or bfloat16; H is a multiple of G.
      segments_BxT: int32. Padding (segment 0) sees padding, so every token sees something.
      window: number of last tokens seen, including the token itself; None: all. May be a traced int32 scalar.
    Returns: [B, T, H, E] in q's dtype.
    """
    B, T, H, E = q_BxTxHxE.shape
    G = k_BxTxGxE.shape[2]
    q = q_BxTxHxE.reshape(B, T, G, H // G, E).transpose(0, 2, 3, 1, 4)
    static = window is None or isinstance(window, int)
    attended = _attention(scores, window if static else None, q, k_BxTxGxE.swapaxes(1, 2), v_BxTxGxE.swapaxes(1, 2), segments_BxT,
                          None if static else window)
    return attended.transpose(0, 3, 1, 2, 4).reshape(B, T, H, E)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(scores: Scores, window: int | None, q_BxGxRxTxE, k_BxGxTxE, v_BxGxTxE, segments_BxT, traced_window):
    return _forward(scores, window, q_BxGxRxTxE, k_BxGxTxE, v_BxGxTxE, segments_BxT, traced_window)[0]


def _forward(scores, window, q, k, v, segments, traced_window):
    """Returns the output and the residuals: the arguments, the output and the log of each softmax's sum, [B, G, R, T, 1]."""
    outputs, logs = [], []
    for block, keys in _blocks(q.shape[3], window):
        seen = _seen(segments, block, keys, window, traced_window)
        s = jnp.where(seen, _scores(scores, q[..., block, :], k[..., keys, :]), MASKED)
        largest = jnp.max(s, axis=-1, keepdims=True)
        weights = jnp.exp(s - largest)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        outputs.append((_product("bgrqs,bgse->bgrqe", weights.astype(v.dtype), v[..., keys, :]) / total).astype(v.dtype))
        logs.append(largest + jnp.log(total))
    output, log_sum = (jnp.concatenate(parts, axis=3) for parts in (outputs, logs))
    return output, (q, k, v, segments, traced_window, output, log_sum)


def _backward(scores, window, residuals, gradient):
    q, k, v, segments, traced_window, output, log_sum = residuals
    parts = []
    for block, keys in _blocks(q.shape[3], window):
        own_q, own_k, own_v, own = q[..., block, :], k[..., keys, :], v[..., keys, :], gradient[..., block, :]
        seen, s = _seen(segments, block, keys, window, traced_window), _scores(scores, own_q, own_k)
        weights = jnp.exp(jnp.where(seen, s, MASKED) - log_sum[..., block, :])
        mean = jnp.sum(own.astype(jnp.float32) * output[..., block, :], axis=-1, keepdims=True)
        ds = weights * (_product("bgrqe,bgse->bgrqs", own, own_v) - mean) * scores.scale
        if scores.cap:
            ds = ds * (1 - jnp.square(s / scores.cap))
        ds, weights = ds.astype(q.dtype), weights.astype(q.dtype)
        around = [(0, 0), (0, 0), (keys.start, k.shape[2] - keys.stop), (0, 0)]
        parts.append((_product("bgrqs,bgse->bgrqe", ds, own_k),
                      jnp.pad(_product("bgrqs,bgrqe->bgse", ds, own_q), around),
                      jnp.pad(_product("bgrqs,bgrqe->bgse", weights, own), around)))
    dq, dk, dv = zip(*parts, strict=True)
    return jnp.concatenate(dq, axis=3).astype(q.dtype), sum(dk).astype(k.dtype), sum(dv).astype(v.dtype), None, None


_attention.defvjp(_forward, _backward)


def _product(spec: str, x, y) -> Array:
    return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)


def _blocks(length: int, window: int | None):
    """Yields slices of queries, each with the slice of keys that any of them may see."""
    size = max(SMALLEST, -(-length // (BLOCKS * SMALLEST)) * SMALLEST)
    for start in range(0, length, size):
        end = min(start + size, length)
        first = 0 if window is None else max(0, (start - window + 1) // SMALLEST * SMALLEST)
        yield slice(start, end), slice(first, end)


def _seen(segments_BxT, block: slice, keys: slice, window, traced_window) -> Array:
    """Which keys each query of a block sees: [B, 1, 1, Q, S]."""
    distance_QxS = jnp.arange(block.start, block.stop)[:, None] - jnp.arange(keys.start, keys.stop)
    near_QxS = distance_QxS >= 0
    width = window if traced_window is None else traced_window
    if width is not None:
        near_QxS &= distance_QxS < width
    return ((segments_BxT[:, block, None] == segments_BxT[:, None, keys]) & near_QxS)[:, None, None]


def _scores(scores: Scores, q, k) -> Array:
    return softcap(_product("bgrqe,bgse->bgrqs", q, k) * scores.scale, scores.cap)
