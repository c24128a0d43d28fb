"""Records read, and effects pooled over seeds with 95% intervals.

With v_s the effect of seed s of S and e_s its standard error over prompts:

    mean = sum_s v_s / S,  SE_prompts = sqrt(sum_s e_s^2) / S,  SE_seeds = std_s(v_s) / sqrt(S)
    interval over these prompts alone = mean +- 1.96 SE_prompts
    interval over seeds and prompts = mean +- max(t(0.975, S - 1) SE_seeds, 1.96 SE_prompts)

Every seed has data, prompts, training and samples of its own, so SE_seeds holds the prompts' noise too, and Student's t pays for the few
seeds it is estimated from; where the seeds lie closer by chance than their prompts allow, the wider interval counts. With one seed, only
the interval over prompts is known.
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from benchmarks.evidence import plan
from irl_jax.errors import UserError
from irl_jax.evaluation.pooling import pool

NORMAL = float(stats.norm.ppf(0.975))
BLOCKS = 6  # of training steps, whose kept batches are pooled: a single batch has few prompts
Value = tuple[float, float | None]  # an effect of one run, and its standard error over prompts


class Effect(NamedTuple):
    """A pooled effect. low, high: over seeds and prompts (one seed: over prompts). over_prompts: half that interval over prompts alone, NaN
    where no errors are known."""

    mean: float
    low: float
    high: float
    over_prompts: float
    seeds: int

    def text(self, digits: int = 3) -> str:
        """mean [low, high]; without the interval where it is not known."""
        if math.isnan(self.low):
            return f"{self.mean:+.{digits}f}"
        return f"{self.mean:+.{digits}f} [{self.low:+.{digits}f}, {self.high:+.{digits}f}]"


def effect(values: Sequence[Value]) -> Effect | None:
    """The module's formula.

    Args:
      values: (effect, standard error over prompts or None) of each seed.

    Returns:
      Effect; None without values. Bounds are NaN where one seed gives no standard error.
    """
    if not values:
        return None
    pooled = pool([value for value, _ in values], [stderr for _, stderr in values])
    count, prompts = len(values), pooled.over_prompts
    half = NORMAL * prompts
    if count > 1:
        half = float(np.fmax(stats.t.ppf(0.975, count - 1) * pooled.over_runs, half))  # fmax: the other where one is NaN
    return Effect(pooled.mean, pooled.mean - half, pooled.mean + half, NORMAL * prompts, count)


class Study(NamedTuple):
    """The records there are of one experiment. records: {cell: {seed: record}}, cells in the plan's order."""

    name: str
    records: Mapping[str, Mapping[int, Mapping]]

    @property
    def planned(self) -> plan.Experiment:
        """What was planned."""
        return plan.EXPERIMENTS[self.name]

    def seeds(self, cell: str = plan.BASE) -> list[int]:
        """The seeds of a cell, ascending."""
        return sorted(self.records.get(cell, {}))

    def missing(self) -> list[str]:
        """CELL/seed-S of what the plan has and the records have not."""
        return [f"{cell.name}/seed-{cell.seed}" for cell in self.planned.of(self.name) if cell.seed not in self.records.get(cell.name, {})]

    def effect(self, of: Callable[[Mapping], Value | None], cell: str = plan.BASE) -> Effect | None:
        """An effect of single records, pooled over the seeds of a cell that have it."""
        found = [of(self.records[cell][seed]) for seed in self.seeds(cell)]
        return effect([value for value in found if value is not None])

    def names(self, *keys: str) -> list[str]:
        """What stands at a path of any of the base cell's records, {name: ...} there, in their order."""
        return list(dict.fromkeys(name for record in self.records.get(plan.BASE, {}).values() for name in _at(record, keys) or {}))

    def by_size(self, *keys: str) -> list[tuple[str, Effect]]:
        """(name, effect) of the base cell's numbers at a path, {name: number} there, the largest mean in magnitude first."""
        found = [(name, one) for name in self.names(*keys) if (one := self.effect(number(*keys, name)))]
        return sorted(found, key=lambda pair: -abs(pair[1].mean))

    def contrast(self, of: Callable[[Mapping], Value | None], one: str, other: str) -> Effect | None:
        """An effect in cell `one` less that in cell `other`, by the seeds that both have."""
        return contrast(of, self.records.get(one, {}), self.records.get(other, {}))


def contrast(of: Callable[[Mapping], Value | None], one: Mapping[int, Mapping], other: Mapping[int, Mapping]) -> Effect | None:
    """An effect in the records `one` {seed: record} less that in `other`, by the seeds that both have."""
    both = [(of(one[seed]), of(other[seed])) for seed in sorted(one) if seed in other]
    return effect([minus(a, b) for a, b in both if a is not None and b is not None])


def minus(a: Value, b: Value) -> Value:
    """a - b, with the standard error of independent figures."""
    return a[0] - b[0], None if a[1] is None or b[1] is None else math.hypot(a[1], b[1])


def load(folder: pathlib.Path) -> dict[str, Study]:
    """{experiment: Study} of the records below a folder, in the plan's order; experiments without one are absent.

    Raises:
      UserError: a file that is no record.
    """
    studies = {}
    for name, experiment in plan.EXPERIMENTS.items():
        records = {}
        for cell in experiment.cells:
            files = sorted((folder / name / cell).glob("seed-*.json"))
            found = dict(sorted((record["seed"], record) for record in map(read, files)))
            if found:
                records[cell] = found
        if records:
            studies[name] = Study(name, records)
    return studies


def read(file: pathlib.Path) -> dict:
    """A record.

    Raises:
      UserError: the file is none, or cannot be read.
    """
    try:
        record = json.loads(file.read_text())
        for key in ("seed", "seconds", "results", "over_training", "analyses"):
            record[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: is no record ({error}); remove it, or write it again with benchmarks.evidence.run") from None
    return record


def in_blocks(curves: Sequence[Mapping], key: str) -> tuple[list[float], list[float], list[Effect | None]]:
    """A quantity over training in BLOCKS blocks of the kept steps that all seeds have.

    Args:
      curves: a seed's lists each, "step", "kl", the quantity and its "_stderr" over a batch's prompts among them.

    Returns:
      (mean step, mean KL in nats and at least 0, pooled effect) of every block, as three lists.
    """
    common = sorted(set.intersection(*(set(curve["step"]) for curve in curves))) if curves else []
    steps, kls, found = [], [], []
    for block in np.array_split(common, min(BLOCKS, len(common))) if common else []:
        places = [[curve["step"].index(step) for step in block] for curve in curves]
        steps.append(float(block.mean()))
        kls.append(max(0.0, float(np.mean([curve["kl"][i] for curve, own in zip(curves, places, strict=True) for i in own]))))
        values = [mean([curve[key][i] for i in own], [curve[f"{key}_stderr"][i] for i in own])
                  for curve, own in zip(curves, places, strict=True)]
        found.append(effect([value for value in values if value is not None]))
    return steps, kls, found


def mean(values: Sequence[float | None], stderrs: Sequence[float | None]) -> Value | None:
    """The mean of independent figures; None where one is missing."""
    if None in values:
        return None
    return sum(values) / len(values), None if None in stderrs else math.hypot(*stderrs) / len(stderrs)


# ------------------------------------------------------------------ single figures of one record


def point(record: Mapping, reward: str, n: int) -> Mapping:
    """A reward's best-of-n at one n; {} where it was not measured."""
    rows = (record["results"]["rewards"].get(reward) or {}).get("best_of_n") or []
    return next((row for row in rows if row["n"] == n and row.get("win_rate") is not None), {})


def win(reward: str, n: int) -> Callable[[Mapping], Value | None]:
    """Win rate of best-of-n by a reward over one sample of sft, less one half."""
    def of(record):
        row = point(record, reward, n)
        return (row["win_rate"] - 0.5, row["win_rate_stderr"]) if row else None

    return of


def paired(name: str) -> Callable[[Mapping], Value | None]:
    """A difference on the same prompts, by its name in results.json."""
    def of(record):
        row = next((row for row in record["results"].get("paired") or [] if row["name"] == name), None)
        return (row["difference"], row["stderr"]) if row and row["difference"] is not None else None

    return of


def number(*keys: str, stderr: str = "") -> Callable[[Mapping], Value | None]:
    """A number of the record by its path, and its standard error by the name that stands beside it."""
    def of(record):
        inside = _at(record, keys[:-1]) or {}
        value = inside.get(keys[-1])
        return None if value is None else (float(value), (inside.get(stderr) if stderr else None))

    return of


def _at(record: Mapping, keys: Sequence[str]):
    """What stands at a path of a record; None where the path ends before."""
    inside = record
    for key in keys:
        inside = (inside or {}).get(key)
    return inside


def golden_of(role: str) -> Callable[[Mapping], Value | None]:
    """Mean golden of a policy's evaluation samples."""
    return number("results", "policies", role, "golden_mean", stderr="golden_stderr")


def difference(a: Callable[[Mapping], Value | None], b: Callable[[Mapping], Value | None]) -> Callable[[Mapping], Value | None]:
    """a - b within a record; the standard error is that of independent figures, too wide where they share samples."""
    def of(record):
        one, other = a(record), b(record)
        return None if one is None or other is None else minus(one, other)

    return of


def scaled(a: Callable[[Mapping], Value | None], by: float) -> Callable[[Mapping], Value | None]:
    """A figure times a number."""
    def of(record):
        one = a(record)
        return None if one is None else (by * one[0], None if one[1] is None else abs(by) * one[1])

    return of
