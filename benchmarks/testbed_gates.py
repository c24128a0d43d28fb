"""The gates by which the testbed's settings were chosen; they look at no recipe and at no reward but the golden one.

  for s in 100 101 102; do
    python -m irl_jax run --config=configs/testbed.py --workdir=runs/gates-$s --stages=pretrain,sft,sample --config.seed=$s
  done
  python benchmarks/testbed_gates.py runs/gates-100 runs/gates-101 runs/gates-102

1. sft closes 30 to 80% of the golden gap between init and the demonstrations.
2. The oracle's best-of-16 lies at least one standard deviation of sft's samples above their mean.
3. init's support covers sft's: at most 2% of the tokens that sft writes have a probability under init below 1e-4.
"""

from __future__ import annotations

import sys

import jax
import numpy as np

from irl_jax import steps, workdir
from irl_jax.data import batching
from irl_jax.evaluation import best_of_n, golden
from irl_jax.stages import context as contexts
from irl_jax.stages import evaluate, sampling


def gates(path) -> dict:
    """The three gates of one workdir, with the figures behind them."""
    context = contexts.Context(workdir.read_config(path), contexts.Reader(path))
    judge = golden.make_judge(context.config, world=context.world)
    sets = {role: evaluate.samples_of(context, judge, role) for role in ("init", "sft")}
    demo = evaluate.demonstrations_of(context, judge).golden.mean()
    init, sft = (judged.golden.mean() for judged in sets.values())
    values = sets["sft"].by_prompt(sets["sft"].golden)
    oracle = best_of_n.best_of_n_per_prompt(values, values, 16).golden.mean()
    return {"golden of init": init, "golden of sft": sft, "golden of demo": demo, "share of the gap closed": (sft - init) / (demo - init),
            "oracle's best-of-16 above sft, in sd of sft's samples": (oracle - sft) / values.std(),
            "tokens of init": sets["init"].lengths.mean(), "tokens of sft": sets["sft"].lengths.mean(),
            "share of sft's tokens with p_init < 1e-4": _support(context)}


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


def main(paths) -> int:
    rows = [gates(path) for path in paths]
    for name in rows[0]:
        values = np.array([row[name] for row in rows], float)
        print(f"{name:58s}", "  ".join(f"{value:8.4f}" for value in values), f"  mean {values.mean():.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
