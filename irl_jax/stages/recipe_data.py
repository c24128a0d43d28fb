"""The positives and negatives of a recipe, from the run's samples, demonstrations and pairs."""

from __future__ import annotations

from irl_jax.data import recipes
from irl_jax.errors import UserError
from irl_jax.stages import sampling


def data_of(context, recipe: str):
    """(train, heldout) of a recipe; each a pair of equally long lists (positives, negatives) of Example."""
    if recipe == "preference" and not context.pairs:
        raise UserError("config.reward.recipes: 'preference' needs pairs; set data.preference_source to a JSONL file of "
                        "{prompt, chosen, rejected}, or leave the recipe out")
    return recipes.build_reward_data(
        recipe, demos=context.demonstrations, init_samples=sampling.load(context, "init", "reward")["examples"],
        sft_samples=sampling.load(context, "sft", "reward")["examples"], pairs=context.pairs if recipe == "preference" else [],
        heldout_fraction=context.config.reward.heldout_fraction, seed=context.config.seed)
