"""Samples: those of a role in W/samples/<role>, drawn once and read by every later stage, and those of a method's iterations."""

from __future__ import annotations

import math

import numpy as np

from irl_jax import sampler, sharding, workdir
from irl_jax.stages import scoring

FIELDS = {"tokens": "tokens", "mask": "mask", "ended": "ended", "logprobs": "behaviour_logprobs"}  # as stored: as sampled


def prompts_of(context, part: str) -> list[np.ndarray]:
    """The prompts of a part: 'reward' (training prompts) or 'eval' (evaluation prompts), as ids."""
    return context.reward_prompts if part == "reward" else [example.prompt for example in context.evaluation]


def training_prompts(context, count: int | None = None) -> list[np.ndarray]:
    """The first `count` distinct prompts of the demonstrations (all of them: None), as ids, in the corpus's (shuffled) order."""
    seen = {example.prompt.tobytes(): example.prompt for example in context.demonstrations}
    return list(seen.values())[:count]


def draw(context, role: str, part: str, count: int) -> int:
    """Samples `count` responses a prompt from a role into W/samples/<role>; returns the tokens drawn (0 if kept)."""
    path = _path(context, role, part)
    if path.exists():
        return 0
    return draw_into(context, path, context.variables(role), prompts_of(context, part), count, f"samples/{role}/{part}")


def draw_into(context, path, variables, prompts, count: int, purpose: str) -> int:
    """Samples `count` responses a prompt into the .npz at `path`, and as text beside it.

    Args:
        context: the run. path: of the .npz; one that is there is kept. variables: the model is applied with them.
        prompts: ids, one array a prompt. count: responses a prompt. purpose: keys the randomness.

    Returns:
        Tokens drawn (0 if kept).
    """
    if path.exists():
        return 0
    group = group_size(context.config.sample, count)
    rows = max(1, context.config.sample.rows // group)
    draw_group = _compiled(context, group)
    parts = []
    for first in range(0, count, group):
        piece = path.with_name(f"{path.stem}.part{first}.npz")  # a kill loses one group of samples at most
        if not piece.exists():
            drawn = sampler.sample_prompts(
                draw_group, variables, prompts, list(range(len(prompts))), scoring.round_up(rows, context.mesh),
                context.key(f"{purpose}/{first}"), max_prompt=context.config.data.max_prompt_tokens, put=context.put,
                progress=f"{purpose}, {first} of {count}")
            workdir.save_arrays(piece, **{name: getattr(drawn, field) for name, field in FIELDS.items()})
        parts.append((piece, workdir.load_arrays(piece)))
    arrays = {name: np.concatenate([arrays[name] for _, arrays in parts], axis=1) for name in FIELDS}
    _write_text(context, path.with_suffix(".jsonl"), prompts, arrays)
    workdir.save_arrays(path, **arrays)  # last: its presence says that the part is whole
    for piece, _ in parts:
        workdir.remove(piece)
    return int(arrays["mask"].sum())


def _path(context, role: str, part: str):
    return context.directory("samples") / role.replace("/", "_") / f"{part}.npz"


def group_size(config, count: int) -> int:
    """Samples of a prompt decoded together: they share its prompt part, and where it divides the count, the run's one trace."""
    common = _divisor(math.gcd(config.reward_samples, config.eval_samples, config.policy_samples))
    return common if count % common == 0 else _divisor(count)


def _divisor(count: int) -> int:
    """The largest divisor up to 16."""
    return next(group for group in range(min(count, 16), 0, -1) if count % group == 0)


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
    return load_from(_path(context, role, part), prompts_of(context, part), stage="sample")


def load_from(path, prompts, stage: str) -> dict:
    """What `draw_into` wrote for these prompts, as `load` gives it; `stage` writes it, for the message where it is missing."""
    arrays = workdir.load_arrays(path, stage=stage)
    arrays["examples"] = scoring.examples_of(prompts, arrays["tokens"], arrays["mask"], arrays["ended"])
    return arrays
