"""Where `init` comes from: pretrained on the testbed's initial writer, or imported from a Hugging Face folder."""

from __future__ import annotations

import jax

from irl_jax import sharding, steps
from irl_jax.errors import UserError
from irl_jax.models import transformer
from irl_jax.stages import training


def run(context) -> dict:
    """Pretrains the trunk from scratch (testbed) and writes W/pretrain, or checks that the given folder loads."""
    _read_everything(context)
    if not context.is_testbed:
        return _import(context)
    config = context.config.pretrain
    examples = context.tokenize(context.world.pretraining, "pretraining")
    feed, updates = training.sequence_feed(context, examples, config, "pretrain")
    trunk = sharding.make(lambda: transformer.init_trunk(context.key("pretrain/trunk"), context.model), context.mesh)
    # The whole trunk trains here as the role's leaves, whatever the adapters' rank.
    optimizer = steps.make_optimizer(config, updates)
    step = training.compiled(context, ("pretrain",), lambda: steps.make_sft_step(context.model, optimizer, config.accumulate))
    state, info = training.fit(context, "pretrain", step, steps.init_state({"trunk": trunk}, optimizer), None, feed, updates)
    context.save("pretrain", state.leaves["trunk"])
    return info


def _read_everything(context) -> None:
    """Reads and tokenises all data before anything trains. Errors in them show at once, not after an hour."""
    parts = (context.demonstrations, context.evaluation, context.development)
    if not parts[0] or not parts[1]:
        raise UserError("config.data: no training or no evaluation records are left after the split; give more data")


def _import(context) -> dict:
    model = context.model
    padding = (model.padded_vocab - model.vocab_size) * model.width * (1 if model.tie_embeddings else 2)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(context.trunk)) - padding
    context.say(f"init: {context.config.model.path} ({parameters / 1e6:.2f}M parameters)")
    return {}
