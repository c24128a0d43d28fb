"""The reward's training step and scores: one logit per response or per token, from one discriminator or an ensemble."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from irl_jax.errors import UserError
from irl_jax.models import heads, spectral
from irl_jax.models.transformer import ModelConfig, hidden_states
from irl_jax.objectives import reward
from irl_jax.roles import variables
from irl_jax.steps import count_tokens, make_step
from irl_jax.types import Array, PyTree, RewardBatch, TokenBatch

LOSSES = ("bce", "bradley_terry")


class RewardSettings(NamedTuple):
    """The keys of config.reward that change the loss; irl_jax/config.py explains them. eos_ids: tokens that end a response."""

    granularity: str = "response"
    label_smoothing: float = 0.0
    gradient_penalty: float = 0.0
    spectral_norm: float = 0.0
    eos_ids: tuple[int, ...] = ()

    @classmethod
    def of(cls, reward_config, eos_ids: Iterable[int] = ()) -> RewardSettings:
        """The settings in config.reward, for a tokenizer with these EOS ids."""
        return cls(**{name: reward_config[name] for name in cls._fields[:-1]}, eos_ids=tuple(eos_ids))


def make_reward_step(model: ModelConfig, optimizer, accumulate: int = 1, loss: str = "bce", settings: RewardSettings | None = None):
    """The reward step: `objectives.reward.bce`, or `bradley_terry` if the batch holds pairs (see RewardBatch).

    Positives are in the first half of the rows, each with a negative for the same prompt half a batch below. With granularity "token" the
    loss is the mean over token logits, and only the common prefix of each pair counts: as many tokens of both as the shorter has before its
    EOS. So every index has as many positives as negatives, and neither EOS nor length tells them apart. gradient_penalty adds half of it
    times the mean squared norm of the gradient of the logit (of the sum of the counted token logits) with respect to the input embeddings,
    for positives and negatives alike (Mescheder et al., arXiv 1801.04406).

    An ensemble's members (leaves under "members") train in one vmapped pass over the shared trunk, each on its own bootstrap: a Poisson(1)
    weight per pair. Each member's gradient is that of its own loss alone. They share the optimizer and its clipping norm, which bounds all
    members' gradients together. Micro-batches weight a member's loss by the mean number of pairs that the members drew. With granularity
    "token" they weight the penalty by their counted tokens.

    Args:
        model: the architecture. optimizer: from `steps.make_optimizer`. accumulate: micro-batches per step; must divide the rows or pairs.
            loss: "bce" or "bradley_terry". settings: see RewardSettings.

    Returns:
        step(state, trunk, batch: RewardBatch, rng) -> (state, metrics): loss (nats per row, pair or token, penalty included, mean over
        members), grad_norm, tokens (response tokens), accuracy (of rows or tokens by the logit's sign, of pairs by the difference's), by
        source accuracy_positive, accuracy_negative, logit_positive, logit_negative, and if enabled gradient_penalty (mean squared norm).
        rng draws only the bootstrap.

    Raises:
        UserError: unknown loss, or Bradley-Terry per token.
    """
    settings = settings or RewardSettings()
    if loss not in LOSSES:
        raise UserError(f"reward loss {loss!r}: must be one of {', '.join(map(repr, LOSSES))}")
    if loss == "bradley_terry" and settings.granularity == "token":
        raise UserError("config.reward.granularity = 'token': preferences compare whole responses; use 'response' with them")

    def one(leaves, trunk, batch: RewardBatch):
        leaves = effective(leaves, settings, model)
        counted_BxT = _counted(batch, settings)
        if settings.gradient_penalty:
            logits, squares_B = _logits_and_squared_gradient(model, trunk, leaves, batch, counted_BxT)
        else:
            logits = _logits(model, trunk, leaves, batch, counted_BxT)
        total, weight, metrics = _bradley_terry(logits, batch, settings) if loss == "bradley_terry" else _bce(
            logits, batch, counted_BxT, settings)
        if settings.gradient_penalty:
            rows_B = batch.weight if counted_BxT is None else batch.weight * jnp.any(counted_BxT > 0, axis=-1)
            penalty = (jnp.sum(jnp.where(rows_B > 0, rows_B * squares_B, 0.0)), jnp.sum(rows_B))
            mean = penalty[0] / jnp.maximum(penalty[1], 1e-30)
            total += 0.5 * settings.gradient_penalty * mean * weight  # counts once in the mean, whatever the weight is
            metrics["gradient_penalty"] = penalty
        return total, weight, metrics

    def objective(leaves, trunk, batch: RewardBatch, rng):
        if "members" not in leaves:
            return _with_tokens(one(leaves, trunk, batch), batch)
        count = jax.tree.leaves(leaves["members"])[0].shape[0]
        bootstrap_ExB = _bootstrap(rng, count, batch.weight)
        totals, weights, metrics = jax.vmap(lambda member, weight_B: one(member, trunk, batch._replace(weight=weight_B)))(
            leaves["members"], bootstrap_ExB)
        # each member's loss is its own mean, scaled to the batch's weight: a lucky draw does not count for more
        weight = jnp.mean(weights)
        means = totals / jnp.maximum(weights, 1e-30)
        total = jnp.mean(means) * weight
        rest = (count - 1) * total  # reports the members' mean, but each follows the full gradient of its own loss
        total += rest - jax.lax.stop_gradient(rest)
        metrics = jax.tree.map(jnp.sum, metrics)
        return _with_tokens((total, weight, metrics), batch)

    return make_step(objective, optimizer, accumulate)


def effective(leaves: PyTree, settings: RewardSettings, model: ModelConfig) -> PyTree:
    """The leaves that score, with the spectral cap applied if there is one. A trained reward is kept like this."""
    if not settings.spectral_norm:
        return leaves
    cap = lambda one: spectral.cap(one, settings.spectral_norm, model.adapter_scale)
    return {"members": jax.vmap(cap)(leaves["members"])} if "members" in leaves else cap(leaves)


# ------------------------------------------------------------------------------------------------------------ scoring
def score_member_rewards(
    model: ModelConfig, trunk: PyTree | None, leaves: PyTree, batch: RewardBatch, granularity: str = "response"
) -> Array:
    """Each member's reward of whole responses.

    granularity "response": the logit at the last response token. "token": the mean of the token logits except the last. The last token is
    the EOS of most responses, so length gives nothing away. A "length" leaf subtracts slope (tokens - centre).

    Args:
        model, trunk, leaves: the reward role. batch: one sequence per row; label is not read. granularity: as in training.

    Returns:
        [E, B] float32 logits (E = 1 without members), nats of log density ratio at the optimum. Values of rows with weight 0 mean nothing.
    """

    def one(member):
        if granularity == "token":
            counted_BxT = _before_last(batch.rows, batch.last)
            logits_BxT = token_logits(model, trunk, member, batch.rows)
            total_B = jnp.sum(jnp.where(counted_BxT > 0, logits_BxT, 0.0), axis=-1)
            h_B = total_B / jnp.maximum(jnp.sum(counted_BxT, axis=-1), 1)
        else:
            h_B = _last_logits(model, trunk, member, batch)
        if "length" in member:
            tokens_B = jnp.sum(batch.rows.mask, axis=-1)
            h_B = h_B - member["length"]["slope"] * (tokens_B - member["length"]["centre"])
        return h_B

    return jax.vmap(one)(leaves["members"]) if "members" in leaves else one(leaves)[None]


def score_rewards(
    model: ModelConfig, trunk: PyTree | None, leaves: PyTree, batch: RewardBatch, granularity: str = "response", combine: str = "mean"
) -> Array:
    """The reward of whole responses: `score_member_rewards`, merged over members by `combine`. Returns: [B] float32."""
    return combined(score_member_rewards(model, trunk, leaves, batch, granularity), combine)


def score_token_rewards(
    model: ModelConfig, trunk: PyTree | None, leaves: PyTree, rows: TokenBatch, ended_B: Array, combine: str = "mean"
) -> Array:
    """The reward of each token, a state-action pair.

    Args:
        model, trunk, leaves: the reward role. rows: one sequence per row. ended_B: whether the last response token is an EOS.
        combine: "mean", "min" or "mean_minus_std" over the members, per token.

    Returns:
        [B, T] float32 logits, 0 outside the response and at the EOS, which no token reward was trained on.
    """
    following_BxT = jnp.pad(rows.mask[:, 1:], ((0, 0), (0, 1)))
    at_eos_BxT = (rows.mask > 0) & (following_BxT == 0) & ended_B[:, None]
    one = lambda member: token_logits(model, trunk, member, rows)
    logits_BxT = combined(jax.vmap(one)(leaves["members"]), combine) if "members" in leaves else one(leaves)
    return jnp.where((rows.mask > 0) & ~at_eos_BxT, logits_BxT, 0.0)


def combined(logits_ExB: Array, combine: str, xp=jnp) -> Array:
    """The members' rewards merged into one: "mean", "min", or "mean_minus_std" (std with 1/E). `xp` is numpy or jax.numpy."""
    if combine == "min":
        return xp.min(logits_ExB, axis=0)
    mean = xp.mean(logits_ExB, axis=0)
    return mean - xp.std(logits_ExB, axis=0) if combine == "mean_minus_std" else mean


def token_logits(model: ModelConfig, trunk: PyTree | None, leaves: PyTree, rows: TokenBatch, shift_BxTxD=None) -> Array:
    """One member's logit at every token: the head on the hidden state there, which has seen the state and the action. [B, T]."""
    hidden_BxTxD = hidden_states(model, variables(trunk, leaves), rows.tokens, rows.positions, rows.segments, shift_BxTxD)
    return heads.scalar(leaves["head"], hidden_BxTxD)


# ---------------------------------------------------------------------------------------------------------- the losses
def _last_logits(model, trunk, leaves, batch: RewardBatch, shift_BxTxD=None):
    rows = batch.rows
    hidden_BxTxD = hidden_states(model, variables(trunk, leaves), rows.tokens, rows.positions, rows.segments, shift_BxTxD)
    last_BxD = jnp.take_along_axis(hidden_BxTxD, batch.last[:, None, None], axis=1)[:, 0]
    return heads.scalar(leaves["head"], last_BxD)


def _logits(model, trunk, leaves, batch: RewardBatch, counted_BxT, shift_BxTxD=None):
    """[B], or [B, T] if tokens are counted."""
    if counted_BxT is None:
        return _last_logits(model, trunk, leaves, batch, shift_BxTxD)
    return token_logits(model, trunk, leaves, batch.rows, shift_BxTxD)


def _logits_and_squared_gradient(model, trunk, leaves, batch: RewardBatch, counted_BxT):
    """The logits, and the squared norm of their gradient with respect to each row's input embeddings, [B]."""
    shift_BxTxD = jnp.zeros((*batch.rows.tokens.shape, model.width), jnp.float32)

    def total(shift):
        logits = _logits(model, trunk, leaves, batch, counted_BxT, shift)
        return jnp.sum(logits if counted_BxT is None else logits * counted_BxT), logits  # rows do not see one another

    gradient_BxTxD, logits = jax.grad(total, has_aux=True)(shift_BxTxD)
    return logits, jnp.sum(jnp.square(gradient_BxTxD), axis=(1, 2))


def _counted(batch: RewardBatch, settings: RewardSettings):
    """Tokens that count, [B, T]: the common prefix of each pair without the EOS; None for response logits."""
    if settings.granularity == "response":
        return None
    rows = batch.rows
    length_B = jnp.sum(rows.mask, axis=-1)
    last_token_B = jnp.take_along_axis(rows.tokens, batch.last[:, None], axis=1)[:, 0]
    ended_B = jnp.isin(last_token_B, jnp.asarray(settings.eos_ids, jnp.int32))
    before_P = jnp.minimum(*jnp.split(length_B - ended_B, 2))
    index_BxT = jnp.cumsum(rows.mask, axis=-1)  # 1 at the first response token
    return rows.mask * (index_BxT <= jnp.tile(before_P, 2)[:, None])


def _before_last(rows: TokenBatch, last_B):
    """The response tokens except the last, which is mostly the EOS. A response of one token keeps it."""
    alone_B = jnp.sum(rows.mask, axis=-1) <= 1
    return rows.mask * ((jnp.arange(rows.mask.shape[1]) < last_B[:, None]) | alone_B[:, None])


def _bce(logits, batch: RewardBatch, counted_BxT, settings: RewardSettings):
    labels, weights = batch.label, batch.weight
    if counted_BxT is not None:
        weights_P = jnp.minimum(*jnp.split(weights, 2))  # a token without its counterpart would make the index informative
        labels, weights = jnp.broadcast_to(labels[:, None], logits.shape), jnp.tile(weights_P, 2)[:, None] * counted_BxT
    total, weight = reward.bce(logits, labels, weights, settings.label_smoothing)
    sources, right = _by_source(logits, labels, weights)
    return total, weight, sources | {"accuracy": right}


def _bradley_terry(logits_B, batch: RewardBatch, settings: RewardSettings):
    chosen_P, rejected_P = jnp.split(logits_B, 2)
    weights_P = jnp.minimum(*jnp.split(batch.weight, 2))
    total, weight = reward.bradley_terry(chosen_P, rejected_P, weights_P, settings.label_smoothing)
    labels_B = jnp.concatenate([jnp.ones_like(chosen_P), jnp.zeros_like(rejected_P)])
    sources, _ = _by_source(logits_B, labels_B, jnp.tile(weights_P, 2))
    right = (jnp.sum(weights_P * reward.correct(chosen_P - rejected_P)), weight)
    return total, weight, sources | {"accuracy": right}


def _by_source(logits, labels, weights):
    """Statistics of positives, of negatives and of both, as (sum, weight) each."""
    right = reward.correct(jnp.where(labels > 0.5, logits, -logits))
    out = {}
    for name, own in (("positive", weights * labels), ("negative", weights * (1 - labels))):
        out[f"accuracy_{name}"] = (jnp.sum(own * right), jnp.sum(own))
        out[f"logit_{name}"] = (jnp.sum(own * logits), jnp.sum(own))
    return out, (jnp.sum(weights * right), jnp.sum(weights))


def _bootstrap(rng, members: int, weights_B):
    """[E, B]: a Poisson(1) weight per member and pair, the same for the pair's two rows, times the rows' own weights."""
    draws_ExP = jax.random.poisson(rng, 1.0, (members, weights_B.shape[0] // 2)).astype(jnp.float32)
    return jnp.tile(draws_ExP, (1, 2)) * weights_B


def _with_tokens(parts, batch: RewardBatch):
    total, weight, metrics = parts
    return total, weight, count_tokens(batch), metrics
