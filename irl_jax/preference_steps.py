"""The preference optimisation step: pairs of responses, a policy and the log-probs of its reference, no reward model."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import optax

from irl_jax import steps
from irl_jax.models.logprobs import token_logprobs
from irl_jax.models.transformer import ModelConfig
from irl_jax.objectives import preference
from irl_jax.objectives.reward import correct
from irl_jax.objectives.sequence import sequence_logprobs
from irl_jax.roles import variables
from irl_jax.types import Array, TokenBatch


class PreferenceBatch(NamedTuple):
    """Pairs of responses to the same prompts, in single rows (never packed).

    Rows 0 .. B/2-1 are chosen. Rows B/2 .. B-1 are the rejected ones of the same prompts in the same order. reference_logprobs: float32
    [B], log reference(y|x) of each whole response, nats per sequence, EOS included if it was drawn. weight: float32 [B], the same in both
    halves; 0 for pairs that only pad the batch.
    """

    rows: TokenBatch
    reference_logprobs: Array
    weight: Array


def make_preference_step(
    model: ModelConfig, optimizer: optax.GradientTransformation, accumulate: int = 1, *, beta: float, label_smoothing: float = 0.0
):
    """The DPO step: `objectives.preference.dpo` on the log-probs of whole responses.

    Micro-batches are strided (see `steps.micro_batches`), so both responses of a pair are in the same one.

    Args:
        model: the architecture. optimizer: from `steps.make_optimizer`. accumulate: micro-batches per step; must divide the pairs.
        beta: of the implicit reward beta log(policy / reference), reward units per nat. label_smoothing: share of pairs taken to be
            swapped.

    Returns:
        step(state, trunk, batch: PreferenceBatch, rng) -> (state, metrics): loss (nats per pair), accuracy (share of pairs whose implicit
        rewards differ in the right direction, ties count half), margin (implicit reward of chosen minus rejected), chosen_logprob and
        rejected_logprob (the policy's, nats per sequence), grad_norm, tokens (response tokens of both sides). rng is not used: the loss
        draws nothing.
    """

    def loss(leaves, trunk, batch: PreferenceBatch, rng):
        del rng  # it draws nothing
        rows = batch.rows
        logprobs_BxT = token_logprobs(model, variables(trunk, leaves), rows.tokens, rows.positions, rows.segments)
        chosen_P, rejected_P = _sides(sequence_logprobs(logprobs_BxT, rows.mask))
        reference_chosen_P, reference_rejected_P = _sides(batch.reference_logprobs)
        compared, weights_P = (chosen_P, rejected_P, reference_chosen_P, reference_rejected_P), _sides(batch.weight)[0]
        total, weight = preference.dpo(*compared, weights_P, beta, label_smoothing)
        margins_P = beta * preference.margin(*compared)
        sums = {"accuracy": correct(margins_P), "margin": margins_P, "chosen_logprob": chosen_P, "rejected_logprob": rejected_P}
        return total, weight, steps.count_tokens(batch), {name: (jnp.sum(weights_P * each), weight) for name, each in sums.items()}

    return steps.make_step(loss, optimizer, accumulate)


def _sides(values_B: Array) -> Array:
    """[B] -> [2, B/2]: the chosen, then the rejected."""
    return values_B.reshape(2, -1)
