"""How far each policy is from the demonstrator, if its law is known exactly: divergences, and how much of it is covered."""

from __future__ import annotations

import numpy as np

from irl_jax.evaluation import metrics
from irl_jax.stages import judging, sampling

DEMONSTRATOR_SAMPLES = 64  # per prompt, for the shares of sentence kinds that policies are compared with


def of_policies(context, sets) -> dict:
    """The rows of results.json's `divergences`: forward and reverse KL (nats per sequence), Jensen-Shannon, and coverage.

    The demonstrator's row has only coverage, on fresh samples, as many per prompt as the policies have. Reverse KL and
    Jensen-Shannon are None if samples are not from the policy's own distribution (sample.temperature, sample.top_p).
    """
    world, count = context.world, context.config.eval.divergence_prompts
    demo = judging.Judged(context, None, [e for e in sets["demo"].examples if e.source < count])
    demo_law = _demonstrator_logprob(context, demo)
    shares, evaluated = _demonstrator_shares(context), {}
    for role, judged in sets.items():
        row = metrics.coverage(_counts(context, judged) if role != "demo" else _demonstrator_counts(context, 2).sum(1), shares)
        if role != "demo":
            some = _first_samples(judged, count, context.config.sample.policy_samples)
            policy = judging.Judged(context, None, [judged.examples[i] for i in some], {role: judged.logprob(role)[some]})
            law = _demonstrator_logprob(context, policy)
            measured = metrics.divergences(demo_law - demo.logprob(role), policy.by_prompt(law - policy.logprob(role)))
            if sampling.law_of(context.config.sample) != sampling.MODEL:  # these need samples of the policy's own distribution
                measured |= dict.fromkeys(name for name in measured if not name.startswith("forward_kl"))
            row = {**measured, **row, **world.grammar_report(*policy.texts)}
        evaluated[role] = row
    return evaluated


def _counts(context, judged) -> np.ndarray:
    """Sentences of each kind per prompt, [P, kinds], in the first samples."""
    some = _first_samples(judged, len(judged.examples), context.config.sample.policy_samples)
    prompts, responses = ([texts[i] for i in some] for texts in judged.texts)
    counts = context.world.sentence_counts(prompts, responses)
    each = len(some) // len({judged.examples[i].source for i in some})
    return counts.reshape(-1, each, counts.shape[1]).sum(1)


def _demonstrator_shares(context) -> np.ndarray:
    """Share of each kind of sentence in the demonstrator's responses to the evaluation prompts."""
    counts = _demonstrator_counts(context, 1, DEMONSTRATOR_SAMPLES).sum((0, 1))
    return counts / counts.sum()


def _demonstrator_counts(context, draw: int, samples: int | None = None) -> np.ndarray:
    """Counts [P, samples, kinds] in fresh responses to the evaluation prompts (by default as many as a policy's); one seed per draw."""
    samples = samples or context.config.sample.policy_samples
    prompts = [text for text in (context.text(example.prompt) for example in context.evaluation) for _ in range(samples)]
    limit = context.config.data.max_response_tokens  # the policies' limit too
    ids = context.world.demonstrate(prompts, seed=context.config.seed + draw)  # differs from the draws of results.json's demo
    counts = context.world.sentence_counts(prompts, [context.text(np.asarray(response[:limit], np.int32)) for response in ids])
    return counts.reshape(-1, samples, counts.shape[1])


def _first_samples(judged, prompts: int, samples: int) -> np.ndarray:
    each = len(judged.examples) // len({e.source for e in judged.examples})
    return np.array([p * each + k for p in range(min(prompts, len(judged.examples) // each)) for k in range(min(samples, each))])


def _demonstrator_logprob(context, judged) -> np.ndarray:
    return np.asarray(context.world.demonstrator_logprobs(
        judged.texts[0], [list(map(int, e.response)) for e in judged.examples]), np.float64)
