"""JSON lines, plain or gzip: one record a line, and one clear message for whatever is none."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from irl_jax.errors import UserError

LONGEST_LINE = 2**26  # bytes; what has longer ones is no file of records, or was made to fill the memory
_GZIP_MAGIC = b"\x1f\x8b"


def read_jsonl(path: str, max_records: int = 0) -> Iterator[tuple[str, dict]]:
    """Yields ("PATH, line N", record) of a JSONL file, plain or gzip (told by its content); blank lines are skipped.

    Args:
        path: of the file; a leading ~ is the home folder.
        max_records: stop after so many; 0 reads all.

    Raises:
        UserError: a missing or unreadable file, a truncated gzip, a line that is no JSON object, a key that stands in one twice.
    """
    path = os.path.expanduser(path)
    number = 0
    for line_number, line in enumerate(_lines(path), start=1):
        if line_number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        where = f"{path}, line {line_number}"
        if not line.strip() and len(line) <= LONGEST_LINE:
            continue
        if len(line) > LONGEST_LINE:
            raise UserError(f"{where}: longer than {LONGEST_LINE >> 20} MiB; JSON lines have one record a line")
        text = decode(line, where)
        try:
            record = _JSON.decode(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{where}: not JSON ({error.msg.removesuffix(' at')} at column {error.colno})") from None
        except RecursionError:
            raise UserError(f"{where}: not usable JSON (nested too deeply)") from None
        except ValueError as error:
            why = error if isinstance(error, _Refused) else "a number of thousands of digits"
            raise UserError(f"{where}: not usable JSON ({why})") from None
        if not isinstance(record, dict):
            raise UserError(f"{where}: a JSON object is needed, not {type(record).__name__}")
        yield where, record
        number += 1
        if number == max_records:
            return


def _lines(path: str) -> Iterator[bytes]:
    """The raw lines of a plain or gzip file."""
    try:
        with open(path, "rb") as file:
            packed = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
            file.seek(0)
            with gzip.open(file) if packed else contextlib.nullcontext(file) as lines:
                while line := lines.readline(LONGEST_LINE + 1):
                    yield line
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: the gzip file is truncated or damaged ({error}); fetch it again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


class _Refused(ValueError):
    """What _JSON says no to."""


def _unique(pairs: list[tuple[str, Any]]) -> dict:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Refused(f"the key {_clipped(twice)!r} stands in one object twice")
    return found


def _no_number(name: str) -> None:
    raise _Refused(f"{name} is no number of JSON's")


_JSON = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_number)


def decode(raw: bytes, where: str, field: str = "") -> str:
    """Bytes as text. Raises: UserError where they are no UTF-8."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        at = f" field {field!r}" if field else ""
        other = "; it looks like UTF-16: save it as UTF-8" if raw[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else ""
        raise UserError(f"{where}:{at} byte {error.start} is not UTF-8{other}") from None


def fields_of(record: Mapping) -> str:
    """The names of a record's fields, for messages."""
    names = sorted(map(_clipped, record))
    return ", ".join([*names[:20], *([f"and {len(names) - 20} more"] if len(names) > 20 else [])]) or "none"


def _clipped(name, most: int = 40) -> str:
    return str(name) if len(str(name)) <= most else f"{str(name)[:most]}..."
