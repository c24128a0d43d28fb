"""Self-play fine-tuning (Chen et al. 2024, SPIN): prefers demonstrations to the last iterate's own samples.

Each iteration samples the current policy and pairs its samples with the demonstrations of the same prompts. It fits the next
policy to the pairs by the DPO loss, with the current policy as start and reference. Samples distributed like the
demonstrations give no gradient in expectation: the demonstrator is the fixed point.
"""

from __future__ import annotations

from itertools import cycle, islice

from irl_jax.stages import iterations, pairs, training
from irl_jax.types import Example


def run(context) -> dict:
    """Trains one policy per method of config.spin; writes W/spin/<name> and its iterates W/spin/<name>/iteration-<i>."""
    return training.each_method(context, "spin", train)


def train(context, method) -> dict:
    """Trains one policy against itself for config.spin.iterations iterations."""
    return iterations.run(context, method, context.config.spin.iterations, _improve)


def _improve(context, name: str, leaves):
    config = context.config.spin
    prompts = context.demonstrated_prompts[: config.prompts]
    samples = iterations.draw(context, name, leaves, prompts, config.samples)["examples"]
    positives, negatives = against_demonstrations(context.demonstrations, samples)
    return pairs.fit(context, name, config, positives, negatives, leaves, leaves)


def against_demonstrations(demonstrations: list[Example], samples: list[Example]) -> tuple[list[Example], list[Example]]:
    """Pairs (demonstration, sample) on the samples' prompts, as equally long lists.

    If a prompt has more of one than of the other, the scarcer side is repeated. All are used.
    """
    theirs: dict[bytes, list[Example]] = {}
    for sample in samples:
        theirs.setdefault(sample.prompt.tobytes(), []).append(sample)
    ours: dict[bytes, list[Example]] = {}
    for demonstration in demonstrations:
        if demonstration.prompt.tobytes() in theirs:
            ours.setdefault(demonstration.prompt.tobytes(), []).append(demonstration)
    positives: list[Example] = []
    negatives: list[Example] = []
    for prompt, mine in ours.items():
        number = max(len(mine), len(theirs[prompt]))
        positives += islice(cycle(mine), number)
        negatives += islice(cycle(theirs[prompt]), number)
    return positives, negatives
