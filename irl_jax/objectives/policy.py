"""The policy gradient: maximise E_{y ~ policy}[r(x, y)] - beta KL(policy || reference), both per sequence.

Surrogates: `score_function`, for samples of the current policy, and `ppo_clip`, for several updates on one batch of them.

Where the KL can go:

- k1 in the reward, `penalised_reward`: r - beta log(policy/reference) as the reward of the score function;
- k2 in the loss, `k2`: (log ratio)^2 / 2 of the whole sequence, differentiated as is;
- `k3_weighted` in the loss: per token, weighted by the differentiated ratio policy/behaviour;
- plain `k3` in the loss, as in GRPO: its gradient is that of the *forward* KL(reference || policy).

In expectation over the current policy's samples, the first two have exactly the gradient of KL(policy || reference) between
whole sequences. The third has it with the prefixes held fixed. k1 in the *loss* has none: E_policy[grad log policy] = 0 for
any reference, so no function here offers it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from irl_jax.objectives.sequence import sequence_logprobs
from irl_jax.types import Array


def score_function(logprobs_BxT: Array, mask_BxT: Array, advantages_BxT: Array, weights_B: Array) -> tuple[Array, Array]:
    """The score-function surrogate: its gradient estimates minus that of the expected return (Williams 1992).

    sum = -sum_b w_b sum_t mask_bt A_bt log pi(y_bt | x_b, y_b<t), weight = sum_b w_b

    Tokens are summed, not averaged. A mean over tokens would give the gradient of another objective, one that favours
    short good and long bad responses. The EOS token is an action, so it is in the mask.

    Args:
        logprobs_BxT: the policy's log-probs, nats per token, differentiated. mask_BxT: 1 at response tokens.
        advantages_BxT: per token (one per response is at all its tokens); no gradient flows. weights_B: 0 at padding rows.

    Returns:
        (sum, number of sequences).
    """
    advantages_BxT = jax.lax.stop_gradient(advantages_BxT)
    return _token_sum(-advantages_BxT * _inside(logprobs_BxT, mask_BxT), mask_BxT, weights_B)


def ppo_clip(
    logprobs_BxT: Array, behaviour_logprobs_BxT: Array, mask_BxT: Array, advantages_BxT: Array, weights_B: Array, clip: float
) -> tuple[Array, Array]:
    """The clipped surrogate of proximal policy optimisation (Schulman et al., arXiv 1707.06347), per token.

    sum = -sum_b w_b sum_t mask_bt min(r_bt A_bt, clamp(r_bt, 1 - c, 1 + c) A_bt), r = policy / behaviour, weight = sum_b w_b

    At r = 1, its gradient is `score_function`'s.

    Args:
        logprobs_BxT: the policy's, nats per token, differentiated. behaviour_logprobs_BxT: of the policy that drew the samples.
        mask_BxT: 1 at response tokens. advantages_BxT: per token; no gradient flows. weights_B: 0 at padding rows. clip: c.

    Returns:
        (sum, number of sequences).
    """
    ratio_BxT, advantages_BxT = _ratio(logprobs_BxT, behaviour_logprobs_BxT, mask_BxT), jax.lax.stop_gradient(advantages_BxT)
    kept_BxT = jnp.clip(ratio_BxT, 1 - clip, 1 + clip)
    return _token_sum(-jnp.minimum(ratio_BxT * advantages_BxT, kept_BxT * advantages_BxT), mask_BxT, weights_B)


def clipped(
    logprobs_BxT: Array, behaviour_logprobs_BxT: Array, mask_BxT: Array, advantages_BxT: Array, weights_B: Array, clip: float
) -> tuple[Array, Array]:
    """Number of tokens whose gradient `ppo_clip` cuts off, and of all tokens. Same arguments."""
    ratio_BxT = _ratio(logprobs_BxT, behaviour_logprobs_BxT, mask_BxT)
    cut_BxT = jnp.where(advantages_BxT > 0, ratio_BxT > 1 + clip, (ratio_BxT < 1 - clip) & (advantages_BxT < 0))
    mask_BxT = mask_BxT * weights_B[:, None]
    return jnp.sum(cut_BxT * mask_BxT), jnp.sum(mask_BxT)


def log_ratio(logprobs_BxT: Array, reference_logprobs_BxT: Array, mask_BxT: Array) -> Array:
    """log policy(y|x) - log reference(y|x). Its mean over the policy's samples estimates KL(policy || reference) (k1).

    Args:
        logprobs_BxT, reference_logprobs_BxT: nats per token. mask_BxT: 1 at response tokens (EOS included).

    Returns:
        [B], nats per sequence.
    """
    return sequence_logprobs(logprobs_BxT, mask_BxT) - sequence_logprobs(reference_logprobs_BxT, mask_BxT)


def penalised_reward(rewards_B: Array, logprobs_BxT: Array, reference_logprobs_BxT: Array, mask_BxT: Array, beta: float) -> Array:
    """Reward minus the KL penalty, k1 in the reward.

    r_b - beta sum_t mask_bt (log policy(y_bt) - log reference(y_bt)). Under the score function this gives the exact gradient
    of E[r] - beta KL(policy || reference): the term that differentiates the log-ratio itself vanishes in expectation.

    Args:
        rewards_B: per sequence. logprobs_BxT: the sampling policy's, nats per token. reference_logprobs_BxT: likewise.
        mask_BxT: 1 at response tokens. beta: reward units per nat.

    Returns:
        [B], per sequence, without gradient.
    """
    return jax.lax.stop_gradient(rewards_B - beta * log_ratio(logprobs_BxT, reference_logprobs_BxT, mask_BxT))


def k2(logprobs_BxT: Array, reference_logprobs_BxT: Array, mask_BxT: Array, weights_B: Array) -> tuple[Array, Array]:
    """KL penalty in the loss: half the squared log-ratio of the whole sequence (Schulman 2020, "Approximating KL divergence").

    sum = sum_b w_b (log policy(y_b|x_b) - log reference(y_b|x_b))^2 / 2, weight = sum_b w_b

    Its gradient is log-ratio times score. Over the policy's samples, its expectation is exactly the gradient of the sequence
    KL(policy || reference). The square is of the *sum* over tokens. Squaring per token would drop the products of a token's
    score with later tokens' log-ratios, that is, a token's effect on the states it leads to. The value doesn't estimate the
    KL: report `log_ratio` instead.

    Args:
        logprobs_BxT: the policy's log-probs, nats per token, differentiated. reference_logprobs_BxT: nats per token, no
            gradient. mask_BxT: 1 at response tokens (EOS included). weights_B: 0 at padding rows.

    Returns:
        (sum in nats^2, number of sequences).
    """
    ratio_B = log_ratio(logprobs_BxT, jax.lax.stop_gradient(reference_logprobs_BxT), mask_BxT)
    return jnp.sum(weights_B * 0.5 * jnp.square(ratio_B)), jnp.sum(weights_B)


def penalised_token_rewards(rewards_BxT: Array, logprobs_BxT: Array, reference_logprobs_BxT: Array, mask_BxT: Array, beta: float) -> Array:
    """Token rewards minus the KL penalty at each token: r_bt - beta (log policy(y_bt) - log reference(y_bt)).

    Their undiscounted sum over a response is `penalised_reward` of the summed rewards.

    Args:
        rewards_BxT: per token. logprobs_BxT: the sampling policy's, nats per token. reference_logprobs_BxT: likewise.
        mask_BxT: 1 at response tokens. beta: reward units per nat.

    Returns:
        [B, T], without gradient, 0 outside the mask.
    """
    rewards_BxT = rewards_BxT - beta * (logprobs_BxT - reference_logprobs_BxT)
    return jax.lax.stop_gradient(jnp.where(mask_BxT > 0, rewards_BxT, 0.0))


def k3(logprobs_BxT: Array, reference_logprobs_BxT: Array, mask_BxT: Array, weights_B: Array) -> tuple[Array, Array]:
    """The KL penalty of GRPO (Shao et al., arXiv 2402.03300; Schulman 2020), per token.

    sum = sum_b w_b sum_t mask_bt [e^d_bt - d_bt - 1], d = log reference - log policy, weight = sum_b w_b

    Its *value* is an unbiased estimate of KL(policy || reference), never below 0. Its *gradient*, E_policy[(1 - e^d) grad log
    policy], is that of each token's forward KL(reference || policy), since it ignores how the samples move.

    Args:
        logprobs_BxT: the policy's, nats per token, differentiated. reference_logprobs_BxT: nats per token, no gradient; d is
            clipped to [-LARGEST_EXPONENT, LARGEST_EXPONENT] nats, so nothing overflows. mask_BxT: 1 at response tokens.
            weights_B: 0 at padding rows.

    Returns:
        (sum in nats, number of sequences).
    """
    return _token_sum(_k3(logprobs_BxT, reference_logprobs_BxT, mask_BxT), mask_BxT, weights_B)


def k3_weighted(
    logprobs_BxT: Array, behaviour_logprobs_BxT: Array, reference_logprobs_BxT: Array, mask_BxT: Array, weights_B: Array
) -> tuple[Array, Array]:
    """`k3` times the ratio policy/behaviour, per token; the ratio is differentiated too.

    On samples of the current policy (ratio 1) the gradient is -d grad log policy with d = log reference - log policy. This is the
    reverse KL's, per token, with the prefixes held fixed. Unlike `k2` and `penalised_reward`, it ignores a token's effect on the
    states that follow. On other samples, the ratio corrects each token's own probability.

    Args: as `k3`; behaviour_logprobs_BxT: of the policy that drew the samples, nats per token.

    Returns:
        (sum in nats, number of sequences).
    """
    ratio_BxT = _ratio(logprobs_BxT, behaviour_logprobs_BxT, mask_BxT)
    return _token_sum(ratio_BxT * _k3(logprobs_BxT, reference_logprobs_BxT, mask_BxT), mask_BxT, weights_B)


LARGEST_EXPONENT = 20.0  # nats; e^20 is as good as infinite, and float32 holds its square


def entropy_bonus(entropies_BxT: Array, mask_BxT: Array, weights_B: Array) -> tuple[Array, Array]:
    """Summed entropies of the distributions the tokens were drawn from.

    Args:
        entropies_BxT: exact, nats per token, differentiated. mask_BxT: 1 at response tokens. weights_B: 0 at padding rows.

    Returns:
        (sum in nats, number of sequences); its gradient holds the sampled prefixes fixed.
    """
    return _token_sum(entropies_BxT, mask_BxT, weights_B)


def value_loss(values_BxT: Array, returns_BxT: Array, mask_BxT: Array, weights_B: Array) -> tuple[Array, Array]:
    """Half the squared error of the value head: sum = sum_b w_b sum_t mask_bt (V_bt - R_bt)^2 / 2, weight = sum_b w_b.

    Args:
        values_BxT: V of the state before each token, differentiated. returns_BxT: targets (see `advantage.gae`), no gradient.
        mask_BxT: 1 at response tokens. weights_B: 0 at padding rows.

    Returns:
        (sum in squared reward units, number of sequences).
    """
    error_BxT = _inside(values_BxT, mask_BxT) - jax.lax.stop_gradient(_inside(returns_BxT, mask_BxT))
    return _token_sum(0.5 * jnp.square(error_BxT), mask_BxT, weights_B)


def next_beta(beta: Array, kl: Array, target: float, rate: float = 0.1, clip: float = 0.2) -> Array:
    """Steers the KL coefficient to a target: beta (1 + rate clamp(kl / target - 1, -clip, clip)) (Ziegler et al., arXiv 1909.08593).

    Args:
        beta: reward units per nat. kl: measured, nats per sequence. target: nats per sequence. rate, clip: the controller's.
    """
    return beta * (1 + rate * jnp.clip(kl / target - 1, -clip, clip))


def _inside(values_BxT, mask_BxT):
    """The values, 0 outside the mask, so neither they nor their gradients leak NaN or infinities."""
    return jnp.where(mask_BxT > 0, values_BxT, 0.0)


def _ratio(logprobs_BxT, behaviour_logprobs_BxT, mask_BxT):
    difference_BxT = _inside(logprobs_BxT, mask_BxT) - jax.lax.stop_gradient(_inside(behaviour_logprobs_BxT, mask_BxT))
    return jnp.exp(jnp.clip(difference_BxT, -LARGEST_EXPONENT, LARGEST_EXPONENT))


def _k3(logprobs_BxT, reference_logprobs_BxT, mask_BxT):
    d_BxT = jax.lax.stop_gradient(_inside(reference_logprobs_BxT, mask_BxT)) - _inside(logprobs_BxT, mask_BxT)
    d_BxT = jnp.clip(d_BxT, -LARGEST_EXPONENT, LARGEST_EXPONENT)
    return jnp.expm1(d_BxT) - d_BxT


def _token_sum(values_BxT, mask_BxT, weights_B):
    """(sum over tokens and weighted rows, total weight of the rows)."""
    inside_BxT = jnp.where((mask_BxT > 0) & (weights_B[:, None] > 0), values_BxT * mask_BxT, 0.0)
    return jnp.sum(weights_B[:, None] * inside_BxT), jnp.sum(weights_B)
