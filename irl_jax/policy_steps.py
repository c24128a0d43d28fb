"""The policy gradient step on a batch of samples, and the state it carries from batch to batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from irl_jax.models import heads
from irl_jax.models.logprobs import token_logprobs
from irl_jax.models.transformer import ModelConfig, hidden_states
from irl_jax.objectives import policy, sequence, statistics
from irl_jax.roles import variables
from irl_jax.steps import count_tokens, make_step
from irl_jax.types import Array, PolicyBatch, PyTree, TokenBatch, TrainState


class PolicySettings(NamedTuple):
    """The keys of config.policy that change the computation; irl_jax/config.py explains them."""

    divergence: str = "reverse_kl"
    clip_logit: float = 5.0
    normalise_rewards: bool = False
    advantage: str = "rloo"
    gamma: float = 1.0
    gae_lambda: float = 0.95
    value_coefficient: float = 0.0
    surrogate: str = "score_function"
    clip_ratio: float = 0.2
    epochs: int = 1
    minibatches: int = 1
    kl: str = "k1_reward"
    target_kl: float = 0.0
    entropy: float = 0.0
    stop: str = ""

    @classmethod
    def of(cls, policy_config) -> PolicySettings:
        """The settings in config.policy."""
        return cls(*(policy_config[name] for name in cls._fields))


class Control(NamedTuple):
    """beta: the KL coefficient, float32. rewards: running statistics of the rewards seen so far. signs: if policy.stop is "gate",
    smoothed_<sign>: the signs of a hacked reward (see `rollouts.signs`), averaged over the last batches, float32."""

    beta: Array
    rewards: statistics.Running
    signs: Mapping[str, Array] = {}


def init_control(beta: float, signs: Mapping[str, Array] = {}) -> Control:
    """The control before the first batch; `signs`: those of the starting policy."""
    return Control(jnp.asarray(beta, jnp.float32), statistics.start(), {**signs})


def make_policy_step(model: ModelConfig, optimizer, settings: PolicySettings, accumulate: int = 1):
    """The policy gradient on one batch of samples: `epochs` passes of `minibatches` updates each.

    loss = surrogate (`objectives.policy.score_function` or `ppo_clip`) + beta KL (`k2`, `k3` or `k3_weighted`, if settings.kl puts it into
    the loss) - entropy * exact entropy of the tokens + value_coefficient * squared error of the value head (if settings.advantage is
    "gae"). The value head reads V of the state before each token. Minibatches are redrawn each epoch. The score function uses a single one,
    since its gradient holds only for samples of the current policy.

    Args:
        model: the architecture. optimizer: from `steps.make_optimizer`, for steps * epochs * minibatches updates.
        settings: see PolicySettings. accumulate: micro-batches per update; minibatches * accumulate must divide the rows.

    Returns:
        step(state, trunk, batch: PolicyBatch, rng) -> (state, metrics). Metrics are means over the updates: loss (per sequence), grad_norm,
        tokens (response tokens of the batch), entropy (nats per token, exact if it is rewarded, else estimated from the samples),
        behaviour_gap (mean |log policy - log behaviour|, nats per token; 0 up to rounding in the first update), clipped (share of tokens,
        ppo_clip), value_loss (gae). They don't include the KL to the reference, because later updates see old samples.
        `rollouts.make_advantages` measures it when the samples are drawn.
    """

    def loss(beta, leaves, trunk, batch: PolicyBatch, rng):
        del rng  # it draws nothing
        rows, weight_B = batch.rows, batch.weight
        own = {name: leaf for name, leaf in leaves.items() if name != "value"}
        entropies_BxT = None
        if settings.entropy:
            logprobs_BxT, entropies_BxT = token_logprobs(model, variables(trunk, own), *rows[:3], with_entropy=True)
        else:
            logprobs_BxT = token_logprobs(model, variables(trunk, own), *rows[:3])
        total, weight, metrics = _surrogate(settings, logprobs_BxT, batch)
        total += _kl_in_loss(settings, beta, logprobs_BxT, batch)
        mask_BxT = rows.mask * weight_B[:, None]
        if entropies_BxT is None:
            metrics["entropy"] = sequence.negative_logprob(logprobs_BxT, mask_BxT)
        else:
            total -= settings.entropy * policy.entropy_bonus(entropies_BxT, rows.mask, weight_B)[0]
            metrics["entropy"] = (jnp.sum(entropies_BxT * mask_BxT), jnp.sum(mask_BxT))
        if "value" in leaves:
            values_BxT = token_values(model, trunk, leaves["value"], rows)
            error, _ = policy.value_loss(values_BxT, batch.returns, rows.mask, weight_B)
            total += settings.value_coefficient * error
            metrics["value_loss"] = (error, weight)
        gap_BxT = jnp.abs(logprobs_BxT - batch.behaviour_logprobs)
        metrics["behaviour_gap"] = (jnp.sum(gap_BxT * mask_BxT), jnp.sum(mask_BxT))
        return total, weight, count_tokens(batch), metrics

    def step(state: TrainState, trunk, batch: PolicyBatch, rng):
        beta = state.control.beta if isinstance(state.control, Control) else 0.0
        update = make_step(lambda *args: loss(beta, *args), optimizer, accumulate)
        if settings.epochs * settings.minibatches == 1:
            return update(state, trunk, batch, rng)
        keys = jax.random.split(rng, settings.epochs)
        parts = jax.tree.map(lambda *epochs: jnp.concatenate(epochs), *(minibatches(batch, settings.minibatches, key) for key in keys))
        after, metrics = jax.lax.scan(lambda state, part: update(state, trunk, part, rng), state, parts)
        metrics = {name: jnp.mean(values) for name, values in metrics.items()} | {"tokens": count_tokens(batch)}
        return after._replace(step=state.step + 1), metrics

    return step


def minibatches(batch: PolicyBatch, count: int, key) -> PolicyBatch:
    """[N, ...] -> [count, N / count, ...], with the rows shuffled by `key`."""
    order = jax.random.permutation(key, batch.weight.shape[0])
    return jax.tree.map(lambda leaf: leaf[order].reshape(count, -1, *leaf.shape[1:]), batch)


def token_values(model: ModelConfig, trunk: PyTree | None, leaves: PyTree, rows: TokenBatch) -> Array:
    """V of the state before each token: the value head on the hidden state one token earlier.

    Args:
        model, trunk: the model. leaves: the value's own (policy leaves["value"]). rows: one sequence per row.

    Returns:
        [B, T] float32, reward units, aligned with rows.tokens, 0 where rows.mask is 0.
    """
    hidden_BxTxD = hidden_states(model, variables(trunk, leaves), rows.tokens, rows.positions, rows.segments)
    values_BxT = heads.scalar(leaves["head"], hidden_BxTxD)
    return jnp.pad(values_BxT[:, :-1], ((0, 0), (1, 0))) * rows.mask


def _surrogate(settings: PolicySettings, logprobs_BxT, batch: PolicyBatch):
    """(sum, weight, metrics) of the surrogate."""
    mask, advantages, weight_B = batch.rows.mask, batch.advantage, batch.weight
    if settings.surrogate == "score_function":
        return *policy.score_function(logprobs_BxT, mask, advantages, weight_B), {}
    arguments = (logprobs_BxT, batch.behaviour_logprobs, mask, advantages, weight_B, settings.clip_ratio)
    return *policy.ppo_clip(*arguments), {"clipped": policy.clipped(*arguments)}


def _kl_in_loss(settings: PolicySettings, beta, logprobs_BxT, batch: PolicyBatch):
    """beta times the KL penalty, summed over sequences, if it is part of the loss."""
    mask, weight_B, reference = batch.rows.mask, batch.weight, batch.reference_logprobs
    if settings.kl == "k2_loss":
        return beta * policy.k2(logprobs_BxT, reference, mask, weight_B)[0]
    if settings.kl == "k3_loss":
        return beta * policy.k3(logprobs_BxT, reference, mask, weight_B)[0]
    if settings.kl == "k3_weighted_loss":
        return beta * policy.k3_weighted(logprobs_BxT, batch.behaviour_logprobs, reference, mask, weight_B)[0]
    return 0.0  # k1_reward: it is in the advantages
