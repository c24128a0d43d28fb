"""The verbs `generate` and `score`, on a run's workdir or on a plain Hugging Face folder."""

from __future__ import annotations

import sys
from collections import Counter

import jax
import numpy as np

from irl_jax import artifacts, hf, sampler, sharding, variants, workdir
from irl_jax.config import GROUPS, ROBUST, default
from irl_jax.data import jsonl, sources, tokenize
from irl_jax.errors import UserError
from irl_jax.evaluation import best_of_n
from irl_jax.stages import inputs, sampling, scoring
from irl_jax.stages.context import Context, Reader


def generate(args) -> None:
    """Writes one JSON line per prompt (or per sample): the record with "response", "logprob", "tokens" and "ended".

    A record's prompt is its text, or its conversation rendered by the chat template. An answer it already has is replaced. In a
    conversation, the response is the whole assistant turn, including what the generation prompt opens (a thought).

    `logprob` is the model's own (temperature 1, unfiltered), summed over the response's tokens and the EOS if sampled ("ended").
    `tokens` counts them. With --reward and --best_of=N, writes the best of N samples by that reward, with its "reward". With
    --agreement=A and an ensemble, writes the one its members agree on (`best_of_n.agreed_choice`).
    """
    records = _read(args.prompts, answered=False)
    context, role = _context(args)
    limit = args.max_tokens or context.config.data.max_response_tokens
    texts = _texts(records, context.chat and context.chat.question)
    prompts, report = tokenize.tokenize_prompts(context.tokenizer, [text.prompt for text in texts], max_prompt=sys.maxsize,
                                                eos_id=context.eos_id, control_tokens=args.control_tokens)
    _say_spelt(context, report.spelt, records)
    tokenize.check_ids(context.tokenizer, _names(records), prompts, context.model.vocab_size)
    for (where, *_), prompt in zip(records, prompts, strict=True):
        if len(prompt) + limit > context.longest:
            raise UserError(f"{where}: the prompt is {len(prompt)} tokens; with --max_tokens={limit} that is longer than the "
                            f"context of {context.longest}; shorten the prompt or lower --max_tokens")
    samples = args.best_of if args.reward else args.samples
    drawn = _draw(context, role, prompts, samples, limit, args)
    examples = scoring.examples_of(prompts, drawn.tokens, drawn.mask, drawn.ended)
    places = [where for where, *_ in records for _ in range(samples)]
    logprobs = scoring.finite(np.asarray(drawn.logprobs, np.float64).sum(-1).reshape(-1), "log-probability", places)
    rewards = scoring.finite(scoring.rewards(context, args.reward, examples), "reward", places) if args.reward else None
    members = _members(context, args, examples)
    lines = []
    for p, (_, record, reading) in enumerate(records):
        asked = {"messages": reading.turns} if reading.turns else {}
        mine = range(p * samples, (p + 1) * samples)
        for i in [_best(mine, rewards, members, args)] if args.reward else mine:
            added = {**asked, "response": texts[p].response + _text(context, examples[i]), "logprob": float(logprobs[i]),
                     "tokens": len(examples[i].response), "ended": examples[i].ended}
            lines.append((record, added if rewards is None else {**added, "reward": float(rewards[i])}))
    _write(args.out, lines)


def score(args) -> None:
    """Adds "logprob" (nats, summed over the response's tokens) and "tokens" to each record with an answer.

    A final EOS counts only with --eos. It is the only token of an empty response, one that ended at once. With --reward, adds "reward":
    the recipe's logit at the response's last token, EOS included, as in training.
    """
    records = _read(args.data, answered=True)
    context, role = _context(args)
    examples, report = tokenize.tokenize_records(
        context.tokenizer, _texts(records, context.chat and context.chat.demonstration), max_prompt=sys.maxsize,
        max_response=sys.maxsize, eos_id=context.eos_id, ends=context.eos_ids, control_tokens=args.control_tokens, allow_empty=True)
    _say_spelt(context, report.spelt, records)
    for part in ("prompt", "response"):
        tokenize.check_ids(context.tokenizer, _names(records), [getattr(example, part) for example in examples], context.model.vocab_size)
    kept = examples if args.eos else [e._replace(response=e.response[:-1], ended=False) for e in examples]
    for (where, *_), example in zip(records, examples if args.reward else kept, strict=True):
        size = len(example.prompt) + len(example.response)
        if size > context.longest:
            raise UserError(f"{where}: prompt and response are {size} tokens, longer than the context of {context.longest}; "
                            "shorten the record")
    context.config.eval.batch_size = min(context.config.eval.batch_size, len(records))  # no more rows than records
    places = [where for where, *_ in records]
    logprobs = scoring.finite(context.scorer.logprobs(context.leaves(role), kept), "log-probability", places)
    rewards = scoring.finite(scoring.rewards(context, args.reward, examples), "reward", places) if args.reward else None
    lines = []
    for i, (_, record, _) in enumerate(records):
        added = {"logprob": float(logprobs[i]), "tokens": len(kept[i].response)}
        lines.append((record, added if rewards is None else {**added, "reward": float(rewards[i])}))
    _write(args.out, lines)


def _write(path, lines: list[tuple[dict, dict]]) -> None:
    """Writes (record, added fields) as one line each, and reports if added fields replaced the record's own."""
    artifacts.write_jsonl(path, ({**record, **added} for record, added in lines))
    replaced = Counter(name for record, added in lines for name in added if name in record and record[name] != added[name])
    if replaced:
        told = ", ".join(f"'{name}' ({count})" for name, count in replaced.items())
        print(f"irl_jax: {path}: {len(lines)} records, in which new values replace the records' own fields {told}", file=sys.stderr)


class _Reading(Context):
    """A finished run, or a plain Hugging Face folder in its place: read only, on the local devices, for sequences up to the model's
    context."""

    def __init__(self, config, workdir=None, base=""):
        config.mesh.data, config.mesh.fsdp, config.mesh.tensor = -1, 1, 1  # the run may have trained on other devices
        super().__init__(config, workdir, base)

    @property
    def longest(self) -> int:
        return self.model.max_positions

    def _check_context(self, base):
        """Does nothing: here each record's length is checked, whatever lengths the run trained with."""


def _context(args) -> tuple[Context, str]:
    """(context, role) from --model, or from --workdir and --role. The command line has checked that one of the two is given."""
    if args.model:
        hf.resolve(args.model)
        config = default()
        config.data.source, config.model.path, config.adapter.rank = "file", str(args.model), 0
        return _Reading(config), "init"
    config = workdir.read_config(args.workdir)
    role = find_role(config, args.workdir, args.role or "sft")
    rewards = [*(method.name for method in variants.methods(config, "reward")), "log_ratio", "mean_logprob", ROBUST]
    if args.reward and args.reward not in rewards:
        raise UserError(f"--reward: unknown reward '{args.reward}'; one of {', '.join(rewards)}")
    context = open_run(config, args.workdir, args.base)
    if args.reward == ROBUST and not scoring.has_robust(context):
        raise UserError(f"--reward: {args.workdir} has made no 'robust'; run its stage (--stages=robust), which needs a learnt reward of "
                        "robust.recipes and development records")
    return context, role


def _temperature(context, args) -> float:
    """The requested temperature, or that of `robust` if it is the reward, or 1."""
    if args.temperature is not None or args.reward != ROBUST:
        return 1.0 if args.temperature is None else args.temperature
    found = scoring.robust_of(context)
    chosen = "robust chooses among them" if found.terms else "its gate is closed, so that the first of them is written"
    context.say(f"sampling at temperature {found.temperature:g}, robust's own; {chosen}")
    return found.temperature


def find_role(config, path, role: str, rewards: bool = False) -> str:
    """Finds a role of the run in the workdir `path`. A group's name means its first method. Finds rewards only with `rewards`.

    Raises: UserError if the run's config has none of that name.
    """
    by_group = {group: [method.role for method in variants.methods(config, group)] for group in GROUPS if rewards or group != "reward"}
    if role in by_group:
        if not by_group[role]:
            raise UserError(f"--role={role}: {path} has trained no {role} (its {role}.recipes is empty)")
        return by_group[role][0]
    known = ("init", "sft", *(known_role for roles in by_group.values() for known_role in roles))
    if role not in known:
        raise UserError(f"--role: unknown role '{role}'; one of {', '.join(known)}")
    return role


def open_run(config, path, base: str = "") -> Context:
    """The finished run in the workdir `path`, read only.

    Args:
        config: the run's. path: the workdir. base: where its initial model is now; "": where its config says.

    Raises: UserError if that model is missing, or is not the one the run started from.
    """
    context = _Reading(config, Reader(path), base)
    if config.model.path:
        try:
            folder = context.folder
        except UserError as error:
            if base:
                raise UserError(f"--base={base}: {error}") from None
            raise UserError(f"{path}: its config.json names model.path = '{config.model.path}' (a relative path starts at the "
                            f"current folder): {error}; if it has moved, name its folder by --base") from None
        inputs.check_model(path, folder, base)
        context.began = inputs.began(path) or context.began
    return context


def _read(path, answered: bool) -> list[tuple[str, dict, sources.Reading]]:
    """(name, record, its reading) per record; loads nothing heavy."""
    fields, records = default().data.fields, []
    for where, record in sources.read_jsonl(path):
        reading = sources.read_record(record, where, fields, answered=answered, allow_empty=True, key="")
        jsonl.check_writable(record, where)
        records.append((where, record, reading if answered else reading._replace(answer=None)))
    if not records:
        raise UserError(f"{path}: no records; give one JSON object a line")
    return records


def _texts(records, render) -> list[sources.Record]:
    """The records' prompts and responses; `render` turns conversations into text."""
    return [sources.rendered(reading, where, render) for where, _, reading in records]


def _names(records) -> list[str]:
    return [where for where, *_ in records]


def _say_spelt(context, number: int, records) -> None:
    if number:
        context.say(f"{number} of {len(records)} records {tokenize.SPELT}; if a template has rendered them, give --control_tokens")


def _text(context, example) -> str:
    """The response's text as it continues the prompt. Decoded alone, SentencePiece tokenizers would drop its first space."""
    prompt = context.text(example.prompt)
    whole = context.text([*example.prompt, *example.response])
    return whole[len(prompt):] if whole.startswith(prompt) else context.text(example.response)


def _draw(context, role, prompts, samples, limit, args):
    rows = min(samples, sampling.MOST_ROWS)
    size = scoring.round_up(min(max(1, context.config.sample.rows // rows), len(prompts)), context.mesh)
    draw = sharding.compile_step(
        sampler.make_sampler(context.model, samples=samples, rows=rows, max_tokens=limit, eos_ids=context.eos_ids, pad_id=context.pad_id,
                             temperature=_temperature(context, args), top_k=args.top_k, top_p=args.top_p, with_logprobs=True), context.mesh)
    return sampler.sample_prompts(draw, context.variables(role), prompts, list(range(len(prompts))), size, jax.random.key(args.seed),
                                  put=context.put, progress="generate")


def _best(mine, rewards, members, args) -> int:
    """The sample to write for one prompt: the best by the reward, or the one the members agree on."""
    if members is None:
        return max(mine, key=lambda i: rewards[i])
    ns = [n for n in (2**power for power in range(args.best_of.bit_length())) if n < args.best_of] + [args.best_of]
    return mine[best_of_n.agreed_choice(members[:, mine.start : mine.stop], ns, args.agreement)[0]]


def _members(context, args, examples):
    """The members' rewards [E, n] with --agreement, else None."""
    if args.agreement is None:
        return None
    learnt = [method for method in variants.methods(context.config, "reward") if method.name == args.reward]
    if not learnt or learnt[0].config.reward.ensemble == 1:
        raise UserError(f"--agreement: the reward '{args.reward}' is no ensemble; train one with reward.ensemble above 1, or drop the flag")
    return scoring.member_rewards(context, args.reward, examples)
