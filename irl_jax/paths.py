"""Paths of this machine and of object stores (`gs://bucket/folder`), which etils and fsspec reach where gcsfs is installed.

A store has no folders, no locks and no renaming in one stroke, and an object appears whole when it is written. What is written to one
therefore goes straight to its name, and what marks a thing as finished is written last.
"""

from __future__ import annotations

import os
import pathlib

from irl_jax.errors import UserError

STORES = {"gs": "gcsfs (pip install 'irl_jax[tpu]' does)", "s3": "s3fs", "az": "adlfs"}  # and what fsspec reaches them with


def of(path):
    """A path as an object with pathlib's methods.

    Args:
      path: str or path object; "~" is the home folder.

    Returns:
      pathlib.Path, or etils' epath.Path of an object store.

    Raises:
      UserError: an object store that nothing installed can reach.
    """
    text = os.fspath(path)
    if "://" not in text:
        return pathlib.Path(path).expanduser()
    if not isinstance(path, str):
        return path  # of an object store, and looked at when it was a str
    scheme = text.partition("://")[0]
    if scheme not in STORES:
        raise UserError(f"{text}: no way to reach {scheme}://; object stores are {', '.join(f'{name}://' for name in STORES)}")
    from etils import epath

    try:
        remote = epath.Path(text)
        remote.exists()
    except ImportError as error:
        raise UserError(f"{text}: no way to reach it ({' '.join(str(error).split())[:120]}): install {STORES[scheme]}") from None
    except OSError as error:
        raise UserError(f"{text}: cannot be reached ({' '.join(str(error).split())[:120]})") from None
    return remote


def is_local(path) -> bool:
    """Whether the path is of this machine's file system."""
    return "://" not in os.fspath(path)


def files(folder) -> list:
    """Every file in a folder and the folders below it, sorted."""
    if is_local(folder):
        return sorted(path for path in folder.rglob("*") if not path.is_dir())
    entries = sorted(folder.iterdir()) if folder.exists() else []
    return [file for entry in entries for file in (files(entry) if entry.is_dir() else [entry])]


def size(path) -> int:
    """Bytes of a file or object."""
    return path.stat().st_size if is_local(path) else path.stat().length
