"""Best-of-n and tilting, estimated exactly from M scored samples per prompt, without resampling.

Arrays are [P, M]: P prompts, M samples of the base policy (sft) each. Rewards are logits h in nats; golden is in the
judge's own unit. All arithmetic is float64.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from irl_jax.evaluation.metrics import jsonable, mean_stderr
from irl_jax.types import Array

TRUSTED_ESS_SHARE = 0.2  # a tilted estimate is trusted if its effective sample size is at least this share of M


class PerPrompt(NamedTuple):
    """golden: float64 [P], expected golden of best-of-n. win_rate: float64 [P], its win rate over one base sample."""

    golden: np.ndarray
    win_rate: np.ndarray


def order_weights(samples: int, n: int) -> np.ndarray:
    """Probability that the i-th smallest of M samples is the best of n drawn without replacement.

    w_i = C(i-1, n-1) / C(M, n) for i = 1 .. M, by w_M = n / M and w_{i-1} = w_i (i - n) / (i - 1). The factors
    are in [0, 1], so nothing overflows for any M.

    Args:
      samples: M, samples per prompt.
      n: how many are drawn, 1 <= n <= M.

    Returns:
      float64 [M], ascending by reward, summing to 1.

    Raises:
      ValueError: n is not in 1 .. M.
    """
    if not 1 <= n <= samples:
        raise ValueError(f"best-of-n needs 1 <= n <= M, got n = {n}, M = {samples}")
    index = np.arange(samples, 1, -1, dtype=np.float64)  # i = M .. 2
    factors = np.maximum(index - n, 0.0) / (index - 1.0)
    return (n / samples * np.concatenate([[1.0], np.cumprod(factors)]))[::-1]


def kl_bound(n: int) -> float:
    """Upper bound log n - (n - 1) / n on KL(best-of-n || base), nats per sequence (Beirami et al., arXiv 2401.01879)."""
    return math.log(n) - (n - 1) / n


def selection_weights(rewards_PxM: Array, n: int) -> np.ndarray:
    """Probability that best-of-n returns each sample, equal for tied rewards.

    Args:
      rewards_PxM: rewards, finite.
      n: 1 <= n <= M.

    Returns:
      float64 [P, M], rows summing to 1.

    Raises:
      ValueError: rewards that are not finite, or n not in 1 .. M.
    """
    rewards = np.asarray(rewards_PxM, np.float64)
    if rewards.ndim != 2 or not np.isfinite(rewards).all():
        raise ValueError(f"rewards must be finite and [P, M], got shape {rewards.shape}")
    cumulative = np.concatenate([[0.0], np.cumsum(order_weights(rewards.shape[1], n))])
    first = rankdata(rewards, method="min", axis=1).astype(np.int64)
    last = rankdata(rewards, method="max", axis=1).astype(np.int64)
    return (cumulative[last] - cumulative[first - 1]) / (last - first + 1)


def best_of_n_per_prompt(rewards_PxM: Array, golden_PxM: Array, n: int) -> PerPrompt:
    """Expected golden of best-of-n and its win rate over one base sample, per prompt.

    golden = sum_i w_i g_i with w the selection weights; win rate = sum_i w_i sum_{j != i} ([g_i > g_j] + [g_i = g_j] / 2)
    / (M - 1). Each winner plays the other M - 1 samples; n = 1 gives 0.5.

    Args:
      rewards_PxM: rewards to select by.
      golden_PxM: golden rewards of the same samples; NaN if there is no judge, which gives NaN.
      n: 1 <= n <= M.

    Returns:
      PerPrompt, for standard errors and paired differences between rewards on the same samples.

    Raises:
      ValueError: shapes differ, rewards are not finite, or n not in 1 .. M.
    """
    golden = np.asarray(golden_PxM, np.float64)
    if golden.shape != np.shape(rewards_PxM):
        raise ValueError(f"rewards {np.shape(rewards_PxM)} and golden {golden.shape} must have one shape [P, M]")
    weights = selection_weights(rewards_PxM, n)
    samples = golden.shape[1]
    if samples == 1:
        return PerPrompt(golden[:, 0], np.where(np.isnan(golden[:, 0]), np.nan, 0.5))
    wins = (rankdata(golden, axis=1) - 1.0) / (samples - 1.0)  # mean ranks count ties as half; a sample doesn't play itself
    return PerPrompt((weights * golden).sum(axis=1), (weights * wins).sum(axis=1))


def best_of_n(rewards_PxM: Array, golden_PxM: Array, ns) -> list[dict]:
    """The best-of-n curve: golden and win rate over one base sample, with standard errors over prompts.

    Args:
      rewards_PxM: rewards to select by.
      golden_PxM: golden rewards of the same samples.
      ns: values of n on the curve; those above M are skipped.

    Returns:
      A list of dict(n, golden, stderr, win_rate, win_rate_stderr, kl_bound), JSON-ready: None if undefined.

    Raises:
      ValueError: shapes differ, rewards are not finite, or an n below 1.
    """
    rows = []
    for n in sorted({int(n) for n in ns if n <= np.shape(rewards_PxM)[1]}):
        per_prompt = best_of_n_per_prompt(rewards_PxM, golden_PxM, n)
        golden, stderr = mean_stderr(per_prompt.golden)
        win_rate, win_rate_stderr = mean_stderr(per_prompt.win_rate)
        rows.append(dict(n=n, golden=golden, stderr=stderr, win_rate=win_rate, win_rate_stderr=win_rate_stderr,
                         kl_bound=kl_bound(n)))
    return jsonable(rows)


def tilting(rewards_PxM: Array, golden_PxM: Array, betas, trusted_share: float = TRUSTED_ESS_SHARE) -> list[dict]:
    """Golden against KL of the exact optimum base e^{h / beta} / Z, by self-normalised importance weights.

    w_i = softmax_i(h_i / beta); golden = sum_i w_i g_i; KL(tilted || base) = sum_i w_i log(M w_i), at most log M;
    effective sample size = 1 / sum_i w_i^2. Each is the mean over prompts.

    Args:
      rewards_PxM: logits h of M samples of the base policy, nats.
      golden_PxM: golden rewards of the same samples.
      betas: weights of the KL penalty, nats, positive.
      trusted_share: estimates are trusted if the mean effective sample size is at least this share of M.

    Returns:
      A list of dict(beta, golden, stderr, kl, kl_stderr, ess, trusted), JSON-ready, largest beta first.

    Raises:
      ValueError: shapes differ, rewards are not finite, or a beta is not positive.
    """
    rewards, golden = np.asarray(rewards_PxM, np.float64), np.asarray(golden_PxM, np.float64)
    if rewards.ndim != 2 or rewards.shape != golden.shape or not np.isfinite(rewards).all():
        raise ValueError(f"rewards {rewards.shape} must be finite, and of golden's shape {golden.shape}, [P, M]")
    samples = rewards.shape[1]
    rows = []
    for beta in sorted((float(b) for b in betas), reverse=True):
        if not beta > 0.0:
            raise ValueError(f"tilting needs beta > 0, got {beta}")
        logits = (rewards - rewards.max(axis=1, keepdims=True)) / beta
        log_weights = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        weights = np.exp(log_weights)
        mean, stderr = mean_stderr((weights * golden).sum(axis=1))
        kl, kl_stderr = mean_stderr((weights * (log_weights + math.log(samples))).sum(axis=1))
        ess = float(np.mean(1.0 / np.square(weights).sum(axis=1)))
        rows.append(dict(beta=beta, golden=mean, stderr=stderr, kl=kl, kl_stderr=kl_stderr, ess=ess,
                         trusted=ess >= trusted_share * samples))
    return jsonable(rows)


class Agreed(NamedTuple):
    """golden, stderr: of the chosen responses, over prompts. mean_n: mean n reached. plain_golden, plain_stderr: of best-of-max_n
    by the members' mean on the same samples. max_n: the largest n."""

    golden: float
    stderr: float
    mean_n: float
    plain_golden: float
    plain_stderr: float
    max_n: int


def agreed_choice(rewards_ExM: Array, ns, agreement: float) -> tuple[int, int]:
    """Best-of-n that stops raising n when an ensemble's members disagree about the gain.

    The choice among the first n samples has the largest mean reward over members. n rises along `ns`. The choice moves to a
    better sample only if mean_e(gain) > agreement * std_e(gain). The gain is the sample's reward minus the current choice's, by
    each member. The first disagreement ends it.

    Args:
      rewards_ExM: each member's rewards of one prompt's samples. ns: ascending, the first at least 1. agreement: 0 never stops.

    Returns:
      (index of the chosen sample, n reached).
    """
    rewards = np.asarray(rewards_ExM, np.float64)
    mean = rewards.mean(0)
    reached = int(ns[0])
    choice = int(np.argmax(mean[:reached]))
    for n in ns[1:]:
        better = int(np.argmax(mean[:n]))
        gain = rewards[:, better] - rewards[:, choice]
        if better != choice and not gain.mean() > agreement * gain.std():
            break
        choice, reached = better, int(n)
    return choice, reached


def agreed_best_of_n(rewards_ExPxM: Array, golden_PxM: Array, ns, agreement: float) -> Agreed | None:
    """Compares `agreed_choice` with plain best-of-max(ns) on blocks of max(ns) consecutive samples of each prompt.

    Args:
      rewards_ExPxM: members' rewards. golden_PxM: golden of the same samples. ns: values of n; those above M are skipped.
      agreement: see `agreed_choice`.

    Returns:
      Agreed, with standard errors over prompts; None if every n is above M.

    Raises:
      ValueError: the members' rewards are not [E, P, M] of golden's P and M, or not finite.
    """
    rewards, golden = np.asarray(rewards_ExPxM, np.float64), np.asarray(golden_PxM, np.float64)
    if rewards.ndim != 3 or rewards.shape[1:] != golden.shape or not np.isfinite(rewards).all():
        raise ValueError(f"members' rewards {rewards.shape} must be finite and [E, P, M], with golden {golden.shape} [P, M]")
    ns = sorted(n for n in set(ns) if n <= golden.shape[1])
    if not ns:
        return None
    size = ns[-1]
    agreed, plain, reached = [], [], []
    for p in range(golden.shape[0]):
        starts = range(0, golden.shape[1] - size + 1, size)
        choices = [agreed_choice(rewards[:, p, start : start + size], ns, agreement) for start in starts]
        agreed.append(np.mean([golden[p, start + index] for start, (index, _) in zip(starts, choices, strict=True)]))
        plain.append(np.mean([golden[p, start + np.argmax(rewards[:, p, start : start + size].mean(0))] for start in starts]))
        reached.append(np.mean([n for _, n in choices]))
    return Agreed(*mean_stderr(np.array(agreed)), float(np.mean(reached)), *mean_stderr(np.array(plain)), size)
