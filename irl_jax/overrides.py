"""Sets one config key from text, in the key's type."""

from __future__ import annotations

import ast
import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from irl_jax.errors import UserError


def override(config: ConfigDict, key: str, text: str, flag: str = "--config.") -> None:
    """Sets config.`key` from text, in the key's type.

    `flag` precedes the key in messages.

    Raises:
      UserError: the key doesn't exist (the nearest one is named), or the text is not of its type.
    """
    keys = keys_of(config)
    if key not in keys:
        inside = [known for known in keys if known.startswith(key + ".")]
        if inside:
            raise UserError(f"{flag}{key} is a section; set one of its keys: {', '.join(inside)}")
        raise UserError(f"unknown config key '{key}'{nearest(key, keys)}")
    *sections, leaf = key.split(".")
    for section in sections:
        config = config[section]
    config[leaf] = _convert(f"{flag}{key}", text, config[leaf])


def nearest(word: str, known: Iterable[str]) -> str:
    """"; did you mean '...'?" with the known name nearest to the word or to its last part; "" if none is near."""
    known = list(known)
    near = difflib.get_close_matches(word, known, 1, 0.75)
    if not near:
        by_leaf: dict[str, str] = {}
        for name in known:
            by_leaf.setdefault(name.rsplit(".", 1)[-1], name)
        near = [by_leaf[leaf] for leaf in difflib.get_close_matches(word.rsplit(".", 1)[-1], by_leaf, 1, 0.75)]
    near = near or difflib.get_close_matches(word, known, 1, 0.5)
    return f"; did you mean '{near[0]}'?" if near else ""


def leaves(tree: ConfigDict | Mapping, prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} of a config, or of nested dictionaries."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, (ConfigDict, Mapping)) else {f"{prefix}{key}": value}
    return found


def keys_of(config: ConfigDict) -> list[str]:
    """The dotted keys of every leaf."""
    return list(leaves(config))


def split(text: str) -> list[str]:
    """The parts between a text's commas, without surrounding spaces. Commas inside brackets or quotes don't split.

    Raises:
      ValueError: a bracket or a quote is not closed, or closes nothing.
    """
    parts, depth, quote, start = [], 0, "", 0
    for at, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'" and not text[start:at].strip(" (["):  # within a word it is an apostrophe
            quote = letter
        elif letter in "([":
            depth += 1
        elif letter in ")]":
            depth -= 1
        elif letter == "," and not depth:
            parts.append(text[start:at].strip())
            start = at + 1
        if depth < 0:
            break
    if depth or quote:
        raise ValueError("a bracket or a quote is not closed")
    return [*parts, text[start:].strip()]


def unquoted(text: str) -> str:
    """The text without surrounding quotes."""
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def value_of(config: ConfigDict, key: str):
    """The value of a dotted key."""
    for name in key.split("."):
        config = config[name]
    return config


def spelled(value) -> str:
    """The text that `override` reads as this value."""
    return repr(list(value)) if isinstance(value, tuple) and value else "" if value == () else str(value)


def _convert(flag: str, text: str, old):
    """`text` in the type of `old`."""
    if isinstance(old, bool):
        if text.strip().lower() not in ("true", "false"):
            raise UserError(f"{flag}={text}: takes true or false")
        return text.strip().lower() == "true"
    if isinstance(old, (int, float)):
        return _number(flag, text, type(old))
    if isinstance(old, tuple):
        return _convert_tuple(flag, text, old)
    return text


def _number(flag: str, text: str, kind: type):
    """A finite number; an integer may be written as 1e3."""
    try:
        value = float(text)
        if kind is int:
            value = int(value) if "e" in text.lower() and value.is_integer() else int(text)
    except ValueError:
        raise UserError(f"{flag}={text[:40]}: takes {'a whole number' if kind is int else 'a number'}") from None
    if kind is int and not -(2**63) <= value < 2**63:
        raise UserError(f"{flag}={text[:40]}: takes a whole number of at most 63 bits")
    if not math.isfinite(value):
        raise UserError(f"{flag}={text[:40]}: takes a finite number")
    return value


def _convert_tuple(flag: str, text: str, old: tuple) -> tuple:
    """Reads a,b,c, (1, 2) or ["a", "b"], each element in the type of the old ones (text if there were none)."""
    inner = text.strip()
    if inner[:1] in ("(", "["):
        try:
            literal = ast.literal_eval(inner)
            parts = [str(part) for part in literal] if isinstance(literal, (tuple, list)) else [str(literal)]
            if any(isinstance(part, (tuple, list, dict)) for part in (literal if isinstance(literal, (tuple, list)) else ())):
                raise SyntaxError
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            parts = _words(flag, text, inner)
    else:
        parts = _words(flag, text, f"({inner})")
    return tuple(_convert(flag, part, old[0] if old else "") for part in parts)


def _words(flag: str, text: str, bracketed: str) -> list[str]:
    """The words of "(a,b,c)"; one trailing comma is allowed."""
    closing = {"(": ")", "[": "]"}[bracketed[0]]
    words = [unquoted(word.strip()) for word in bracketed[1:-1].split(",")]
    words = words[:-1] if words[-1] == "" else words
    if not bracketed.endswith(closing) or len(bracketed) < 2 or "" in words or any(mark in word for word in words for mark in "()[]"):
        raise UserError(f"{flag}={text[:80]}: takes values separated by commas, such as a,b,c")
    return words
