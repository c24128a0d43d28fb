"""Which responses are positive and which are negative: the paper's key choice, in one table.

| recipe       | positive        | negative        | heterogeneity            |
|--------------|-----------------|-----------------|--------------------------|
| `init_sft`   | samples of sft  | samples of init | low: same model class    |
| `init_demo`  | demonstrations  | samples of init | high                     |
| `sft_demo`   | demonstrations  | samples of sft  | higher                   |
| `preference` | chosen          | rejected        | none, but needs labels   |
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import cycle, islice
from typing import NamedTuple

import numpy as np

from irl_jax.config import LEARNT
from irl_jax.errors import UserError
from irl_jax.types import Example, Pair

RECIPES = {"init_sft": ("sft", "init"), "init_demo": ("demo", "init"), "sft_demo": ("demo", "sft")}


class RewardData(NamedTuple):
    """Equally many positives and negatives. positives[i] and negatives[i] have the same prompt."""

    positives: list[Example]
    negatives: list[Example]


def build_reward_data(
    recipe: str,
    *,
    demos: Sequence[Example] = (),
    init_samples: Sequence[Example] = (),
    sft_samples: Sequence[Example] = (),
    pairs: Sequence[Pair] = (),
    heldout_fraction: float,
    seed: int,
) -> tuple[RewardData, RewardData]:
    """Builds a recipe's training and held-out data.

    Uses only prompts that have both positives and negatives. Within a prompt, the scarcer side is repeated: one demonstration against four
    samples is used four times. So both classes weigh the same on every prompt, and the prompt alone says nothing about the label. A prompt
    is held out by a hash of its ids and the seed, whatever the recipe and the other data. So all recipes split alike.

    Args:
        recipe: one of LEARNT.
        demos, init_samples, sft_samples: tokenised responses; those the recipe does not use may be left out.
        pairs: for `preference`.
        heldout_fraction: expected share of the prompts held out; at least one is, and never all.
        seed: of the split.

    Returns:
        (train, heldout).

    Raises:
        UserError: the recipe is unknown, or its data is missing or has too few prompts to hold one out.
    """
    positives: Sequence[Example]
    negatives: Sequence[Example]
    if recipe == "preference":
        positives, negatives = [pair.chosen for pair in pairs], [pair.rejected for pair in pairs]
    elif recipe in RECIPES:
        given = {"demo": demos, "init": init_samples, "sft": sft_samples}
        positives, negatives = (given[name] for name in RECIPES[recipe])
    else:
        raise UserError(f"reward.recipes: no recipe {recipe!r}; there are {', '.join(LEARNT)}")
    by_prompt = _matched(positives, negatives)
    if len(by_prompt) < 2:
        need = "chosen/rejected pairs (data.preference_source)" if recipe == "preference" else "responses of both kinds"
        raise UserError(
            f"reward recipe {recipe!r} needs {need} on two or more prompts and has {len(by_prompt)}; "
            "give more data or leave it out of reward.recipes"
        )
    heldout_prompts = _heldout(list(by_prompt), heldout_fraction, seed)
    parts = (RewardData([], []), RewardData([], []))
    for prompt, (ours, theirs) in by_prompt.items():
        part = parts[prompt in heldout_prompts]
        number = max(len(ours), len(theirs))
        part.positives.extend(islice(cycle(ours), number))
        part.negatives.extend(islice(cycle(theirs), number))
    return parts


def _matched(positives: Sequence[Example], negatives: Sequence[Example]) -> dict[bytes, tuple[list, list]]:
    """{prompt: (its positives, its negatives)} for prompts that have both, in order of appearance."""
    table: dict[bytes, tuple[list, list]] = {}
    for side, examples in enumerate((positives, negatives)):
        for example in examples:
            table.setdefault(_key(example), ([], []))[side].append(example)
    return {prompt: sides for prompt, sides in table.items() if all(sides)}


def _key(example: Example) -> bytes:
    return np.asarray(example.prompt, "<i4").tobytes()


def _heldout(prompts: list[bytes], fraction: float, seed: int) -> set[bytes]:
    """The prompts whose hash, as a number in [0, 1), is below the fraction; at least one, but never all."""
    place = {p: int.from_bytes(hashlib.blake2b(p, digest_size=8, salt=b"%d" % (seed % 10**15)).digest()) / 2**64 for p in prompts}
    ranked = sorted(prompts, key=place.__getitem__)
    number = sum(place[p] < fraction for p in prompts)
    return set(ranked[: min(max(number, 1), len(ranked) - 1)])
