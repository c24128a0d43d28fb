"""Is best-of-16 by a random reward unbiased? python benchmarks/random_control.py RUN: 300 draws on a finished run's samples of sft."""

from __future__ import annotations

import sys

import numpy as np

from irl_jax import workdir
from irl_jax.evaluation import best_of_n, metrics
from irl_jax.evaluation.golden import make_judge
from irl_jax.stages import context as contexts
from irl_jax.stages import evaluate


def main(path: str) -> int:
    context = contexts.Context(workdir.read_config(path), contexts.Reader(path))
    judge = make_judge(context.config, context.world, context.directory("evaluate"))
    sft = evaluate.samples_of(context, judge, "sft")
    golden = sft.by_prompt(sft.golden)
    zs = []
    for draw in range(300):
        reward = np.random.default_rng([7, draw]).standard_normal(golden.shape)
        zs.append(metrics.paired_difference(best_of_n.best_of_n_per_prompt(reward, golden, 16).golden, golden.mean(1)).z)
    print(f"deviation in standard errors: mean {np.mean(zs):.2f}, standard deviation {np.std(zs):.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
