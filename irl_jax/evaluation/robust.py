"""`robust`: a learnt reward and sft's own confidence in one number, and the gate that decides which of the two may count.

    robust(x, y) = h(x, y) / s_h + w m(x, y) / s_m,    m = log pi_sft(y|x) / |y|, the mean log-prob per token

h is the learnt reward. Each s is the root of the mean variance of its term among samples of one prompt. The two terms fail on
different data: h rewards what sft came to prefer over init, m what sft is sure of. The gate needs demonstrations of prompts not used
in training, but no golden reward. docs/robust.md has the rule and its reasons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from irl_jax.evaluation import hacking, metrics
from irl_jax.types import Array

AGAINST_Z = 2.0  # a reward that puts demonstrations this many standard errors below sft's own samples doesn't count


class Term(NamedTuple):
    """One part of the reward. reward: its name. weight: its factor, 1 / s for a learnt reward."""

    reward: str
    weight: float


class Responses(NamedTuple):
    """Samples of development prompts, K per prompt.

    values: {reward: float64 [P, K]}. lengths: tokens [P, K]. ended: bool [P, K]. tokens: P lists of K arrays of token ids.
    """

    values: Mapping[str, np.ndarray]
    lengths: np.ndarray
    ended: np.ndarray
    tokens: Sequence[Sequence[np.ndarray]]


def combined(terms: Sequence[Term], values: Mapping[str, Array], shape) -> np.ndarray:
    """The sum of the terms, float64, of the values' `shape`. Without terms it is 0 everywhere, so all responses tie."""
    return sum((term.weight * np.asarray(values[term.reward], np.float64) for term in terms), np.zeros(shape))


def deviation(values_PxK: Array) -> float:
    """Root of the mean over prompts of the variance among a prompt's K samples; NaN for K = 1."""
    values = np.asarray(values_PxK, np.float64)
    return float(np.sqrt(values.var(axis=1, ddof=1).mean())) if values.shape[1] > 1 else float("nan")


def direction(demonstrations_P: Array, samples_PxK: Array) -> metrics.Paired:
    """How much higher a reward puts demonstrations than sft's own samples of the same prompts, at sft's own temperature."""
    return metrics.paired_difference(demonstrations_P, samples_PxK)


def gate(
    directions: Mapping[str, metrics.Paired], weights: Mapping[str, float], samples: Responses
) -> tuple[tuple[Term, ...], tuple[str, ...]]:
    """Decides which terms may count, and why others may not.

    1. A term counts unless it puts demonstrations AGAINST_Z standard errors below sft's own samples: then more of it isn't better.
    2. What the sum chooses among a prompt's samples must look like sft's samples: `hacking.reason` compares length, end, variety and
       likelihood. If it objects, the last term is tried alone. If it objects again, no term is left.

    Args:
      directions: of each term's reward (see `direction`). weights: {reward: its weight, before division by its deviation}; the last
        is the one tried alone. samples: of sft at the temperature in use, with the values of these rewards.
    Returns:
      (terms, reasons): one sentence per rejected term or sum.
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
    """What is wrong with the best of each prompt's samples, compared with all samples; "" if nothing."""
    chosen = combined(terms, samples.values, samples.lengths.shape).argmax(axis=1)
    return hacking.reason(_controls(samples, chosen), _controls(samples, None))


def _controls(samples: Responses, chosen_P) -> dict[str, float]:
    """The controls of one response per prompt; chosen_P None: of all. The variety always takes one per prompt, to compare equally many."""
    rows = np.arange(len(samples.lengths))
    picked = np.zeros(len(rows), int) if chosen_P is None else chosen_P
    lengths, ended, logprobs = (np.asarray(part, np.float64) if chosen_P is None else np.asarray(part, np.float64)[rows, picked]
                                for part in (samples.lengths, samples.ended, samples.values["mean_logprob"]))
    return {"length": float(lengths.mean()), "ended": float(ended.mean()), "mean_logprob": float(logprobs.mean()),
            "distinct_2": metrics.distinct_n([samples.tokens[p][k] for p, k in enumerate(picked.tolist())], 2)}
