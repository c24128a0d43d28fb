"""The workdir: one folder per run, opened by one process at a time, tied to one config, written atomically."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import os
import pathlib
import platform
import socket
import subprocess
import sys
import time

from ml_collections import ConfigDict

import irl_jax
from irl_jax import artifacts, distributed, paths
from irl_jax.checks import check_ranges
from irl_jax.config import default
from irl_jax.errors import UserError
from irl_jax.overrides import leaves

CONFIG, INPUTS, LOCK, DONE = "config.json", "inputs.json", ".lock", "done.json"  # INPUTS: see irl_jax/stages/inputs.py
FREE = ("checkpoint.", "log.", "mesh.", "profile.")  # a resumed run may change these: results stay the same or (mesh) differ by rounding
REPLACE = "bring the run's own back, or choose another --workdir"
WRITTEN: dict = {"config!": {}, "versions": {}}  # of config.json (see `artifacts.read_json`)
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tokenizers", "transformers")


class Workdir:
    """A run's folder: opened or created, locked to this process, refused to another config.

    Args:
      path: the folder; created if missing.
      config: the resolved config of the run.

    Raises:
      UserError: the folder holds something else, belongs to another config, or is in use.

    As a context manager it removes config.json (and the folder, if it made it) if a user error comes before any result.
    """

    def __init__(self, path, config: ConfigDict):
        self.path = paths.of(path)
        self.config = config
        self._lock: io.FileIO | None = None
        self._made_folder = self._made_config = False
        self._since = 0.0
        distributed.primary_first(self._open)
        if not (self.path / CONFIG).exists():
            raise UserError(f"{self.path}: process {distributed.index()} does not see the workdir that process 0 opened: give a folder "
                            "that all hosts share, or one in an object store (gs://)")

    def _open(self) -> None:
        config = self.config
        try:
            _refuse_foreign(self.path)
            self._made_folder = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            if paths.is_local(self.path):  # object stores have no locks
                self._lock = self._locked()
        except OSError as error:
            raise UserError(f"{self.path}: cannot write the workdir there: {error.strerror}") from None
        try:
            if (self.path / CONFIG).exists():
                _refuse_other_config(self.path, config)
                for folder in os.walk(self.path) if self._lock else ():
                    paths.remove_unfinished(folder[0])
            else:
                paths.write(self.path / CONFIG, artifacts.json_of(_describe_run(config)))
                self._made_config = True
        except UserError:
            if self._made_folder and self._lock:  # nothing was written, not even config.json
                (self.path / LOCK).unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    self.path.rmdir()
            self.close()
            raise

    def _locked(self) -> io.FileIO:
        """The open lock file, locked if the file system has locks. If it has none, prints one line and goes on."""
        file = self.path / LOCK
        while True:
            lock = open(paths.open_own(file, os.O_RDWR | os.O_CREAT), "r+b", buffering=0)
            try:
                if not paths.lock(lock.fileno()):
                    lock.close()
                    raise UserError(f"{self.path}: another irl_jax process is using this workdir; wait for it or choose another")
            except OSError as error:
                print(f"irl_jax: {self.path}: its file system has no locks ({error.strerror}); going on without one: start no second "
                      "run there meanwhile", file=sys.stderr)
                return lock
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock.fileno()), os.lstat(file)):
                    return lock
            lock.close()  # the previous holder made nothing and removed the file

    def note(self, stage: str) -> None:
        """Writes into the lock file who holds it and which stage runs. `irl_jax status` reads this, as it cannot ask for the lock."""
        if self._lock and os.fstat(self._lock.fileno()).st_nlink == 1:  # a file with hard links is not ours alone
            self._since = self._since or time.time()
            note = {"pid": os.getpid(), "born": born(os.getpid()), "host": socket.gethostname(), "since": self._since, "stage": stage,
                    "inode": os.fstat(self._lock.fileno()).st_ino}
            with contextlib.suppress(OSError):  # the stage itself reports a full disk
                os.pwrite(self._lock.fileno(), json.dumps(note).encode().ljust(512) + b"\n", 0)  # fixed length, so it is always whole

    def close(self) -> None:
        """Releases the lock and clears its note. The end of the process releases it too."""
        if self._lock:
            if self._since and not self._lock.closed:
                with contextlib.suppress(OSError):
                    os.truncate(self._lock.fileno(), 0)
            self._lock.close()

    def __enter__(self) -> Workdir:
        return self

    def __exit__(self, kind, *_) -> None:
        if self._made_config and kind is not None and issubclass(kind, (UserError, PermissionError)):
            self._unbind()
        self.close()

    def _unbind(self) -> None:
        """Removes the config of a run that failed on its input before it made anything, so that a corrected one may follow.

        A stage that left only its done mark (an imported model's `pretrain`) has made nothing. Neither has a note of the inputs.
        """
        made = paths.files(self.path)
        kept = (self.path / CONFIG, self.path / LOCK)
        if any(path not in kept and path.name not in (DONE, INPUTS) for path in made):
            return
        for path in made:
            if path not in kept:
                path.unlink()
        local = paths.is_local(self.path)
        for folder in sorted((path for path in self.path.rglob("*") if path.is_dir()), reverse=True) if local else ():  # inner ones first
            folder.rmdir()
        (self.path / CONFIG).unlink(missing_ok=True)  # last: a folder with files and no config.json counts as somebody else's
        if self._made_folder and local:
            (self.path / LOCK).unlink()
            self.path.rmdir()

    def stage(self, name: str):
        """The stage's folder (`sft`, `policy/init_sft`), created if missing."""
        folder = self.path / name
        with paths.refusals(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def is_done(self, stage: str) -> bool:
        """Whether `mark_done` was called for the stage."""
        return (self.path / stage / DONE).exists()

    def mark_done(self, stage: str, timing: dict) -> None:
        """Marks the stage as finished; `timing` goes into results.json under timing.<stage>."""
        artifacts.write_json(self.stage(stage) / DONE, {"timing": timing})

    def timing(self, stage: str) -> dict:
        """The timing given to `mark_done`."""
        return artifacts.read_json(self.path / stage / DONE, {"timing!": {}})["timing"]


def read_config(path, strict: bool = True) -> ConfigDict:
    """The resolved config of an existing workdir.

    Args:
      path: the workdir. strict: refuses another version's keys; otherwise they are left out, and missing ones get their defaults.

    Raises:
      UserError: no workdir there, or its config.json is unreadable or has another version's keys.
    """
    path = paths.of(path)
    if not (path / CONFIG).is_file():
        raise UserError(f"{path}: not a workdir (no {CONFIG} there); give the --workdir of a run")
    stored = artifacts.read_json(path / CONFIG, WRITTEN, advice=REPLACE)
    config = default()
    expected, found = leaves(config.to_dict()), leaves(stored["config"])
    if not strict:
        found = {key: value for key, value in found.items() if key in expected}
    for key in [*expected, *found] if strict else ():
        if (key in expected) != (key in found):
            where = "unknown to this version" if key in found else "missing"
            raise UserError(f"{path / CONFIG}: key {key} is {where}; the workdir was written by another version of irl_jax")
    try:
        config.update_from_flattened_dict(found)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path / CONFIG}: a key of another type: {error}") from None
    try:
        check_ranges(config)
    except UserError as error:
        raise UserError(f"{path / CONFIG}: {error}") from None
    return config


def _refuse_foreign(path) -> None:
    if paths.is_local(path) and path.is_symlink() and not path.exists():
        raise UserError(f"{path}: is a link to nothing; --workdir takes a folder")
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file; --workdir takes a folder")
    if path.is_dir() and not (path / CONFIG).exists() and any(
            entry.name != LOCK and not paths.UNFINISHED.fullmatch(entry.name) for entry in path.iterdir()):
        raise UserError(f"{path}: not empty and not a workdir (no {CONFIG} there); choose another --workdir")


def _refuse_other_config(path, config: ConfigDict) -> None:
    stored = artifacts.read_json(path / CONFIG, WRITTEN, advice=REPLACE)
    there, here = leaves(stored["config"]), leaves(artifacts.plain(config))
    keys = [key for key in dict.fromkeys([*here, *there]) if not key.startswith(FREE)]
    different = [key for key in keys if key not in here or key not in there or here[key] != there[key]]
    if different:
        shown = "; ".join(f"{key} is {_show(there, key)} there and {_show(here, key)} now" for key in different[:3])
        more = f" (and {len(different) - 3} more)" if len(different) > 3 else ""
        raise UserError(f"{path}: belongs to another config: {shown}{more}; choose another --workdir or the same config")


def _show(found: dict, key: str) -> str:
    return json.dumps(found[key]) if key in found else "absent"


def _describe_run(config: ConfigDict) -> dict:
    return {"config": config, "seed": config.seed, "versions": versions(), "git_commit": git_commit(), "cores": cores()}


def versions() -> dict[str, str]:
    """{package: version} of the packages that compute a run's results."""
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"irl_jax": irl_jax.__version__, "python": platform.python_version(), **packages}


def born(pid: int) -> str:
    """When a process started, in the system's own words; "" if none of that number lives. Tells apart processes of the same number."""
    try:
        if sys.platform != "linux":
            command, plain = ["ps", "-o", "lstart=", "-p", str(pid)], {**os.environ, "LC_ALL": "C", "TZ": "UTC"}
            return subprocess.run(command, capture_output=True, text=True, timeout=10, env=plain).stdout.strip()
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id")
        fields = pathlib.Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()  # the state is the first of them
        return "" if fields[0] in (b"Z", b"X") else f"{boot.read_text().strip() if boot.exists() else ''} {fields[19].decode()}"
    except (OSError, LookupError, subprocess.SubprocessError):
        return ""


def cores() -> int:
    """How many cores this process may use. On a CPU, they decide how sums are split, and so their last bits."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def git_commit() -> str | None:
    """The commit of the checkout that this package runs from (with -dirty if files differ), or None."""
    root = pathlib.Path(irl_jax.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
