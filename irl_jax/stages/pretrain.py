"""Where `init` comes from: pretrained on the testbed's initial writer, or imported from a Hugging Face folder."""

from __future__ import annotations

import jax

from irl_jax import steps
from irl_jax.models import transformer
from irl_jax.stages import training


def run(context) -> dict:
    """Pretrains the trunk from scratch (testbed), or checks that the given folder loads; leaves W/pretrain."""
    if not context.is_testbed:
        return _import(context)
    config = context.config.pretrain
    examples = context.tokenize(context.world.pretraining, "pretraining")
    feed, updates = training.sequence_feed(context, examples, config, "pretrain")
    trunk = context.place(transformer.init_trunk(context.key("pretrain/trunk"), context.model))
    # The trunk trains as a whole here, whatever the adapters' rank: it is the role's leaves.
    optimizer = steps.make_optimizer(config, updates)
    step = training.compiled(context, ("pretrain",), lambda: steps.make_sft_step(context.model, optimizer, config.accumulate))
    state, info = training.fit(context, "pretrain", step, steps.init_state({"trunk": trunk}, optimizer), None, feed, updates)
    context.save("pretrain", state.leaves["trunk"])
    return info


def _import(context) -> dict:
    parameters = sum(leaf.size for leaf in jax.tree.leaves(context.trunk))
    if len(context.tokenizer) > context.model.vocab_size:
        raise AssertionError("load_folder checks the vocabulary")
    context.say(f"init: {context.config.model.path} ({parameters / 1e6:.2f}M parameters)")
    return {}
