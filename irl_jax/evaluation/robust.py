"""`robust`: a learnt reward and sft's own confidence in one number, and the gate that says which of the two may count.

    robust(x, y) = h(x, y) / s_h + w m(x, y) / s_m,    m = log pi_sft(y|x) / |y|, the mean log-prob a token

h is the learnt reward, and each s is the root of the mean variance of its term among samples of one prompt. The two terms fail on
different data: h asks for what sft came to prefer over init, m for what sft is sure of. The gate needs demonstrations of prompts that
trained nothing, and no golden reward. docs/robust.md has the rule and its reasons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from irl_jax.evaluation import hacking, metrics
from irl_jax.types import Array

AGAINST_Z = 2.0  # standard errors by which a reward puts demonstrations below sft's own samples: then it counts for nothing


class Term(NamedTuple):
    """One part of the reward. reward: its name. weight: its factor, 1 / s for a learnt reward."""

    reward: str
    weight: float


class Responses(NamedTuple):
    """Samples of development prompts, K a prompt.

    values: {reward: float64 [P, K]}. lengths: tokens [P, K]. ended: bool [P, K]. tokens: P lists of K arrays of token ids.
    """

    values: Mapping[str, np.ndarray]
    lengths: np.ndarray
    ended: np.ndarray
    tokens: Sequence[Sequence[np.ndarray]]


def combined(terms: Sequence[Term], values: Mapping[str, Array], shape) -> np.ndarray:
    """The sum of the terms, float64 of that shape, which is the values'; 0 everywhere where no term is left, so that all responses tie."""
    return sum((term.weight * np.asarray(values[term.reward], np.float64) for term in terms), np.zeros(shape))


def deviation(values_PxK: Array) -> float:
    """Root of the mean over prompts of the variance among a prompt's K samples; NaN for K = 1."""
    values = np.asarray(values_PxK, np.float64)
    return float(np.sqrt(values.var(axis=1, ddof=1).mean())) if values.shape[1] > 1 else float("nan")


def direction(demonstrations_P: Array, samples_PxK: Array) -> metrics.Paired:
    """How much higher a reward puts demonstrations than sft's own samples of the same prompts, at the temperature that sft has."""
    return metrics.paired_difference(demonstrations_P, samples_PxK)


def gate(
    directions: Mapping[str, metrics.Paired], weights: Mapping[str, float], samples: Responses
) -> tuple[tuple[Term, ...], tuple[str, ...]]:
    """The terms that may count, and why others may not.

    1. A term counts unless it puts demonstrations below sft's own samples by AGAINST_Z standard errors: then more of it is no virtue.
    2. What the sum chooses among a prompt's samples must look like sft's samples: `hacking.reason` compares length, end, variety and
       likelihood. Where it objects, the last term is tried alone; where it objects again, no term is left.

    Args:
      directions: of each term's reward (see `direction`). weights: {reward: its weight over its own deviation}, the last being the one
        that is tried alone. samples: of sft at the temperature of use, with the values of these rewards.
    Returns:
      (terms, reasons): one sentence a term or sum that was turned down.
    """
    scales = {name: deviation(samples.values[name]) for name in weights}
    whys = [f"{name} puts demonstrations below sft's own samples (z = {directions[name].z:.1f})" for name in weights
            if directions[name].z <= -AGAINST_Z]
    # a term that never varies chooses nothing
    terms = tuple(Term(name, weight / scales[name]) for name, weight in weights.items()
                  if directions[name].z > -AGAINST_Z and scales[name] > 0)
    for tried in dict.fromkeys((terms, terms[-1:])):
        objection = _objection(tried, samples) if tried else ""
        if not objection:
            return tried, tuple(whys)
        whys.append(f"{' + '.join(term.reward for term in tried)}: {objection}")
    return (), tuple(whys)


def _objection(terms: Sequence[Term], samples: Responses) -> str:
    """What is wrong with the best of each prompt's samples beside the samples themselves; "" for nothing."""
    chosen = combined(terms, samples.values, samples.lengths.shape).argmax(axis=1)
    return hacking.reason(_controls(samples, chosen), _controls(samples, None))


def _controls(samples: Responses, chosen_P) -> dict[str, float]:
    """The controls of one response a prompt; chosen None: of all, but for the variety, which compares equally many."""
    rows = np.arange(len(samples.lengths))
    picked = np.zeros(len(rows), int) if chosen_P is None else chosen_P
    lengths, ended, logprobs = (np.asarray(part, np.float64) if chosen_P is None else np.asarray(part, np.float64)[rows, picked]
                                for part in (samples.lengths, samples.ended, samples.values["mean_logprob"]))
    return {"length": float(lengths.mean()), "ended": float(ended.mean()), "mean_logprob": float(logprobs.mean()),
            "distinct_2": metrics.distinct_n([samples.tokens[p][k] for p, k in enumerate(picked.tolist())], 2)}
