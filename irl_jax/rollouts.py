"""Samples turned into training rows, and the rollout of the policy gradient: sample, judge, advantage, all on device."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from irl_jax import roles, steps
from irl_jax.objectives import advantage
from irl_jax.objectives import policy as policy_objective
from irl_jax.types import PolicyBatch, PromptBatch, RewardBatch, SampleBatch, TokenBatch


def join_rows(prompts: PromptBatch, samples: SampleBatch, pad_id: int) -> tuple[TokenBatch, jax.Array, jax.Array]:
    """Prompt and response of every sample in one row, without re-tokenising.

    Args:
      prompts: B prompts of at most S tokens. samples: K responses each of at most T tokens.
    Returns:
      rows [B*K, S+T] (sample k of prompt b is row b*K + k), last [B*K] (index of the last response token), and the
      behaviour log-probs [B*K, S+T] aligned with the rows' tokens.
    """
    b, k, t = samples.tokens.shape
    s = prompts.tokens.shape[1]
    lengths = jnp.repeat(prompts.lengths, k)[:, None]
    index = jnp.arange(s + t)[None, :]
    offset = index - lengths
    within = (offset >= 0) & (offset < t)
    gather = jnp.clip(offset, 0, t - 1)

    def responses(x):
        return jnp.take_along_axis(x.reshape(b * k, t), gather, axis=1)

    mask = jnp.where(within, responses(samples.mask), 0.0)
    prompt = jnp.take_along_axis(jnp.repeat(prompts.tokens, k, axis=0), jnp.clip(index, 0, s - 1), axis=1)
    real = (offset < 0) | (mask > 0)
    tokens = jnp.where(offset < 0, prompt, jnp.where(mask > 0, responses(samples.tokens), pad_id))
    rows = TokenBatch(tokens, jnp.where(real, index, 0), real.astype(jnp.int32), mask)
    last = lengths[:, 0] + samples.mask.reshape(b * k, t).sum(1).astype(jnp.int32) - 1
    return rows, last, jnp.where(mask > 0, responses(samples.behaviour_logprobs), 0.0)


def make_judge(model, recipe: str):
    """The reward a policy is trained on, `judge(trunk, leaves, rows, last) -> logits [N]`.

    A learnt recipe reads the discriminator's logit; `log_ratio` is the closed form log pi_sft(y|x) - log pi_init(y|x), whose
    leaves are sft's.
    """

    def learnt(trunk, leaves, rows, last):
        ones = jnp.ones(last.shape, jnp.float32)
        return steps.score_rewards(model, trunk, leaves, RewardBatch(rows, last, ones, ones))

    def log_ratio(trunk, leaves, rows, last):
        sft = steps.score_logprobs(model, trunk, leaves, rows)
        init = steps.score_logprobs(model, trunk, None, rows)
        return (sft - init).sum(-1)

    return log_ratio if recipe == "log_ratio" else learnt


def make_rollout(model, sampler, judge, *, pad_id: int, beta: float, kl: str):
    """`rollout(policy, reference, reward, trunk, prompts, key) -> (PolicyBatch, metrics)`.

    Samples K responses a prompt from the policy, judges them, takes k1 = sum_t log pi(y_t) - log pi_ref(y_t) into the reward
    (kl = "reward": r - beta k1) and makes RLOO advantages over the K samples of each prompt.
    """

    def rollout(policy, reference, reward, trunk, prompts, key):
        samples = sampler(roles.variables(trunk, policy), prompts, key)
        b, k, _ = samples.tokens.shape
        rows, last, behaviour = join_rows(prompts, samples, pad_id)
        ref = steps.score_logprobs(model, trunk, reference, rows)
        logits = judge(trunk, reward, rows, last)
        returns = policy_objective.penalised_reward(logits, behaviour, ref, rows.mask, beta) if kl == "reward" else logits
        adv = advantage.rloo(returns.reshape(b, k)).reshape(b * k)
        k1 = policy_objective.log_ratio(behaviour, ref, rows.mask)
        metrics = {"reward": logits.mean(), "kl": k1.mean(), "length": rows.mask.sum(-1).mean(),
                   "ended": samples.ended.mean(dtype=jnp.float32)}
        weight = jnp.ones((b * k,), jnp.float32)
        return PolicyBatch(rows, jax.lax.stop_gradient(adv), ref, behaviour, weight), metrics

    return rollout
