"""What the training stages share: feeds of packed or single rows, and the call of the one loop."""

from __future__ import annotations

import math

import numpy as np

from irl_jax import loop, sharding
from irl_jax.data import batching
from irl_jax.errors import UserError
from irl_jax.stages import scoring


def sequence_feed(context, examples, config, name: str):
    """Batches of prompt + response rows, packed or one a row, as a function of the step.

    Returns: (feed(step, state) -> TokenBatch on the mesh, optimizer updates: `config.steps` or `config.epochs` passes).
    """
    if not examples:
        raise UserError(f"config.data: no {name} records are left after the split; give more data or lower the held-out fractions")
    if config.packing:
        longest = max(len(e.prompt) + len(e.response) for e in examples)
        rows = batching.pack_rows(examples, max(config.row_tokens, longest))
    else:
        rows = batching.token_rows(examples, context.longest)
    count = rows.tokens.shape[0]
    size = batch_rows(config.batch_size, config.accumulate, context.mesh, name)
    updates = config.steps or max(1, math.ceil(config.epochs * count / size))
    indices = batching.feed(count, size, context.config.seed)

    def feed(step, state):
        del state
        chosen = np.asarray(indices(step))
        return context.put(batching.take(rows, chosen))

    return feed, updates


def batch_rows(rows: int, accumulate: int, mesh, name: str) -> int:
    """`rows` rounded up to what the mesh and the micro-batches divide (every row is a real one)."""
    if rows <= 0 or accumulate <= 0:
        raise UserError(f"config.{name}: batch_size and accumulate must be positive")
    unit = scoring.round_up(1, mesh) * accumulate
    return -(-rows // unit) * unit


def compiled(context, name: tuple, make):
    """The compiled step of `make()`, made once a process for each name: recipes of one kind share their traces."""
    if name not in context.steps:
        context.steps[name] = sharding.compile_step(make(), context.mesh, donate=(0,))
    return context.steps[name]


def each_recipe(context, stage: str, recipes, train_one) -> dict:
    """Runs train_one(context, recipe) -> info for every recipe that is not done yet; returns the timing of all of them."""
    for recipe in recipes:
        name = f"{stage}/{recipe}"
        if not context.workdir.is_done(name):
            context.workdir.mark_done(name, train_one(context, recipe))
    infos = [context.workdir.timing(f"{stage}/{recipe}") for recipe in recipes]
    running = sum(info["seconds"] - info["compile_seconds"] for info in infos)
    tokens = sum(info["tokens_per_second"] * (info["seconds"] - info["compile_seconds"]) for info in infos)
    return {"seconds": sum(info["seconds"] for info in infos), "compile_seconds": sum(info["compile_seconds"] for info in infos),
            "tokens_per_second": tokens / max(running, 1e-9)}


def fit(context, name: str, step, state, trunk, feed, updates: int, **how):
    """Runs the loop in W/<name> with a compiled step; returns (state, info)."""
    return loop.train(step, sharding.place(state, context.mesh), trunk, feed, steps=updates, key=context.key(f"{name}/steps"),
                      directory=context.directory(name), checkpoint=context.config.checkpoint, name=name, **how)
