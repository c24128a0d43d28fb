"""Reward against golden while a policy was trained. If reward rises while golden falls, the reward was over-optimised."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from irl_jax import artifacts, paths
from irl_jax.evaluation import metrics


def curves(context, judge, roles) -> dict:
    """{role: {"step", "reward", "reward_stderr", "golden", "golden_stderr", "kl": lists}} of the rollouts that training saved.

    `reward` is the raw optimised reward and `kl` the mean log-ratio to the policy's reference (k1, nats per sequence). Each is a
    mean over the saved batch. Standard errors are over prompts, after averaging each prompt's samples. Golden is judged here,
    after training. Without a judge there are no curves.
    """
    out = {}
    for role in roles if judge else ():
        folder = context.workdir.path / role / "rollouts"
        files = [folder / f"{number}.npz" for number in paths.numbered(folder, ".npz")]
        if files:
            out[role] = _curve(context, judge, files)
    return out


def at_same_kl(curve, kl: float, start: tuple[float, float]) -> tuple[float, float] | None:
    """Golden of a training curve at KL `kl`, linearly interpolated; None if kl is negative or beyond the curve's largest.

    The curve's points are batches of training prompts, fewer than in evaluation: mind the standard error.

    Args:
      curve: from `curves`. kl: nats per sequence. start: golden and its standard error at KL 0, of the policy training began with.

    Returns:
      (golden, its standard error). The error combines those of the two neighbouring points with the same weights.
    """
    reached = np.maximum.accumulate([0.0, *curve["kl"]])
    if not 0 <= kl <= reached[-1]:
        return None
    keep = np.concatenate([[True], np.diff(reached) > 0])
    reached = reached[keep]
    golden, errors = (np.array([first, *curve[key]], float)[keep]
                      for first, key in zip(start, ("golden", "golden_stderr"), strict=True))
    after = min(int(np.searchsorted(reached, kl, side="right")), len(reached) - 1)
    before = max(after - 1, 0)
    share = (kl - reached[before]) / (reached[after] - reached[before]) if after > before else 0.0
    value = (1 - share) * golden[before] + share * golden[after]
    return float(value), float(np.hypot((1 - share) * errors[before], share * errors[after]))


def _curve(context, judge, files: Sequence[Path]) -> dict[str, list[float]]:
    curve: dict[str, list[float]] = {name: [] for name in ("step", "reward", "reward_stderr", "golden", "golden_stderr", "kl")}
    for path in files:
        arrays = artifacts.load_arrays(path)
        texts = _texts(context, arrays)
        golden = np.asarray(judge.score(*texts), np.float64)
        _, prompt = np.unique(texts[0], return_inverse=True)
        curve["step"].append(int(path.stem))
        curve["kl"].append(float(arrays["kl"].mean()))
        for name, values in (("reward", arrays["reward"]), ("golden", golden)):
            mean, stderr = metrics.mean_stderr(np.bincount(prompt, values) / np.bincount(prompt))
            curve[name].append(mean)
            curve[f"{name}_stderr"].append(stderr)
    return curve


def _texts(context, arrays) -> tuple[list[str], list[str]]:
    prompts, responses = [], []
    for row, middle, end in zip(arrays["tokens"], arrays["prompt_lengths"], arrays["lengths"], strict=True):
        prompts.append(context.text(row[:middle]))
        responses.append(context.text(row[middle:end]))
    return prompts, responses
