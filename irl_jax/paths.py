"""Paths of this machine and of object stores (`gs://bucket/folder`), which etils and fsspec reach where gcsfs is installed.

A store has no folders, no locks and no renaming in one stroke, and an object appears whole when it is written. What is written to one
therefore goes straight to its name, and what marks a thing as finished is written last.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import pathlib
import re
import shutil

import numpy as np

from irl_jax.errors import UserError


def of(path):
    """A path as an object with pathlib's methods.

    Args:
      path: str or path object; "~" is the home folder.

    Returns:
      pathlib.Path, or etils' epath.Path of an object store.

    Raises:
      UserError: an object store that nothing installed can reach, or a name that no file can have.
    """
    text = os.fspath(path)
    if "://" not in text:
        return _local(text) if isinstance(path, str) else pathlib.Path(os.path.expanduser(text))
    if not isinstance(path, str):
        return path  # of an object store, and looked at when it was a str
    if not text.startswith("gs://"):
        raise UserError(f"{text}: no way to reach {text.partition('://')[0]}://; the object store that is known is gs://")
    from etils import epath

    try:
        remote = epath.Path(text)
        remote.exists()
    except ImportError as error:
        raise UserError(f"{text}: no way to reach it ({' '.join(str(error).split())[:120]}): gs:// needs gcsfs, which "
                        "pip install 'irl_jax[tpu]' brings") from None
    except OSError as error:
        raise UserError(f"{text}: cannot be reached ({' '.join(str(error).split())[:120]})") from None
    return remote


def _local(text: str) -> pathlib.Path:
    """A path of this machine's; "~somebody" stays as it is where there is no such person."""
    path = pathlib.Path(os.path.expanduser(text))
    try:
        path.lstat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(f"{text[:100]}...: a name of {len(text)} letters is too long for the file system") from None
    except ValueError:  # a NUL, or half of a surrogate pair: no file of that name is there
        pass
    return path


def is_local(path) -> bool:
    """Whether the path is of this machine's file system."""
    return "://" not in os.fspath(path)


def files(folder) -> list:
    """Every file in a folder and the folders below it, sorted."""
    if is_local(folder):
        return sorted(path for path in folder.rglob("*") if not path.is_dir())
    entries = sorted(folder.iterdir()) if folder.exists() else []
    return [file for entry in entries for file in (files(entry) if entry.is_dir() else [entry])]


def here(name) -> pathlib.Path:
    """The path of a name that is this machine's, whatever it looks like: of something that is not read from object stores.

    Raises: as `of`.
    """
    text = os.fspath(name)
    return _local(text) if is_local(text) else pathlib.Path(text)


def absolute(path):
    """The path from the root on; those of an object store are."""
    path = of(path)
    return path.absolute() if is_local(path) else path  # etils would put this machine's folder before the store's


def size(path) -> int:
    """Bytes of a file or object."""
    return path.stat().st_size if is_local(path) else path.stat().length


def changed(path) -> float:
    """When a file or object was last written, seconds since 1970; 0 of a store that does not say."""
    return path.stat().st_mtime if is_local(path) else path.stat().mtime


def write(path, fill) -> None:
    """Writes a file, whole or not at all.

    Args:
      path: the file; its folder is made where missing. fill: fill(binary file) writes the content.

    Raises:
      UserError: there is no room or no right; what was there before is as it was.
    """
    if not is_local(path):
        content = io.BytesIO()
        fill(content)
        with refusals(path):
            path.write_bytes(content.getvalue())
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with refusals(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def read_arrays(path) -> dict:
    """The arrays of an .npz; none of them may be of objects, which would be pickles.

    Raises:
      OSError: it cannot be read. ValueError: it is damaged, or no .npz.
    """
    content = path if is_local(path) else io.BytesIO(of(path).read_bytes())
    try:
        stored = np.load(content, allow_pickle=False)
        if not isinstance(stored, np.lib.npyio.NpzFile):
            raise ValueError("a single array, not an .npz")
        with stored:
            return dict(stored)
    except OSError:
        raise
    except Exception as error:  # damaged archives end in a dozen types, zlib's and struct's among them
        raise ValueError(" ".join(str(error).split())[:200] or type(error).__name__) from error


def append(path, content: bytes) -> None:
    """Adds bytes to the end of a file, made where missing; an object of a store is written anew.

    Raises: as `write`.
    """
    with refusals(path):
        if not is_local(path):
            path.write_bytes((path.read_bytes() if path.exists() else b"") + content)
            return
        with open(path, "ab") as file:
            file.write(content)


def remove_unfinished(folder) -> None:
    """Removes what `write` leaves below a folder where the process is killed in the middle of it."""
    for path in folder.rglob(".*.tmp") if is_local(folder) else ():
        if re.fullmatch(r"\..+\.\d+\.tmp", path.name) and path.is_file():
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def refusals(path):
    """Turns the system's refusal to write into the user's one line."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, None)  # None: a library's own error, mostly of a full disk
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); what was there before is whole: "
                        f"{'make room' if full else 'let it be written there'} and start the same command again") from None


def remove_folder(folder) -> None:
    """Removes a folder with all that is in it, if it is there."""
    if folder.exists():
        shutil.rmtree(folder, ignore_errors=True) if is_local(folder) else folder.rmtree()
