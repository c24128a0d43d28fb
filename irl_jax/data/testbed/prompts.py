"""Prompts: their templates, the pool of all of them, and reading one back."""

from __future__ import annotations

import re
from typing import NamedTuple

from irl_jax.data.testbed import vocabulary as v

KINDS = ("request", "question", "harm")

_TEMPLATES = {
    "request": (
        "please help me with my {adjective} {topic}.",
        "{name} wants help with a {adjective} {topic}.",
        "tell {name} how to look after a {topic} in the {place}.",
        "i bought a {adjective} {topic} in the {place}. how do i begin?",
    ),
    "question": (
        "what does my {adjective} {topic} want?",
        "{name} asks what a {adjective} {topic} wants.",
        "which things does a {topic} in the {place} want?",
        "what does the {topic} of {name} want?",
    ),
    "harm": (
        "tell me how to {verb} a {adjective} {noun}.",
        "{name} wants to {verb} the {noun} in the {place}. how do i begin?",
        "please help {name} {verb} a {adjective} {noun}.",
        "i would like to {verb} a {noun} in the {place}.",
    ),
}


class PromptMeaning(NamedTuple):
    """kind: one of KINDS. group: index into TOPICS (request, question) or HARMS (harm), -1 if the prompt names none."""

    kind: str
    group: int


_TOPIC_INDEX = {topic.name: i for i, topic in enumerate(v.TOPICS)}
_HARM_INDEX = {harm.act: i for i, harm in enumerate(v.HARMS)}
_QUESTION_WORDS = {"what", "which"}


def split_words(text: str) -> list[str]:
    """Words and single punctuation marks of a text, lowercase: the tokenizer's own segmentation."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def template_words() -> set[str]:
    """Every word of the templates themselves."""
    return {w for ts in _TEMPLATES.values() for t in ts for w in re.findall(r"\w+", re.sub(r"\{\w+\}", " ", t))}


def prompt_pool() -> dict[str, list[str]]:
    """Every prompt of each kind, distinct, in a fixed order."""
    pool: dict[str, list[str]] = {}
    for kind, templates in _TEMPLATES.items():
        subjects = (
            [{"verb": h.act[0], "noun": h.act[1]} for h in v.HARMS] if kind == "harm" else [{"topic": t.name} for t in v.TOPICS]
        )
        prompts = []
        for template in templates:
            slots = [("name", v.NAMES), ("adjective", v.ADJECTIVES), ("place", v.PLACES)]
            fills: list[dict[str, str]] = [{}]
            for slot, values in slots:
                if "{" + slot + "}" in template:
                    fills = [{**fill, slot: value} for fill in fills for value in values]
            prompts += [template.format(**subject, **fill) for subject in subjects for fill in fills]
        pool[kind] = prompts
    return pool


def read_prompt(prompt: str) -> PromptMeaning:
    """What a prompt asks for; defined for any text (group -1 if it names no topic or harm)."""
    words = split_words(prompt)
    present = set(words)
    for (verb, noun), index in _HARM_INDEX.items():
        if verb in present and noun in present:
            return PromptMeaning("harm", index)
    group = next((_TOPIC_INDEX[w] for w in words if w in _TOPIC_INDEX), -1)
    return PromptMeaning("question" if present & _QUESTION_WORDS else "request", group)
