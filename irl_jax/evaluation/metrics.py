"""Numbers with standard errors. Everything is float64 numpy; log-probs and divergences are in nats per sequence.

Standard errors are over prompts: samples of one prompt are averaged first, since they aren't independent evidence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from irl_jax.types import Array

ROUNDING = 1e-12  # smaller differences and errors come from another order of summation


class Paired(NamedTuple):
    """A difference with its standard error over prompts and z = difference / stderr."""

    difference: float
    stderr: float
    z: float


class WithinPrompts(NamedTuple):
    """mean: over prompts; stderr: of that mean; constant: prompts left out because a side never varied."""

    mean: float
    stderr: float
    constant: int


def jsonable(value):
    """Copies nested containers for JSON: numpy scalars become Python's, NaN and infinities become None."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return jsonable(value.tolist())
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _by_prompt(values: Array) -> np.ndarray:
    """[P] or [P, K] to float64 [P], the mean over a prompt's samples."""
    values = np.asarray(values, np.float64)
    if values.ndim not in (1, 2):
        raise ValueError(f"expected [P] or [P, K], got shape {values.shape}")
    return values.mean(axis=1) if values.ndim == 2 else values


def mean_stderr(values: Array) -> tuple[float, float]:
    """Mean over prompts and its standard error, s / sqrt(P) with s the sample standard deviation.

    Args:
      values: [P], or [P, K] with K samples per prompt, averaged first.

    Returns:
      (mean, stderr); the stderr of a single prompt is NaN, as is the mean of none.
    """
    values = _by_prompt(values)
    if values.size == 0:
        return math.nan, math.nan
    stderr = values.std(ddof=1) / math.sqrt(values.size) if values.size > 1 else math.nan
    return float(values.mean()), float(stderr)


def paired_difference(a_P: Array, b_P: Array) -> Paired:
    """Mean of a - b over the same prompts, its standard error and z.

    Args:
      a_P, b_P: [P] or [P, K], in the same order of prompts; K may differ between the two.

    Returns:
      Paired; z is 0 if a equals b everywhere and infinite if they differ by a constant.

    Raises:
      ValueError: the numbers of prompts differ.
    """
    a, b = _by_prompt(a_P), _by_prompt(b_P)
    if a.shape != b.shape:
        raise ValueError(f"paired values need the same prompts, got {a.size} and {b.size}")
    difference, stderr = mean_stderr(a - b)
    return Paired(difference, stderr, _z(difference, stderr))


def _z(difference: float, stderr: float) -> float:
    if stderr <= ROUNDING:
        return math.copysign(math.inf, difference) if abs(difference) > ROUNDING else 0.0
    return difference / stderr


class _AucParts(NamedTuple):
    auc: float
    positive: np.ndarray  # share of negatives below each positive, ties half
    negative: np.ndarray  # share of positives above each negative, ties half


def _auc_parts(positive: Array, negative: Array) -> _AucParts:
    positive, negative = (np.asarray(x, np.float64).ravel() for x in (positive, negative))
    if not positive.size or not negative.size:
        raise ValueError(f"AUC needs both classes, got {positive.size} positives and {negative.size} negatives")
    ranks = rankdata(np.concatenate([positive, negative]))
    above = (ranks[: positive.size] - rankdata(positive)) / negative.size
    below = 1.0 - (ranks[positive.size :] - rankdata(negative)) / positive.size
    return _AucParts(float(above.mean()), above, below)


def _auc_stderr(positive: np.ndarray, negative: np.ndarray, groups) -> float:
    """Standard error of the AUC (or of a difference of AUCs) from its placements, independent or clustered."""
    if min(positive.size, negative.size) < 2:
        return math.nan
    if groups is None:
        return float(math.sqrt(positive.var(ddof=1) / positive.size + negative.var(ddof=1) / negative.size))
    labels = np.concatenate([np.asarray(groups[0]).ravel(), np.asarray(groups[1]).ravel()])
    _, cluster = np.unique(labels, return_inverse=True)
    count = int(cluster.max()) + 1
    if count < 2:
        return math.nan
    influence = np.concatenate([(positive - positive.mean()) / positive.size, (negative - negative.mean()) / negative.size])
    sums = np.bincount(cluster, weights=influence, minlength=count)
    return float(math.sqrt(count / (count - 1) * np.square(sums).sum()))


def auc(positive: Array, negative: Array, groups=None) -> tuple[float, float]:
    """Area under the ROC curve P(h+ > h-) + P(h+ = h-) / 2, by ranks, with its standard error.

    Source: DeLong et al. 1988; with `groups`, Obuchowski 1997 (samples of a prompt are not independent).

    Args:
      positive, negative: rewards of the two classes, any shapes.
      groups: None, or (groups of the positives, groups of the negatives): the prompt number of each.

    Returns:
      (auc, stderr); the stderr is NaN if a class has one member.

    Raises:
      ValueError: a class is empty.
    """
    parts = _auc_parts(positive, negative)
    return parts.auc, _auc_stderr(parts.positive, parts.negative, groups)


def auc_difference(positive_a: Array, negative_a: Array, positive_b: Array, negative_b: Array, groups=None) -> Paired:
    """AUC of reward a minus that of reward b on the same responses, with its standard error (DeLong's paired form).

    Args:
      positive_a, negative_a: rewards by a; positive_b, negative_b: by b, of the same responses in the same order.
      groups: as in `auc`.

    Returns:
      Paired.

    Raises:
      ValueError: a class is empty, or the sizes differ.
    """
    a, b = _auc_parts(positive_a, negative_a), _auc_parts(positive_b, negative_b)
    if a.positive.shape != b.positive.shape or a.negative.shape != b.negative.shape:
        raise ValueError("the two rewards must score the same responses")
    stderr = _auc_stderr(a.positive - b.positive, a.negative - b.negative, groups)
    return Paired(a.auc - b.auc, stderr, _z(a.auc - b.auc, stderr))


def pair_accuracy(chosen: Array, rejected: Array) -> tuple[float, float]:
    """Share of pairs whose chosen response has the higher reward, ties half, with its standard error.

    Args:
      chosen, rejected: [P] rewards of the two responses of each pair.

    Returns:
      (accuracy, stderr).
    """
    difference = np.asarray(chosen, np.float64) - np.asarray(rejected, np.float64)
    return mean_stderr((np.sign(difference) + 1.0) / 2.0)


def _row_spearman(a_PxM: np.ndarray, b_PxM: np.ndarray) -> np.ndarray:
    """Spearman's correlation of each row; NaN if a side is constant."""
    a, b = rankdata(a_PxM, axis=1), rankdata(b_PxM, axis=1)
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    scale = np.sqrt(np.square(a).sum(axis=1) * np.square(b).sum(axis=1))
    return np.where(scale > 0.0, (a * b).sum(axis=1) / np.where(scale > 0.0, scale, 1.0), np.nan)


def spearman(a: Array, b: Array) -> float:
    """Spearman's rank correlation over all values pooled, ties by mean ranks.

    Args:
      a, b: the same shape.

    Returns:
      The correlation in [-1, 1]; NaN if a side is constant.

    Raises:
      ValueError: the shapes differ.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"shapes differ: {a.shape} and {b.shape}")
    return float(_row_spearman(a.reshape(1, -1), b.reshape(1, -1))[0])


def spearman_within_prompts(a_PxM: Array, b_PxM: Array) -> WithinPrompts:
    """Mean over prompts of Spearman's correlation among a prompt's samples: what best-of-n can use of a reward.

    Args:
      a_PxM, b_PxM: [P, M], e.g. rewards and golden.

    Returns:
      WithinPrompts; prompts with a constant side are left out of the mean and counted.

    Raises:
      ValueError: the shapes differ or are not [P, M].
    """
    a, b = np.asarray(a_PxM, np.float64), np.asarray(b_PxM, np.float64)
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(f"need two [P, M], got {a.shape} and {b.shape}")
    rows = _row_spearman(a, b)
    kept = rows[~np.isnan(rows)]
    mean, stderr = mean_stderr(kept)
    return WithinPrompts(mean, stderr, int(rows.size - kept.size))


def distinct_n(sequences: Sequence, n: int = 2) -> float:
    """Distinct n-grams over all n-grams, pooled over the sequences (Li et al. 2016); no n-gram spans two sequences.

    It falls as sequences are added, so compare only policies with equally many samples.

    Args:
      sequences: texts (split into words at whitespace) or sequences of token ids.
      n: length of the n-grams.

    Returns:
      The share in (0, 1]; NaN if no sequence has n tokens.
    """
    seen, total = set(), 0
    for sequence in sequences:
        tokens = sequence.split() if isinstance(sequence, str) else np.asarray(sequence).tolist()
        grams = list(zip(*(tokens[i:] for i in range(n)), strict=False))
        seen.update(grams)
        total += len(grams)
    return len(seen) / total if total else math.nan


def kl_estimate(log_ratio: Array) -> tuple[float, float]:
    """KL(p || q) = E_p[log p - log q] by samples of p (the k1 estimator), with its standard error over prompts.

    Args:
      log_ratio: log p(y|x) - log q(y|x) of samples y of p, nats per sequence, [P] or [P, K].

    Returns:
      (KL, stderr), nats per sequence; unbiased, so it may fall below 0 by noise.
    """
    return mean_stderr(log_ratio)


def jensen_shannon(p_log_ratio: Array, q_log_ratio: Array) -> tuple[float, float]:
    """Jensen-Shannon divergence E_p[log 2p/(p+q)] / 2 + E_q[log 2q/(p+q)] / 2, bounded by log 2.

    Args:
      p_log_ratio: log p - log q of samples of p, nats per sequence, [P] or [P, K].
      q_log_ratio: log p - log q (the same sign) of samples of q on the same prompts, [P] or [P, K'].

    Returns:
      (divergence, stderr over prompts), nats; unbiased, so it may fall below 0 by noise.

    Raises:
      ValueError: the numbers of prompts differ.
    """
    p_term = math.log(2.0) - np.logaddexp(0.0, -np.asarray(p_log_ratio, np.float64))
    q_term = math.log(2.0) - np.logaddexp(0.0, np.asarray(q_log_ratio, np.float64))
    p_term, q_term = _by_prompt(p_term), _by_prompt(q_term)
    if p_term.shape != q_term.shape:
        raise ValueError(f"need the same prompts, got {p_term.size} and {q_term.size}")
    return mean_stderr((p_term + q_term) / 2.0)


def divergences(demo_log_ratio: Array, policy_log_ratio: Array) -> dict:
    """Divergences between an exactly known demonstrator and a policy, from samples of both on the same prompts.

    Args:
      demo_log_ratio: log demo - log policy of samples of the demonstrator, nats per sequence, [P] or [P, K].
      policy_log_ratio: log demo - log policy (the same sign) of samples of the policy, [P] or [P, K'].

    Returns:
      JSON-ready dict of forward_kl = KL(demo || policy), reverse_kl = KL(policy || demo), jensen_shannon, each with
      its `_stderr`, nats per sequence.

    Raises:
      ValueError: the numbers of prompts differ.
    """
    forward = kl_estimate(demo_log_ratio)
    reverse = kl_estimate(-np.asarray(policy_log_ratio, np.float64))
    bounded = jensen_shannon(demo_log_ratio, policy_log_ratio)
    numbers: dict[str, float] = {}
    for name, (value, stderr) in dict(forward_kl=forward, reverse_kl=reverse, jensen_shannon=bounded).items():
        numbers |= {name: value, f"{name}_stderr": stderr}
    return jsonable(numbers)


def coverage(counts_PxM: Array, shares_M: Array, resamples: int = 200) -> dict:
    """How much of a demonstrator's kinds of sentences a policy covers, from counts of kinds per prompt. The last kind is "other".

    coverage = sum_m min(q_m, p_m) / sum_m p_m over the demonstrator's kinds. p_m and q_m are the shares of kind m in all sentences of
    the demonstrator and the policy. It is 1 if the policy gives every kind at least its share. coverage_unweighted is the mean over
    kinds of min(q_m / p_m, 1): rare kinds count as much as common ones, and kinds the demonstrator never writes are left out.
    kind_entropy is that of q within the demonstrator's kinds, nats. other_kinds is the share of sentences of no such kind.
    Few sentences miss rare kinds by chance, so compare only policies with equally many samples.

    Args:
      counts_PxM: sentences of each kind per prompt. shares_M: p, summing to 1. resamples: bootstraps over prompts.

    Returns:
      JSON-ready dict of the four, each with its `_stderr` (bootstrap over prompts, fixed seed).
    """
    counts, shares = np.asarray(counts_PxM, np.float64), np.asarray(shares_M, np.float64)
    draws = np.random.default_rng(0).multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=resamples)
    sampled = np.array([_coverage(weights @ counts, shares) for weights in draws])
    names = ("coverage", "coverage_unweighted", "kind_entropy", "other_kinds")
    out: dict[str, float] = {}
    for name, value, stderr in zip(names, _coverage(counts.sum(0), shares), sampled.std(0, ddof=1), strict=True):
        out |= {name: value, f"{name}_stderr": stderr}
    return jsonable(out)


def _coverage(counts_M: np.ndarray, shares_M: np.ndarray) -> tuple[float, float, float, float]:
    q = counts_M / max(counts_M.sum(), 1.0)
    within = q[:-1] / q[:-1].sum() if q[:-1].sum() else q[:-1]
    entropy = float(np.sum(within * -np.log(np.where(within > 0, within, 1.0))))
    covered, own = np.minimum(q, shares_M)[:-1], shares_M[:-1]
    written = own > 0
    return float(covered.sum() / own.sum()), float(np.mean(covered[written] / own[written])), abs(entropy), float(q[-1])
