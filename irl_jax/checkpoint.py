"""Checkpoints of any pytree: one folder per step, written by orbax, complete or absent, checked before they are read.

A checkpoint is `DIR/<step>/` with `tree/` (orbax) and `manifest.json`. The manifest holds the leaves' shapes and dtypes, and the size and
CRC-32 of every file, because orbax reads a flipped byte without complaint. The tree is stored flat, by leaf path. Restoring
takes the structure from `like`, so named tuples and optax states come back as such.
"""

from __future__ import annotations

import errno
import functools
import json
import logging
import os
import sys
import threading
import zlib

import jax
import numpy as np

from irl_jax import distributed, paths
from irl_jax.errors import UserError, printable
from irl_jax.types import PyTree

MANIFEST = "manifest.json"


class Saver:
    """Writes the checkpoints of one folder in the background: `save` returns once the arrays are copied to the host.

    A kill at any moment leaves each checkpoint whole or absent. A save replaces checkpoints at or past its step, because they belong to a
    run that this one overtakes. Of the others the newest `keep` stay, including the new one.

    Args:
      directory: folder of checkpoints, made if missing. keep: number of checkpoints to keep, at least 1.
    """

    def __init__(self, directory, keep: int):
        if keep < 1:
            raise ValueError(f"keep must be at least 1, not {keep}")
        self.directory, self.keep = paths.absolute(directory), keep
        ocp = _orbax()
        self._checkpointer = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())
        self._background: threading.Thread | None = None
        self._failure: BaseException | None = None

    def save(self, step: int, tree: PyTree) -> None:
        """Starts to write `tree` (jax or numpy arrays, at least one) as the checkpoint of `step` (updates done).

        Raises:
          UserError: this checkpoint, or the one still being written, could not be written (the disk is full, say).
        """
        self.wait()
        unfinished = self._unfinished(step)
        flat = _flatten(tree)
        distributed.primary_first(lambda: self._guarded(step, lambda: _begin(self.directory, unfinished)))
        leaves = {name: leaf if isinstance(leaf, jax.Array) else np.asarray(leaf) for name, leaf in flat.items()}
        described = _describe(flat)
        self._guarded(step, lambda: self._checkpointer.save(unfinished / "tree", args=_orbax().args.PyTreeSave(leaves)))
        self._background = threading.Thread(target=self._complete, args=(step, unfinished, described), name=f"checkpoint {step}")
        self._background.start()

    def wait(self) -> None:
        """Waits until what `save` started is written. Raises: as `save`."""
        if self._background is None:
            return
        self._background.join()
        self._background, failure, self._failure = None, self._failure, None
        if failure is not None and not isinstance(failure, UserError):
            raise failure
        distributed.primary_first(lambda: _raise(failure))

    def close(self) -> None:
        """Calls `wait`, then ends orbax's own threads."""
        try:
            self.wait()
        finally:
            self._checkpointer.close()

    def _complete(self, step: int, unfinished, described: dict) -> None:
        """Waits in the background for orbax on all hosts, then completes the checkpoint."""
        try:
            self._guarded(step, self._checkpointer.wait_until_finished)
            if distributed.is_primary():
                self._guarded(step, lambda: _finish(self.directory, unfinished, step, described, self.keep))
        except BaseException as error:  # noqa: BLE001 - raised again in the main thread
            self._failure = error

    def _unfinished(self, step: int):
        """Where a checkpoint is written. An object store can't rename: it's the final place, which counts once it has a manifest."""
        return self.directory / (f".unfinished-{step}" if paths.is_local(self.directory) else str(step))

    def _guarded(self, step: int, write):
        """Calls write(). Turns the system's errors, such as no space or no permission, into a one-line UserError."""
        try:
            return write()
        except Exception as error:  # noqa: BLE001 - orbax wraps the system's errors in several of its own
            reason = _system_reason(error)
            if not reason:
                raise
            if distributed.is_primary():
                paths.remove(self._unfinished(step))
            raise UserError(f"{self.directory}: the checkpoint of step {step} could not be written ({reason}); earlier ones are as they "
                            "were: make room and start the same command again") from None


def _raise(failure) -> None:
    if failure is not None:
        raise failure


def _system_reason(error: BaseException | None) -> str:
    """The system's own words for its error, such as "No space left on device"; "" if the error is not the system's."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return os.strerror(error.errno)
        for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES):
            if os.strerror(code) in str(error):  # a tensorstore error, whose type says nothing
                return os.strerror(code)
        error = error.__cause__ or error.__context__
    return ""


def save(directory, step: int, tree: PyTree, keep: int) -> None:
    """Writes `tree` as the checkpoint of `step` and waits until it is written; see `Saver`."""
    saver = Saver(directory, keep)
    try:
        saver.save(step, tree)
    finally:
        saver.close()


def _begin(directory, unfinished) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for leftover in (*directory.glob(".unfinished-*"), unfinished):
        paths.remove(leftover)
    unfinished.mkdir()


def _finish(directory, unfinished, step: int, described: dict, keep: int) -> None:
    """Writes the manifest, which completes the checkpoint, moves it to its place, and removes what it replaces."""
    manifest = {"step": step, "leaves": described, "files": _checksums(unfinished / "tree")}
    paths.write(unfinished / MANIFEST, lambda file: file.write(json.dumps(manifest).encode()))
    place = directory / str(step)
    for old in _steps(directory):
        if old >= step and directory / str(old) != unfinished:
            paths.remove(directory / str(old))
    if unfinished != place:
        paths.publish(unfinished, place)
    for old in _steps(directory)[:-keep]:
        paths.remove(directory / str(old))


def restore_latest(directory, like: PyTree) -> tuple[int, PyTree] | None:
    """The newest whole checkpoint as (step, tree), or None if there is none.

    Skips damaged checkpoints, with one line on stderr for each.

    Args:
      directory: folder of checkpoints.
      like: pytree of arrays or ShapeDtypeStructs with the same structure. The leaves get its dtypes and shardings. Numpy leaves come back
        as numpy.

    Raises:
      UserError: the checkpoint's leaves differ from those of `like`.
    """
    directory, flat_like = paths.absolute(directory), _flatten(like)
    step = distributed.primary_first(lambda: _newest_whole(directory, _describe(flat_like)))
    if step is None:
        return None
    flat = _orbax_restore(directory / str(step) / "tree", flat_like)
    return step, jax.tree.unflatten(jax.tree.structure(like), [flat[name] for name in flat_like])


def _newest_whole(directory, wanted: dict) -> int | None:
    for step in reversed(_steps(directory)):
        manifest, damage = _read_manifest(directory / str(step))
        if not damage:
            _check_structure(directory / str(step), manifest["leaves"], wanted)
            return step
        print(printable(f"irl_jax: {directory / str(step)}: damaged checkpoint passed over: {damage}"), file=sys.stderr)
    return None


def latest_step(directory) -> int | None:
    """The step of the newest checkpoint in `directory`, whole or not, or None."""
    steps = _steps(paths.of(directory))
    return steps[-1] if steps else None


def save_tree(directory, tree: PyTree) -> None:
    """Writes one tree (a role's final leaves) to `directory`, replacing what was there."""
    newest = latest_step(directory)
    save(directory, 0 if newest is None else newest + 1, tree, keep=1)


def load_tree(directory, like: PyTree) -> PyTree:
    """The tree that `save_tree` wrote, shaped and placed like `like`.

    Raises:
      UserError: there is none, or its leaves differ from those of `like`.
    """
    found = restore_latest(directory, like)
    if found is None:
        raise UserError(f"{directory}: no whole checkpoint there; run the stage that writes it")
    return found[1]


def _steps(directory) -> list[int]:
    """The steps of the checkpoints in `directory`, ascending."""
    return paths.numbered(directory)


def _flatten(tree: PyTree) -> dict:
    """{leaf path: leaf}, in the tree's order."""
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    flat = {jax.tree_util.keystr(path, simple=True, separator=".") or "value": leaf for path, leaf in paths}
    assert flat and len(flat) == len(paths), "a checkpoint needs leaves, of different paths"
    return flat


def _describe(flat: dict) -> dict:
    return {name: [list(leaf.shape), str(np.dtype(leaf.dtype))] for name, leaf in flat.items()}


def _checksums(folder) -> dict:
    """{relative path: [bytes, CRC-32]} of every file under `folder`. CRC-32 is None in object stores, which check contents themselves."""
    sums = {}
    for path in paths.files(folder):
        sums[path.relative_to(folder).as_posix()] = [paths.size(path), _crc(path) if paths.is_local(path) else None]
    return sums


def _crc(path) -> int:
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            crc = zlib.crc32(block, crc)
    return crc


def _read_manifest(folder) -> tuple[dict, str]:
    """(manifest, what is damaged or "")."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        files = dict(manifest["files"].items())
        if not all(isinstance(leaf, list) and len(leaf) == 2 for leaf in manifest["leaves"].values()):
            raise TypeError("a leaf is its shape and its dtype")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        return {}, f"{MANIFEST} is {'missing' if isinstance(error, FileNotFoundError) else 'broken'}"
    found = _checksums(folder / "tree")
    for name, expected in files.items():
        if found.get(name) != expected:
            return {}, f"tree/{name} is {'missing' if name not in found else 'not as it was written'}"
    return manifest, ""


def _check_structure(folder, stored: dict, wanted: dict) -> None:
    for name in [*wanted, *stored]:
        if stored.get(name) != wanted.get(name):
            here, there = (_words(side.get(name)) for side in (wanted, stored))
            raise UserError(f"{folder}: leaf {name} is {there} in the checkpoint and {here} in this run; use another --workdir")


def _words(description) -> str:
    return f"{description[1]} {description[0]}" if description else "absent"


def _orbax_restore(path, flat_like: dict) -> dict:
    ocp = _orbax()

    def args(leaf):
        sharding = getattr(leaf, "sharding", None)
        if sharding is None:
            return ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
        return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=leaf.shape, dtype=leaf.dtype)

    restore_args = {name: args(leaf) for name, leaf in flat_like.items()}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        return checkpointer.restore(path, args=ocp.args.PyTreeRestore(item=dict(flat_like), restore_args=restore_args))


@functools.cache
def _orbax():
    """orbax.checkpoint, imported on first use (it takes a third of a second) and silenced: failures are raised, and we report them once."""
    import orbax.checkpoint as ocp

    logging.getLogger("absl").setLevel(logging.WARNING)
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(lambda record: "orbax" not in record.pathname + record.getMessage())
    sys.unraisablehook = functools.partial(_without_late_writes, sys.unraisablehook)
    return ocp


def _without_late_writes(hook, unraisable) -> None:
    """An unraisablehook that ignores what tensorstore's threads say about each write that ends after another has failed."""
    if unraisable.object is not None or str(unraisable.exc_value) != "Event loop is closed":
        hook(unraisable)
