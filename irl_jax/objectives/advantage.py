"""Advantages of sampled responses: B prompts with K samples each, higher reward better. No gradient flows through them."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from irl_jax.types import Array


def reinforce(rewards_BxK: Array) -> Array:
    """Reward less the mean of the whole batch (Williams 1992, with a batch baseline).

    A_bk = r_bk - mean(r). The baseline contains r_bk itself, so the gradient estimate is (BK - 1)/BK of the exact one in
    expectation: the direction is right, the size short by one part in BK.

    Args:
        rewards_BxK: rewards per sequence, any unit.

    Returns:
        [B, K], per sequence, the unit of the rewards.
    """
    rewards_BxK = jax.lax.stop_gradient(jnp.asarray(rewards_BxK))
    return rewards_BxK - jnp.mean(rewards_BxK)


def rloo(rewards_BxK: Array) -> Array:
    """Reward less the mean of the other K - 1 samples of the same prompt: unbiased (Kool et al. 2019; Ahmadian et al. 2024).

    A_bk = r_bk - sum_{j != k} r_bj / (K - 1) = K/(K - 1) (r_bk - mean_j r_bj)

    Args:
        rewards_BxK: rewards per sequence, any unit, K at least 2.

    Returns:
        [B, K], per sequence, the unit of the rewards.

    Raises:
        ValueError: one sample a prompt, which leaves nobody to compare with.
    """
    rewards_BxK = jax.lax.stop_gradient(jnp.asarray(rewards_BxK))
    samples = _samples(rewards_BxK)
    return (rewards_BxK - jnp.mean(rewards_BxK, axis=-1, keepdims=True)) * (samples / (samples - 1))


def grpo(rewards_BxK: Array, epsilon: float = 1e-6) -> Array:
    """Reward normalised within the prompt (Shao et al. 2024, DeepSeekMath): biased, but free of the reward's scale.

    A_bk = (r_bk - mean_j r_bj) / (std_j r_bj + epsilon), the standard deviation with 1/K.

    Args:
        rewards_BxK: rewards per sequence, any unit, K at least 2. epsilon: keeps ties at 0, same unit.

    Returns:
        [B, K], per sequence, without unit.

    Raises:
        ValueError: one sample a prompt.
    """
    rewards_BxK = jax.lax.stop_gradient(jnp.asarray(rewards_BxK))
    _samples(rewards_BxK)
    centred_BxK = rewards_BxK - jnp.mean(rewards_BxK, axis=-1, keepdims=True)
    return centred_BxK / (jnp.std(rewards_BxK, axis=-1, keepdims=True) + epsilon)


def _samples(rewards_BxK: Array) -> int:
    samples = rewards_BxK.shape[-1]
    if samples < 2:
        raise ValueError(f"{samples} sample a prompt: an advantage within the prompt needs at least 2 (policy.samples)")
    return samples
