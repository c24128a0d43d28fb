"""The policy gradient's rollouts, on device: samples as rows, the judge that rewards them, and their advantages."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from irl_jax import reward_steps, roles, steps
from irl_jax.data.batching import PADDING_ID
from irl_jax.objectives import advantage, divergence, statistics
from irl_jax.objectives import policy as policy_objective
from irl_jax.policy_steps import Control, PolicySettings, token_values
from irl_jax.types import Array, PolicyBatch, PromptBatch, RewardBatch, SampleBatch, TokenBatch

SMOOTHING = 0.2  # weight of the newest batch in the smoothed signs
SMOOTHED = "smoothed_"  # prefix of their names


class Drawn(NamedTuple):
    """N = B * K samples of the policy, sample k of prompt b in row b * K + k.

    rows: [N, T]. last: int32 [N], index of the last response token. ended: bool [N], whether that is an EOS.
    behaviour_logprobs, reference_logprobs: float32 [N, T], nats per token, 0 outside the mask. weight: float32 [N], 0 for rows that only
    fill the batch. Those have no response and count nowhere.
    """

    rows: TokenBatch
    last: Array
    ended: Array
    behaviour_logprobs: Array
    reference_logprobs: Array
    weight: Array


def join_rows(prompts: PromptBatch, samples: SampleBatch, pad_id: int) -> tuple[TokenBatch, jax.Array, jax.Array]:
    """Joins prompt and response of every sample in one row, without re-tokenising.

    Args:
      prompts: B prompts of at most S tokens. samples: K responses per prompt of at most T tokens.
    Returns:
      rows [B*K, S+T] (sample k of prompt b is row b*K + k), last [B*K] (index of the last response token), and the behaviour log-probs
      [B*K, S+T] aligned with the rows' tokens.
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


def make_draw(model, sampler, pad_id: int):
    """`draw(policy, reference, trunk, prompts, key) -> Drawn`: K samples per prompt, with the reference's log-probs."""

    def draw(policy, reference, trunk, prompts, key):
        samples = sampler(roles.variables(trunk, policy), prompts, key)
        rows, last, behaviour = join_rows(prompts, samples, pad_id)
        weight = jnp.repeat((prompts.ids != PADDING_ID).astype(jnp.float32), samples.tokens.shape[1])
        return Drawn(rows, last, samples.ended.reshape(-1), behaviour, steps.score_logprobs(model, trunk, reference, rows), weight)

    return draw


def is_dense(recipe: str, granularity: str) -> bool:
    """Whether a recipe's reward is per token."""
    return recipe == "log_ratio_dense" or granularity == "token" and recipe != "robust"


def make_judge(model, recipe: str, granularity: str = "response", combine: str = "mean"):
    """The reward a policy is trained on, `judge(trunk, leaves, drawn) -> logits`: [N], or [N, T] if it is dense.

    A learnt recipe reads the discriminator's logit, at the response's end or per token (0 outside the response and at the EOS, which no
    token reward has seen). The closed forms log pi_sft(y|x) - log pi_init(y|x) use sft's leaves and need no training. `log_ratio` is for
    the whole response; `log_ratio_dense` gives its terms per token, EOS included. `robust` is weights[0] h + weights[1] log pi_sft(y|x) /
    |y|, with leaves {"reward", "sft", "weights": float32 [2]}.
    """

    def learnt(trunk, leaves, drawn):
        ones = jnp.ones(drawn.last.shape, jnp.float32)
        return reward_steps.score_rewards(model, trunk, leaves, RewardBatch(drawn.rows, drawn.last, ones, ones), combine=combine)

    def learnt_dense(trunk, leaves, drawn):
        return reward_steps.score_token_rewards(model, trunk, leaves, drawn.rows, drawn.ended, combine)

    def log_ratio_dense(trunk, leaves, drawn):
        return steps.score_logprobs(model, trunk, leaves, drawn.rows) - steps.score_logprobs(model, trunk, None, drawn.rows)

    def log_ratio(trunk, leaves, drawn):
        return log_ratio_dense(trunk, leaves, drawn).sum(-1)

    def robust(trunk, leaves, drawn):
        tokens_N = jnp.maximum(drawn.rows.mask.sum(-1), 1.0)
        confidence_N = steps.score_logprobs(model, trunk, leaves["sft"], drawn.rows).sum(-1) / tokens_N
        ones = jnp.ones(drawn.last.shape, jnp.float32)
        batch = RewardBatch(drawn.rows, drawn.last, ones, ones)
        h_N = reward_steps.score_rewards(model, trunk, leaves["reward"], batch, granularity, combine)
        return leaves["weights"][0] * h_N + leaves["weights"][1] * confidence_N

    known = {"log_ratio": log_ratio, "log_ratio_dense": log_ratio_dense, "robust": robust}
    return known.get(recipe, learnt_dense if granularity == "token" else learnt)


def signs(drawn: Drawn) -> dict[str, Array]:
    """Signs of a hacked reward that need only the samples (`evaluation.hacking.reason`), scalars over the rows that count.

    length (tokens), ended (share), distinct_2 (distinct pairs of neighbouring response tokens over all pairs, as in
    `evaluation.metrics.distinct_n`), mean_logprob (nats per token under the reference: the mean of the responses' own means), kl (k1, nats
    per sequence).
    """
    mask, weight = drawn.rows.mask, drawn.weight
    lengths = mask.sum(-1)
    kl = policy_objective.log_ratio(drawn.behaviour_logprobs, drawn.reference_logprobs, mask)
    values = {"length": lengths, "ended": drawn.ended, "kl": kl,
              "mean_logprob": (drawn.reference_logprobs * mask).sum(-1) / jnp.maximum(lengths, 1)}
    means = {name: jnp.average(values_N, weights=weight) for name, values_N in values.items()}
    return {**means, "distinct_2": _distinct_2(drawn.rows.tokens, mask * weight[:, None])}


def _distinct_2(tokens_NxT: Array, mask_NxT: Array) -> Array:
    """Distinct pairs of neighbouring tokens over all pairs; 1 if there is no pair."""
    counts = (mask_NxT[:, :-1] * mask_NxT[:, 1:] > 0).ravel()
    pairs = (jnp.where(counts, part.ravel(), -1) for part in (tokens_NxT[:, :-1], tokens_NxT[:, 1:]))
    first, second = jax.lax.sort(tuple(pairs), num_keys=2)  # groups equal pairs; pairs that do not count come first
    new = (jnp.diff(first, prepend=-1) != 0) | (jnp.diff(second, prepend=-1) != 0)
    return jnp.where(counts.any(), (new & (first >= 0)).sum() / jnp.maximum(counts.sum(), 1), 1.0)


def make_advantages(model, settings: PolicySettings, samples: int, eos_counts: bool = True):
    """`advantages(leaves, trunk, drawn, logits, control) -> (PolicyBatch, control, metrics)`.

    logits -> f-divergence reward (`objectives.divergence`) -> normalised by the running statistics, this batch included -> minus beta k1
    (settings.kl = "k1_reward") -> advantages. They are per response if the reward is. They are per token, from the discounted returns, if
    rewards are dense or the advantage is "gae".

    Args:
      settings: of the policy. samples: K. eos_counts: whether a dense reward covers the EOS.
    Returns:
      the function. leaves: the policy's, with "value" if the advantage is "gae". control: from `policy_steps.init_control`; returned with
      the statistics of this batch and the next beta. metrics: reward (mean logit, summed over tokens if dense), kl (k1, nats per sequence),
      length, ended, and beta if it is steered. If settings.stop is "gate", also the batch's `signs` and, as smoothed_<sign>, their
      exponential means over about the last five batches.
    """

    def shaped(logits, drawn):
        mask = _reward_mask(drawn, logits.ndim, eos_counts)
        return jnp.where(mask > 0, divergence.reward(settings.divergence, logits, settings.clip_logit), 0.0), mask

    def advantages(leaves, trunk, drawn, logits, control: Control):
        mask, dense = drawn.rows.mask, logits.ndim == 2
        rewards, counts = shaped(logits, drawn)
        k1_N = policy_objective.log_ratio(drawn.behaviour_logprobs, drawn.reference_logprobs, mask)
        seen = control.rewards
        if settings.normalise_rewards:
            seen = statistics.update(seen, rewards, counts)
            rewards = jnp.where(counts > 0, statistics.normalise(seen, rewards), 0.0)
        beta = control.beta if settings.kl == "k1_reward" else 0.0
        values = token_values(model, trunk, leaves["value"], drawn.rows) if settings.advantage == "gae" else None
        advantage_NxT, returns_NxT = _advantages(settings, samples, drawn, rewards, beta, values, dense)
        raw_N = logits.sum(-1) if dense else logits
        per_response = {"reward": raw_N, "kl": k1_N, "length": mask.sum(-1), "ended": drawn.ended}
        metrics = {name: jnp.average(values_N, weights=drawn.weight) for name, values_N in per_response.items()}
        after = control.beta
        if settings.target_kl:
            after = policy_objective.next_beta(control.beta, metrics["kl"], settings.target_kl)
            metrics["beta"] = control.beta
        smoothed = {}
        if settings.stop == "gate":
            own = signs(drawn)
            smoothed = {name: before + SMOOTHING * (own[name.removeprefix(SMOOTHED)] - before) for name, before in control.signs.items()}
            metrics |= own | smoothed
        batch = PolicyBatch(drawn.rows, advantage_NxT, drawn.reference_logprobs, drawn.behaviour_logprobs, returns_NxT, raw_N, drawn.weight)
        return jax.lax.stop_gradient(batch), Control(after, seen, smoothed), metrics

    return advantages


def _reward_mask(drawn: Drawn, axes: int, eos_counts: bool):
    """1 where there is a reward: every response, or every token of it (without the EOS if rewards don't cover it)."""
    if axes == 1:
        return drawn.weight
    at_eos = (jnp.arange(drawn.rows.mask.shape[1]) == drawn.last[:, None]) & drawn.ended[:, None]
    return drawn.rows.mask if eos_counts else jnp.where(at_eos, 0.0, drawn.rows.mask)


def _advantages(settings: PolicySettings, samples: int, drawn: Drawn, rewards, beta, values, dense: bool):
    """(advantages, returns), both [N, T]."""
    mask = drawn.rows.mask
    if not dense and settings.advantage != "gae":
        returns_N = policy_objective.penalised_reward(rewards, drawn.behaviour_logprobs, drawn.reference_logprobs, mask, beta)
        kinds: dict[str, Callable[[Array], Array]] = {
            "reinforce": functools.partial(advantage.reinforce, weights_BxK=drawn.weight.reshape(-1, samples)),
            "rloo": advantage.rloo, "grpo": advantage.grpo}
        return kinds[settings.advantage](returns_N.reshape(-1, samples)).reshape(-1)[:, None] * mask, jnp.zeros_like(mask)
    tokens_NxT = rewards if dense else advantage.terminal(rewards, mask)
    tokens_NxT = policy_objective.penalised_token_rewards(tokens_NxT, drawn.behaviour_logprobs, drawn.reference_logprobs, mask, beta)
    if settings.advantage == "gae":
        return advantage.gae(tokens_NxT, values, mask, settings.gamma, settings.gae_lambda)
    returns_NxT = advantage.returns_to_go(tokens_NxT, mask, settings.gamma)
    groups = (-1, samples, mask.shape[1])
    own = advantage.token_advantages(settings.advantage, returns_NxT.reshape(groups), mask.reshape(groups))
    return own.reshape(mask.shape), jnp.zeros_like(mask)
