"""Advantages of sampled responses: B prompts with K samples each, higher reward better. No gradient flows through them."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from irl_jax.types import Array


def reinforce(rewards_BxK: Array, weights_BxK: Array | None = None) -> Array:
    """Reward minus the mean of the whole batch (Williams 1992, with a batch baseline).

    A_bk = r_bk - mean(r). The baseline contains r_bk itself, so the gradient estimate is (BK - 1)/BK of the exact one in
    expectation: the right direction, too small by one part in BK.

    Args:
        rewards_BxK: rewards per sequence, any unit. weights_BxK: 0 leaves a sequence out of the mean; None includes all.

    Returns:
        [B, K], per sequence, the unit of the rewards.
    """
    rewards_BxK = jax.lax.stop_gradient(jnp.asarray(rewards_BxK))
    return rewards_BxK - jnp.average(rewards_BxK, weights=weights_BxK)


def rloo(rewards_BxK: Array) -> Array:
    """Reward minus the mean of the other K - 1 samples of the same prompt: unbiased (Kool et al. 2019; Ahmadian et al. 2024).

    A_bk = r_bk - sum_{j != k} r_bj / (K - 1) = K/(K - 1) (r_bk - mean_j r_bj)

    Args:
        rewards_BxK: rewards per sequence, any unit, K at least 2.

    Returns:
        [B, K], per sequence, the unit of the rewards.

    Raises:
        ValueError: one sample per prompt, which leaves nothing to compare with.
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
        [B, K], per sequence, unitless.

    Raises:
        ValueError: one sample per prompt.
    """
    rewards_BxK = jax.lax.stop_gradient(jnp.asarray(rewards_BxK))
    _samples(rewards_BxK)
    centred_BxK = rewards_BxK - jnp.mean(rewards_BxK, axis=-1, keepdims=True)
    return centred_BxK / (jnp.std(rewards_BxK, axis=-1, keepdims=True) + epsilon)


def terminal(rewards_B: Array, mask_BxT: Array) -> Array:
    """Puts each response's reward at its last token: [B, T], 0 elsewhere.

    Args:
        rewards_B: per sequence. mask_BxT: 1 at response tokens (contiguous).
    """
    following_BxT = jnp.pad(mask_BxT[:, 1:], ((0, 0), (0, 1)))
    return jnp.where((mask_BxT > 0) & (following_BxT == 0), rewards_B[:, None], 0.0)


def returns_to_go(rewards_BxT: Array, mask_BxT: Array, gamma: float) -> Array:
    """Discounted sum of the rewards from each token on: G_t = sum_{s >= t} gamma^{s - t} r_s over the response's tokens.

    Args:
        rewards_BxT: per token. mask_BxT: 1 at response tokens (contiguous). gamma: discount per token, 0 to 1.

    Returns:
        [B, T], reward units, 0 outside the mask.
    """
    rewards_BxT = jnp.where(mask_BxT > 0, rewards_BxT, 0.0)
    return _discounted(rewards_BxT, gamma) * (mask_BxT > 0)


def token_advantages(kind: str, returns_BxKxT: Array, mask_BxKxT: Array, epsilon: float = 1e-6) -> Array:
    """Returns-to-go minus a baseline, for rewards per token.

    - "rloo": the mean of the other K - 1 samples' returns from the same token on, 0 for those that have ended. It depends on
      nothing this sample did, so the gradient stays unbiased.
    - "grpo": the mean of all K there. The result is divided by the standard deviation of the K whole returns, with 1/K.
    - "reinforce": one number, the mean over all response tokens of the batch.

    The last two baselines include this sample's own return. This biases the gradient, less so with more samples.

    Args:
        kind: see above. returns_BxKxT: from `returns_to_go`; a prompt's K samples begin in the same column.
        mask_BxKxT: 1 at response tokens. epsilon: keeps ties at 0 ("grpo"), reward units.

    Returns:
        [B, K, T], 0 outside the mask; no gradient flows.

    Raises:
        ValueError: another kind, or one sample per prompt for a baseline within the prompt.
    """
    inside_BxKxT = mask_BxKxT > 0
    returns_BxKxT = jax.lax.stop_gradient(jnp.where(inside_BxKxT, returns_BxKxT, 0.0))
    if kind == "reinforce":
        centred = returns_BxKxT - jnp.sum(returns_BxKxT) / jnp.maximum(jnp.sum(inside_BxKxT), 1)
    elif kind in ("rloo", "grpo"):
        samples = _samples(jnp.swapaxes(returns_BxKxT, 1, 2))
        centred = returns_BxKxT - jnp.mean(returns_BxKxT, axis=1, keepdims=True)
        if kind == "rloo":
            centred = centred * (samples / (samples - 1))
        else:
            first_Bx1x1 = jnp.argmax(inside_BxKxT.any(axis=1), axis=-1)[:, None, None]
            whole_BxKx1 = jnp.take_along_axis(returns_BxKxT, jnp.broadcast_to(first_Bx1x1, (*returns_BxKxT.shape[:2], 1)), axis=-1)
            centred = centred / (jnp.std(whole_BxKx1, axis=1, keepdims=True) + epsilon)
    else:
        raise ValueError(f"no token advantage {kind!r}; there are 'reinforce', 'rloo' and 'grpo'")
    return jnp.where(inside_BxKxT, centred, 0.0)


def gae(rewards_BxT: Array, values_BxT: Array, mask_BxT: Array, gamma: float, lam: float) -> tuple[Array, Array]:
    """Generalised advantage estimation (Schulman et al., arXiv 1506.02438).

    A_t = sum_l (gamma lambda)^l delta_{t+l}, delta_t = r_t + gamma V_{t+1} - V_t, V = 0 after the response's last token.

    Args:
        rewards_BxT: per token. values_BxT: V of the state before each token, reward units. mask_BxT: 1 at response tokens
            (contiguous). gamma: discount per token. lam: lambda, 0 (one step) to 1 (whole returns).

    Returns:
        (advantages [B, T], value targets A_t + V_t [B, T]), 0 outside the mask; no gradient flows.
    """
    inside_BxT = mask_BxT > 0
    rewards_BxT, values_BxT = (jax.lax.stop_gradient(jnp.where(inside_BxT, x, 0.0)) for x in (rewards_BxT, values_BxT))
    following_BxT = jnp.pad(values_BxT[:, 1:], ((0, 0), (0, 1)))
    delta_BxT = jnp.where(inside_BxT, rewards_BxT + gamma * following_BxT - values_BxT, 0.0)
    advantages_BxT = _discounted(delta_BxT, gamma * lam) * inside_BxT
    return advantages_BxT, (advantages_BxT + values_BxT) * inside_BxT


def _discounted(values_BxT: Array, factor: float) -> Array:
    """sum_{s >= t} factor^{s - t} values_s."""

    def back(carry_B, column_B):
        carry_B = column_B + factor * carry_B
        return carry_B, carry_B

    return jax.lax.scan(back, jnp.zeros_like(values_BxT[:, 0]), values_BxT.T, reverse=True)[1].T


def _samples(rewards_BxK: Array) -> int:
    samples = rewards_BxK.shape[-1]
    if samples < 2:
        raise ValueError(f"{samples} sample a prompt: an advantage within the prompt needs at least 2 (policy.samples)")
    return samples
