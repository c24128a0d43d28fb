"""Samples of a role in W/samples/<role>, drawn once and read by every later stage, and samples of a method's iterations."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from irl_jax import artifacts, sampler, sharding
from irl_jax.data import batching
from irl_jax.errors import UserError
from irl_jax.stages import scoring

FIELDS = ("tokens", "mask", "ended", "logprobs")  # as stored; the log-probs are the model's own (temperature 1, unfiltered)
MOST_ROWS = 16  # per prompt: enough to share each read of its cache, few enough to decode many prompts together


class Law(NamedTuple):
    """The distribution of tokens: the model's after a temperature and top-p, as in `make_sampler`."""

    temperature: float = 1.0
    top_p: float = 1.0


MODEL = Law()  # the model's own distribution


def at(role: str, temperature: float) -> str:
    """The name of a role sampled at a given temperature: `sft@0.5`, or `sft@greedy` at 0."""
    return f"{role}@{temperature:g}" if temperature else f"{role}@greedy"


def parted(name: str) -> tuple[str, float | None]:
    """(role, temperature) of a name from `at`; (name, None) of a plain role."""
    role, _, temperature = name.partition("@")
    return role, (0.0 if temperature == "greedy" else float(temperature)) if temperature else None


def law_of(config) -> Law:
    """The law of the samples that rewards, DPO and evaluation use.

    Args: config: config.sample.
    """
    return Law(float(config.temperature), float(config.top_p))


def prompts_of(context, part: str) -> list[np.ndarray]:
    """A part's prompts as ids: 'reward' (training prompts), 'eval' (evaluation prompts) or 'development' (see `development`)."""
    if part == "development":
        return [example.prompt for example in development(context)]
    return context.reward_prompts if part == "reward" else [example.prompt for example in context.evaluation]


def development(context) -> list:
    """The development demonstrations that `robust` uses, one per prompt, as Examples whose `source` is the prompt's number."""
    found = list({example.prompt.tobytes(): example for example in context.development}.values())
    return [example._replace(source=p) for p, example in enumerate(found[: context.config.robust.prompts])]


def draw(context, name: str, part: str, count: int) -> int:
    """Samples `count` responses per prompt into W/samples/<name>: from a role by the run's law, or at a temperature (see `at`).

    Returns: tokens drawn (0 if kept).
    """
    path = _path(context, name, part)
    if path.exists():
        return 0
    role, temperature = parted(name)
    law = law_of(context.config.sample) if temperature is None else Law(temperature)
    return draw_into(context, path, _variables(context, role), prompts_of(context, part), count, f"samples/{name}/{part}", law)


def _variables(context, role: str):
    """The variables to sample `role` with. If sft has an adapter, init gets one of zeros: one program then samples both."""
    found = context.variables(role)
    if role == "init" and "adapter" in (like := context.variables("sft")):
        found["adapter"] = context.place(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like["adapter"]))
    return found


def draw_into(context, path, variables, prompts, count: int, purpose: str, law: Law = MODEL) -> int:
    """Samples `count` responses per prompt into the .npz at `path`, and as text beside it.

    Args:
        context: the run. path: of the .npz; an existing one is kept. variables: the model's.
        prompts: ids, one array per prompt. count: responses per prompt. purpose: keys the randomness. law: to draw from.

    Returns:
        Tokens drawn (0 if kept).
    """
    if path.exists():
        return 0
    draw, size = _compiled(context, count, law)
    batches = batching.plan_groups([len(prompt) for prompt in prompts], size, context.config.data.max_prompt_tokens)
    pieces = [path.with_name(f"{path.stem}.part{i}-of-{len(batches)}.npz") for i in range(len(batches))]
    missing = [i for i, piece in enumerate(pieces) if not piece.exists()]
    drawn = sampler.sample_batches(
        draw, variables, prompts, list(range(len(prompts))), [batches[i] for i in missing], size, context.key(purpose), wanted=count,
        temperature=law.temperature, put=context.put, progress=purpose)
    for i, batch in zip(missing, drawn, strict=True):  # a kill loses only what was being decoded
        own = batch.behaviour_logprobs if batch.logprobs is None else batch.logprobs
        scoring.finite(own.sum((1, 2)), "log-probability", [f"{purpose}: the samples of prompt {member}" for member in batches[i].members])
        artifacts.save_arrays(pieces[i], **{name: own if name == "logprobs" else getattr(batch, name) for name in FIELDS})
    back = np.argsort(np.concatenate([batch.members for batch in batches]))
    parts = [artifacts.load_arrays(piece) for piece in pieces]
    arrays = {name: np.concatenate([part[name] for part in parts])[back] for name in FIELDS}
    _write_text(context, path.with_suffix(".jsonl"), prompts, arrays)
    artifacts.save_arrays(path, **arrays)  # last: its presence means the part is complete
    for piece in pieces:
        artifacts.remove(piece)
    return int(arrays["mask"].sum())


def _path(context, role: str, part: str):
    return context.directory("samples") / role.replace("/", "_") / f"{part}.npz"


class Shape(NamedTuple):
    """A sampler's shape: samples per prompt, rows per prompt decoded at once, prompts per batch."""

    samples: int
    rows: int
    prompts: int


def shape_of(config, count: int) -> Shape:
    """The sampler's shape for `count` samples per prompt: the run's shared shape if `count` fits it.

    The shared shape draws up to the largest count in the config. Its rows per prompt (up to 16) are the smallest count, so that
    every row is always used. Further samples wait for a row.

    Args: config: config.sample.
    """
    counts = (config.reward_samples, config.eval_samples, config.policy_samples)
    rows = min(MOST_ROWS, *counts)
    samples, rows = (max(counts), rows) if rows <= count <= max(counts) else (count, min(MOST_ROWS, count))
    return Shape(samples, rows, max(1, config.rows // rows))


def how(law: Law) -> dict:
    """`make_sampler`'s arguments for a law. The compiled sampler takes the temperature as input and returns the model's own log-probs."""
    return {"temperature": None, "top_p": law.top_p, "with_logprobs": True}


def rows_of(config, prompts: int, samples: int) -> int:
    """Rows per prompt for a given number of prompts: all samples, or as many as config.sample.rows allows."""
    return min(samples, max(1, config.rows // prompts))


def _compiled(context, count: int, law: Law):
    """(jitted sampler for `count` samples per prompt, prompts per batch). One sampler per context, shape and top-p: roles and
    temperatures share its traces."""
    greedy = law.temperature == 0  # one sample per prompt isn't worth its own program
    shape = shape_of(context.config.sample, context.config.sample.policy_samples if greedy else count)
    if (shape, law.top_p) not in context.samplers:
        draw_some = sampler.make_sampler(context.model, samples=shape.samples, rows=shape.rows, eos_ids=context.eos_ids,
                                         max_tokens=context.config.data.max_response_tokens, pad_id=context.pad_id, **how(law))
        context.samplers[shape, law.top_p] = sharding.compile_step(draw_some, context.mesh)
    return context.samplers[shape, law.top_p], scoring.round_up(shape.prompts, context.mesh)


def _write_text(context, path, prompts, arrays) -> None:
    lines = []
    for p, prompt in enumerate(prompts):
        question = context.text(prompt)
        for k in range(arrays["tokens"].shape[1]):
            size = int(arrays["mask"][p, k].sum())
            lines.append({"prompt": question, "response": context.text(arrays["tokens"][p, k, :size]),
                          "logprob": round(float(arrays["logprobs"][p, k].sum()), 4), "tokens": size,
                          "ended": bool(arrays["ended"][p, k])})
    artifacts.write_jsonl(path, lines)


def load(context, role: str, part: str) -> dict:
    """Samples drawn earlier: {'tokens', 'mask', 'logprobs'} [P, K, T], 'ended' [P, K], and 'examples', their flat list."""
    return load_from(_path(context, role, part), prompts_of(context, part), stage="sample")


def load_from(path, prompts, stage: str) -> dict:
    """What `draw_into` wrote for these prompts, as from `load`. stage: the stage that writes it, for the message if it is missing.

    Raises: UserError if it is missing, broken or has other shapes than these prompts'.
    """
    arrays: dict[str, Any] = artifacts.load_arrays(path, stage=stage)
    shapes = {name: arrays[name].shape for name in FIELDS if name in arrays}
    wanted = shapes.get("tokens", ())
    if len(wanted) != 3 or wanted[0] != len(prompts) or any(shapes.get(name) != wanted for name in ("mask", "logprobs")) or (
            shapes.get("ended") != wanted[:2]):
        raise UserError(f"{path}: not the samples of this run's {len(prompts)} prompts; {artifacts.REMAKE}")
    arrays["examples"] = scoring.examples_of(prompts, arrays["tokens"], arrays["mask"], arrays["ended"])
    return arrays
