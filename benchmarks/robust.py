"""`robust` judged on what chose nothing of it: python -m benchmarks.robust run|table|figure [SET,...] [--seeds=200,...]

`run` makes a run of each set and seed (one after another, resumable) and its record, docs/evidence/robust/SET-SEED.json: golden, prompt
by prompt, of everything that robust is compared with. `table` prints what the records say, as docs/evidence.md has it; `figure` draws
docs/robust.svg. The rule that was judged stands in docs/robust.md with its reasons.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pathlib
import sys
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from benchmarks.evidence import paradetox
from benchmarks.evidence.record import rounded, write
from irl_jax import artifacts, sweep, workdir
from irl_jax.errors import UserError
from irl_jax.evaluation import best_of_n, golden, metrics, pooling
from irl_jax.stages import context as contexts
from irl_jax.stages import evaluate, plots, sampling, scoring
from irl_jax.stages.plot_style import LIGHT, MARKERS

ROOT = pathlib.Path(__file__).resolve().parent.parent
RECORDS = ROOT / "docs" / "evidence" / "robust"
SEEDS = {"testbed": (201, 202, 203), "hard": (200, 201, 202), "imdb": (200, 201, 202), "paradetox": (200, 201, 202)}  # docs/robust.md: why
N = 16
LEAN = {"reward.recipes": "init_sft,init_demo,sft_demo", "policy.recipes": ""}
SETS = {  # what is run: config, and what is set above it
    "testbed": ("configs/testbed.py", {}),
    "hard": ("configs/testbed.py:hard", LEAN),
    "imdb": ("configs/imdb.py", LEAN),
    "paradetox": ("configs/paper/paradetox.py", LEAN),
}
TITLES = {"testbed": "quickstart", "hard": "hard world", "imdb": "movie reviews", "paradetox": "ParaDetox"}
DRAWN = ("robust", "init_sft", "init_demo", "sft_demo", "mean_logprob", "length")
CONTROLS = ("mean_logprob", "ended", "length")  # best-of-16 by these costs no training


class Compared(NamedTuple):
    """A difference over seeds: mean, its standard error (of the prompts of these runs, and of the spread over seeds), and seeds."""

    mean: float
    stderr: float
    seeds: int

    @property
    def z(self) -> float:
        return self.mean / self.stderr if self.stderr else math.copysign(math.inf, self.mean) if self.mean else 0.0

    def text(self) -> str:
        return f"{self.mean:+.3f} ± {self.stderr:.3f}"


def compared(differences: list[np.ndarray]) -> Compared:
    """Of differences [P] by prompt, one array a seed: the variances of the prompts' mean and of the mean over seeds are added."""
    found = pooling.pool(*zip(*map(metrics.mean_stderr, differences), strict=True))
    return Compared(found.mean, math.hypot(found.over_prompts, found.over_runs if len(differences) > 1 else 0.0), len(differences))


def baselines(names) -> list[str]:
    """The honest baselines among the names of a record: sft at every temperature, and best-of-16 by each control from its samples."""
    return [name for name in names if name.partition("@")[0] == "sft"
            or any(name.startswith(f"best-of-{N} by {control}") for control in CONTROLS)]


# ------------------------------------------------------------------------------------------------------------- running
def run(wanted: list[tuple[str, int]], out: pathlib.Path, sets=SETS, records: pathlib.Path = RECORDS) -> int:
    """Runs the (set, seed) that have no record yet; returns the exit status of what failed, or 0."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
    for name, seed in wanted:
        file = records / f"{name}-{seed}.json"
        if file.exists():
            continue
        config, overrides = sets[name]
        if name == "paradetox":
            overrides = overrides | paradetox.prepare(out / name)
        folder = out / f"{name}-{seed}"
        flags = [f"--config.{key}={value}" for key, value in {**overrides, "seed": str(seed)}.items()]
        command = [sys.executable, "-m", "irl_jax", "run", f"--config={ROOT / config}", f"--workdir={folder}", *flags]
        if status := sweep.apart(command, env=environment, cwd=ROOT):
            return status
        write(file, rounded(record(folder)))
        print(f"{file}", flush=True)
    return 0


def record(folder: pathlib.Path) -> dict:
    """What the verdict needs of a finished run."""
    stored = artifacts.read_json(folder / workdir.CONFIG, workdir.WRITTEN)
    results = artifacts.read_json(folder / "results.json")
    by_prompt = artifacts.read_json(folder / "evaluate" / "golden_by_prompt.json")
    return {"commit": stored.get("git_commit"), "seconds": sum(row["seconds"] for row in results["timing"].values()),
            "robust": results.get("robust"), "baseline": results["baseline"], "bound": bound(folder),
            "policies": {name: {key: row[key] for key in ("golden_mean", "length_mean", "distinct_2", "ended_share")}
                         for name, row in results["policies"].items()},
            "golden_by_prompt": by_prompt}


def bound(folder: pathlib.Path) -> dict[str, float]:
    """{temperature: golden of best-of-16 by the linear mix of what robust could be made of that golden itself would choose}.

    Least squares of golden on the learnt reward, the mean log-prob, the log-ratio, length and end, within prompts, on the very samples
    that are then chosen from: no mix that is found without golden is expected to do better.
    """
    context = contexts.Context(workdir.read_config(folder), contexts.Reader(folder))
    judge, found = golden.make_judge(context.config, context.world, context.directory("evaluate")), {}
    for temperature in context.config.eval.temperatures:
        if not temperature:
            continue
        judged = evaluate.samples_of(context, judge, sampling.at("sft", temperature))
        names = (scoring.robust_of(context).recipe, "mean_logprob", "log_ratio", "length", "ended")
        gold, parts = judged.by_prompt(judged.golden), [judged.by_prompt(judged.reward(name)) for name in names]
        centred = np.stack([(part - part.mean(1, keepdims=True)).ravel() for part in parts], axis=1)
        weights = np.linalg.lstsq(centred, (gold - gold.mean(1, keepdims=True)).ravel(), rcond=None)[0]
        mix = sum(weight * part for weight, part in zip(weights, parts, strict=True))
        found[f"{temperature:g}"] = float(best_of_n.best_of_n_per_prompt(mix, gold, N).golden.mean())
    return found


# -------------------------------------------------------------------------------------------------------------- verdict
def load(wanted: list[tuple[str, int]], folder: pathlib.Path = RECORDS) -> dict[str, list[dict]]:
    """{set: records} of the (set, seed) that have one."""
    found: dict[str, list[dict]] = {name: [] for name, _ in wanted}
    for name, seed in wanted:
        if (file := folder / f"{name}-{seed}.json").exists():
            found[name].append(json.loads(file.read_text()))
    return {name: records for name, records in found.items() if records}


def chosen(record: dict) -> tuple[str, np.ndarray]:
    """(what robust stands for, its golden [P]): best-of-16 at its temperature, or sft at that temperature where the gate is closed."""
    made = record["robust"]
    name = f"best-of-{N} by robust at T = {made['temperature']:g}" if made["terms"] else sampling.at("sft", made["temperature"])
    return name, np.array(record["golden_by_prompt"][name])


def against(records: list[dict], name_of) -> Compared:
    """robust less something else, prompt by prompt; name_of(record) names it."""
    return compared([chosen(record)[1] - np.array(record["golden_by_prompt"][name_of(record)]) for record in records])


def verdict(records: list[dict]) -> dict:
    """What the rule asks of one set: robust less the best of sft, and less its closest honest baseline."""
    names = baselines(records[0]["golden_by_prompt"])
    each = {name: against(records, lambda record, name=name: name) for name in names}
    closest = min(each, key=lambda name: each[name].z)
    return {"less the best of sft": against(records, lambda record: record["baseline"]), "closest": closest,
            "less the closest": each[closest]}


def means(records: list[dict]) -> tuple[float, ...]:
    """Golden over prompts and seeds of: the best of sft, robust, the mix fitted on golden, golden's own choice (both at robust's T)."""
    at = f"{records[0]['robust']['temperature']:g}"
    rows = [(np.mean(one["golden_by_prompt"][one["baseline"]]), chosen(one)[1].mean(), one["bound"][at],
             np.mean(one["golden_by_prompt"][f"best-of-{N} by golden at T = {at}"])) for one in records]
    return tuple(map(float, np.mean(rows, axis=0)))


def table(found: dict[str, list[dict]]) -> str:
    """One row a set, in Markdown."""
    head = ["set", "seeds", "gate", "best of sft", "robust", "less the best of sft", "closest honest baseline", "robust less it",
            "fitted on golden", "golden itself"]
    rows = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, records in found.items():
        said = verdict(records)
        made = [" + ".join(term["reward"] for term in record["robust"]["terms"]) for record in records]
        gate = "; ".join([f"open in {sum(map(bool, made))} of {len(made)}", *sorted({*filter(None, made)})])
        sft, ours, fitted, oracle = (f"{value:.3f}" for value in means(records))
        rows.append("| " + " | ".join([
            f"`{name}`", str(len(records)), gate, sft, ours, said["less the best of sft"].text(),
            f"`{said['closest']}`", said["less the closest"].text(), fitted, oracle]) + " |")
    return "\n".join(rows)


def summary(found: dict[str, list[dict]]) -> str:
    """The README's table: one row a set, in Markdown."""
    head = ["data", "seeds", "the best of sft", f"best-of-{N} by `robust`", "gain", "best mix, fitted on golden", "golden itself"]
    rows = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, records in found.items():
        sft, ours, fitted, oracle = (f"{value:.3f}" for value in means(records))
        gain = against(records, lambda record: record["baseline"]).text()
        rows.append(f"| {TITLES[name]} | {len(records)} | {sft} | **{ours}** | {gain} | {fitted} | {oracle} |")
    return "\n".join(rows)


def gains(records: list[dict]) -> str:
    """What stands above the best of sft in one set, and by how much, in Markdown.

    Policies are at their best temperatures, by golden and seed, as sft is.
    """
    golden = records[0]["golden_by_prompt"]
    at = f" at T = {records[0]['robust']['temperature']:g}"

    def best(role):
        return lambda record: max((name for name in record["golden_by_prompt"] if name.partition("@")[0] == role),
                                  key=lambda name: np.mean(record["golden_by_prompt"][name]))

    named = {f"`{role}`, at its best temperature": best(role) for role in golden if "/" in role and "@" not in role}
    named |= {f"{name.replace('by ', 'by `').replace(at, '`' + at)}": (lambda record, name=name: name)
              for name in golden if name.startswith(f"best-of-{N} by ") and name.endswith(at)}
    rows = ["|  | golden | less the best of sft | in standard errors |", "|---|---|---|---|"]
    mean = np.mean([np.mean(record["golden_by_prompt"][record["baseline"]]) for record in records])
    rows.append(f"| the best of sft, over temperatures | {mean:.3f} | | |")
    for name, of in named.items():
        values = [np.array(record["golden_by_prompt"][of(record)]) for record in records]
        best_of_sft = [np.array(record["golden_by_prompt"][record["baseline"]]) for record in records]
        found = compared([one - other for one, other in zip(values, best_of_sft, strict=True)])
        rows.append(f"| {name} | {np.mean([one.mean() for one in values]):.3f} | {found.text()} | {found.z:+.1f} |")
    return "\n".join(rows)


def draw(found: dict[str, list[dict]], path: pathlib.Path) -> None:
    """A panel a set: golden of best-of-16 by each reward at robust's temperature, less the best of sft, with two standard errors."""
    with matplotlib.rc_context(plots.style(LIGHT) | {"svg.hashsalt": "irl_jax", "svg.fonttype": "none"}):
        figure = Figure(figsize=(8.0, 2.6), layout="constrained")
        panels = figure.subplots(1, len(found), sharex=True, sharey=True, squeeze=False)[0]
        for axes, (name, records) in zip(panels, found.items(), strict=True):
            for place, reward in enumerate(reversed(DRAWN)):
                chosen_by = f"best-of-{N} by {reward} at T = {records[0]['robust']['temperature']:g}"
                less = compared([np.array(record["golden_by_prompt"][chosen_by]) - np.array(record["golden_by_prompt"][record["baseline"]])
                                 for record in records])
                axes.errorbar(less.mean, place, xerr=2 * less.stderr, fmt=MARKERS[reward], color=LIGHT.recipes[reward], capsize=2)
            axes.axvline(0.0, color=LIGHT.text, linewidth=0.8, linestyle=":")
            axes.set_title(TITLES[name])
        figure.axes[0].set_yticks(range(len(DRAWN)), reversed(DRAWN))
        figure.supxlabel(f"golden of best-of-{N} less sft at its best temperature", fontsize=9)
        figure.savefig(path, metadata={"Date": None})


def everything(sets=tuple(SETS)) -> list[tuple[str, int]]:
    """Every (set, seed) that is judged, first seeds first."""
    return [(name, SEEDS[name][index]) for index in range(3) for name in sets]


def main(argv) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.robust", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table", "figure"))
    parser.add_argument("sets", nargs="?", default=",".join(SETS))
    parser.add_argument("--seeds", default="", help="others than those that are judged")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs", "robust"))
    given = parser.parse_args(argv)
    sets = given.sets.split(",")
    if unknown := [name for name in sets if name not in SETS]:
        parser.error(f"no set '{unknown[0]}'; there are {', '.join(SETS)}")
    wanted = [(name, int(seed)) for seed in given.seeds.split(",") for name in sets] if given.seeds else everything(sets)
    try:
        if given.what == "table":
            found = load(wanted)
            print(summary(found), table(found), *(f"{name}\n\n{gains(records)}" for name, records in found.items()), sep="\n\n")
            return 0
        if given.what == "figure":
            draw(load(wanted), ROOT / "docs" / "robust.svg")
            return 0
        return run(wanted, given.out.absolute())
    except UserError as error:
        print(f"benchmarks.robust: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
