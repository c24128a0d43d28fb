"""Records -> token ids, by one rule for demonstrations, pairs and prompts.

The ids are those of the joined text prompt + response, and the prompt's ids are a prefix of them. If a merge of the tokenizer straddles
the boundary, the two sides are tokenised separately, and the record is counted. What the tokenizer puts before a text (BOS) comes before
the prompt, once. What it would put after a text is left out. The EOS that ends a response is added here. A response cut by the length
limit has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from irl_jax.data import controls
from irl_jax.data.sources import PairRecord, Record
from irl_jax.errors import UserError
from irl_jax.types import Example, Pair

SPELT = "spell control tokens, which are read as text"  # how messages describe such records


class TokenReport(NamedTuple):
    """Counts: responses whose boundary a merge straddled, responses cut, prompts that lost their head, and records that spell control
    tokens in a text, which was read as text."""

    records: int
    straddled: int
    truncated: int
    truncated_prompts: int
    spelt: int = 0


def tokenize_records(
    tokenizer,
    records: Sequence[Record],
    *,
    max_prompt: int,
    max_response: int,
    truncate_prompts: bool = False,
    eos_id: int | None,
    ends: Sequence[int] = (),
    control_tokens: bool = False,
    allow_empty: bool = False,
) -> tuple[list[Example], TokenReport]:
    """Tokenises demonstrations by the rule at the top of this module.

    Args:
        tokenizer: a transformers tokenizer.
        records: (prompt, response) texts.
        max_prompt: tokens, BOS included. A longer prompt is an error, or keeps only its BOS and its tail.
        max_response: tokens, EOS included. Longer responses are cut, as the sampler cuts its own.
        truncate_prompts: cut long prompts instead of refusing them.
        eos_id: ends every response that is not cut. None adds no EOS anywhere (and no response counts as ended).
        ends: further tokens that end a response, such as end-of-turn tokens. No EOS is added after them.
        control_tokens: read control tokens that the texts spell out as those tokens, marked or not.
        allow_empty: accept a response without a token of its own. It ended at once, and is its EOS alone.

    Returns:
        One Example per record, in order, and the report. `source` is the record's index.

    Raises:
        UserError: an empty response, or a prompt that is too long.
    """
    if control_tokens:
        records = [Record(*(controls.mark(tokenizer, text) for text in record)) for record in records]
    plain = _plain_ids(tokenizer, [r.prompt for r in records])
    prompts, prompts_cut = _prompt_ids(tokenizer, [r.prompt for r in records], plain, max_prompt, truncate_prompts, eos_id)
    responses, straddled = _response_ids(tokenizer, records, plain)
    examples, cut = [], 0
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        if not response and not (allow_empty and eos_id is not None):
            raise UserError(f"{record_name(i, records[i].prompt)}: the response is empty; give it some text or remove the record")
        ended = eos_id is not None
        if eos_id is not None and not (response and response[-1] in (eos_id, *ends)):  # some texts already spell their end out
            response = [*response, eos_id]
        if len(response) > max_response:
            response, ended, cut = response[:max_response], False, cut + 1
        examples.append(Example(prompt, np.asarray(response, np.int32), ended, i))
    spelt = sum(any(controls.spells(tokenizer, text) for text in record) for record in records)
    return examples, TokenReport(len(examples), straddled, cut, prompts_cut, spelt)


def tokenize_pairs(tokenizer, pairs: Sequence[PairRecord], **limits) -> tuple[list[Pair], TokenReport]:
    """Tokenises both sides of preference pairs by `tokenize_records` (see there for `limits`). The report counts sides."""
    sides = [Record(p.prompt, text) for p in pairs for text in (p.chosen, p.rejected)]
    examples, report = tokenize_records(tokenizer, sides, **limits)
    examples = [example._replace(source=i // 2) for i, example in enumerate(examples)]
    return [Pair(*two) for two in zip(examples[::2], examples[1::2], strict=True)], report


def tokenize_prompts(
    tokenizer, prompts: Sequence[str], *, max_prompt: int, truncate_prompts: bool = False, eos_id: int | None, control_tokens: bool = False
) -> tuple[list[np.ndarray], TokenReport]:
    """Tokenises prompts alone, to the same ids as `tokenize_records`.

    Args:
        tokenizer, max_prompt, truncate_prompts, control_tokens: as for `tokenize_records`.
        prompts: texts.
        eos_id: replaces an empty prompt if the tokenizer has no BOS.

    Returns:
        int32 ids, one array per prompt, none of them empty; and the report.

    Raises:
        UserError: a prompt is too long.
    """
    prompts = [controls.mark(tokenizer, text) for text in prompts] if control_tokens else prompts
    ids, cut = _prompt_ids(tokenizer, prompts, _plain_ids(tokenizer, prompts), max_prompt, truncate_prompts, eos_id)
    return ids, TokenReport(len(ids), 0, 0, cut, sum(controls.spells(tokenizer, prompt) for prompt in prompts))


def check_ids(tokenizer, names: Iterable[str], sequences: Iterable[np.ndarray], vocabulary: int) -> None:
    """Raises UserError if a sequence has an id past the `vocabulary` embeddings of the weights. `names`: of their records."""
    for name, ids in zip(names, sequences, strict=True):
        if len(ids) and ids.max() >= vocabulary:
            raise UserError(f"{name}: has the token {tokenizer.convert_ids_to_tokens(int(ids.max()))!r} (id {ids.max()}), for which the "
                            f"weights, of {vocabulary} embeddings, have none; take it out or remove the record")


def detokenize(tokenizer, ids: Sequence[int]) -> str:
    """The text of response ids, without special tokens and with the tokenizer's own spaces."""
    return tokenizer.decode([int(i) for i in ids], skip_special_tokens=True, clean_up_tokenization_spaces=False)


def record_name(index: int, prompt: str) -> str:
    """A record's name in messages, if its line is no longer known."""
    head = " ".join(controls.unmarked(prompt).split())[:40]
    return f"record {index} (prompt {head!r})"


# ---- the rule ----


def _plain_ids(tokenizer, prompts: Sequence[str]) -> dict[str, list[int]]:
    """{prompt: its ids, without what the tokenizer puts around them}."""
    unique = list(dict.fromkeys(prompts))
    return dict(zip(unique, controls.encode(tokenizer, unique), strict=True))


def _leading_ids(tokenizer, texts: Sequence[str]) -> list[int]:
    """What the tokenizer's own rules put before a text: [BOS] or nothing. Found by trying a text of the data."""
    probe = next((text for text in texts if text), None)
    if probe is None:
        return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    (plain,), (full,) = (controls.encode(tokenizer, [probe], special) for special in (False, True))
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return full[:start]
    return []


def _prompt_ids(tokenizer, prompts, plain, maximum: int, truncate: bool, eos_id) -> tuple[list[np.ndarray], int]:
    """Prompt ids with what the tokenizer puts first, and the number of prompts cut."""
    lead = _leading_ids(tokenizer, list(plain))
    index = {text: i for i, text in enumerate(prompts)}  # a prompt's position, for messages
    table, too_long = {}, set()
    for text, ids in plain.items():
        if ids[: len(lead)] != lead:  # a chat template may already have written BOS
            ids = lead + ids
        if not ids:
            ids = [_stand_in(tokenizer, eos_id)]
        if len(ids) > maximum:
            if not truncate:
                raise UserError(
                    f"{record_name(index[text], text)}: the prompt has {len(ids)} tokens, the limit is {maximum}; "
                    "raise data.max_prompt_tokens, or cut prompts with data.truncate_prompts"
                )
            keep = maximum - len(lead)
            ids = (lead + ids[len(ids) - keep :]) if keep > 0 else ids[len(ids) - maximum :]
            too_long.add(text)
        table[text] = np.asarray(ids, np.int32)
    return [table[text] for text in prompts], sum(text in too_long for text in prompts)


def _stand_in(tokenizer, eos_id) -> int:
    """The token that replaces an empty prompt, since the first response token must be predicted from something."""
    for token in (tokenizer.bos_token_id, eos_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    raise UserError("a prompt is empty, and the tokenizer has neither a BOS nor an EOS token to stand in for it")


def _response_ids(tokenizer, records, plain) -> tuple[list[list[int]], int]:
    """Response ids by the prefix rule, and the number of boundaries that a merge straddled."""
    joined = controls.encode(tokenizer, [record.prompt + record.response for record in records])
    starts = [plain[record.prompt] for record in records]
    # a response left without a token of its own counts as straddled too, such as if both sides form one unknown word
    apart = [i for i, (ids, start) in enumerate(zip(joined, starts, strict=True)) if ids[: len(start)] != start or len(ids) == len(start)]
    responses = [ids[len(start) :] for ids, start in zip(joined, starts, strict=True)]
    for i, ids in zip(apart, controls.encode(tokenizer, [records[i].response for i in apart]), strict=True):
        responses[i] = ids
    return responses, len(apart)
