"""JSON, JSON lines and arrays that stages leave in a workdir. Process 0 writes each for all hosts, whole or not at all."""

from __future__ import annotations

import json
import math
import pathlib
import time
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from irl_jax import distributed, paths
from irl_jax.errors import UserError

REMAKE = "remove it and the done.json of the stage that writes it, and start the same command again"


def read_json(path, shape: Any = None, advice: str = REMAKE) -> dict:
    """Reads a JSON file; NaN and infinities become None.

    Args:
      shape: what the file must hold, if another program may have written it: `float` (any number), `int`, `str`, a list of one shape, or an
        object of its fields' shapes, with "*" for every other field. A field may be missing or null unless its name ends in "!". A list
        item may not be null.
      advice: what to do about a broken file.

    Raises:
      UserError: the file is missing or broken, or has another shape.
    """
    try:
        value = plain(json.loads(_read_text(paths.of(path))))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the stage that writes it") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: broken JSON ({error}); {advice}") from None
    wrong = "" if shape is None else _misfit(value if isinstance(value, dict) else {}, shape, "")
    if wrong:
        raise UserError(f"{path}: has no {wrong}, which irl_jax writes there; {advice}")
    return value


_WORDS = {dict: "object", list: "list", float: "number", int: "whole number", str: "text"}


def _misfit(value, shape, where: str) -> str:
    """The first part of a value that doesn't fit its shape (see `read_json`): what belongs there, and where. "" if all fits."""
    kind = type(shape) if isinstance(shape, (dict, list)) else shape
    fits = isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
    if not fits or isinstance(value, int) and abs(value) > 1e308:  # no float holds it
        return f"{_WORDS[kind]} '{where}'"
    parts: list[tuple] = []
    if isinstance(shape, list):
        parts = [(f"{where}[{index}]", part, shape[0]) for index, part in enumerate(value) if shape]
    if isinstance(shape, dict):
        needed = [name[:-1] for name in shape if name.endswith("!")]
        parts = [(f"{where}.{name}".removeprefix("."), value.get(name), shape.get(f"{name}!", shape.get(name, shape.get("*"))))
                 for name in dict.fromkeys([*needed, *value]) if name in needed or value[name] is not None]
    return next((wrong for place, part, inner in parts if inner is not None and (wrong := _misfit(part, inner, place))), "")


def write_json(path, obj) -> None:
    """Writes `obj` as JSON, whole or not at all. Numpy numbers become numbers; NaN and infinities become null."""
    _write(paths.of(path), json_of(obj))


def json_of(obj):
    """Returns a function that writes `obj` as JSON to a binary file."""
    text = json.dumps(plain(obj), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return lambda file: file.write(text.encode())


def append_jsonl(path, *records: dict) -> None:
    """Appends one line per record. Only process 0 writes, and nobody reads the lines while they are being written.

    Objects in a store can't grow and may not be rewritten every second. There, lines wait in memory for half a minute or until
    `flush_jsonl`, which the train loop calls with every checkpoint.
    """
    if not distributed.is_primary():
        return
    if not paths.is_local(path):
        lines, since = _waiting.setdefault(str(path), ([], time.monotonic()))
        lines += [_line(record) for record in records]
        if time.monotonic() - since > 30:
            flush_jsonl(path)
        return
    paths.append(path, "".join(_line(record) for record in records).encode())


_waiting: dict[str, tuple[list[str], float]] = {}  # for object stores: lines not written yet, and since when


def flush_jsonl(path) -> None:
    """Writes the lines that `append_jsonl` holds back."""
    lines, _ = _waiting.pop(str(path), ([], 0.0))
    if lines:
        path = paths.of(path)
        before = _read_text(path) if path.exists() else ""
        with paths.refusals(path):
            path.write_text(before + "".join(lines))


def write_jsonl(path, records) -> None:
    """Writes one line per record, the whole file or nothing.

    Args:
      records: dicts of JSON's own types. Raises: ValueError: a number in them is NaN or infinite.
    """
    _write(paths.of(path), lambda file: file.writelines(
        (json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode() for record in records))


def read_jsonl(path) -> list[dict]:
    """The records of a file of ours, without a last line that a kill cut short; [] if there is no file."""
    path = paths.of(path)
    if not path.exists():
        return []
    try:
        whole, _, _ = _read_text(path).rpartition("\n")
        records = [json.loads(line) for line in whole.split("\n") if line]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: broken JSON lines ({error}); remove the file, of which only the report's curves are made") from None
    for record in records:
        wrong = "its step" if not isinstance(record, dict) or not isinstance(record.get("step"), int) else next(
            (f"a number as {name!r}"[:60] for name, value in record.items() if not _is_number(value)), "")
        if wrong:
            raise UserError(f"{path}: a line without {wrong}; remove the file, of which only the report's curves are made")
    return records


def _is_number(value) -> bool:
    """Whether a value is a number allowed in our JSON lines: finite, or null."""
    return value is None or isinstance(value, (int, float)) and abs(value) <= 1e308


def save_arrays(path, **arrays) -> None:
    """Writes named numpy arrays as one .npz, whole or not at all."""
    _write(paths.of(path), lambda file: np.savez(file, **arrays))


def load_arrays(path, stage: str = "") -> dict[str, np.ndarray]:
    """The arrays that `save_arrays` wrote. `stage` is the stage that writes them, for the message.

    Raises:
      UserError: the file is missing or broken.
    """
    try:
        return paths.read_arrays(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the stage that writes it{f' (--stages={stage})' if stage else ''}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except ValueError as error:
        raise UserError(f"{path}: broken ({error}); {REMAKE}") from None


def _write(path, fill) -> None:
    """`paths.write` on process 0, between two barriers: all hosts have looked at the path before, and find the file after."""
    distributed.barrier()
    if distributed.is_primary():
        paths.write(path, fill)
    distributed.barrier()


def remove(path) -> None:
    """Removes a file, once for all hosts."""
    distributed.barrier()
    if distributed.is_primary():
        paths.of(path).unlink()
    distributed.barrier()


def _read_text(path) -> str:
    return path.read_bytes().decode("utf-8")


def _line(record: dict) -> str:
    return json.dumps(plain(record), ensure_ascii=False, allow_nan=False) + "\n"


def plain(obj):
    """Converts `obj` (including configs, paths and arrays) to JSON's own types. NaN and infinities become None."""
    if isinstance(obj, dict):
        return {str(key): plain(value) for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [plain(value) for value in obj]
    if isinstance(obj, ConfigDict):
        return plain(obj.to_dict())
    if isinstance(obj, pathlib.PurePath):
        return str(obj)
    if hasattr(obj, "tolist"):  # numpy and jax arrays and scalars
        return plain(obj.tolist())
    if isinstance(obj, float) and not math.isfinite(obj):
        return None
    return obj
