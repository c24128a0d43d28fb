"""Preferences without a reward model: the policy's own log-ratio is the reward."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from irl_jax.types import Array


def margin(chosen_P: Array, rejected_P: Array, reference_chosen_P: Array, reference_rejected_P: Array) -> Array:
    """Log-ratio to the reference of the chosen response minus that of the rejected one, [P], nats."""
    return (chosen_P - reference_chosen_P) - (rejected_P - reference_rejected_P)


def dpo(
    chosen_P: Array,
    rejected_P: Array,
    reference_chosen_P: Array,
    reference_rejected_P: Array,
    weights_P: Array,
    beta: float,
    label_smoothing: float = 0.0,
) -> tuple[Array, Array]:
    """Direct preference optimisation (Rafailov et al., arXiv 2305.18290), with conservative labels (Mitchell 2023).

    sum = -sum_p w_p [(1 - e) log sigmoid(m_p) + e log sigmoid(-m_p)], m = beta * `margin`, weight = sum_p w_p

    SPIN (Chen et al., arXiv 2401.01335) is the same loss with demonstrations as chosen, the last iterate's samples as rejected
    and the last iterate as reference.

    Args:
        chosen_P, rejected_P: the policy's log-probs of whole responses, nats per sequence (EOS included), differentiated.
        reference_chosen_P, reference_rejected_P: the reference's. weights_P: 0 at padding pairs. beta: reward units per nat.
        label_smoothing: e, the share of pairs assumed to be swapped.

    Returns:
        (sum in nats, total weight in pairs).
    """
    m_P = beta * margin(chosen_P, rejected_P, *map(jax.lax.stop_gradient, (reference_chosen_P, reference_rejected_P)))
    losses_P = -(1 - label_smoothing) * jax.nn.log_sigmoid(m_P) - label_smoothing * jax.nn.log_sigmoid(-m_P)
    return jnp.sum(jnp.where(weights_P > 0, weights_P * losses_P, 0.0)), jnp.sum(weights_P)
