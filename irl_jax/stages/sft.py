"""Supervised fine-tuning on the demonstrations: minimises -log d(y|x), which has the forward KL's gradient."""

from __future__ import annotations

from irl_jax import steps
from irl_jax.stages import training


def run(context) -> dict:
    """Trains the `sft` role from init; writes W/sft, with the mean held-out loss (nats per token) in its timing line."""
    config = context.config.sft
    if context.stream:
        feed, updates = training.streamed_feed(context, config, "sft")
    else:
        feed, updates = training.sequence_feed(context, context.demonstrations, config, "sft")
    leaves = context.init_leaves("sft", "sft/leaves")
    optimizer = steps.make_optimizer(config, updates)
    step = training.compiled(context, ("sft",), lambda: steps.make_sft_step(context.model, optimizer, config.accumulate))
    state, info = training.fit(context, "sft", step, steps.init_state(leaves, optimizer), context.trunk, feed, updates)
    context.save("sft", state.leaves)
    held_out = context.development
    if held_out:
        tokens = sum(len(example.response) for example in held_out)
        info["heldout_loss"] = float(-context.scorer.logprobs(state.leaves, held_out).sum() / tokens)
        info["heldout_loss_init"] = float(-context.scorer.logprobs(None, held_out).sum() / tokens)
        context.say(f"sft: held-out loss {info['heldout_loss']:.3f} nats a token (init {info['heldout_loss_init']:.3f})")
    return info
