"""Samples of a role in W/samples/<role>: drawn once, read by every later stage."""

from __future__ import annotations

import math

import numpy as np

from irl_jax import sampler, sharding, workdir
from irl_jax.stages import scoring

FIELDS = {"tokens": "tokens", "mask": "mask", "ended": "ended", "logprobs": "behaviour_logprobs"}  # as stored: as sampled


def prompts_of(context, part: str) -> list[np.ndarray]:
    """The prompts of a part: 'reward' (training prompts) or 'eval' (evaluation prompts), as ids."""
    return context.reward_prompts if part == "reward" else [example.prompt for example in context.evaluation]


def draw(context, role: str, part: str, count: int) -> int:
    """Samples `count` responses a prompt from a role into W/samples/<role>; returns the tokens drawn (0 if kept)."""
    directory = context.directory("samples") / role.replace("/", "_")
    path = directory / f"{part}.npz"
    if path.exists():
        return 0
    prompts = prompts_of(context, part)
    data = context.config.data
    group = _group(context.config.sample)
    rows = max(1, context.config.sample.rows // group)
    draw_group = _compiled(context, group)
    parts = []
    for first in range(0, count, group):
        piece = directory / f"{part}.part{first}.npz"  # a kill loses one group of samples at most
        if not piece.exists():
            drawn = sampler.sample_prompts(
                draw_group, context.variables(role), prompts, list(range(len(prompts))), scoring.round_up(rows, context.mesh),
                context.key(f"samples/{role}/{part}/{first}"), max_prompt=data.max_prompt_tokens, put=context.put,
                progress=f"sample {role} {part}, {first} of {count}")
            workdir.save_arrays(piece, **{name: np.asarray(getattr(drawn, field)) for name, field in FIELDS.items()})
        parts.append((piece, workdir.load_arrays(piece)))
    arrays = {name: np.concatenate([arrays[name] for _, arrays in parts], axis=1) for name in FIELDS}
    _write_text(context, directory / f"{part}.jsonl", prompts, arrays)
    workdir.save_arrays(path, **arrays)  # last: its presence says that the part is whole
    for piece, _ in parts:
        piece.unlink()
    return int(arrays["mask"].sum())


def _group(config) -> int:
    """Samples of a prompt decoded together: they share its prompt part, and every part of the run shares the trace."""
    common = math.gcd(config.reward_samples, config.eval_samples, config.policy_samples)
    return next(g for g in range(min(common, 16), 0, -1) if common % g == 0)


def _compiled(context, group: int):
    """The jitted sampler for `group` samples a prompt, one a context, so that roles share its traces."""
    if group not in context.samplers:
        draw_one = sampler.make_sampler(context.model, samples=group, max_tokens=context.config.data.max_response_tokens,
                                        eos_ids=context.eos_ids, pad_id=context.pad_id)
        context.samplers[group] = sharding.compile_step(draw_one, context.mesh)
    return context.samplers[group]


def _write_text(context, path, prompts, arrays) -> None:
    lines = []
    for p, prompt in enumerate(prompts):
        question = context.text(prompt)
        for k in range(arrays["tokens"].shape[1]):
            size = int(arrays["mask"][p, k].sum())
            lines.append({"prompt": question, "response": context.text(arrays["tokens"][p, k, :size]),
                          "logprob": round(float(arrays["logprobs"][p, k].sum()), 4), "tokens": size,
                          "ended": bool(arrays["ended"][p, k])})
    workdir.write_jsonl(path, lines)


def load(context, role: str, part: str) -> dict:
    """Samples drawn earlier: {'tokens', 'mask', 'ended', 'logprobs'} [P, K, T] with 'examples', their flat list."""
    arrays = workdir.load_arrays(context.directory("samples") / role.replace("/", "_") / f"{part}.npz", stage="sample")
    arrays["examples"] = scoring.examples_of(prompts_of(context, part), arrays["tokens"], arrays["mask"], arrays["ended"])
    return arrays
