"""The config in words: every key's help, which file or flag set it, and the reference in docs/configuration.md.

A key's help is the comment after its default in irl_jax/config.py. It is written only there.
"""

from __future__ import annotations

import ast
import inspect
import io
import tokenize
from typing import NamedTuple

from ml_collections import ConfigDict

from irl_jax import config as defaults
from irl_jax.overrides import keys_of, leaves, value_of

CONTINUED = "#   "  # starts the lines that continue a comment
HEAD = """# Configuration

Every key, its default and its help, made from the comments in [irl_jax/config.py](../irl_jax/config.py) by

```bash
python -m irl_jax config --markdown > docs/configuration.md
```

`--config=FILE.py[:VARIANT]` gives a file that starts from these defaults, `--config.SECTION.KEY=VALUE` sets one key above it; tuples are
written as `a,b,c`. `python -m irl_jax config --config=FILE.py` prints what that makes, and which file or flag set each key.
"""


class Help(NamedTuple):
    """keys: {dotted key: its help}. sections: {dotted section, "" for the top: what it is about}."""

    keys: dict[str, str]
    sections: dict[str, str]


def helps() -> Help:
    """What the comments and docstrings of irl_jax/config.py say about every key and section; "" if they say nothing."""
    return read_helps(inspect.getsource(defaults))


def read_helps(source: str) -> Help:
    """As `helps`, for a source text whose `default()` makes the config."""
    functions = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    return _of_function(functions["default"], functions, _comments(source))


def _of_function(function: ast.FunctionDef, functions: dict[str, ast.FunctionDef], comments: dict[int, str]) -> Help:
    """What one function that makes a section says about the keys it sets."""
    keys: dict[str, str] = {}
    sections = {"": " ".join((ast.get_docstring(function) or "").split())}
    assignments = [node for node in ast.walk(function) if isinstance(node, ast.Assign)]
    for node in sorted(assignments, key=lambda node: node.lineno):
        key, said = _dotted(node.targets[0]), comments.get(node.end_lineno or node.lineno, "")
        maker = node.value.func if isinstance(node.value, ast.Call) else None
        name = maker.id if isinstance(maker, ast.Name) else ""
        if name in functions:
            inner = _of_function(functions[name], functions, comments)
            keys |= {_join(key, below): text for below, text in inner.keys.items()}
            sections |= {_join(key, below): text for below, text in inner.sections.items() if below}
            if key:
                sections[key] = said or inner.sections[""]
            elif said:
                sections[""] = f"{sections[''].rstrip('.')}; {said}"
        elif name == ConfigDict.__name__:
            sections |= {key: said} if key else {}
        elif key:
            keys[key] = said
    return Help(keys, sections)


def _dotted(target: ast.expr) -> str:
    """"sft.epochs" for `c.sft.epochs`; "" for a plain name."""
    parts: list[str] = []
    while isinstance(target, ast.Attribute):
        parts.insert(0, target.attr)
        target = target.value
    return ".".join(parts)


def _join(section: str, key: str) -> str:
    return f"{section}.{key}" if section else key


def _comments(source: str) -> dict[int, str]:
    """{line: the comment that ends it, with its continuation lines}."""
    found, last = {}, 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        line, alone = token.start[0], token.line.lstrip().startswith("#")
        if not alone:
            found[line], last = token.string.lstrip("# "), line
        elif last and token.string.startswith(CONTINUED) and line == last + found[last].count("\n") + 1:
            found[last] += "\n" + token.string.lstrip("# ")
    return {line: " ".join(text.split("\n")) for line, text in found.items()}


# ---------------------------------------------------------------------------------------------------------- who set it


def set_by(config: ConfigDict, file: str) -> dict[str, str]:
    """{key: `file`} for the keys that a config file, or a run's record, sets to another value than the default."""
    given, usual = leaves(config), leaves(defaults.default())
    return {key: file for key in given if given[key] != usual[key]}


# -------------------------------------------------------------------------------------------------------------- as text


def lines(config: ConfigDict, origins: dict[str, str]) -> list[str]:
    """One line per key, in the order of irl_jax/config.py: its value, who set it (`origins`; "default" if nobody did), its help."""
    told, keys = helps().keys, keys_of(config)
    keys = sorted(keys, key=list(told).index)
    settings = [f"{key} = {value_of(config, key)!r}" for key in keys]
    who = [origins.get(key, "default") for key in keys]
    wide, side = (min(limit, max(map(len, texts))) for texts, limit in ((settings, 48), (who, 40)))
    return [f"{setting:{wide}}  {origin:{side}}  # {told[key]}" for setting, origin, key in zip(settings, who, keys, strict=True)]


def markdown() -> str:
    """docs/configuration.md: one table per section, in the order of irl_jax/config.py."""
    told, config = helps(), defaults.default()
    tables: dict[str, list[str]] = {"": []}
    for key in sorted(keys_of(config), key=list(told.keys).index):
        section = key.rpartition(".")[0]
        tables.setdefault(section, []).append(f"| `{key}` | `{value_of(config, key)!r}` | {_escaped(told.keys[key])} |")
    parts = [HEAD]
    for section, rows in tables.items():
        about = told.sections[section] if section else "What belongs to no section."
        parts += [f"## {section or 'Top'}", "", _escaped(about[:1].upper() + about[1:].rstrip(".")) + ".", "", "| key | default | |",
                  "|---|---|---|", *rows, ""]
    return "\n".join(parts)


def _escaped(text: str) -> str:
    """Escapes text for a cell of a Markdown table."""
    for mark in ("\\", "|", "*", "<"):
        text = text.replace(mark, "\\" + mark)
    return text
