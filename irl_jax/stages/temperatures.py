"""sft and the policies at other temperatures than their own. Every reward must beat these gains, which cost nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from irl_jax import variants
from irl_jax.evaluation import best_of_n, metrics
from irl_jax.stages import sampling
from irl_jax.stages.evaluated import BEST

CHOOSERS = ("robust", "mean_logprob", "ended", "length", "log_ratio")  # robust, and what it must beat


def names(config, role: str) -> list[str]:
    """A role's names at config.eval.temperatures (see `sampling.at`), without the run's own temperature.

    sft also gets the temperature of `robust`, if the run learns a reward for it.
    """
    own, wanted = sampling.law_of(config.sample), list(config.eval.temperatures)
    if role == "sft" and {*config.robust.recipes} & {method.name for method in variants.methods(config, "reward")}:
        wanted.append(config.robust.temperature)
    return [sampling.at(role, t) for t in dict.fromkeys(wanted) if sampling.Law(t) != own]


def draw(context, roles: Sequence[str]) -> list[str]:
    """Samples each role at each temperature and returns the names. sft gets half as many as at its own, for best-of-n; greedy decoding
    one."""
    config, found = context.config.sample, []
    for role in roles:
        count = max(2, config.eval_samples // 2) if role == "sft" else config.policy_samples
        for name in names(context.config, role):
            sampling.draw(context, name, "eval", count if sampling.parted(name)[1] else 1)
            found.append(name)
    return found


def curves(context, recipe: str, cold: Mapping) -> dict:
    """{temperature: best-of-n rows} of sft's samples, without greedy decoding, which has only one."""
    found = {}
    for name, judged in cold.items():
        role, temperature = sampling.parted(name)
        if role == "sft" and temperature:
            values, gold = judged.by_prompt(judged.reward(recipe)), judged.by_prompt(judged.golden)
            found[f"{temperature:g}"] = best_of_n.best_of_n(values, gold, context.config.eval.best_of)
    return found


def golden_by_prompt(sets: Mapping, rewards: Sequence[str], n: int) -> dict[str, np.ndarray]:
    """{name: golden [P]} of every policy, and of each reward's best-of-n from sft's samples at each temperature.

    Args:
      sets: {name: Judged} of roles at the run's own law and at temperatures. rewards: names. n: of best-of-n.
    """
    found = {name: judged.by_prompt(judged.golden).mean(1) for name, judged in sets.items() if name != "demo"}
    for name, judged in sets.items():
        role, temperature = sampling.parted(name)
        gold = judged.by_prompt(judged.golden)
        if role == "sft" and gold.shape[1] >= n:  # greedy decoding has one sample
            at = "" if temperature is None else f" at T = {temperature:g}"
            for reward in rewards:
                chosen = best_of_n.best_of_n_per_prompt(judged.by_prompt(judged.reward(reward)), gold, n)
                found[f"best-of-{n} by {reward}{at}"] = chosen.golden
    return found


def paired(config, golden: Mapping[str, np.ndarray], rewards: Sequence[str], n: int) -> tuple[str, list[tuple]]:
    """What to compare at the temperatures, prompt by prompt.

    The baseline is sft at its best temperature by golden. It is compared with each policy at that policy's own best temperature by
    golden.

    Args:
      config: the run's. golden: from `golden_by_prompt`. rewards, n: as there.
    Returns:
      (the baseline's name, [(name, golden [P], golden [P])]).
    """
    def best(role: str) -> str:
        return max((role, *names(config, role)), key=lambda name: golden[name].mean())

    baseline = best("sft")
    ours, *others = CHOOSERS
    wanted = [(name, "sft") for name in names(config, "sft")]
    for temperature in filter(None, (sampling.parted(name)[1] for name in names(config, "sft"))):
        chosen = {reward: f"best-of-{n} by {reward} at T = {temperature:g}" for reward in rewards}
        wanted += [(name, BEST) for name in chosen.values()]
        wanted += [(chosen[ours], chosen[other]) for other in others if ours in chosen and other in chosen]
    trained = [role for role in golden if "/" in role and "@" not in role]
    wanted += [(f"{role} at its best temperature", BEST) for role in trained]
    known = {**golden, BEST: golden[baseline], **{f"{role} at its best temperature": golden[best(role)] for role in trained}}
    return baseline, [(f"{one} - {other}", known[one], known[other]) for one, other in wanted if one in known and other in known]


def differences(rows: Sequence[tuple]) -> list[dict]:
    """[{name, difference, stderr, z, n}] of (name, values [P], values [P])."""
    return [{"name": name, **metrics.paired_difference(a, b)._asdict(), "n": len(a)} for name, a, b in rows]

