"""Bulk sampling: init and sft on training prompts for the reward's data, sft (many samples) and init on evaluation prompts."""

from __future__ import annotations

import time

from irl_jax import loop
from irl_jax.stages import sampling


def run(context) -> dict:
    """Writes W/samples/<role>/{reward,eval}.npz and .jsonl; keeps existing files."""
    config = context.config.sample
    wanted = [(role, "reward", config.reward_samples) for role in ("init", "sft")]
    wanted += [("sft", "eval", config.eval_samples), ("init", "eval", config.policy_samples)]
    drawn, start = 0, time.perf_counter()
    with loop.CompileTime() as clock:
        for role, part, count in wanted:
            drawn += sampling.draw(context, role, part, count)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "compile_seconds": clock.seconds(),
            "tokens_per_second": drawn / max(seconds - clock.seconds(), 1e-9)}
