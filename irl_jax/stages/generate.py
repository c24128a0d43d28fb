"""The verbs `generate` and `score`, on a run's workdir or on a plain Hugging Face folder."""

from __future__ import annotations

import sys

import jax
import numpy as np

from irl_jax import hf, sampler, sharding, workdir
from irl_jax.config import LEARNT, default
from irl_jax.data import sources, tokenize
from irl_jax.errors import UserError
from irl_jax.stages import scoring
from irl_jax.stages.context import Context, Reader


def generate(args) -> None:
    """Writes one JSON line a prompt (or a sample): {"prompt", "response", "logprob", "tokens", "ended"}.

    `logprob` is the model's own (temperature 1, unfiltered), summed over the response's tokens, EOS included where it was
    sampled ("ended"); `tokens` counts them. With --reward and --best_of=N, the best of N samples by that reward is written,
    with its "reward".
    """
    context, role = _context(args)
    records = _read(args.prompts, ("prompt",))
    limit = args.max_tokens or context.config.data.max_response_tokens
    prompts = [_prompt_ids(context, record["prompt"], where, limit) for where, record in records]
    samples = args.best_of if args.reward else args.samples
    drawn = _draw(context, role, prompts, samples, limit, args)
    examples = scoring.examples_of(prompts, drawn.tokens, drawn.mask, drawn.ended)
    logprobs = np.asarray(drawn.logprobs, np.float64).sum(-1).reshape(-1)
    rewards = _rewards(context, args.reward, examples) if args.reward else None
    lines = []
    for p, (_, record) in enumerate(records):
        mine = range(p * samples, (p + 1) * samples)
        for i in [max(mine, key=lambda i: rewards[i])] if args.reward else mine:
            line = {**record, "response": context.text(examples[i].response), "logprob": float(logprobs[i]),
                    "tokens": len(examples[i].response), "ended": examples[i].ended}
            if args.reward:
                line["reward"] = float(rewards[i])
            lines.append(line)
    _write(args.out, lines)


def score(args) -> None:
    """Adds "logprob" (nats, summed over the response's tokens) and "tokens" to each {"prompt", "response"} record.

    A final EOS counts only with --eos. With --reward, "reward" is added: the recipe's logit at the response's last token,
    EOS included, as the reward was trained.
    """
    context, role = _context(args)
    records = _read(args.data, ("prompt", "response"))
    pairs = [sources.Record(record["prompt"], record["response"]) for _, record in records]
    examples, _ = tokenize.tokenize_records(
        context.tokenizer, pairs, max_prompt=context.longest, max_response=context.longest, truncate_prompts=False,
        eos_id=context.eos_id)
    for (where, _), example in zip(records, examples, strict=True):
        size = len(example.prompt) + len(example.response)
        if size > context.longest:
            raise UserError(f"{where}: prompt and response are {size} tokens, longer than the context of {context.longest}; "
                            "shorten the record")
    kept = examples if args.eos else [e._replace(response=e.response[:-1], ended=False) if e.ended else e for e in examples]
    logprobs = context.scorer.logprobs(context.leaves(role), kept)
    rewards = _rewards(context, args.reward, examples) if args.reward else None
    lines = []
    for i, (_, record) in enumerate(records):
        line = {**record, "logprob": float(logprobs[i]), "tokens": len(kept[i].response)}
        if args.reward:
            line["reward"] = float(rewards[i])
        lines.append(line)
    _write(args.out, lines)


class _Folder(Context):
    """A plain Hugging Face folder in the place of a run: only `init` exists."""

    def __init__(self, path):
        config = default()
        with config.unlocked():
            config.data.source, config.model.path, config.adapter.rank = "file", str(path), 0
            config.data.max_prompt_tokens = config.data.max_response_tokens = 1
        super().__init__(config, None)

    @property
    def longest(self) -> int:
        return self.model.max_positions


class _Run(Context):
    """A finished run, read only."""

    @property
    def longest(self) -> int:
        return self.model.max_positions


def _context(args):
    """(context, role) from --model or --workdir and --role."""
    if bool(args.model) == bool(args.workdir):
        raise UserError("give either --model=DIR (a Hugging Face folder) or --workdir=W (a run)")
    if args.model:
        if args.reward:
            raise UserError("--reward needs --workdir: a plain folder has no learnt reward")
        hf.resolve(args.model)
        return _Folder(args.model), "init"
    context = _Run(workdir.read_config(args.workdir), Reader(args.workdir))
    role = args.role or "sft"
    if role == "policy":
        role = f"policy/{context.config.policy.recipes[0]}"
    known = ("init", "sft", *(f"policy/{r}" for r in context.config.policy.recipes))
    if role not in known:
        raise UserError(f"--role: unknown role '{role}'; one of {', '.join(known)}")
    return context, role


def _read(path, fields) -> list[tuple[str, dict]]:
    records = []
    for where, record in sources.read_jsonl(path):
        for field in fields:
            sources.text_field(record, field, where, allow_empty=field == "prompt")
        records.append((where, record))
    if not records:
        raise UserError(f"{path}: no records; give one JSON object a line")
    return records


def _prompt_ids(context, prompt: str, where: str, limit: int) -> np.ndarray:
    (ids,) = tokenize.tokenize_prompts(context.tokenizer, [prompt], max_prompt=sys.maxsize, eos_id=context.eos_id)
    if len(ids) + limit > context.longest:
        raise UserError(f"{where}: the prompt is {len(ids)} tokens; with --max_tokens={limit} that is longer than the "
                        f"context of {context.longest}; shorten the prompt or lower --max_tokens")
    return ids


def _draw(context, role, prompts, samples, limit, args):
    rows = scoring.round_up(max(1, context.config.sample.rows // samples), context.mesh)
    draw = sharding.compile_step(
        sampler.make_sampler(context.model, samples=samples, max_tokens=limit, eos_ids=context.eos_ids, pad_id=context.pad_id,
                             temperature=args.temperature, top_k=args.top_k, top_p=args.top_p, with_logprobs=True), context.mesh)
    return sampler.sample_prompts(
        draw, context.variables(role), prompts, list(range(len(prompts))),
        min(rows, scoring.round_up(len(prompts), context.mesh)), jax.random.key(args.seed), put=context.put, progress="generate")


def _rewards(context, recipe: str, examples) -> np.ndarray:
    if recipe == "log_ratio":
        return context.scorer.logprobs(context.leaves("sft"), examples) - context.scorer.logprobs(None, examples)
    known = [r for r in LEARNT if r in context.config.reward.recipes]
    if recipe not in known:
        raise UserError(f"--reward: unknown reward '{recipe}'; one of {', '.join([*known, 'log_ratio'])}")
    return context.scorer.rewards(context.leaves(f"reward/{recipe}"), examples)


def _write(path, lines) -> None:
    workdir.write_jsonl(path, lines)
