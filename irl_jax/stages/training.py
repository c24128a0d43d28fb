"""What the training stages share: feeds of packed or single rows, and the call of the train loop."""

from __future__ import annotations

import math

import jax
import numpy as np

from irl_jax import loop, mappings, sharding, variants
from irl_jax.data import batching, streaming
from irl_jax.errors import UserError
from irl_jax.stages import scoring
from irl_jax.types import TokenBatch


def sequence_feed(context, examples, config, name: str):
    """Batches of prompt + response rows, packed or one per row, as a function of the step.

    Returns: (feed(step) -> TokenBatch on the mesh, optimizer updates: `config.steps`, or those of `config.epochs` passes).
    """
    if not examples:
        raise UserError(f"config.data: no {name} records are left after the split; give more data or lower the held-out fractions")
    if config.packing:
        longest = max(len(e.prompt) + len(e.response) for e in examples)
        rows = batching.pack_rows(examples, max(config.row_tokens, longest))
    else:
        rows = batching.token_rows(examples, context.longest)
    count = rows.tokens.shape[0]
    size, padded = config.batch_size, batch_rows(config.batch_size, config.accumulate, context.mesh, name)
    updates = config.steps or max(1, math.ceil(config.epochs * count / size))
    indices = batching.feed(count, size, context.config.seed)

    def feed(step):
        chosen = np.asarray(indices(step))
        return context.put(sharding.pad_rows(batching.take(rows, chosen), padded))

    return feed, updates


def streamed_feed(context, config, name: str):
    """Like `sequence_feed`, for records that stay on disk. Each batch comes with {"left_out": number of this host's records without
    room}."""
    stream, sample = context.stream, [len(e.prompt) + len(e.response) for e in context.demonstrations]
    plan = streaming.plan(sample, config.batch_size, max(config.row_tokens, context.longest) if config.packing else context.longest,
                          config.packing, context.config.seed)
    padded = batch_rows(config.batch_size, config.accumulate, context.mesh, name)
    blocks = streaming.Blocks(stream, lambda records: context.encode(records)[0], plan, context.config.seed)
    shape = TokenBatch(*(jax.ShapeDtypeStruct((padded, plan.length), dtype) for dtype in (np.int32, np.int32, np.int32, np.float32)))
    updates = config.steps or max(1, math.ceil(config.epochs * stream.size / (plan.blocks * plan.window)))

    def feed(step):
        left_out = []

        def make(start, stop):
            rows, number = blocks.part(step, start, stop)
            left_out.append(number)
            return rows

        batch = sharding.put_rows(make, shape, context.mesh)
        return batch, {"left_out": sum(left_out)}

    context.say(f"{name}: {plan.blocks * plan.window} of {stream.size} records a batch of {config.batch_size} rows, {updates} updates")
    return feed, updates


def batch_rows(rows: int, accumulate: int, mesh, name: str) -> int:
    """`rows` rounded up to a multiple of the mesh and micro-batches. Added rows count nothing (see `sharding.pad_rows`)."""
    if rows <= 0 or accumulate <= 0:
        raise UserError(f"config.{name}: batch_size and accumulate must be positive")
    unit = scoring.round_up(1, mesh) * accumulate
    return -(-rows // unit) * unit


def compiled(context, name: tuple, make, donate: tuple[int, ...] = (0,)):
    """The compiled function of `make()`, made once per process and name. Methods of one kind share its traces."""
    if name not in context.steps:
        context.steps[name] = sharding.compile_step(make(), context.mesh, donate=donate)
    return context.steps[name]


def optimizer_name(config) -> tuple:
    """A section's optimizer settings, for the name of a step that uses it (see `compiled`)."""
    keys = ("learning_rate", "warmup_fraction", "schedule", "final_fraction", "weight_decay", "clip_norm", "b2")
    return tuple(config[key] for key in keys)


def each_method(context, group: str, train_one) -> dict:
    """Runs train_one(the method's context, method) -> info for every method of the group that is not done yet.

    Returns: the timing of all methods together.
    """
    methods = variants.methods(context.config, group)
    for method in methods:
        if not context.workdir.is_done(method.role):
            mappings.spare()
            context.workdir.mark_done(method.role, train_one(context.variant(method), method))
    infos = [context.workdir.timing(method.role) for method in methods]
    running = sum(info["seconds"] - info["compile_seconds"] for info in infos)
    tokens = sum(info["tokens_per_second"] * (info["seconds"] - info["compile_seconds"]) for info in infos)
    return {"seconds": sum(info["seconds"] for info in infos), "compile_seconds": sum(info["compile_seconds"] for info in infos),
            "tokens_per_second": tokens / max(running, 1e-9)}


def fit(context, name: str, step, state, trunk, feed, updates: int, **how):
    """Runs the loop in W/<name> with a compiled step; returns (state, info)."""
    return loop.train(step, sharding.place(state, context.mesh), trunk, feed, steps=updates, key=context.key(f"{name}/steps"),
                      directory=context.directory(name), checkpoint=context.config.checkpoint, name=name,
                      profile=context.config.profile, log=context.config.log, **how)
