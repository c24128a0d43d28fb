"""Methods that repeatedly sample their own policy and improve it on the samples: SPIN and rejection fine-tuning.

Iteration i keeps its samples, training state and leaves in W/<role>/iteration-<i>. A finished iteration isn't redone; an
unfinished one is resumed.
"""

from __future__ import annotations

import time

import jax

from irl_jax import loop, roles
from irl_jax.stages import sampling


def run(context, method, count: int, improve) -> dict:
    """Improves sft `count` times; saves the last policy as the role's.

    Args:
        context: the run with the method's settings. method: its role is the folder. count: iterations.
        improve: improve(context, name, leaves of the policy so far) -> (leaves of the next, the loop's info). It writes to
            W/<name>.

    Returns:
        The timing of all iterations, including sampling and scoring. tokens_per_second counts only the losses' tokens.
    """
    names = [f"{method.role}/iteration-{i}" for i in range(count)]
    done = sum(context.workdir.is_done(name) for name in names)
    leaves = context.leaves("sft")
    if done:
        leaves = context.load(names[done - 1], leaves)
    for name in names[done:]:
        leaves, info = _timed(lambda name=name, leaves=leaves: improve(context, name, leaves))
        context.save(name, leaves)
        context.workdir.mark_done(name, info)
    context.save(method.role, leaves)
    return _total([context.workdir.timing(name) for name in names])


def draw(context, name: str, leaves, prompts, count: int) -> dict:
    """A policy's samples in W/<name>/samples.npz, drawn once; returned as by `sampling.load`."""
    path = context.directory(name) / "samples.npz"
    sampling.draw_into(context, path, roles.variables(context.trunk, leaves), prompts, count, f"samples/{name}")
    return sampling.load_from(path, prompts, stage=name.split("/")[0])


def _timed(improve):
    """Calls `improve` and corrects its timing: the loop's own leaves out sampling and scoring."""
    start = time.perf_counter()
    with loop.CompileTime() as clock:
        leaves, info = improve()
        jax.block_until_ready(leaves)
    tokens = info["tokens_per_second"] * (info["seconds"] - info["compile_seconds"])
    seconds = max(time.perf_counter() - start, info["seconds"])  # the loop's includes earlier sessions
    compiling = max(clock.seconds(), info["compile_seconds"])
    return leaves, info | _timing(seconds, compiling, tokens)


def _total(infos: list[dict]) -> dict:
    seconds, compiling = (sum(info[key] for info in infos) for key in ("seconds", "compile_seconds"))
    tokens = sum(info["tokens_per_second"] * (info["seconds"] - info["compile_seconds"]) for info in infos)
    return _timing(seconds, compiling, tokens) | {"steps": sum(info["steps"] for info in infos)}


def _timing(seconds: float, compiling: float, tokens: float) -> dict:
    return {"seconds": seconds, "compile_seconds": compiling, "tokens_per_second": tokens / max(seconds - compiling, 1e-9)}
