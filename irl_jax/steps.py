"""Pure training steps and scorers: `step(state, trunk, batch, rng) -> (state, metrics)`.

`state` holds the role's trainable leaves and its optimizer and may be donated; `trunk`, the shared one, is only read (None
where the leaves hold a whole trunk). Every loss is a (sum, weight) over the batch: sums of gradients and of weights are
accumulated over micro-batches and devices, and the mean is taken once. A batch of weight 0 leaves the gradient 0.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from irl_jax.errors import UserError
from irl_jax.models import heads
from irl_jax.models.transformer import ModelConfig, hidden_states, token_logprobs
from irl_jax.objectives import policy, reward, sequence
from irl_jax.roles import variables
from irl_jax.types import Array, PolicyBatch, PyTree, RewardBatch, TokenBatch, TrainState

REWARD_LOSSES = ("bce", "bradley_terry")
KL_PLACES = ("reward", "loss")


# --------------------------------------------------------------------------------------------------------- optimizer
def learning_rate(stage_config, steps: int) -> optax.Schedule:
    """Linear warm-up to the peak, then decay to `final_fraction` of it at the last step.

    The first of w warm-up steps has peak / (w + 1), the first after them the peak, so that no step has rate 0.

    Args:
        stage_config: learning_rate (peak), warmup_fraction (of the steps), schedule ("cosine", "linear" or "constant"),
            final_fraction. steps: optimizer updates in all.

    Returns:
        The rate of step s, counted from 0.

    Raises:
        UserError: unknown schedule.
    """
    peak, final = stage_config.learning_rate, stage_config.final_fraction
    warmup = round(stage_config.warmup_fraction * steps)
    decay = max(steps - 1 - warmup, 1)
    schedules = {
        "cosine": lambda: optax.cosine_decay_schedule(peak, decay, alpha=final),
        "linear": lambda: optax.linear_schedule(peak, peak * final, decay),
        "constant": lambda: optax.constant_schedule(peak),
    }
    if stage_config.schedule not in schedules:
        raise UserError(f"config schedule = {stage_config.schedule!r}: must be one of {', '.join(map(repr, schedules))}")
    after = schedules[stage_config.schedule]()
    return optax.join_schedules([optax.linear_schedule(peak / (warmup + 1), peak, warmup), after], [warmup]) if warmup else after


def make_optimizer(stage_config, steps: int) -> optax.GradientTransformation:
    """AdamW with clipping by the global norm, warm-up and decay.

    Args:
        stage_config: as for `learning_rate`, and weight_decay (on matrices only), clip_norm (0 does not clip), b2.
        steps: optimizer updates in all.

    Returns:
        The optax transformation.

    Raises:
        UserError: unknown schedule.
    """
    adamw = optax.adamw(
        learning_rate(stage_config, steps), b2=stage_config.b2, weight_decay=stage_config.weight_decay, mask=_decayed
    )
    if stage_config.clip_norm > 0:
        return optax.chain(optax.clip_by_global_norm(stage_config.clip_norm), adamw)
    return adamw


def _decayed(leaves: PyTree) -> PyTree:
    """True at matrices: not at biases and norms, which under "blocks" have the layer as one axis more."""

    def decays(path, leaf):
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        return jnp.ndim(leaf) - ("blocks" in names) >= 2

    return jax.tree_util.tree_map_with_path(decays, leaves)


def init_state(leaves: PyTree, optimizer: optax.GradientTransformation) -> TrainState:
    """The state at step 0, with the leaves as they are (not copied)."""
    return TrainState(leaves, optimizer.init(leaves), jnp.zeros((), jnp.int32))


# ------------------------------------------------------------------------------------------------------------- steps
def make_sft_step(model: ModelConfig, optimizer: optax.GradientTransformation, accumulate: int = 1):
    """The SFT step: `objectives.sequence.negative_logprob` of the response tokens, packed rows or not.

    Args:
        model: the architecture. optimizer: from `make_optimizer`. accumulate: micro-batches a step; divides the rows.

    Returns:
        step(state, trunk, batch: TokenBatch, rng) -> (state, metrics): loss (nats per token), grad_norm (before
        clipping), tokens (response tokens in the batch). rng is not used: the loss draws nothing.
    """

    def loss(leaves, trunk, rows: TokenBatch):
        logprobs_BxT = token_logprobs(model, variables(trunk, leaves), rows.tokens, rows.positions, rows.segments)
        total, weight = sequence.negative_logprob(logprobs_BxT, rows.mask)
        return total, weight, weight, {}

    return _make_step(loss, optimizer, accumulate)


def make_reward_step(model: ModelConfig, optimizer: optax.GradientTransformation, accumulate: int = 1, loss: str = "bce"):
    """The reward step: `objectives.reward.bce`, or `bradley_terry` where the batch holds pairs (see RewardBatch).

    Args:
        model: the architecture. optimizer: from `make_optimizer`. accumulate: micro-batches a step; divides the rows, or
            the pairs. loss: "bce" or "bradley_terry".

    Returns:
        step(state, trunk, batch: RewardBatch, rng) -> (state, metrics): loss (nats per row, or per pair), grad_norm,
        tokens (response tokens), accuracy (of rows by the logit's sign, or of pairs by the difference's), and by source
        accuracy_positive, accuracy_negative, logit_positive, logit_negative. rng is not used.

    Raises:
        UserError: unknown loss.
    """
    if loss not in REWARD_LOSSES:
        raise UserError(f"reward loss {loss!r}: must be one of {', '.join(map(repr, REWARD_LOSSES))}")

    def bce(leaves, trunk, batch: RewardBatch):
        logits_B = score_rewards(model, trunk, leaves, batch)
        total, weight = reward.bce(logits_B, batch.label, batch.weight)
        sources, right = _by_source(logits_B, batch.label, batch.weight)
        return total, weight, _tokens(batch), sources | {"accuracy": right}

    def bradley_terry(leaves, trunk, batch: RewardBatch):
        logits_B = score_rewards(model, trunk, leaves, batch)
        chosen_P, rejected_P = jnp.split(logits_B, 2)
        weights_P = jnp.multiply(*jnp.split(batch.weight, 2))
        total, weight = reward.bradley_terry(chosen_P, rejected_P, weights_P)
        labels_B = jnp.concatenate([jnp.ones_like(chosen_P), jnp.zeros_like(rejected_P)])
        sources, _ = _by_source(logits_B, labels_B, jnp.tile(weights_P, 2))
        right = (jnp.sum(weights_P * reward.correct(chosen_P - rejected_P)), weight)
        return total, weight, _tokens(batch), sources | {"accuracy": right}

    return _make_step({"bce": bce, "bradley_terry": bradley_terry}[loss], optimizer, accumulate)


def make_policy_step(
    model: ModelConfig,
    optimizer: optax.GradientTransformation,
    accumulate: int = 1,
    kl: str = "reward",
    beta: float | None = None,
):
    """The policy gradient step on fresh samples of the policy: `objectives.policy.score_function`.

    Args:
        model: the architecture. optimizer: from `make_optimizer`. accumulate: micro-batches a step; divides the rows.
        kl: "reward": the batch's advantages already hold the penalty (`objectives.policy.penalised_reward`), and beta is
            not used; "loss": beta times `objectives.policy.k2` is added here.
        beta: reward units per nat of KL(policy || reference), per sequence; needed for kl = "loss".

    Returns:
        step(state, trunk, batch: PolicyBatch, rng) -> (state, metrics): loss (of the surrogate, per sequence), grad_norm,
        tokens (response tokens), kl (k1: mean log-ratio to the reference, nats per sequence), entropy (nats per token),
        behaviour_gap (mean |log policy - log behaviour|, nats per token: 0 up to rounding on fresh samples). rng is not used.

    Raises:
        UserError: another place for the KL; k1 in the loss is refused by name, for its gradient is zero in expectation.
        ValueError: kl = "loss" without beta.
    """
    if kl not in KL_PLACES:
        why = " (k1 in the loss has no gradient in expectation)" if kl == "k1" else ""
        raise UserError(f"config policy.kl = {kl!r}: must be 'reward' (k1 in the reward) or 'loss' (k2 in the loss){why}")
    if kl == "loss" and beta is None:
        raise ValueError("k2 in the loss needs its weight beta")

    def loss(leaves, trunk, batch: PolicyBatch):
        rows = batch.rows
        logprobs_BxT = token_logprobs(model, variables(trunk, leaves), rows.tokens, rows.positions, rows.segments)
        total, weight = policy.score_function(logprobs_BxT, rows.mask, batch.advantage, batch.weight)
        if kl == "loss":
            total += beta * policy.k2(logprobs_BxT, batch.reference_logprobs, rows.mask, batch.weight)[0]
        ratio_B = policy.log_ratio(logprobs_BxT, batch.reference_logprobs, rows.mask)
        mask_BxT = rows.mask * batch.weight[:, None]
        gap_BxT = jnp.abs(logprobs_BxT - batch.behaviour_logprobs)
        return total, weight, _tokens(batch), {
            "kl": (jnp.sum(batch.weight * ratio_B), weight),
            "entropy": sequence.negative_logprob(logprobs_BxT, mask_BxT),
            "behaviour_gap": (jnp.sum(gap_BxT * mask_BxT), jnp.sum(mask_BxT)),
        }

    return _make_step(loss, optimizer, accumulate)


def _tokens(batch: RewardBatch | PolicyBatch) -> Array:
    return jnp.sum(batch.rows.mask * (batch.weight > 0)[:, None])


def _by_source(logits_B, labels_B, weights_B):
    """Statistics of positives and negatives apart, and of both: (sum, weight) each."""
    right_B = reward.correct(jnp.where(labels_B > 0.5, logits_B, -logits_B))
    out = {}
    for name, weights in (("positive", weights_B * labels_B), ("negative", weights_B * (1 - labels_B))):
        out[f"accuracy_{name}"] = (jnp.sum(weights * right_B), jnp.sum(weights))
        out[f"logit_{name}"] = (jnp.sum(weights * logits_B), jnp.sum(weights))
    return out, (jnp.sum(weights_B * right_B), jnp.sum(weights_B))


def _make_step(loss, optimizer, accumulate):
    """A step from loss(leaves, trunk, batch) -> (sum, weight, tokens, {metric: (sum, weight)})."""

    def objective(leaves, trunk, batch):
        total, weight, tokens, metrics = loss(leaves, trunk, batch)
        return total, metrics | {"loss": (total, weight), "tokens": (tokens, 1.0)}

    gradient = jax.grad(objective, has_aux=True)

    def step(state: TrainState, trunk, batch, rng):
        del rng  # no loss here draws anything; every step is called alike
        if accumulate == 1:
            grads, sums = gradient(state.leaves, trunk, batch)
        else:

            def add(grads, micro_batch):
                more, sums = gradient(state.leaves, trunk, micro_batch)
                return jax.tree.map(jnp.add, grads, more), sums

            zeros = jax.tree.map(jnp.zeros_like, state.leaves)
            grads, sums = jax.lax.scan(add, zeros, _micro_batches(batch, accumulate))
            sums = jax.tree.map(lambda x: jnp.sum(x, axis=0), sums)
        sums["tokens"] = (sums["tokens"][0], 1.0)  # a count, not a mean
        weight = sums["loss"][1]
        grads = jax.tree.map(lambda g: g * _reciprocal(weight), grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.leaves)
        metrics = {name: total * _reciprocal(weight) for name, (total, weight) in sums.items()}
        metrics["grad_norm"] = optax.global_norm(grads)
        metrics = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), metrics)
        return TrainState(optax.apply_updates(state.leaves, updates), opt_state, state.step + 1), metrics

    return step


def _reciprocal(weight):
    return jnp.where(weight > 0, 1 / jnp.where(weight > 0, weight, 1), 0.0)


def _micro_batches(batch: PyTree, accumulate: int) -> PyTree:
    """[B, ...] -> [accumulate, B / accumulate, ...], every accumulate-th row in one micro-batch.

    Strided, so that rows stay on the device they are on, and that Bradley-Terry pairs, half a batch apart, stay together.
    """

    def split(leaf):
        if leaf.shape[0] % accumulate:
            raise ValueError(f"{leaf.shape[0]} rows do not split into {accumulate} micro-batches")
        return leaf.reshape(-1, accumulate, *leaf.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(split, batch)


# ------------------------------------------------------------------------------------------------------------ scoring
def score_logprobs(model: ModelConfig, trunk: PyTree | None, leaves: PyTree | None, rows: TokenBatch) -> Array:
    """Log-probs of the response tokens, nats per token.

    Args:
        model, trunk, leaves: the role; leaves None is init. rows: packed or not.

    Returns:
        [B, T] float32, aligned with rows.tokens, 0 where rows.mask is 0.
    """
    return token_logprobs(model, variables(trunk, leaves), rows.tokens, rows.positions, rows.segments) * rows.mask


def score_rewards(model: ModelConfig, trunk: PyTree | None, leaves: PyTree, batch: RewardBatch) -> Array:
    """Reward logits: the scalar head on the hidden state at the last response token.

    Args:
        model, trunk, leaves: the reward role. batch: one sequence a row; label is not read.

    Returns:
        [B] float32 logits, nats of log density ratio at the optimum; what rows of weight 0 give means nothing.
    """
    rows = batch.rows
    hidden_BxTxD = hidden_states(model, variables(trunk, leaves), rows.tokens, rows.positions, rows.segments)
    last_BxD = jnp.take_along_axis(hidden_BxTxD, batch.last[:, None, None], axis=1)[:, 0]
    return heads.scalar(leaves["head"], last_BxD)
