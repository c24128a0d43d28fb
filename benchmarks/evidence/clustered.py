"""Estimates from samples of prompts, with standard errors over prompts: samples of one prompt are not independent evidence.

Everything is float64 numpy. `groups` are the prompts' numbers, one a sample. With fewer than two prompts a standard error is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

BLOCKS = 100  # of prompts that the jackknife leaves out in turn, at most


def mean(values_n, groups_n) -> tuple[float, float]:
    """The mean over samples and its standard error, clustered: with d_g the sum of prompt g's deviations from the mean,
    sqrt(G / (G - 1) sum_g d_g^2) / n.

    Args:
      values_n: any numbers; without one the mean is NaN. groups_n: their prompts.

    Returns:
      (mean, stderr).
    """
    values = np.asarray(values_n, np.float64)
    if not values.size:
        return math.nan, math.nan
    _, cluster = np.unique(groups_n, return_inverse=True)
    sums = np.bincount(cluster, values - values.mean())
    count = len(sums)
    stderr = math.sqrt(count / (count - 1) * np.square(sums).sum()) / values.size if count > 1 else math.nan
    return float(values.mean()), stderr


def least_squares(design_nxk, target_n, groups_n) -> tuple[np.ndarray, np.ndarray]:
    """Ordinary least squares (of least norm, where columns depend on each other) with the clustered sandwich errors of Liang & Zeger 1986.

    With X the design, e the residuals and s_g = X_g' e_g: the covariance is G / (G - 1) (X'X)^-1 [sum_g s_g s_g'] (X'X)^-1. There is no
    intercept but a column of ones.

    Args:
      design_nxk: one row a sample. target_n: what is regressed. groups_n: the samples' prompts.

    Returns:
      (coefficients [k], standard errors [k]).
    """
    design, target = np.asarray(design_nxk, np.float64), np.asarray(target_n, np.float64)
    inverse = np.linalg.pinv(design.T @ design, hermitian=True)
    coefficients = inverse @ (design.T @ target)
    _, cluster = np.unique(groups_n, return_inverse=True)
    count = int(cluster.max()) + 1
    if count < 2:
        return coefficients, np.full(len(coefficients), math.nan)
    scores = np.zeros((count, design.shape[1]))
    np.add.at(scores, cluster, design * (target - design @ coefficients)[:, None])
    covariance = count / (count - 1) * inverse @ (scores.T @ scores) @ inverse
    return coefficients, np.sqrt(np.maximum(np.diag(covariance), 0.0))  # rounding may leave a 0 below 0


def jackknife(statistic: Callable[[np.ndarray], np.ndarray], groups_n) -> np.ndarray:
    """Standard errors of several statistics by leaving out one block of prompts at a time: sqrt((B - 1) / B sum_b (t_b - mean t)^2).

    A block is one prompt, or several where there are more than `BLOCKS` prompts. What was fitted before is not fitted again.

    Args:
      statistic: of a mask [n] of the samples that stay; gives [k] numbers. groups_n: the samples' prompts.

    Returns:
      float64 [k], NaN with fewer than two prompts.
    """
    _, cluster = np.unique(groups_n, return_inverse=True)
    count = int(cluster.max()) + 1
    if count < 2:
        return np.full(len(statistic(np.ones(len(cluster), bool))), math.nan)
    blocks = min(count, BLOCKS)
    block = (np.arange(count) * blocks // count)[cluster]
    values = np.array([statistic(block != b) for b in range(blocks)], np.float64)
    return np.sqrt((blocks - 1) / blocks * np.square(values - values.mean(0)).sum(0))


def within_std(values_PxM) -> float:
    """The standard deviation of samples around their prompt's mean: sqrt of the mean over prompts of the variance (with 1 / M)."""
    return float(np.sqrt(np.asarray(values_PxM, np.float64).var(axis=1).mean()))
