"""Does an ensemble's disagreement foresee over-optimisation? Its members on the rollouts that training kept, beside golden.

A step's rollouts are a batch of a few training prompts, another one at every step, so golden along training is noisy, and the largest of
several noisy means lies too high: `drop` of a policy that loses nothing is a little above 0. Disagreement and drop may both grow with the
step for reasons of their own; `by_kl`, the same correlation for the KL, says whether disagreement tells more than distance does.
"""

from __future__ import annotations

import math

import numpy as np

from irl_jax import artifacts, variants
from irl_jax.evaluation import metrics
from irl_jax.stages import judging, scoring
from irl_jax.types import Example

QUANTILE = 0.95  # of the disagreement on sft's samples: what a rollout's is held against


def rollouts(path) -> tuple[list[Example], dict]:
    """(responses, arrays) of a file that training kept; `source` numbers the prompts of the batch."""
    arrays = artifacts.load_arrays(path)
    numbers: dict[bytes, int] = {}
    examples = []
    for row, middle, end, ended in zip(*(arrays[name] for name in ("tokens", "prompt_lengths", "lengths", "ended")), strict=True):
        prompt = row[:middle].astype(np.int32)
        examples.append(Example(prompt, row[middle:end].astype(np.int32), bool(ended), numbers.setdefault(prompt.tobytes(), len(numbers))))
    return examples, arrays


def ensembles(config) -> list[str]:
    """Names of the run's rewards that have several members."""
    return [method.name for method in variants.methods(config, "reward") if method.config.reward.ensemble > 1]


def of_policies(context, judge, sft) -> dict | None:
    """The members' disagreement over the training of every policy against a reward, by its own ensemble or else the run's first.

    Args:
      judge: golden's, or None. sft: sft's judged samples, which say what disagreement is usual.

    Returns:
      {role: `over_training`}; None where the run has no ensemble, or no policy kept rollouts.
    """
    names = ensembles(context.config)
    out, usual = {}, {}
    for method in variants.methods(context.config, "policy") if names else ():
        files = sorted((context.workdir.path / method.role / "rollouts").glob("*.npz"), key=lambda path: int(path.stem))
        if not files:
            continue
        name = method.recipe if method.recipe in names else names[0]
        if name not in usual:
            usual[name] = sft.members(name)
        out[method.role] = {"reward_name": name, "own": name == method.recipe, **over_training(context, judge, name, usual[name], files)}
    return metrics.jsonable(out) or None


def over_training(context, judge, name: str, usual_Exn, files) -> dict:
    """Curves over one policy's kept rollouts, and whether disagreement foresees what happens to golden.

    Args:
      judge: golden's, or None. name: of the ensemble. usual_Exn: its members on sft's samples. files: the rollouts, step by step.

    Returns:
      Lists, one number a step: "step"; "kl" (to the policy's reference, nats a sequence); "golden"; "reward" (the raw one that was
      optimised); "std", the mean over rollouts of the members' standard deviation (with 1/E), "std_centred", that after each member's
      mean on sft's samples is taken off (a constant changes no choice); "share_above", of rollouts whose `std` is above the quantile
      `QUANTILE` of sft's samples. The means come with "_stderr" over prompts. "usual": that quantile and sft's mean. "foresees": what
      `foresees` says, None without a judge.
    """
    usual = usual_Exn.std(0)
    limit = float(np.quantile(usual, QUANTILE))
    names = ("kl", "golden", "reward", "std", "std_centred", "share_above")
    curves: dict[str, list] = {key: [] for key in ("step", *names, *(f"{key}_stderr" for key in names))}
    for path in files:
        examples, arrays = rollouts(path)
        members = scoring.member_rewards(context, name, examples)
        values = {"kl": arrays["kl"], "reward": arrays["reward"], "std": members.std(0),
                  "std_centred": (members - usual_Exn.mean(1, keepdims=True)).std(0), "share_above": members.std(0) > limit,
                  "golden": judging.Judged(context, judge, examples).golden if judge else np.full(len(examples), math.nan)}
        prompt = np.array([example.source for example in examples])
        curves["step"].append(int(path.stem))
        for key in names:
            mean, stderr = metrics.mean_stderr(np.bincount(prompt, values[key]) / np.bincount(prompt))
            curves[key].append(mean)
            curves[f"{key}_stderr"].append(stderr)
    return {**curves, "usual": {"quantile": limit, "mean": float(usual.mean())},
            "foresees": foresees(curves, limit) if judge else None}


def foresees(curves: dict, limit: float) -> dict:
    """Whether disagreement goes with golden's fall, and comes before it.

    Args:
      curves: "step", "golden", "golden_stderr", "std", "kl": lists. limit: the disagreement that is unusual on sft's samples.

    Returns:
      spearman       over steps, of std and drop = the largest golden so far less golden now; by_kl: the same of the KL
      spearman_next  of std and the fall from this kept step to the next: what is known before it happens; by_kl_next
      peak_step, peak_golden, drop, drop_stderr: where golden was largest, and how much lower the last step is
      passes_step    the first step whose mean std is above the limit; None: never. `passes_before_peak`: whether that is not after the peak
    """
    golden, std, kl = (np.asarray(curves[key], float) for key in ("golden", "std", "kl"))
    errors = np.asarray(curves["golden_stderr"], float)
    drop, fall = np.maximum.accumulate(golden) - golden, golden[:-1] - golden[1:]
    peak, above = int(np.argmax(golden)), np.flatnonzero(std > limit)
    passes = int(curves["step"][above[0]]) if len(above) else None
    enough = len(golden) > 2
    rho = lambda a, b: metrics.spearman(a, b) if enough else math.nan
    return {"spearman": rho(std, drop), "by_kl": rho(kl, drop), "spearman_next": rho(std[:-1], fall), "by_kl_next": rho(kl[:-1], fall),
            "peak_step": int(curves["step"][peak]), "peak_golden": golden[peak], "drop": golden[peak] - golden[-1],
            "drop_stderr": float(np.hypot(errors[peak], errors[-1])) if peak < len(golden) - 1 else 0.0,
            "passes_step": passes, "passes_before_peak": None if passes is None else passes <= int(curves["step"][peak])}
