"""The kinds of sentences in responses. They show whether a policy covers all that the demonstrator does, or only a part of it.

A kind is what a sentence does in answer to its kind of prompt: item number i of a request's steps, of a question's facts, or of the
reasons and alternatives if a prompt ought to be declined; the refusal; each opening and closing. Whatever the demonstrator would only
write by mistake (wrong items, fillers, insults, refusals of what ought to be answered, garbled text) is "other".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from irl_jax.data.testbed import grammar, vocabulary
from irl_jax.data.testbed.golden import Meaning, read_sentence, sentences
from irl_jax.data.testbed.prompts import KINDS as PROMPT_KINDS
from irl_jax.data.testbed.prompts import read_prompt

OTHER = "other"
_OPENINGS = (*vocabulary.PLAIN_OPENINGS, *(register[0] for register in vocabulary.REGISTERS))
_CLOSINGS = (*vocabulary.PLAIN_CLOSINGS, *(register[2] for register in vocabulary.REGISTERS))
_DECOR = {words: f"opening {i}" for i, words in enumerate(_OPENINGS)} | {words: f"closing {i}" for i, words in enumerate(_CLOSINGS)}
KINDS = (
    *(f"{kind} {i}" for kind in PROMPT_KINDS for i in range(len(grammar.items_of(kind, 0)))), "refusal", *_DECOR.values(), OTHER,
)  # fmt: skip
_NUMBER = {name: i for i, name in enumerate(KINDS)}


def kind_counts(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    """How often each of KINDS occurs in each response, float64 [n, len(KINDS)]."""
    counts = np.zeros((len(prompts), len(KINDS)))
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        asked = read_prompt(prompt)
        for sentence in sentences(response):
            counts[row, _NUMBER[_kind(asked, read_sentence(tuple(sentence)))]] += 1
    return counts


def _kind(asked, meaning: Meaning) -> str:
    if meaning.form == "decor":
        return _DECOR.get(meaning.words, OTHER)
    if meaning.form == "refuse":
        return "refusal" if asked.kind == "harm" else OTHER
    items = grammar.items_of(asked.kind, asked.group) if asked.group >= 0 else ()
    reasons = 3 if asked.kind == "harm" else 0
    for i, words in enumerate(items):
        form = "fact" if asked.kind == "question" else "reason" if i < reasons else "step"
        if meaning == Meaning(form, tuple(words)):
            return f"{asked.kind} {i}"
    return OTHER
