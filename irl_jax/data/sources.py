"""Records from files, TFDS and HH-RLHF transcripts, split by prompt into training, development and evaluation.

Every source gives the same thing: a `Corpus` of (prompt, response) text records whose three splits share no prompt.
"""

from __future__ import annotations

import json
import re
import types
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from irl_jax.data.jsonl import check_encodable, number_field, read_jsonl, text_field
from irl_jax.errors import UserError

Render = Callable[..., tuple[str, str]]

HH_MARK = "\n\nAssistant:"
_SPLIT_STREAM, _WORDS_STREAM, _PROMPTS_STREAM = 1, 2, 5  # keep the draws for different purposes apart


class Record(NamedTuple):
    """One demonstration. The joined text is prompt + response, with nothing in between. Evaluation prompts without a response have ""."""

    prompt: str
    response: str


class PairRecord(NamedTuple):
    """Two responses to one prompt, the first preferred by a human."""

    prompt: str
    chosen: str
    rejected: str


class Corpus(NamedTuple):
    """Text records. No prompt is in two of the three splits. No pair has a prompt of development or evaluation.

    counts: number of records left out while reading, by reason ("prompt_not_shared", "empty", "short", "pairs_off_training",
    "overlap_with_evaluation"); reasons that never applied are absent. turns: the messages of each prompt that was rendered from some.
    streamed: records that SFT reads from disk, if `train` is only a sample of them (see irl_jax/data/streaming.py), else 0.
    prompts: more training prompts, without demonstrations. None of them is in a split, and none occurs twice.
    """

    train: list[Record]
    development: list[Record]
    evaluation: list[Record]
    pairs: list[PairRecord]
    counts: Mapping[str, int] = types.MappingProxyType({})
    turns: Mapping[str, list[dict]] = types.MappingProxyType({})
    streamed: int = 0
    prompts: Sequence[str] = ()


class Row(NamedTuple):
    """A record as read. demonstration: whether its response may be imitated. pair: (chosen, rejected) or None. turns: those from which its
    prompt was rendered."""

    prompt: str
    response: str
    demonstration: bool = True
    pair: tuple[str, str] | None = None
    turns: list[dict] | None = None


def load_corpus(data_config, seed: int, render: Render | None = None) -> Corpus:
    """Reads the configured source (any but the testbed) and splits it by prompt.

    Args:
        data_config: `config.data`; see irl_jax/config.py for every key.
        seed: of the split, and of the number of prompt words of "continuations".
        render: messages -> (prompt, response), for records with messages (`chat.Chat.demonstration`).

    Returns:
        The corpus. Equal prompts go to one split. Records rated below `min_rating` are not demonstrations; only evaluation uses their
        prompts.

    Raises:
        UserError: a missing or damaged file, a broken line, a record without its field, an empty response, or no record for
            training or evaluation.
    """
    counts: Counter = Counter()
    rows = read_rows(data_config.source, data_config, seed, render, counts)
    turns = {row.prompt: row.turns for row in rows if row.turns}
    prompts = list(dict.fromkeys(row.prompt for row in rows))
    order = [prompts[i] for i in np.random.default_rng([seed, _SPLIT_STREAM]).permutation(len(prompts))]
    evaluation, order = _held_out(data_config, seed, render, counts, rows, order, turns)
    if not evaluation:
        raise UserError(
            f"data.heldout_fraction = {data_config.heldout_fraction:g}: no record is left for evaluation; make it positive, or name "
            "a file of evaluation records in data.eval_source"
        )
    if not order:
        raise UserError(
            f"{data_config.source}: no record is left for training: each of its {len(prompts)} prompts is in data.eval_source = "
            f"{data_config.eval_source} too, and training leaves those out; give records of other prompts in one of the two"
        )
    # Training keeps two prompts if there are two, since a reward holds one of them out.
    number = share(data_config.development_fraction, len(prompts), "data.development_fraction", left=len(order) - 1)
    demonstrations = [row for row in rows if row.demonstration]
    development, train = _records_of(order[:number], demonstrations), _records_of(order[number:], demonstrations)
    if not train:
        raise UserError(
            f"{data_config.source}: no demonstration is left for training out of {len(rows)} records of {len(prompts)} prompts; "
            "lower data.min_rating, data.heldout_fraction or data.development_fraction, or give more records"
        )
    if data_config.max_demonstrations:
        train = train[: data_config.max_demonstrations]
    pairs = load_pairs(data_config, seed, render, rows, development + evaluation, counts)
    corpus = Corpus(train, development, evaluation, pairs, counts, turns)
    if data_config.prompts_source:
        corpus = _with_prompts(corpus, data_config, seed, render, counts)
    return corpus._replace(counts={name: number for name, number in counts.items() if number})


def _held_out(data_config, seed, render, counts, rows, order, turns) -> tuple[list[Record], list[str]]:
    """(evaluation records, the prompts left for training) from the prompts in `order`. Adds to `turns` and `counts`."""
    if data_config.eval_source:
        evaluation = read_rows(data_config.eval_source, data_config, seed, render, counts)
        held = {row.prompt for row in evaluation}
        counts["overlap_with_evaluation"] += sum(row.prompt in held for row in rows)
        turns |= {row.prompt: row.turns for row in evaluation if row.turns}
        return [Record(row.prompt, row.response) for row in evaluation], [prompt for prompt in order if prompt not in held]
    number = share(data_config.heldout_fraction, len(order), "data.heldout_fraction")
    if len(order) == 1:
        raise UserError(
            f"{data_config.source}: all of its {len(rows)} records have one prompt, and training and evaluation share no prompt; give "
            "records of other prompts too, or name a file of evaluation records on other prompts in data.eval_source"
        )
    return _records_of(order[:number], rows), order[number:]


def share(fraction: float, prompts: int, key: str, left: int | None = None) -> int:
    """How many of the prompts a fraction is: at least one if it is positive, but never all.

    Args:
        fraction: of the prompts. prompts: how many there are. key: of the setting. left: always fewer than this (None: than `prompts`).
    """
    if not 0 <= fraction < 1:
        raise UserError(f"{key} = {fraction}: it must be at least 0 and below 1")
    most = (prompts if left is None else left) - 1
    return max(0, min(max(round(fraction * prompts), 1), most)) if fraction > 0 else 0


def _records_of(prompts: list[str], rows: list[Row]) -> list[Record]:
    """The records with these prompts, in the prompts' order."""
    rank = {prompt: i for i, prompt in enumerate(prompts)}
    chosen = sorted((row for row in rows if row.prompt in rank), key=lambda row: rank[row.prompt])
    return [Record(row.prompt, row.response) for row in chosen]


def load_pairs(data_config, seed, render, rows, elsewhere: list[Record], counts: Counter) -> list[PairRecord]:
    """The preference pairs, without those whose prompt is kept for development or evaluation."""
    source = data_config.preference_source
    if source:
        rows = read_rows(source, data_config, seed, render, counts, pairs_only=True)
    kept_elsewhere = {record.prompt for record in elsewhere}
    pairs = [PairRecord(row.prompt, *row.pair) for row in rows if row.pair is not None]
    kept = [pair for pair in pairs if pair.prompt not in kept_elsewhere]
    counts["pairs_off_training"] += len(pairs) - len(kept)
    return kept


def _with_prompts(corpus: Corpus, data_config, seed: int, render: Render | None, counts: Counter) -> Corpus:
    """Adds the prompts of `prompts_source` that are not in the corpus yet: some to evaluation, the others to training.

    `heldout_fraction` of them, drawn by the seed, join the evaluation if `eval_source` is empty. A prompt that has a pair stays in
    training.
    """
    rows = read_rows(data_config.prompts_source, data_config, seed, render, counts, answered=False)
    known = {record.prompt for part in (corpus.train, corpus.development, corpus.evaluation) for record in part}
    new = list(dict.fromkeys(row.prompt for row in rows if row.prompt not in known))
    order = [new[i] for i in np.random.default_rng([seed, _PROMPTS_STREAM]).permutation(len(new))]
    paired = {pair.prompt for pair in corpus.pairs}
    free = [prompt for prompt in order if prompt not in paired]
    number = 0 if data_config.eval_source or not free else share(data_config.heldout_fraction, len(free), "data.heldout_fraction")
    held = set(free[:number])
    return corpus._replace(
        evaluation=[*corpus.evaluation, *(Record(prompt, "") for prompt in free[:number])],
        prompts=[prompt for prompt in order if prompt not in held],
        turns={**{row.prompt: row.turns for row in rows if row.turns}, **corpus.turns})


# ---- one source -> rows ----


def read_rows(
    source: str, data_config, seed: int, render: Render | None, counts: Counter[str], pairs_only: bool = False, answered: bool = True
) -> list[Row]:
    """The records of a source (`data.source` or another). Counts those left out in `counts`.

    pairs_only: all must be pairs. answered: each must have a response. If False, responses are ignored, and "" in the rows.
    """
    if data_config.kind not in ("pairs", "continuations"):
        raise UserError(f"data.kind = {data_config.kind!r}: it must be 'pairs' or 'continuations'")
    if source == "testbed":
        raise ValueError("the testbed is built by irl_jax.data.testbed, not read")
    if source.startswith("tfds:"):
        from irl_jax.data.tfds import reading

        records = reading.Source(source, data_config.tfds_split, data_config.tfds_data_dir).records(data_config.max_records)
    else:
        path = source[len("hh:") :] if source.startswith("hh:") else source
        records = read_jsonl(path, data_config.max_records)
    if source.startswith("hh:"):
        found = hh_rows(records, data_config.fields, counts) if answered else _hh_prompts(records, data_config.fields)
    elif data_config.kind == "continuations" and not pairs_only:
        found = _continuation_rows(records, data_config, seed, counts, answered)
    elif not answered:
        found = _prompt_rows(records, data_config.fields, render)
    else:
        found = pair_rows(records, data_config.fields, render, pairs_only)
    rows = list(found)
    if not rows:
        raise UserError(f"{source}: no record in it can be used{_reasons(counts)}; give a file with records")
    return rows


def _reasons(counts: Counter) -> str:
    return f" ({left_out(counts)})" if left_out(counts) else ""


def left_out(counts: Mapping[str, int]) -> str:
    """`Corpus.counts` in words, "left out: 5 prompt_not_shared, 4 empty"; "" if nothing was."""
    told = ", ".join(f"{number} {name}" for name, number in counts.items() if number)
    return f"left out: {told}" if told else ""


def pair_rows(records: Iterable[tuple[str, dict]], fields, render: Render | None, pairs_only: bool) -> Iterator[Row]:
    """Records as `read_record` reads them, with conversations rendered. `pairs_only`: all must have chosen and rejected."""
    for where, record in records:
        pair = None
        if pairs_only or (fields.chosen in record and fields.rejected in record):
            pair = (text_field(record, fields.chosen, where), text_field(record, fields.rejected, where))
        reading = read_record(record, where, fields, answered=pair is None)
        if pair is not None and (pairs_only or reading.answer is None):
            reading = reading._replace(answer=pair[0])
        texts = [rendered(reading._replace(answer=answer), where, render) for answer in (reading.answer, *(pair or ()))]
        prompt = min((text.prompt for text in texts), key=len)
        if not all(text.prompt.startswith(prompt) for text in texts):
            raise UserError(f"{where}: the tokenizer's chat template gives the two answers two prompts; give prompt, not messages")
        response, *sides = ((text.prompt + text.response)[len(prompt) :] for text in texts)
        yield Row(prompt, response, True, (sides[0], sides[1]) if pair else None, reading.turns or None)


def _prompt_rows(records: Iterable[tuple[str, dict]], fields, render: Render | None) -> Iterator[Row]:
    """The records' prompts, as `generate` reads them. Answers are ignored."""
    for where, record in records:
        reading = read_record(record, where, fields, answered=False, allow_empty=True)._replace(answer=None)
        yield Row(rendered(reading, where, render).prompt, "", turns=reading.turns or None)


class Reading(NamedTuple):
    """What a record says: its prompt, as text or as the `turns` of a conversation, and its answer, as text, as a turn or None."""

    prompt: str
    turns: list[dict]
    answer: str | dict | None


def read_record(
    record: Mapping, where: str, fields, *, answered: bool = True, allow_empty: bool = False, key: str = "data.fields"
) -> Reading:
    """Reads a record by the one rule that all commands share (see docs/data.md).

    Messages are the prompt. If the last one is the assistant's, it is the answer, and only those before it are the prompt. A response
    beside messages without an answer is that answer. A prompt or response that contradicts the messages is refused.

    Args:
        record, where: as `read_jsonl` gives them. fields: names of the fields, as `config.data.fields`.
        answered: there must be an answer. allow_empty: it may be blank. key: the setting that names the fields.

    Raises: UserError.
    """
    response = None
    if record.get(fields.response) is not None:
        response = text_field(record, fields.response, where, allow_empty=True, key=key)
    if record.get("messages") is None:
        reading = Reading(text_field(record, fields.prompt, where, allow_empty=True, key=key), [], response)
    else:
        reading = _conversation(record, where, fields, response)
    if answered and reading.answer is None and reading.turns:
        raise UserError(f"{where}: field 'messages' must be a list of {{role, content}} of two or more turns, the last one the "
                        f"assistant's, or stand beside a field {fields.response!r}")
    if answered and reading.answer is None or response is not None and not allow_empty:
        text_field(record, fields.response, where, key=key)
    if isinstance(reading.answer, dict) and not allow_empty and not reading.answer["content"].strip():
        raise UserError(f"{where}: the last turn of field 'messages' is empty; give the response or remove the record")
    return reading


def _conversation(record: Mapping, where: str, fields, response: str | None) -> Reading:
    """What a record with messages says. Two assistant turns at its end would be two answers. Raises: UserError."""
    if record.get("tools"):
        raise UserError(f"{where}: field 'tools' is not read; leave it out, or give prompt and response as the template renders "
                        "them, whose control tokens are read with data.control_tokens or --control_tokens")
    messages = record["messages"]
    for number, turn in enumerate(messages if isinstance(messages, list) else [], 1):
        if not isinstance(turn, dict) or not all(isinstance(turn.get(field), str) for field in ("role", "content")):
            raise UserError(f"{where}: turn {number} of field 'messages' must be {{role, content}}, both text; calls of tools and contents "
                            "in parts are not read")
        check_encodable(json.dumps(turn, ensure_ascii=False, default=str), where, f"messages, turn {number}")
    if not isinstance(messages, list) or not messages or len(messages) == 1 and messages[0]["role"] == "assistant":
        raise UserError(f"{where}: field 'messages' must be a list of {{role, content}} with a turn that is not the assistant's before the "
                        "answer")
    turns, answer = (messages[:-1], messages[-1]) if messages[-1]["role"] == "assistant" else (messages, None)
    if answer is not None and turns[-1]["role"] == "assistant":
        raise UserError(f"{where}: field 'messages' ends with two turns of the assistant's; make them one, or take the last one out")
    if answer is not None and response is not None and response.strip() != answer["content"].strip():
        raise UserError(f"{where}: field {fields.response!r} is another text than the answer that field 'messages' ends with; take one out")
    if record.get(fields.prompt) is not None:
        prompt = text_field(record, fields.prompt, where, allow_empty=True).strip()
        if prompt and all(prompt != turn["content"].strip() for turn in turns):
            raise UserError(f"{where}: field {fields.prompt!r} is another text than each turn of field 'messages' before the answer; take "
                            "one out")
    return Reading("", turns, response if answer is None else answer)


def rendered(reading: Reading, where: str, render: Render | None) -> Record:
    """A record's prompt and response as texts. `render` makes them from a conversation's turns and answer. Raises: UserError."""
    answer = reading.answer
    if not reading.turns:
        return Record(reading.prompt, answer if isinstance(answer, str) else "")
    if render is None:
        raise UserError(f"{where}: field 'messages' needs a chat template, and the tokenizer has none; give prompt and response")
    try:
        if isinstance(answer, str):
            return Record(*render([*reading.turns, {"role": "assistant", "content": answer}], sampled=True))
        return Record(*render([*reading.turns, *([] if answer is None else [answer])]))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def hh_rows(records: Iterable[tuple[str, dict]], fields, counts: Counter[str]) -> Iterator[Row]:
    """HH-RLHF transcripts: the prompt is everything up to and including the last "Assistant:" of chosen.

    The published files have a few pairs whose sides differ before that, and a few empty replies. They are left out and counted.
    """
    for where, record in records:
        chosen, rejected = text_field(record, fields.chosen, where), text_field(record, fields.rejected, where)
        end = _hh_end(chosen, where, fields)
        if rejected.rfind(HH_MARK) + len(HH_MARK) != end or rejected[:end] != chosen[:end]:
            counts["prompt_not_shared"] += 1
        elif not chosen[end:].strip() or not rejected[end:].strip():
            counts["empty"] += 1
        else:
            yield Row(chosen[:end], chosen[end:], True, (chosen[end:], rejected[end:]))


def _hh_prompts(records: Iterable[tuple[str, dict]], fields) -> Iterator[Row]:
    """The prompts of HH-RLHF transcripts. Reads only `chosen`."""
    for where, record in records:
        chosen = text_field(record, fields.chosen, where)
        yield Row(chosen[: _hh_end(chosen, where, fields)], "")


def _hh_end(chosen: str, where: str, fields) -> int:
    """Where a transcript's prompt ends."""
    cut = chosen.rfind(HH_MARK)
    if cut < 0:
        raise UserError(f"{where}: field {fields.chosen!r} has no '\\n\\nAssistant:' in it; HH-RLHF transcripts do")
    return cut + len(HH_MARK)


def _continuation_rows(
    records: Iterable[tuple[str, dict]], data_config, seed: int, counts: Counter[str], answered: bool
) -> Iterator[Row]:
    """{text[, rating]}: the first few words are the prompt. The rest, with its leading space, is the response.

    If not `answered`, only prompts are read: a text may end with its prompt, and needs no rating.
    """
    low, high = data_config.prompt_words
    if not 1 <= low <= high:
        raise UserError(f"data.prompt_words = {(low, high)}: two numbers are needed, 1 or more, the smaller one first")
    generator = np.random.default_rng([seed, _WORDS_STREAM])
    fields = data_config.fields
    for where, record in records:
        text = text_field(record, fields.text, where)
        wanted = int(generator.integers(low, high + 1))  # one draw per record, even if it is left out
        prompt = re.match(rf"\s*\S+(?:\s+\S+){{{wanted - 1}}}", text)
        if prompt is None or answered and not text[prompt.end() :].strip():
            counts["short"] += 1
            continue
        if not answered:
            yield Row(prompt[0], "")
            continue
        demonstration = True
        if data_config.min_rating:
            demonstration = number_field(record, fields.rating, where) >= data_config.min_rating
        yield Row(text[: prompt.end()], text[prompt.end() :], demonstration)
