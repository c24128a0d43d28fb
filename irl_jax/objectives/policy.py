"""The policy gradient: maximise E_{y ~ policy}[r(x, y)] - beta KL(policy || reference), both per sequence.

Everything here assumes samples of the current policy (one update per batch of samples, temperature 1, unfiltered).

Where the KL may stand:

- k1 in the reward, `penalised_reward`: r - beta log(policy/reference) as the reward of the score function;
- k2 in the loss, `k2`: (log ratio)^2 / 2 differentiated as it stands.

Both have exactly the gradient of KL(policy || reference) in expectation, over whole sequences. k1 in the *loss* has none:
E_policy[grad log policy] = 0, whatever the reference, so no function here offers it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from irl_jax.objectives.sequence import sequence_logprobs
from irl_jax.types import Array


def score_function(logprobs_BxT: Array, mask_BxT: Array, advantages_B: Array, weights_B: Array) -> tuple[Array, Array]:
    """The score-function surrogate, whose gradient estimates minus that of the expected return (Williams 1992).

    sum = -sum_b w_b A_b sum_t mask_bt log pi(y_bt | x_b, y_b<t), weight = sum_b w_b

    The tokens are summed, not averaged: a mean over tokens would be the gradient of another objective, which favours
    short good and long bad responses. The EOS token is an action, so it is in the mask.

    Args:
        logprobs_BxT: the policy's log-probs, nats per token, differentiated. mask_BxT: 1 at response tokens.
        advantages_B: per sequence; no gradient flows. weights_B: 0 at rows that only pad.

    Returns:
        (sum, number of sequences).
    """
    logprobs_B = sequence_logprobs(logprobs_BxT, mask_BxT)
    return -jnp.sum(weights_B * jax.lax.stop_gradient(advantages_B) * logprobs_B), jnp.sum(weights_B)


def log_ratio(logprobs_BxT: Array, reference_logprobs_BxT: Array, mask_BxT: Array) -> Array:
    """log policy(y|x) - log reference(y|x), whose mean over the policy's samples estimates KL(policy || reference) (k1).

    Args:
        logprobs_BxT, reference_logprobs_BxT: nats per token. mask_BxT: 1 at response tokens (EOS included).

    Returns:
        [B], nats per sequence.
    """
    return sequence_logprobs(logprobs_BxT, mask_BxT) - sequence_logprobs(reference_logprobs_BxT, mask_BxT)


def penalised_reward(rewards_B: Array, logprobs_BxT: Array, reference_logprobs_BxT: Array, mask_BxT: Array, beta: float) -> Array:
    """Reward less the KL penalty, k1 in the reward.

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

    Its gradient is log-ratio times score, whose expectation over the policy's samples is exactly that of the sequence
    KL(policy || reference). The square is of the *sum* over tokens: squaring token by token would drop the products of a
    token's score with the log-ratios of later tokens, that is, the effect of a token on the states it leads to. The value
    is not an estimate of the KL: report `log_ratio` instead.

    Args:
        logprobs_BxT: the policy's log-probs, nats per token, differentiated. reference_logprobs_BxT: nats per token, no
            gradient. mask_BxT: 1 at response tokens (EOS included). weights_B: 0 at rows that only pad.

    Returns:
        (sum in nats^2, number of sequences).
    """
    ratio_B = log_ratio(logprobs_BxT, jax.lax.stop_gradient(reference_logprobs_BxT), mask_BxT)
    return jnp.sum(weights_B * 0.5 * jnp.square(ratio_B)), jnp.sum(weights_B)
