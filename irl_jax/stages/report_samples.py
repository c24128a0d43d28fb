"""The report's samples side by side, with a search field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from irl_jax.stages.page import details, escape, format_number, named, recipe_class

OPEN_SAMPLES = 3  # prompts shown unfolded


def samples(rows: Sequence[Mapping]) -> str:
    """Each prompt with its responses and their rewards; the first prompts unfolded.

    Args:
      rows: [{prompt, responses: [{source, text, golden, rewards: {recipe: nats}, length: tokens}]}].
    """
    if not rows:
        return ""
    shown = [_sample(index, row) for index, row in enumerate(rows, start=1)]
    field = ('<div class="search" role="search" hidden><label for="search">Search prompts and responses</label>'
             '<input id="search" type="search" autocomplete="off" spellcheck="false">'
             '<output for="search" aria-live="polite"></output></div>')
    return field + "".join(shown[:OPEN_SAMPLES]) + details(f"{len(shown) - OPEN_SAMPLES} more prompts", "".join(shown[OPEN_SAMPLES:]))


def _sample(index: int, row: Mapping) -> str:
    cards = []
    for response in row.get("responses") or []:
        facts = [("golden", response.get("golden")), *(response.get("rewards") or {}).items(), ("tokens", response.get("length"))]
        items = "".join(f"<li>{named(name)} {escape(format_number(value))}</li>" for name, value in facts
                        if value is not None and name != "length")  # length repeats the tokens
        source = response.get("source", "")
        cards.append(f'<div class="response {recipe_class(source)}"><h4>{escape(source)}</h4>'
                     f'<p dir="auto">{escape(response.get("text", ""))}</p><ul>{items}</ul></div>')
    return (f'<article><h3>Prompt {index}</h3><p class="prompt" dir="auto">{escape(row.get("prompt", ""))}</p>'
            f'<div class="responses">{"".join(cards)}</div></article>')
