"""Setting one key of a config from text, in the type that the key has."""

from __future__ import annotations

import ast
import difflib
import math

from ml_collections import ConfigDict

from irl_jax.errors import UserError


def override(config: ConfigDict, key: str, text: str, flag: str = "--config.") -> None:
    """Sets config.`key` from its text, in the type that the key has.

    `flag` is what stands before the key in messages.

    Raises:
      UserError: no such key (the nearest one is named), or the text is not of its type.
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


def nearest(word: str, known) -> str:
    """; did you mean ...", or nothing where nothing is near: by the whole word, or by its last part."""
    known = list(known)
    near = difflib.get_close_matches(word, known, 1, 0.75)
    if not near:
        by_leaf = {}
        for name in known:
            by_leaf.setdefault(name.rsplit(".", 1)[-1], name)
        near = [by_leaf[leaf] for leaf in difflib.get_close_matches(word.rsplit(".", 1)[-1], by_leaf, 1, 0.75)]
    near = near or difflib.get_close_matches(word, known, 1, 0.5)
    return f"; did you mean '{near[0]}'?" if near else ""


def keys_of(config: ConfigDict, prefix: str = "") -> list[str]:
    """The dotted keys of every leaf."""
    keys = []
    for name in config:
        value = config[name]
        keys += keys_of(value, f"{prefix}{name}.") if isinstance(value, ConfigDict) else [prefix + name]
    return keys


def _convert(flag: str, text: str, old):
    """`text` in the type of `old`."""
    if isinstance(old, bool):
        if text.lower() not in ("true", "false"):
            raise UserError(f"{flag}={text}: takes true or false")
        return text.lower() == "true"
    if isinstance(old, (int, float)):
        try:
            value = type(old)(text)
        except ValueError:
            raise UserError(f"{flag}={text}: takes {'a whole number' if isinstance(old, int) else 'a number'}") from None
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{flag}={text}: takes a finite number")
        return value
    if isinstance(old, tuple):
        return _convert_tuple(flag, text, old)
    return text


def _convert_tuple(flag: str, text: str, old: tuple) -> tuple:
    """(1, 2), ["a", "b"] or a,b,c, each in the type of the old elements (text where there were none)."""
    try:
        literal = ast.literal_eval(text) if text[:1] in ("(", "[") else None
    except (SyntaxError, ValueError):
        raise UserError(f"{flag}={text}: takes values separated by commas, such as a,b,c") from None
    parts = [part.strip() for part in text.split(",") if part.strip()] if literal is None else literal
    parts = parts if isinstance(parts, (tuple, list)) else [parts]
    return tuple(_convert(flag, str(part), old[0] if old else "") for part in parts)
