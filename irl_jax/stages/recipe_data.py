"""The positives and negatives of a recipe, from the run's samples, demonstrations and pairs."""

from __future__ import annotations

import zlib

import numpy as np

from irl_jax import variants
from irl_jax.data import recipes
from irl_jax.errors import UserError
from irl_jax.stages import sampling


def needed(config, stages) -> dict[str, str]:
    """{recipe: the stage that needs its data}. Evaluation measures every reward on the held-out samples of `init_sft`."""
    found = {"init_sft": "evaluate"} if "evaluate" in stages else {}
    return found | {method.recipe: group for group in ("dpo", "reward") if group in stages for method in variants.methods(config, group)}


def require(context, wanted) -> None:
    """Checks that each wanted recipe has data on at least two prompts, as one is held out.

    Args:
      context: the run. wanted: {recipe: the stage that needs it}.

    Raises:
      UserError: there are fewer.
    """
    demonstrated = context.demonstrated_prompts if {"init_demo", "sft_demo"} & set(wanted) else ()
    for recipe in wanted:
        own = {"preference": 2, "init_sft": len(context.training_prompts)}.get(recipe, len(demonstrated))
        few = recipe != "preference" and context.config.sample.reward_prompts < 2
        if own >= 2 and not few:
            continue
        told = "config.sample.reward_prompts = 1" if few else "config.data: one distinct prompt is left for training"
        raise UserError(f"{told}, and the stage {wanted[recipe]} (recipe {recipe}) holds one out and needs two; "
                        f"{'raise it' if few else 'give records of more prompts'}, or run other stages alone by --stages")
    pairs = len({pair.chosen.prompt.tobytes() for pair in context.pairs}) if "preference" in wanted else 2
    if pairs < 2:
        raise UserError(f"config.reward.recipes (or dpo.recipes): 'preference' needs pairs on two or more training prompts, and the data "
                        f"have them on {pairs}; set data.preference_source to a JSONL file of {{prompt, chosen, rejected}}, or leave the "
                        "recipe out")


def data_of(context, recipe: str):
    """(train, stopping, heldout) of a recipe, each (positives, negatives), equally long lists of Example.

    The parts share no prompt, and a prompt is in the same part for every recipe. Early stopping uses `stopping`; the reported
    AUC uses `heldout`, which chose nothing. With one or very few held-out prompts, these two are the same.
    """
    needed = {"init_sft": ("init", "sft"), "init_demo": ("init",), "sft_demo": ("sft",), "preference": ()}[recipe]
    samples = {f"{role}_samples": sampling.load(context, role, "reward")["examples"] for role in needed}
    train, others = recipes.build_reward_data(
        recipe, demos=context.demonstrations, pairs=context.pairs if recipe == "preference" else [],
        heldout_fraction=context.config.reward.heldout_fraction, seed=context.config.seed, **samples)
    first = [zlib.crc32(example.prompt.tobytes()) % 2 == 0 for example in others[0]]
    if all(first) or not any(first):  # one held-out prompt, or very few: both uses share it
        return train, others, others
    stopping, heldout = ([[e for e, mine in zip(side, first, strict=True) if mine == part] for side in others] for part in (True, False))
    return train, stopping, heldout


def prompt_numbers(parts) -> tuple[np.ndarray, np.ndarray]:
    """The prompt's number for each positive and each negative: samples of one prompt are not independent."""
    numbers: dict[bytes, int] = {}
    positives, negatives = ([numbers.setdefault(e.prompt.tobytes(), len(numbers)) for e in side] for side in parts)
    return np.array(positives), np.array(negatives)
