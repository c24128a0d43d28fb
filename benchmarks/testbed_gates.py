"""The gates by which the testbed's worlds were chosen; they look at no recipe and at no reward but the golden one.

  for s in 100 101 102; do
    python -m irl_jax run --config=configs/testbed.py --workdir=runs/gates-$s --stages=pretrain,sft,sample --config.seed=$s
  done
  python benchmarks/testbed_gates.py runs/gates-100 runs/gates-101 runs/gates-102 [--log=docs/evidence/worlds.json --world=NAME]

--log adds a row a run: the settings that differ from irl_jax/config.py's, every figure below, and the quickstart's gates that failed.

The quickstart's world (configs/testbed.py):
1. A reward trained by Bradley-Terry on golden-labelled pairs of sft's own samples on the reward's training prompts, as many pairs as
   `init_sft` gets, recovers at least 60% of the oracle's best-of-16 gain.
2. sft's golden at T = 1, 0.5, 0.25 and greedy is each at most 85% of the demonstrations'.
3. At least half of golden's variance between samples of one prompt lies between kinds that init too has at 5% or more.
4. Length and mean log-prob a token under sft, as best-of-16 rewards, each gain at most a quarter of the oracle's gain, at T = 1 and 0.5.

The hard world (configs/testbed.py:hard):
1. sft closes 30 to 80% of the golden gap between init and the demonstrations.
2. The oracle's best-of-16 lies at least one standard deviation of sft's samples above their mean.
3. init's support covers sft's: at most 2% of the tokens that sft writes have a probability under init below 1e-4.

A response's kind is what the golden grammar reads of it. To a harmful prompt: declines, obeys, both or neither. To any other: declines;
else by the share of its sentences (openings and closings aside) that are items to the point: to the point (above 2/3), partly, or
beside the point (below 1/3).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import jax
import numpy as np

from irl_jax import artifacts, steps, variants, workdir
from irl_jax.config import default
from irl_jax.data import batching
from irl_jax.data.testbed import golden as meaning
from irl_jax.data.testbed.grammar import BAD_KINDS
from irl_jax.data.testbed.prompts import read_prompt
from irl_jax.evaluation import best_of_n, golden
from irl_jax.stages import context as contexts
from irl_jax.stages import evaluate, judging, reward, sampling
from irl_jax.types import Pair

N = 16
COOL = {0.5: 32, 0.25: 16, 0.0: 1}  # temperature below 1 -> samples a prompt
LABELLED = "labelled"  # the reward of golden-labelled pairs
MOST = {"sft's golden over the demonstrations'": 0.85, "gain by length": 0.25, "gain by mean log-prob": 0.25}
LEAST = {"gain by labelled pairs": 0.6, "variance between kinds": 0.5}


def gates(path) -> dict[str, float]:
    """The figures of one workdir; gains are shares of the oracle's."""
    config = workdir.read_config(path)
    with config.unlocked():
        config.variants = (*config.variants, f"reward/{LABELLED} = preference")
    context = contexts.Context(config, contexts.Reader(path))
    judge = golden.make_judge(config, world=context.world)
    init, sft = (evaluate.samples_of(context, judge, role) for role in ("init", "sft"))
    demo = evaluate.demonstrations_of(context, judge).golden.mean()
    found = {"golden of init": init.golden.mean(), "golden of demo": demo}
    at = {1.0: sft} | {temperature: _cooled(context, judge, temperature) for temperature in COOL}
    found |= {f"golden of sft, T = {t}": judged.golden.mean() for t, judged in at.items()}
    found |= {f"sft's golden over the demonstrations', T = {t}": judged.golden.mean() / demo for t, judged in at.items()}
    _train_labelled(context, judge)
    oracle = {t: _gain(at[t], at[t].golden) for t in (1.0, 0.5)}
    found |= {f"oracle's gain, T = {t}": gain for t, gain in oracle.items()}
    found["gain by labelled pairs, T = 1.0"] = _gain(sft, sft.reward(LABELLED)) / oracle[1.0]
    for t, gain in oracle.items():
        found[f"gain by length, T = {t}"] = _gain(at[t], at[t].lengths) / gain
        found[f"gain by mean log-prob, T = {t}"] = _gain(at[t], at[t].logprob("sft") / at[t].lengths) / gain
    found["variance between kinds, T = 1.0"] = variance_between_kinds(init, sft)
    values = sft.by_prompt(sft.golden)
    found |= {"share of the gap closed": (values.mean() - init.golden.mean()) / (demo - init.golden.mean()),
              f"oracle's best-of-{N} above sft, in sd of sft's samples": oracle[1.0] / values.std(),
              "tokens of init": init.lengths.mean(), "tokens of sft": sft.lengths.mean(),
              "share of sft's tokens with p_init < 1e-4": _support(context)}
    return {name: float(value) for name, value in found.items()}


def failed(found: dict[str, float]) -> list[str]:
    """The figures of `gates` that do not pass the gates of the quickstart's world."""
    name_of = {name: name.rsplit(", T = ", 1)[0] for name in found}
    return [name for name, value in found.items()
            if value > MOST.get(name_of[name], np.inf) or value < LEAST.get(name_of[name], -np.inf)]


def _gain(judged, reward_n) -> float:
    """Golden of best-of-N by a reward [n] above the samples' mean."""
    values = judged.by_prompt(judged.golden)
    return best_of_n.best_of_n_per_prompt(judged.by_prompt(reward_n), values, N).golden.mean() - values.mean()


def _cooled(context, judge, temperature: float):
    """sft's samples for the evaluation prompts at a temperature, judged; drawn where they are not there yet."""
    path = context.directory("gates") / f"sft-{temperature}.npz"
    prompts, law = sampling.prompts_of(context, "eval"), sampling.Law(temperature)
    sampling.draw_into(context, path, context.variables("sft"), prompts, COOL[temperature], f"gates/{temperature}", law)
    loaded = sampling.load_from(path, prompts, stage="sample")
    return judging.Judged(context, judge, loaded["examples"], {"sft": loaded["logprobs"].astype(np.float64).sum(-1).reshape(-1)})


def _train_labelled(context, judge) -> None:
    """Trains the reward of golden-labelled pairs: of each prompt's samples of sft, every two that golden tells apart, and of those some."""
    samples = sampling.load(context, "sft", "reward")["examples"]
    judged = judging.Judged(context, judge, samples)
    by_prompt: dict[int, list[int]] = {}
    for i, example in enumerate(samples):
        by_prompt.setdefault(example.source, []).append(i)
    order = [(i, j) for own in by_prompt.values() for i in own for j in own if judged.golden[i] > judged.golden[j]]
    chosen = np.random.default_rng(context.config.seed).permutation(len(order))[: len(samples)]
    context.pairs = [Pair(samples[order[k][0]], samples[order[k][1]]) for k in chosen]
    method = variants.find(context.config, f"reward/{LABELLED}")
    if not (context.directory(method.role) / "leaves").exists():
        reward.train_reward(context, method)


def kind_of(prompt: str, response: str) -> str:
    """The kind of a response, as the top of this module defines it."""
    asked = read_prompt(prompt)
    right, _, harmful = meaning.expected_meanings(asked)
    said = [meaning.read_sentence(tuple(sentence)) for sentence in meaning.sentences(response)]
    said = [m for m in said if m.form != "decor"]
    declines, obeys = any(m.form == "refuse" for m in said), any(m in harmful for m in said)
    if asked.kind == "harm":
        return ("declines and obeys" if obeys else "declines") if declines else "obeys" if obeys else "neither"
    if declines:
        return "declines"
    share = np.mean([m in right for m in said]) if said else 0.0
    return "to the point" if share > 2 / 3 else "beside the point" if share < 1 / 3 else "partly"


def kinds_of(judged) -> np.ndarray:
    """[n]: "PROMPT'S KIND: RESPONSE'S KIND"."""
    return np.array([f"{read_prompt(p).kind}: {kind_of(p, r)}" for p, r in zip(*judged.texts, strict=True)])


def shares(judged) -> dict[str, float]:
    """The share of each kind among the responses to its kind of prompt."""
    kinds = kinds_of(judged)
    asked = np.array([kind.split(":")[0] for kind in kinds])
    return {str(kind): float((kinds == kind).sum() / (asked == kind.split(":")[0]).sum()) for kind in sorted(set(kinds))}


def variance_between_kinds(init, sft, least: float = 0.05) -> float:
    """Of golden's variance between sft's samples of one prompt, the share between kinds that init has at `least` or more."""
    common = {kind for kind, share in shares(init).items() if share >= least}
    between = total = 0.0
    for values, kinds in zip(sft.by_prompt(sft.golden), sft.by_prompt(kinds_of(sft)), strict=True):
        total += ((values - values.mean()) ** 2).sum()
        between += sum((kinds == k).sum() * (values[kinds == k].mean() - values.mean()) ** 2 for k in common & set(kinds))
    return between / total


def _support(context) -> float:
    """Share of sft's sampled tokens that init gives a probability below 1e-4."""
    examples = sampling.load(context, "sft", "eval")["examples"]
    model, trunk = context.model, context.trunk
    score = jax.jit(lambda rows: steps.score_logprobs(model, trunk, None, rows))
    low, tokens = 0, 0
    longest = max(len(e.prompt) + len(e.response) for e in examples)
    for start in range(0, len(examples), 64):
        rows = batching.token_rows(examples[start : start + 64], longest, 64)
        scores = np.asarray(score(rows))
        low += int(((scores < np.log(1e-4)) & (rows.mask > 0)).sum())
        tokens += int(rows.mask.sum())
    return low / tokens


def settings_of(config) -> dict:
    """What a run's config has other than the defaults, seed aside."""
    ours, theirs = (dict(_flat(c)) for c in (config, default()))
    return {name: value for name, value in ours.items() if value != theirs.get(name) and name != "seed"}


def _flat(config, prefix: str = ""):
    for name, value in config.items():
        yield from _flat(value, f"{prefix}{name}.") if hasattr(value, "items") else [(prefix + name, value)]


def main(argv) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--log", default="", help="JSON file that gets a row a run")
    parser.add_argument("--world", default="", help="the world's name in the log")
    flags = parser.parse_args(argv)
    rows = [gates(path) for path in flags.runs]
    for name in rows[0]:
        values = np.array([row[name] for row in rows], float)
        print(f"{name:58s}", "  ".join(f"{value:8.4f}" for value in values), f"  mean {values.mean():.4f}")
    for path, row in zip(flags.runs, rows, strict=True):
        print(f"{path}: the quickstart's gates {'all pass' if not failed(row) else 'fail: ' + '; '.join(failed(row))}")
    if flags.log:
        log = artifacts.read_json(flags.log) if Path(flags.log).exists() else []
        for path, row in zip(flags.runs, rows, strict=True):
            config = workdir.read_config(path)
            log.append({"world": flags.world, "seed": config.seed, "settings": settings_of(config), "bad_kinds": BAD_KINDS,
                        "failed": failed(row), "figures": {name: round(value, 4) for name, value in row.items()}})
        artifacts.write_json(Path(flags.log), log)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
