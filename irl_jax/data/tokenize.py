"""Records -> token ids, by one rule for demonstrations, pairs and prompts.

The ids are those of the joined text prompt + response, the prompt's ids being a prefix of them; where a merge of the
tokenizer straddles the boundary the two sides are tokenised apart, and counted. What the tokenizer puts before a text
(BOS) stands before the prompt, once; what it would put after a text is left out; the EOS that ends a response is added
here. A response that is cut by the length limit carries none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from irl_jax.data import controls
from irl_jax.data.sources import PairRecord, Record
from irl_jax.errors import UserError
from irl_jax.types import Example, Pair

SPELT = "spell control tokens, which are read as text"  # what is said of such records


class TokenReport(NamedTuple):
    """What tokenising met: responses whose boundary a merge straddled, responses cut, prompts that lost their head, and records with a
    text that spells control tokens and was read as text."""

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
    """Tokenises demonstrations by the rule on top of this module.

    Args:
        tokenizer: a transformers tokenizer.
        records: (prompt, response) texts.
        max_prompt: tokens, BOS included; a longer prompt is an error, or keeps its BOS and its tail.
        max_response: tokens, EOS included; longer responses are cut, as the sampler cuts its own.
        truncate_prompts: cut long prompts instead of refusing them.
        eos_id: ends every response that is not cut; None adds no EOS anywhere (and no response counts as ended).
        ends: further tokens that end a response, as end-of-turn tokens do: after one of them no EOS is added.
        control_tokens: control tokens that the texts spell out are those tokens, marked or not.
        allow_empty: a response without a token of its own is one that ended at once: its EOS alone.

    Returns:
        One Example a record, in order, `source` being the record's index; and the report.

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
        if eos_id is not None and not (response and response[-1] in (eos_id, *ends)):  # texts that spell their end out have it already
            response = [*response, eos_id]
        if len(response) > max_response:
            response, ended, cut = response[:max_response], False, cut + 1
        examples.append(Example(prompt, np.asarray(response, np.int32), ended, i))
    spelt = sum(any(controls.spells(tokenizer, text) for text in record) for record in records)
    return examples, TokenReport(len(examples), straddled, cut, prompts_cut, spelt)


def tokenize_pairs(tokenizer, pairs: Sequence[PairRecord], **limits) -> tuple[list[Pair], TokenReport]:
    """Tokenises preference pairs: both sides by `tokenize_records`, which see for `limits`; the report counts sides."""
    sides = [Record(p.prompt, text) for p in pairs for text in (p.chosen, p.rejected)]
    examples, report = tokenize_records(tokenizer, sides, **limits)
    examples = [example._replace(source=i // 2) for i, example in enumerate(examples)]
    return [Pair(*two) for two in zip(examples[::2], examples[1::2], strict=True)], report


def tokenize_prompts(
    tokenizer, prompts: Sequence[str], *, max_prompt: int, truncate_prompts: bool = False, eos_id: int | None, control_tokens: bool = False
) -> tuple[list[np.ndarray], TokenReport]:
    """Tokenises prompts alone, to the same ids that `tokenize_records` gives them.

    Args:
        tokenizer, max_prompt, truncate_prompts, control_tokens: as for `tokenize_records`.
        prompts: texts.
        eos_id: stands in for an empty prompt where the tokenizer has no BOS.

    Returns:
        int32 ids, one array a prompt, none of them empty; and the report.

    Raises:
        UserError: a prompt is too long.
    """
    prompts = [controls.mark(tokenizer, text) for text in prompts] if control_tokens else prompts
    ids, cut = _prompt_ids(tokenizer, prompts, _plain_ids(tokenizer, prompts), max_prompt, truncate_prompts, eos_id)
    return ids, TokenReport(len(ids), 0, 0, cut, sum(controls.spells(tokenizer, prompt) for prompt in prompts))


def check_ids(tokenizer, names: Iterable[str], sequences: Iterable[np.ndarray], vocabulary: int) -> None:
    """Raises UserError for a sequence of ids with one past the `vocabulary` embeddings of the weights; `names`: of their records."""
    for name, ids in zip(names, sequences, strict=True):
        if len(ids) and ids.max() >= vocabulary:
            raise UserError(f"{name}: has the token {tokenizer.convert_ids_to_tokens(int(ids.max()))!r} (id {ids.max()}), for which the "
                            f"weights, of {vocabulary} embeddings, have none; take it out or remove the record")


def detokenize(tokenizer, ids: Sequence[int]) -> str:
    """The text of response ids, special tokens left out and spaces as the tokenizer has them."""
    return tokenizer.decode([int(i) for i in ids], skip_special_tokens=True, clean_up_tokenization_spaces=False)


def record_name(index: int, prompt: str) -> str:
    """A record's name in messages, where its line is not known any more."""
    head = " ".join(controls.unmarked(prompt).split())[:40]
    return f"record {index} (prompt {head!r})"


# ---- the rule ----


def _plain_ids(tokenizer, prompts: Sequence[str]) -> dict[str, list[int]]:
    """Prompt -> its ids without what the tokenizer puts around them."""
    unique = list(dict.fromkeys(prompts))
    return dict(zip(unique, controls.encode(tokenizer, unique), strict=True))


def _leading_ids(tokenizer, texts: Sequence[str]) -> list[int]:
    """What the tokenizer's own rules put before a text: [BOS] or nothing, found on a text of the data itself."""
    probe = next((text for text in texts if text), None)
    if probe is None:
        return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    (plain,), (full,) = (controls.encode(tokenizer, [probe], special) for special in (False, True))
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return full[:start]
    return []


def _prompt_ids(tokenizer, prompts, plain, maximum: int, truncate: bool, eos_id) -> tuple[list[np.ndarray], int]:
    """Prompt ids with what the tokenizer puts first, and how many prompts were cut."""
    lead = _leading_ids(tokenizer, list(plain))
    index = {text: i for i, text in enumerate(prompts)}  # where a prompt stands, for messages
    table, too_long = {}, set()
    for text, ids in plain.items():
        if ids[: len(lead)] != lead:  # a chat template may have spelt BOS out already
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
    """The token that an empty prompt becomes, for the first response token must be read from something."""
    for token in (tokenizer.bos_token_id, eos_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    raise UserError("a prompt is empty, and the tokenizer has neither a BOS nor an EOS token to stand in for it")


def _response_ids(tokenizer, records, plain) -> tuple[list[list[int]], int]:
    """Response ids by the prefix rule, and how many boundaries a merge straddled."""
    joined = controls.encode(tokenizer, [record.prompt + record.response for record in records])
    starts = [plain[record.prompt] for record in records]
    # one whose response left no token of its own is straddled too, as where both sides are of one unknown word
    apart = [i for i, (ids, start) in enumerate(zip(joined, starts, strict=True)) if ids[: len(start)] != start or len(ids) == len(start)]
    responses = [ids[len(start) :] for ids, start in zip(joined, starts, strict=True)]
    for i, ids in zip(apart, controls.encode(tokenizer, [records[i].response for i in apart]), strict=True):
        responses[i] = ids
    return responses, len(apart)
