"""Samples: those of a role in W/samples/<role>, drawn once and read by every later stage, and those of a method's iterations."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from irl_jax import artifacts, sampler, sharding
from irl_jax.data import batching
from irl_jax.errors import UserError
from irl_jax.stages import scoring

FIELDS = ("tokens", "mask", "ended", "logprobs")  # as stored; the log-probs are the model's own (temperature 1, unfiltered)
MOST_ROWS = 16  # of a prompt: enough that its cache is read for many rows, few enough that many prompts are decoded together


class Law(NamedTuple):
    """What tokens are drawn from: the model's distribution after a temperature and top-p, as `make_sampler` has them."""

    temperature: float = 1.0
    top_p: float = 1.0


MODEL = Law()  # the model's own distribution


def at(role: str, temperature: float) -> str:
    """The name of a role that is sampled at another temperature than 1: `sft@0.5`, and `sft@greedy` at 0."""
    return f"{role}@{temperature:g}" if temperature else f"{role}@greedy"


def parted(name: str) -> tuple[str, float | None]:
    """(role, temperature) of a name that `at` made; (name, None) of a role's own."""
    role, _, temperature = name.partition("@")
    return role, (0.0 if temperature == "greedy" else float(temperature)) if temperature else None


def law_of(config) -> Law:
    """The law of the samples that rewards, DPO and the evaluation look at.

    Args: config: config.sample.
    """
    return Law(float(config.temperature), float(config.top_p))


def prompts_of(context, part: str) -> list[np.ndarray]:
    """The prompts of a part, as ids: 'reward' (training prompts), 'eval' (evaluation prompts) or 'development' (some of those)."""
    if part == "development":
        return [example.prompt for example in development(context)]
    return context.reward_prompts if part == "reward" else [example.prompt for example in context.evaluation]


def development(context) -> list:
    """The development demonstrations that `robust` looks at, one a prompt, as Examples whose `source` is the prompt's number."""
    found = list({example.prompt.tobytes(): example for example in context.development}.values())
    return [example._replace(source=p) for p, example in enumerate(found[: context.config.robust.prompts])]


def draw(context, name: str, part: str, count: int) -> int:
    """Samples `count` responses a prompt into W/samples/<name>: of a role by the run's law, or of one at a temperature (see `at`).

    Returns: tokens drawn (0 if kept).
    """
    path = _path(context, name, part)
    if path.exists():
        return 0
    role, temperature = parted(name)
    law = law_of(context.config.sample) if temperature is None else Law(temperature)
    return draw_into(context, path, _variables(context, role), prompts_of(context, part), count, f"samples/{name}/{part}", law)


def _variables(context, role: str):
    """What the model is applied with as `role`: init with an adapter of zeros where sft has one, so that one program samples both."""
    found = context.variables(role)
    if role == "init" and "adapter" in (like := context.variables("sft")):
        found["adapter"] = context.place(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like["adapter"]))
    return found


def draw_into(context, path, variables, prompts, count: int, purpose: str, law: Law = MODEL) -> int:
    """Samples `count` responses a prompt into the .npz at `path`, and as text beside it.

    Args:
        context: the run. path: of the .npz; one that is there is kept. variables: the model is applied with them.
        prompts: ids, one array a prompt. count: responses a prompt. purpose: keys the randomness. law: what is drawn from.

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
    for i, batch in zip(missing, drawn, strict=True):  # a kill loses what was being decoded, and no more
        own = batch.behaviour_logprobs if batch.logprobs is None else batch.logprobs
        scoring.finite(own.sum((1, 2)), "log-probability", [f"{purpose}: the samples of prompt {member}" for member in batches[i].members])
        artifacts.save_arrays(pieces[i], **{name: own if name == "logprobs" else getattr(batch, name) for name in FIELDS})
    back = np.argsort(np.concatenate([batch.members for batch in batches]))
    parts = [artifacts.load_arrays(piece) for piece in pieces]
    arrays = {name: np.concatenate([part[name] for part in parts])[back] for name in FIELDS}
    _write_text(context, path.with_suffix(".jsonl"), prompts, arrays)
    artifacts.save_arrays(path, **arrays)  # last: its presence says that the part is whole
    for piece in pieces:
        artifacts.remove(piece)
    return int(arrays["mask"].sum())


def _path(context, role: str, part: str):
    return context.directory("samples") / role.replace("/", "_") / f"{part}.npz"


class Shape(NamedTuple):
    """A sampler's: samples a prompt, rows of a prompt that are decoded at one time, prompts a batch."""

    samples: int
    rows: int
    prompts: int


def shape_of(config, count: int) -> Shape:
    """The sampler's shape for `count` samples a prompt: the run's one, where that many go through it.

    That draws as many as are ever asked for and has as many rows a prompt (up to 16) as the least that is asked for, so that every
    row is of use each time; what is above that waits for a row.

    Args: config: config.sample.
    """
    counts = (config.reward_samples, config.eval_samples, config.policy_samples)
    rows = min(MOST_ROWS, *counts)
    samples, rows = (max(counts), rows) if rows <= count <= max(counts) else (count, min(MOST_ROWS, count))
    return Shape(samples, rows, max(1, config.rows // rows))


def how(law: Law) -> dict:
    """The arguments of `make_sampler` for a law. The compiled sampler is told the temperature, and gives the model's own log-probs."""
    return {"temperature": None, "top_p": law.top_p, "with_logprobs": True}


def rows_of(config, prompts: int, samples: int) -> int:
    """Rows a prompt where the number of prompts is given: all samples, or what config.sample.rows has room for."""
    return min(samples, max(1, config.rows // prompts))


def _compiled(context, count: int, law: Law):
    """The jitted sampler for `count` samples a prompt, one a context, shape and top-p, so that roles and temperatures share its traces;
    prompts a batch."""
    greedy = law.temperature == 0  # one sample a prompt, which is not worth a program of its own
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
    """Samples drawn earlier: {'tokens', 'mask', 'ended', 'logprobs'} [P, K, T] with 'examples', their flat list."""
    return load_from(_path(context, role, part), prompts_of(context, part), stage="sample")


def load_from(path, prompts, stage: str) -> dict:
    """What `draw_into` wrote for these prompts, as `load` gives it; `stage` writes it, for the message where it is missing.

    Raises: UserError where it is missing, broken or of other prompts.
    """
    arrays: dict[str, Any] = artifacts.load_arrays(path, stage=stage)
    shapes = {name: arrays[name].shape for name in FIELDS if name in arrays}
    wanted = shapes.get("tokens", ())
    if len(wanted) != 3 or wanted[0] != len(prompts) or any(shapes.get(name) != wanted for name in ("mask", "logprobs")) or (
            shapes.get("ended") != wanted[:2]):
        raise UserError(f"{path}: not the samples of this run's {len(prompts)} prompts; {artifacts.REMAKE}")
    arrays["examples"] = scoring.examples_of(prompts, arrays["tokens"], arrays["mask"], arrays["ended"])
    return arrays
