"""Pure training steps and scorers: `step(state, trunk, batch, rng) -> (state, metrics)`.

`state` holds the role's trainable leaves and optimizer, and may be donated. `trunk` is the shared one and only read (None if the leaves
hold a whole trunk). Every loss is a (sum, weight) over the batch. Sums of gradients and of weights are accumulated over micro-batches and
devices, and the mean is taken once. A batch of weight 0 leaves the gradient 0.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from irl_jax.errors import UserError
from irl_jax.models.logprobs import token_logprobs, weighted_logprob
from irl_jax.models.transformer import ModelConfig
from irl_jax.roles import variables
from irl_jax.types import Array, PyTree, TokenBatch, TrainState, Weighted


# --------------------------------------------------------------------------------------------------------- optimizer
def learning_rate(stage_config, steps: int) -> optax.Schedule:
    """Linear warm-up to the peak, then decay to `final_fraction` of it at the last step.

    The first of w warm-up steps has rate peak / (w + 1) and the first step after them has the peak, so no step has rate 0.

    Args:
        stage_config: learning_rate (peak), warmup_fraction (of the steps), schedule ("cosine", "linear" or "constant"), final_fraction.
            steps: total optimizer updates.

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
        stage_config: as for `learning_rate`, plus weight_decay (on matrices only), clip_norm (0 does not clip), b2.
        steps: total optimizer updates.

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
    """True for matrices, not for biases and norms. The layer axis (under "blocks") and the member axis do not count."""

    def decays(path, leaf):
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        return jnp.ndim(leaf) - ("blocks" in names) - ("members" in names) >= 2

    return jax.tree_util.tree_map_with_path(decays, leaves)


def init_state(leaves: PyTree, optimizer: optax.GradientTransformation, control: PyTree = ()) -> TrainState:
    """The state at step 0. The leaves are not copied."""
    return TrainState(leaves, optimizer.init(leaves), jnp.zeros((), jnp.int32), control)


# ------------------------------------------------------------------------------------------------------------- steps
def make_sft_step(model: ModelConfig, optimizer: optax.GradientTransformation, accumulate: int = 1):
    """The SFT step: cross-entropy of the response tokens (`objectives.sequence.negative_logprob`), packed rows or not.

    Args:
        model: the architecture. optimizer: from `make_optimizer`. accumulate: micro-batches per step; must divide the rows.

    Returns:
        step(state, trunk, batch: TokenBatch, rng) -> (state, metrics): loss (nats per token), grad_norm (before clipping), tokens (response
        tokens in the batch). rng is not used: the loss draws nothing.
    """

    def loss(leaves, trunk, rows: TokenBatch, rng):
        del rng  # it draws nothing
        total = -weighted_logprob(model, variables(trunk, leaves), rows.tokens, rows.positions, rows.segments, rows.mask)
        weight = jnp.sum(rows.mask)
        return total, weight, weight, {}

    return make_step(loss, optimizer, accumulate)


def count_tokens(batch: Weighted) -> Array:
    """Response tokens of the rows that count."""
    return jnp.sum(batch.rows.mask * (batch.weight > 0)[:, None])


def make_step(loss, optimizer: optax.GradientTransformation, accumulate: int = 1):
    """A training step from a loss.

    Args:
        loss: loss(leaves, trunk, batch, rng) -> (sum, weight, tokens, {metric: (sum, weight)}), differentiated with respect to the leaves.
            Each micro-batch gets its own key.
        optimizer: from `make_optimizer`. accumulate: micro-batches per step; must divide the rows.

    Returns:
        step(state, trunk, batch, rng) -> (state, metrics): loss (the mean), grad_norm (before clipping), tokens, and the means of the
        loss's metrics, all float32.
    """

    def objective(leaves, trunk, batch, rng):
        total, weight, tokens, metrics = loss(leaves, trunk, batch, rng)
        return total, dict(**metrics, loss=(total, weight), tokens=(tokens, 1.0))

    gradient = jax.grad(objective, has_aux=True)

    def step(state: TrainState, trunk, batch, rng):
        if accumulate == 1:
            grads, sums = gradient(state.leaves, trunk, batch, rng)
        else:

            def add(grads, micro):
                more, sums = gradient(state.leaves, trunk, *micro)
                return jax.tree.map(jnp.add, grads, more), sums

            zeros = jax.tree.map(jnp.zeros_like, state.leaves)
            keys = jax.random.split(rng, accumulate)
            grads, sums = jax.lax.scan(add, zeros, (micro_batches(batch, accumulate), keys))
            sums = jax.tree.map(lambda x: jnp.sum(x, axis=0), sums)
        sums["tokens"] = (sums["tokens"][0], 1.0)  # a count, not a mean
        weight = sums["loss"][1]
        grads = jax.tree.map(lambda g: g * _reciprocal(weight), grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.leaves)
        metrics = {name: total * _reciprocal(weight) for name, (total, weight) in sums.items()}
        metrics["grad_norm"] = optax.global_norm(grads)
        metrics = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), metrics)
        return TrainState(optax.apply_updates(state.leaves, updates), opt_state, state.step + 1, state.control), metrics

    return step


def _reciprocal(weight):
    return jnp.where(weight > 0, 1 / jnp.where(weight > 0, weight, 1), 0.0)


def micro_batches(batch: PyTree, accumulate: int) -> PyTree:
    """[B, ...] -> [accumulate, B / accumulate, ...], every accumulate-th row in one micro-batch.

    The stride keeps rows on their device. It also keeps Bradley-Terry pairs, half a batch apart, together.
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
