"""Paths on this machine and in object stores (`gs://bucket/folder`), which etils and fsspec reach if gcsfs is installed.

A store has no folders, locks or atomic renames, and an object appears whole once it is written. So files in a store are written directly
under their final name. Whatever marks something as finished is written last.

On this machine there is one way to write: `write` for a file and `new_folder` for a folder. Both fill a new file or folder beside the
target, under a random name, and lock it while the writer lives. So the next writer there can tell the leftovers of a killed process from a
write in progress. It removes only the leftovers.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import pathlib
import re
import secrets
import shutil
import stat

import numpy as np

from irl_jax.errors import UserError

UNFINISHED = re.compile(r"\.irl_jax\.[0-9a-f]{16}\.tmp")  # names of files and folders being written
_CAREFUL = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # follow no link, wait for no pipe


def of(path):
    """A path as an object with pathlib's methods.

    Args:
      path: str or path object; "~" is the home folder.

    Returns:
      pathlib.Path, or etils' epath.Path for an object store.

    Raises:
      UserError: an object store that nothing installed can reach, or a name that no file can have.
    """
    text = os.fspath(path)
    if "://" not in text:
        return _local(text) if isinstance(path, str) else pathlib.Path(os.path.expanduser(text))
    if not isinstance(path, str):
        return path  # in an object store, checked when it was a str
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
    """A path on this machine; "~somebody" stays as it is if there is no such user."""
    path = pathlib.Path(os.path.expanduser(text))
    try:
        path.lstat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(f"{text[:100]}...: a name of {len(text)} letters is too long for the file system") from None
    except ValueError:  # a NUL, or half of a surrogate pair: no file has that name
        pass
    return path


def is_local(path) -> bool:
    """Whether the path is on this machine's file system."""
    return "://" not in os.fspath(path)


def files(folder) -> list:
    """Every file in a folder and its subfolders, linked ones included, sorted.

    Raises: OSError: a folder cannot be read.
    """
    return list(_files(folder, set()))


def _files(folder, seen: set):
    real = os.path.realpath(folder) if is_local(folder) else str(folder)
    try:
        entries = [] if real in seen else sorted(folder.iterdir())
    except FileNotFoundError:  # stores have no empty folders, and others may vanish meanwhile
        entries = []
    seen.add(real)  # links may form a cycle
    for entry in entries:
        yield from _files(entry, seen) if entry.is_dir() else [entry]


def numbered(folder, suffix: str = "") -> list[int]:
    """The numbers N of a folder's entries "N<suffix>", ascending; other entries are ignored. [] if there is no folder.

    Raises: UserError: it cannot be read.
    """
    try:
        names = [entry.name for entry in folder.iterdir()]
    except FileNotFoundError:
        names = []
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror or error})") from None
    stems = [name.removesuffix(suffix) for name in names if name.endswith(suffix)]
    return sorted(int(stem) for stem in stems if re.fullmatch("0|[1-9][0-9]{0,11}", stem))


def here(name) -> pathlib.Path:
    """The path of a name on this machine, whatever the name looks like. For things that are not read from object stores.

    Raises: as `of`.
    """
    text = os.fspath(name)
    return _local(text) if is_local(text) else pathlib.Path(text)


def absolute(path):
    """The absolute path. Paths in object stores already are absolute."""
    path = of(path)
    return path.absolute() if is_local(path) else path  # etils would prepend this machine's folder


def size(path) -> int:
    """Bytes of a file or object."""
    return path.stat().st_size if is_local(path) else path.stat().length


def changed(path) -> float:
    """When a file or object was last written, in seconds since 1970; 0 if a store does not say."""
    return path.stat().st_mtime if is_local(path) else path.stat().mtime


def write(path, fill) -> None:
    """Writes a file, whole or not at all.

    Args:
      path: the file; its folder is created if missing. fill: fill(binary file) writes the content.

    Raises:
      UserError: there is no space or no permission. The previous content stays as it was.
    """
    if not is_local(path):
        content = io.BytesIO()
        fill(content)
        with refusals(path):
            path.write_bytes(content.getvalue())
        return
    with refusals(path), _beside(path, lambda new: open_own(new, os.O_RDWR | os.O_CREAT | os.O_EXCL)) as (_, descriptor):
        with open(descriptor, "wb", closefd=False) as file:
            fill(file)


@contextlib.contextmanager
def new_folder(path):
    """A folder beside `path` to fill. It takes that name on success and is removed on failure.

    Args:
      path: a path on this machine, where there is nothing or an empty folder.

    Raises:
      UserError: `path` is the root of a file system, or the system refuses to write.
    """
    if path.is_mount():
        raise UserError(f"{path}: is the root of a file system, which cannot be replaced; name a folder in it")
    path = path.resolve() if path.is_symlink() else path
    with refusals(path), _beside(path, _make_folder) as (folder, _):
        yield folder


def _make_folder(path) -> int:
    os.mkdir(path)
    return os.open(path, os.O_RDONLY | _CAREFUL)


@contextlib.contextmanager
def _beside(path, make):
    """(name, descriptor) of a new file or folder beside `path`, which replaces it in the end. A failure leaves everything as it was."""
    missing = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        remove_unfinished(path.parent)
        new, descriptor = _reserved(path.parent, make)
        try:
            yield new, descriptor
            publish(new, path)
        finally:
            remove(new)
            os.close(descriptor)
    except BaseException:
        for folder in missing:
            with contextlib.suppress(OSError):  # another process writes there
                folder.rmdir()
        raise


def _reserved(folder, make):
    while True:
        new = folder / f".irl_jax.{secrets.token_hex(8)}.tmp"
        descriptor = make(new)
        with contextlib.suppress(OSError):  # no locks there, and then nobody removes it either
            if not lock(descriptor) or not new.exists():  # another process is just removing it
                os.close(descriptor)
                continue
        return new, descriptor


def publish(new, path) -> None:
    """Renames a finished file or folder to `path` atomically. Its content is synced to disk before, and its name after."""
    for folder, _, names in os.walk(new):
        for name in names:
            _sync(os.path.join(folder, name))
        with contextlib.suppress(OSError):  # some file systems cannot sync folders
            _sync(folder)
    if not new.is_dir():
        _sync(new)
    os.replace(new, path)
    with contextlib.suppress(OSError):
        _sync(path.parent)


def _sync(path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_own(path, flags: int) -> int:
    """Opens a file of ours with `flags` and returns the descriptor. A new file gets the permissions that the umask leaves.

    Raises:
      UserError: it is a link, a folder or a device, so its target isn't ours. OSError: as os.open.
    """
    try:
        descriptor = os.open(path, flags | _CAREFUL, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UserError(f"{path}: is a link, where irl_jax has a file of its own; remove it") from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{path}: is no plain file, and irl_jax has one of its own there; remove it")
    return descriptor


def lock(descriptor: int) -> bool:
    """Locks an open file or folder until it is closed; False if another process holds the lock.

    Raises:
      OSError: the file system, or the system, has no locks.
    """
    try:
        import fcntl
    except ImportError:  # Windows, which the command line refuses
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # PermissionError: file systems that use fcntl's locks
        return False
    return True


def read_arrays(path) -> dict:
    """The arrays of an .npz. Arrays of objects are refused, since they would be pickles.

    Raises:
      OSError: it cannot be read. ValueError: it is damaged, or not an .npz.
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
    except Exception as error:  # damaged archives raise a dozen types, such as zlib's and struct's
        raise ValueError(" ".join(str(error).split())[:200] or type(error).__name__) from error


def append(path, content: bytes) -> None:
    """Appends bytes to a file, created if missing. An object in a store is rewritten.

    Raises: as `write`.
    """
    with refusals(path):
        if not is_local(path):
            path.write_bytes((path.read_bytes() if path.exists() else b"") + content)
            return
        with open(open_own(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), "ab") as file:
            file.write(content)


def remove_unfinished(folder) -> None:
    """Removes what killed calls of `write` and `new_folder` left in a folder: entries with a name of ours that nobody has locked."""
    with contextlib.suppress(OSError):  # a folder that cannot be listed
        for entry in [entry for entry in os.scandir(folder) if UNFINISHED.fullmatch(entry.name)]:
            flags = os.O_RDONLY if entry.is_dir(follow_symlinks=False) else os.O_RDWR  # NFS locks only writable files
            with contextlib.suppress(OSError):
                descriptor = os.open(entry.path, flags | _CAREFUL)
                try:
                    if lock(descriptor):
                        remove(of(entry))
                finally:
                    os.close(descriptor)


@contextlib.contextmanager
def refusals(path):
    """Turns the system's refusal to write into a one-line UserError."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, None)  # None: a library's own error, mostly a full disk
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); what was there before is whole: "
                        f"{'make room' if full else 'let it be written there'} and start the same command again") from None


def remove(path) -> None:
    """Removes a file, or a folder with its contents, if it exists."""
    if not is_local(path):
        if path.exists():
            path.rmtree()
    elif path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
