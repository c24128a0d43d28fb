"""Self-contained pages of escaped text, numbers, tables, figures and sections. A content policy lets nothing else run."""

from __future__ import annotations

import base64
import html
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from irl_jax.stages.page_style import POLICY, SCRIPT, STYLE
from irl_jax.stages.plot_style import DPI, LIGHT, number
from irl_jax.stages.plots import Plot

MISSING = "–"
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")  # not allowed in a page
LABELS = {"ended_share": "ended by EOS (share)", "init_logprob": "log-prob under init (nats/token)",
          "noise_rate": "noise (share of tokens)", "off_grammar_share": "off the grammar (share of tokens)",
          "auc_sft_against_init": "AUC, sft against init", "coverage": "coverage (share of the demonstrator's sentences)",
          "coverage_unweighted": "coverage (mean over kinds)", "kind_entropy": "entropy over kinds (nats)",
          "other_kinds": "other kinds (share of sentences)", "disagreement": "members' disagreement (deviations)",
          "at_same_kl": "golden less policy/init_sft's at the same KL"}  # of columns outside the schema


class Cell(NamedTuple):
    """A number with its standard error (or None), and its decimals (None: chosen by its size)."""

    value: Any
    stderr: Any = None
    digits: int | None = None


class Raw(NamedTuple):
    """A cell of HTML, with the class of its td."""

    html: str
    kind: str = ""


class Section(NamedTuple):
    """One part of the page; an empty body leaves it out."""

    anchor: str
    title: str
    body: str


def escape(value) -> str:
    """Escapes text for HTML. Control characters, which no page may hold, become U+FFFD."""
    return html.escape(_CONTROL.sub("\ufffd", str(value)), quote=True)


def format_number(value, stderr=None, digits: int | None = None) -> str:
    """A number with decimals by its size, for example "0.713 ± 0.012"; a dash if missing."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    if value is None or not isinstance(value, float) or math.isnan(value):
        return MISSING if value is None or isinstance(value, float) else str(value)
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    error = number(stderr)
    if digits is None and value and abs(value) < 5e-4 and not math.isfinite(error):
        return f"{value:.1e}".replace("-", "−")
    if digits is None:
        digits = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1
    text = f"{value:,.{digits}f}".replace("-", "−")
    return f"{text} ± {error:.{digits}f}" if math.isfinite(error) else text


def recipe_class(name) -> str:
    """The CSS class with the colour of the first recipe in a name ("policy/init_sft", "best-of-16 by length"); "" if none."""
    found = next((word for word in re.findall(r"\w+", str(name)) if word in LIGHT.recipes), "")
    return f"r-{found}" if found else ""


def named(name) -> str:
    """A name with a dot in its recipe's colour. It may break at a slash."""
    kind, text = recipe_class(name), escape(name).replace("/", "/<wbr>")
    return f'<span class="name {kind}">{text}</span>' if kind else text


def _cell(cell) -> str:
    if isinstance(cell, Raw):
        return f'<td class="{cell.kind}">{cell.html}</td>' if cell.kind else f"<td>{cell.html}</td>"
    if isinstance(cell, str):
        return f'<td class="text">{escape(cell)}</td>'
    return f"<td>{escape(format_number(*cell) if isinstance(cell, Cell) else format_number(cell))}</td>"


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence], seen: bool = True) -> str:
    """A table whose first column names the rows; "" without rows. Cells are text, numbers, Cells or Raws.

    seen: False if a heading says the same as the caption. Screen readers still read the caption.
    """
    if not rows:
        return ""
    lines = [f'<tr><th scope="row">{named(name)}</th>{"".join(map(_cell, cells))}</tr>' for name, *cells in rows]
    left = [isinstance(cell, str) or isinstance(cell, Raw) and cell.kind == "why" for cell in rows[0]]
    columns = "".join(f'<th scope="col"{" class=left" if aside else ""}>{escape(column)}</th>'
                      for column, aside in zip(head, left, strict=True))
    shown = (f'<caption{"" if seen else " class=unseen"}><span>{escape(caption)}</span></caption>'
             f'<thead><tr>{columns}</tr></thead><tbody>{"".join(lines)}</tbody>')
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}"><table>{shown}</table></div>'


def number_table(caption: str, first: str, rows: Mapping[str, Mapping], known: Sequence[tuple[str, str, str]], skip=()) -> str:
    """Rows of named numbers: the known (key, label, stderr key) first, then all other numbers of the rows."""
    rows = {name: numbers or {} for name, numbers in rows.items()}
    used = {key for column in known for key in column[::2]} | set(skip)
    keys = dict.fromkeys(key for numbers in rows.values() for key, value in numbers.items()
                         if isinstance(value, (int, float)) and key not in used)
    others = [(key, LABELS.get(key, key.replace("_", " ") if known else key), f"{key}_stderr") for key in keys if not (
        key.endswith("_stderr") and (key.removesuffix("_stderr") in keys or key.removesuffix("_stderr") in used))]
    columns = [c for c in [*known, *others] if any(numbers.get(c[0]) is not None for numbers in rows.values())]
    return table(caption, [first] + [label for _, label, _ in columns],
                 [[name] + [Cell(numbers.get(key), numbers.get(error)) for key, _, error in columns]
                  for name, numbers in rows.items()])


def facts(rows: Sequence[tuple[str, str]]) -> str:
    """Named facts, one per line, without those that have no text."""
    shown = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in rows if text)
    return f'<dl class="facts">{shown}</dl>' if shown else ""


def figures(plots: Sequence[Plot]) -> str:
    """Figures in a grid, each in the reader's colour scheme."""
    shown = []
    for plot in plots:
        light, dark = (f"data:image/png;base64,{base64.b64encode(image).decode()}" for image in (plot.light, plot.dark))
        width, height = (int.from_bytes(plot.light[at : at + 4], "big") for at in (16, 20))  # from the PNG header
        shown.append(f"<figure><h3>{escape(plot.title)}</h3><picture>"
                     f'<source media="(prefers-color-scheme:dark)" srcset="{dark}">'
                     f'<img src="{light}" width="{width * 96 // DPI}" height="{height * 96 // DPI}" alt="{escape(plot.alt)}">'
                     f"</picture><figcaption>{escape(plot.caption)}</figcaption></figure>")
    return f'<div class="figures">{"".join(shown)}</div>' if shown else ""


def details(summary: str, body: str) -> str:
    """A part that starts folded."""
    return f"<details><summary><h3>{escape(summary)}</h3></summary>{body}</details>" if body else ""


def page(title: str, lead: str, sections: Sequence[Section]) -> bytes:
    """The whole page. It needs no other file.

    Args:
      title: plain text. lead: HTML between the title and the table of contents. sections: those without a body are left out.
    """
    sections = [section for section in sections if section.body]
    contents = "".join(f'<li><a href="#{s.anchor}">{escape(s.title)}</a></li>' for s in sections)
    body = "".join(f'<section id="{s.anchor}" aria-labelledby="{s.anchor}-title"><h2 id="{s.anchor}-title">{escape(s.title)}</h2>'
                   f"{s.body}</section>\n" for s in sections)
    text = (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
            f'<title>{escape(title)}</title><meta name="viewport" content="width=device-width,initial-scale=1">'
            '<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">'
            f'<link rel="icon" href="data:,"><style>{STYLE}</style></head>\n<body><a class="skip" href="#main">Skip to the content</a>'
            f'<header><h1>{escape(title)}</h1>{lead}<nav aria-label="Contents"><ul>{contents}</ul></nav></header>\n'
            f'<main id="main" tabindex="-1">\n{body}</main><script>{SCRIPT}</script></body></html>\n')
    return text.encode()
