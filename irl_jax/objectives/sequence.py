"""Losses over the response tokens of sequences: arrays in, `(sum, weight)` out."""

from __future__ import annotations

import jax.numpy as jnp

from irl_jax.types import Array


def sequence_logprobs(logprobs_BxT: Array, mask_BxT: Array) -> Array:
    """Log-probability of each row's response, the EOS token included.

    log pi(y|x) = sum_t mask_t log pi(y_t | x, y_<t)

    Args:
        logprobs_BxT: per-token log-probs, nats; values where the mask is 0 are ignored, NaN and infinities included.
        mask_BxT: 1 at response tokens, 0 elsewhere.

    Returns:
        [B], nats per sequence (per row: packed rows sum over their sequences).
    """
    return jnp.sum(jnp.where(mask_BxT > 0, logprobs_BxT * mask_BxT, 0.0), axis=-1)


def negative_logprob(logprobs_BxT: Array, mask_BxT: Array) -> tuple[Array, Array]:
    """The SFT loss: cross-entropy of the response tokens. On a policy's own samples, it estimates the policy's entropy.

    (sum, weight) = (-sum_{b,t} mask log pi(y_t | x, y_<t), sum_{b,t} mask)

    Its minimiser over demonstrations minimises KL(demo || policy) between whole responses (Sun & van der Schaar,
    arXiv 2405.15624).

    Args:
        logprobs_BxT: per-token log-probs, nats; values where the mask is 0 are ignored.
        mask_BxT: 1 at response tokens (EOS included), 0 at prompt and padding.

    Returns:
        (sum in nats, number of response tokens); both 0 if the mask is all 0.
    """
    return -jnp.sum(sequence_logprobs(logprobs_BxT, mask_BxT)), jnp.sum(mask_BxT)
