"""How far each policy is from the demonstrator, where that is known exactly: divergences, and what of it is covered."""

from __future__ import annotations

import numpy as np

from irl_jax.evaluation import metrics
from irl_jax.stages import judging

DEMONSTRATOR_SAMPLES = 64  # a prompt, for the shares of sentence kinds that a policy's are compared with


def of_policies(context, sets) -> dict:
    """The rows of results.json's `divergences`: forward and reverse KL (nats a sequence), Jensen-Shannon, and coverage.

    The demonstrator's own row has its coverage only: what one sample a prompt, as it is evaluated with, can show.
    """
    world, count = context.world, context.config.eval.divergence_prompts
    demo = judging.Judged(context, None, [e for e in sets["demo"].examples if e.source < count])
    demo_law = _demonstrator_logprob(context, demo)
    shares, evaluated = _demonstrator_shares(context), {}
    for role, judged in sets.items():
        row = _coverage(context, judged, shares)
        if role != "demo":
            some = _first_samples(judged, count, context.config.sample.policy_samples)
            policy = judging.Judged(context, None, [judged.examples[i] for i in some], {role: judged.logprob(role)[some]})
            law = _demonstrator_logprob(context, policy)
            row = {**metrics.divergences(demo_law - demo.logprob(role), policy.by_prompt(law - policy.logprob(role))), **row,
                   **world.grammar_report(*policy.texts)}
        evaluated[role] = row
    return evaluated


def _coverage(context, judged, shares_M) -> dict:
    some = _first_samples(judged, len(judged.examples), context.config.sample.policy_samples)
    prompts, responses = ([texts[i] for i in some] for texts in judged.texts)
    counts = context.world.sentence_counts(prompts, responses)
    each = len(some) // len({judged.examples[i].source for i in some})
    return metrics.coverage(counts.reshape(-1, each, counts.shape[1]).sum(1), shares_M)


def _demonstrator_shares(context) -> np.ndarray:
    """Share of each kind of sentence in the demonstrator's responses to the evaluation prompts."""
    prompts = [context.text(example.prompt) for example in context.evaluation] * DEMONSTRATOR_SAMPLES
    ids = context.world.demonstrate(prompts, seed=context.config.seed + 1)  # not the draws that are themselves evaluated
    counts = context.world.sentence_counts(prompts, [context.text(response) for response in ids])
    return counts.sum(0) / counts.sum()


def _first_samples(judged, prompts: int, samples: int) -> np.ndarray:
    each = len(judged.examples) // len({e.source for e in judged.examples})
    return np.array([p * each + k for p in range(min(prompts, len(judged.examples) // each)) for k in range(min(samples, each))])


def _demonstrator_logprob(context, judged) -> np.ndarray:
    return np.asarray(context.world.demonstrator_logprobs(
        judged.texts[0], [list(map(int, e.response)) for e in judged.examples]), np.float64)
