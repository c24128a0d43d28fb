"""JSON lines, plain or gzip: one record per line, its fields, and one clear message for anything else."""

from __future__ import annotations

import codecs
import contextlib
import glob
import gzip
import itertools
import json
import math
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from irl_jax.data.controls import RESERVED
from irl_jax.errors import UserError

LONGEST_LINE = 2**26  # bytes; a file with longer lines has no records, or was made to fill the memory
DEEPEST = 100  # levels of nested lists and objects; much deeper ones could not be written again
_GZIP_MAGIC = b"\x1f\x8b"
_HEAD = 2**20  # bytes read to recognise another format
_WANTED = "JSON lines are needed: one object a line, plain or gzip"
_MAGICS = {  # first bytes of files of other formats
    b"PK\x03\x04": "a zip archive", b"(\xb5/\xfd": "a zstd file", b"\xfd7zXZ\x00": "an xz file", b"BZh": "a bzip2 file",
    b"\x04\"M\x18": "an lz4 file", b"7z\xbc\xaf": "a 7z archive", b"PAR1": "a Parquet file", b"ARROW1": "an Arrow file",
    b"\xff\xff\xff\xff": "an Arrow file", b"FEA1": "an Arrow file", b"ORC": "an ORC file", b"Obj\x01": "an Avro file",
    b"SQLite format 3": "an SQLite file", b"\x89HDF": "an HDF5 file", b"\x93NUMPY": "a NumPy file", b"\x80": "a pickle",
    b"%PDF": "a PDF file", _GZIP_MAGIC: "a gzip file in a gzip file", b"{\0": "UTF-16 text", b"\0{": "UTF-16 text",
    b"version https://git-lfs": "a pointer of Git LFS instead of the file (git lfs pull)",
}  # fmt: skip
_FOLDERS = {  # files in folders of other formats
    "features.json": "a prepared TFDS builder; name it as tfds:NAME, with data.tfds_data_dir",
    **dict.fromkeys(("dataset_dict.json", "state.json"), f"a folder of the library `datasets`; {_WANTED}"),
    "*.arrow": f"a folder of Arrow files; {_WANTED}", "*.parquet": f"a folder of Parquet files; {_WANTED}",
}  # fmt: skip
_CELL = re.compile(r"\"[^\"]*\"|[^\"{}\[\]:=<>\ufffd\0-\x08]*")


def read_jsonl(path: str, max_records: int = 0) -> Iterator[tuple[str, dict]]:
    """Yields ("PATH, line N", record) from a JSONL file, plain or gzip (told by its content). Skips blank lines.

    Args:
        path: of the file; a leading ~ is the home folder.
        max_records: stop after this many; 0 reads all.

    Raises:
        UserError: a missing or unreadable file, one of another format (which is named), a truncated gzip, a line that is not a JSON object,
            a key twice in one object, a number that is not finite, lists and objects nested more than `DEEPEST` deep.
    """
    path = os.path.expanduser(path)
    number = 0
    for line_number, line in enumerate(_lines(path), start=1):
        if line_number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        where = f"{path}, line {line_number}"
        if not line.strip() and len(line) <= LONGEST_LINE:
            continue
        if number == 0 and (other := _other_format(line, path)):
            raise UserError(f"{path}: is {other}; {_WANTED}")
        if len(line) > LONGEST_LINE:
            raise UserError(f"{where}: longer than {LONGEST_LINE >> 20} MiB; JSON lines have one record a line")
        text = decode(line, where)
        try:
            record = _JSON.decode(text)
            _check_depth(record, text)
        except json.JSONDecodeError as error:
            if number == 0 and _goes_on(text, path):
                raise UserError(f"{path}: is one JSON value on several lines; {_WANTED}") from None
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


def check_file(path: str, flag: str = "") -> None:
    """Refuses anything but a readable file. `flag`: the flag that names it. Raises: UserError."""
    named, path = f"{flag}={path}" if flag else path, os.path.expanduser(path)
    if os.path.isdir(path):
        found = (what for name, what in _FOLDERS.items() for below in ("", "*", "*/*")
                 if glob.glob(os.path.join(glob.escape(path), below, name)))
        raise UserError(f"{named}: is {next(found, f'a folder; {_WANTED}')}")
    if not os.path.isfile(path):
        raise UserError(f"{named}: {'is no file that can be read' if os.path.lexists(path) else 'no such file'}")


def _other_format(line: bytes, path: str) -> str:
    """The format of a file that is not JSON lines, by its first non-blank line and its name; "" if it may be JSON lines."""
    if found := next((name for magic, name in _MAGICS.items() if line.startswith(magic)), ""):
        return found
    if line[257:262] == b"ustar":
        return "a tar archive"
    start = line.lstrip()
    if start.startswith(b"["):
        return "a JSON array"
    if start[:1] == b"<":
        return "a page of HTML or XML"
    if start.startswith(b"{"):
        return ""
    cells = line.decode(errors="replace").strip(" \r\n")
    if named := re.search(r"\.([ct]sv)(\.gz)?$", path, re.IGNORECASE):
        return f"a {named[1].upper()} file"
    for mark, name in ((",", "a CSV file"), ("\t", "a TSV file"), (";", "a CSV file")):
        if mark in cells and all(_CELL.fullmatch(cell.strip()) for cell in cells.split(mark)):
            return name
    return ""


def _goes_on(first: str, path: str) -> bool:
    """Whether an object that begins in the first line ends in a later one."""
    with _opened(path) as file:
        head = file.read(_HEAD).decode(errors="replace").strip("\ufeff \t\r\n")
    if first.strip() == "{" != head:
        return True
    try:
        return "\n" in head[: json.JSONDecoder().raw_decode(head)[1]]
    except (ValueError, RecursionError):
        return False


def _check_depth(record: Any, text: str) -> None:
    """Raises _Refused for a record nested too deeply."""
    if text.count("[") + text.count("{") <= DEEPEST:
        return
    level = [record]
    for _ in range(DEEPEST + 1):
        values = (value.values() if isinstance(value, dict) else value for value in level if isinstance(value, (dict, list)))
        level = list(itertools.chain.from_iterable(values))
    if level:
        raise _Refused("nested too deeply")


def _lines(path: str) -> Iterator[bytes]:
    """The raw lines of a plain or gzip file."""
    check_file(path)
    with _opened(path) as file:
        while line := file.readline(LONGEST_LINE + 1):
            yield line


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Any]:
    """A plain or gzip file, open for reading bytes."""
    try:
        with open(path, "rb") as file:
            packed = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
            file.seek(0)
            with gzip.open(file) if packed else contextlib.nullcontext(file) as content:
                yield content
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: the gzip file is truncated or damaged ({error}); fetch it again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


class _Refused(ValueError):
    """What _JSON refuses."""


def _unique(pairs: list[tuple[str, Any]]) -> dict:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Refused(f"the key {_clipped(twice)!r} stands in one object twice")
    return found


def _no_number(name: str) -> None:
    raise _Refused(f"{name} is no number of JSON's")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise _Refused(f"{_clipped(digits)} is beyond all numbers")
    return number


_JSON = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_number, parse_float=_finite)


def decode(raw: bytes, where: str, field: str = "") -> str:
    """Bytes as text. Raises: UserError if they are not UTF-8."""
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


# ---- fields ----


def text_field(record: Mapping[str, Any], field: str, where: str, allow_empty: bool = False, key: str = "data.fields") -> str:
    """The text of a record's field. Decodes bytes (as TFDS gives them). `key`: the setting that names the field, if any.

    Raises:
        UserError: it is absent, not text, not encodable, or blank without `allow_empty`.
    """
    value = _field(record, field, where, key)
    if isinstance(value, bytes):
        value = decode(value, where, field)
    if not isinstance(value, str):
        raise UserError(f"{where}: field {field!r} must be text, not {type(value).__name__}")
    check_encodable(value, where, field)
    if not allow_empty and not value.strip():
        raise UserError(f"{where}: field {field!r} is empty; give it some text or remove the record")
    return value


def check_encodable(value: str, where: str, field: str) -> None:
    """Raises UserError for text that is not valid Unicode, or has code points that Unicode keeps out of texts."""
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UserError(f"{where}: field {field!r} holds half of a surrogate pair, which is not valid Unicode") from None
        if found := RESERVED.search(value):
            raise UserError(f"{where}: field {field!r} holds U+{ord(found[0]):04X}, which Unicode keeps out of texts; take it out")


def check_writable(record: Mapping[str, Any], where: str) -> None:
    """Raises UserError for a record that cannot be written out again: a field that is not read has half of a surrogate pair."""
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: one of its fields holds half of a surrogate pair, which is not valid Unicode") from None


def number_field(record: Mapping[str, Any], field: str, where: str, key: str = "data.fields") -> float:
    """The number in a record's field. `key`: the setting that names the field.

    Raises:
        UserError: it is absent or not a number.
    """
    value = _field(record, field, where, key)
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise UserError(f"{where}: field {field!r} must be a number, not {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:  # an integer of hundreds of digits
        number = math.inf
    if not math.isfinite(number):
        raise UserError(f"{where}: field {field!r} must be a finite number")
    return number


def _field(record, field: str, where: str, key: str):
    if field not in record:
        raise UserError(f"{where}: no field {field!r} (its fields: {fields_of(record)}){f'; see {key}' if key else ''}")
    return record[field]
