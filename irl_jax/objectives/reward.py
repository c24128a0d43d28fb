"""Losses of the reward. It is a discriminator's logit; positive means demonstrator-like."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from irl_jax.types import Array


def bce(logits_B: Array, labels_B: Array, weights_B: Array, label_smoothing: float = 0.0) -> tuple[Array, Array]:
    """Binary cross-entropy per response or per token.

    sum = -sum_b w_b [l_b log sigmoid(h_b) + (1 - l_b) log sigmoid(-h_b)], weight = sum_b w_b

    If positives and negatives weigh the same (batches hold equal halves), e^h at the optimum is the density ratio of
    positives to negatives (Goodfellow et al. 2014; Sun & van der Schaar, arXiv 2405.15624).

    Label smoothing e replaces l by l (1 - e) + (1 - l) e. The optimum is then log((r (1 - e) + e) / (r e + 1 - e)) for density
    ratio r. It is bounded by log((1 - e) / e) on both sides, and e^h is no longer the ratio itself.

    Args:
        logits_B: reward logits h, any shape. labels_B: 1 at positives, 0 at negatives. weights_B: 0 at padding rows (or
            tokens). label_smoothing: e, share of each label given to the other class.

    Returns:
        (sum in nats, total weight in rows or tokens).
    """
    labels_B = labels_B * (1 - label_smoothing) + (1 - labels_B) * label_smoothing
    losses_B = optax.sigmoid_binary_cross_entropy(logits_B, labels_B)
    return jnp.sum(jnp.where(weights_B > 0, weights_B * losses_B, 0.0)), jnp.sum(weights_B)


def bradley_terry(chosen_P: Array, rejected_P: Array, weights_P: Array, label_smoothing: float = 0.0) -> tuple[Array, Array]:
    """Negative log-likelihood of pairwise preferences on the same prompt.

    sum = -sum_p w_p [(1 - e) log sigmoid(d_p) + e log sigmoid(-d_p)], d = h(x, y+) - h(x, y-), weight = sum_p w_p
    (Bradley & Terry 1952)

    Args:
        chosen_P, rejected_P: reward logits of the preferred and of the other response. weights_P: 0 at padding pairs.
        label_smoothing: e, the share of pairs assumed to be swapped.

    Returns:
        (sum in nats, total weight in pairs).
    """
    margin_P = chosen_P - rejected_P
    losses_P = -(1 - label_smoothing) * jax.nn.log_sigmoid(margin_P) - label_smoothing * jax.nn.log_sigmoid(-margin_P)
    return jnp.sum(jnp.where(weights_P > 0, weights_P * losses_P, 0.0)), jnp.sum(weights_P)


def correct(margin: Array) -> Array:
    """1 if a margin is positive, 0 if negative, 1/2 at a tie (a fresh head's margins are all 0)."""
    return 0.5 * (1.0 + jnp.sign(margin))
