"""Sweeps: one run for each combination of some keys' values, each in its own folder under the sweep's.

Members run one after another, each in its own process. So a member's memory is freed entirely, and what ends it ends nothing else. A
member is also bitwise the run that the same settings give alone, since what a process compiled before changes rounding. Programs that
members share come from the compilation cache on disk. A member gets its whole config as overrides of the default, as checked before the
first began. So changing a config file meanwhile changes nothing. The first member that fails ends the sweep with its status. The same
command continues with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from typing import NamedTuple

from ml_collections import ConfigDict

from irl_jax import artifacts, paths, workdir
from irl_jax.config import default
from irl_jax.errors import UserError
from irl_jax.overrides import keys_of, override, spelled, split, unquoted, value_of
from irl_jax.stages import refuse

SWEEP, MOST = "sweep.json", 10_000  # members; more is surely a typo
_PATIENCE = 10.0  # seconds to wait for another sweep, which writes one small file
_LONGEST = 180  # characters of a folder's name; file systems allow 255 bytes
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Member(NamedTuple):
    """name: its folder's. config: its own."""

    name: str
    config: ConfigDict


def members(config: ConfigDict, sweeps: list[str], overrides: dict[str, str]) -> list[Member]:
    """The product of the values, in order; the last key changes fastest.

    Args:
      config: shared by all. sweeps: "KEY=V1,V2,...", as given. overrides: keys that are set for all.

    Raises:
      UserError: a key is unknown, given twice or also set for all; a value is not of its type or given twice.
    """
    axes: dict[str, list] = {}
    for text in sweeps:
        key, _, values = text.partition("=")
        if key in axes or key in overrides:
            raise UserError(f"--sweep={key}=...: {key} is given twice; a sweep sets it, once")
        axes[key] = _values(config, key, values, text)
    if (number := math.prod(map(len, axes.values()))) > MOST:
        raise UserError(f"--sweep: {number:,} runs are more than the {MOST:,} that a sweep takes")
    found = []
    for chosen in itertools.product(*axes.values()):
        mine = ConfigDict(config.to_dict()).lock()
        for key, value in zip(axes, chosen, strict=True):
            override(mine, key, spelled(value))
        found.append(Member(name_of(dict(zip(axes, chosen, strict=True))), mine))
    return found


def _values(config: ConfigDict, key: str, text: str, given: str) -> list:
    """The values of one --sweep, in the key's type."""
    flag, trial = "--sweep=", ConfigDict(config.to_dict()).lock()
    try:
        words = split(text)
    except ValueError as error:
        raise UserError(f"--sweep={given}: {error}") from None
    if not key or "=" not in given or words == [""]:
        raise UserError(f"--sweep={given}: write it as --sweep=KEY=V1,V2,...")
    values = []
    for word in words:
        if key in keys_of(config) and isinstance(value_of(config, key), tuple) and word[:1] not in ("(", "["):
            raise UserError(f"--sweep={given}: {key} takes several values itself; write each choice in brackets: {key}=(a,b),(c),()")
        override(trial, key, unquoted(word), flag)
        if value_of(trial, key) in values:
            raise UserError(f"--sweep={given}: the value {word} is given twice")
        values.append(value_of(trial, key))
    return values


def name_of(chosen: dict) -> str:
    """A member's folder: "seed=0,sft.learning_rate=0.001".

    Text adds only lower-case letters, digits and . _ + - to it. Other characters are replaced and the value's hash is appended. So two
    values never share a folder, on any file system. Names that are too long end in a hash.
    """
    name = ",".join(f"{key}={_safe(value)}" for key, value in chosen.items())
    return name if len(name) <= _LONGEST else f"{name[:_LONGEST]}-{_hash(name)}"


def _safe(value) -> str:
    if not isinstance(value, (str, tuple)):
        return str(value)
    text = value if isinstance(value, str) else "+".join(map(str, value))
    plain = isinstance(value, str) or not any("+" in str(part) for part in value)
    safe = re.sub(r"[^a-z0-9._+-]", "_", text.lower())
    return safe if safe == text and plain else f"{safe[:60]}-{_hash(repr(value))}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def run(found: list[Member], folder: str, flags: list[str], stages: tuple[str, ...]) -> int:
    """Runs the members, one after another. Finished ones have nothing left to do.

    Args:
      found: from `members`. folder: the sweep's. flags: of `irl_jax run` for every member, besides its config and workdir. stages: which
        of each are checked; () is all.

    Returns:
      The exit status: 0, or that of the member that ended the sweep.

    Raises:
      UserError: no run would take a member's config, or the folder is something else. Nothing has begun then.
    """
    for member in found:
        try:
            refuse(member.config, stages)
        except UserError as error:
            raise UserError(f"{member.name}: {error}") from None
    _note(paths.of(folder), [member.name for member in found])
    for number, member in enumerate(found):
        print(f"sweep: {number + 1} of {len(found)}: {member.name}", flush=True)
        status = _run_apart([f"--workdir={folder.rstrip('/')}/{member.name}", *flags, *arguments(member.config)])
        if status:
            print(f"irl_jax: sweep: {member.name} ended with status {status}; the same command goes on with it", file=sys.stderr)
            return status
    return 0


def names_in(folder) -> list[str]:
    """The members' names in a sweep's folder.

    Raises:
      UserError: its sweep.json is not one.
    """
    stored = artifacts.read_json(folder / SWEEP, advice="bring the sweep's own back, or choose another folder")
    names = stored.get("members") if isinstance(stored, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) and "=" in name and "/" not in name for name in names):
        raise UserError(f"{folder / SWEEP}: not a {SWEEP} of irl_jax; choose another folder")
    return names


def _note(folder, names: list[str]) -> None:
    """Writes the members' names into the sweep's folder, beside those of earlier sweeps there."""
    if (folder / workdir.CONFIG).exists():
        raise UserError(f"{folder}: is the workdir of one run; choose another --workdir for the sweep")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; --workdir takes a folder")
    if paths.is_local(folder) and folder.is_symlink() and not folder.exists():
        raise UserError(f"{folder}: is a link to nothing; --workdir takes a folder")
    if folder.exists() and not (folder / SWEEP).exists() and any(entry.name[:1] != "." for entry in folder.iterdir()):
        raise UserError(f"{folder}: not empty and not a sweep's folder (no {SWEEP} there); choose another --workdir")
    if set(names) <= set(_noted(folder)):
        return
    with _alone(folder):  # reads and keeps what another sweep just noted
        members = {"members": list(dict.fromkeys([*_noted(folder), *names]))}
        paths.write(folder / SWEEP, lambda file: file.write((json.dumps(members, indent=2) + "\n").encode()))


def _noted(folder) -> list[str]:
    return names_in(folder) if (folder / SWEEP).exists() else []


@contextlib.contextmanager
def _alone(folder):
    """While entered, no other sweep writes into the folder, which is created if missing. Stores and some file systems have no locks."""
    if not paths.is_local(folder):
        yield
        return
    fresh = not folder.exists()
    with paths.refusals(folder / SWEEP):
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(paths.open_own(folder / workdir.LOCK, os.O_RDWR | os.O_CREAT), "rb")
    with lock:
        until = time.monotonic() + _PATIENCE
        with contextlib.suppress(OSError):
            while not paths.lock(lock.fileno()):
                if time.monotonic() > until:
                    raise UserError(f"{folder}: another irl_jax process is using this folder; wait for it or choose another")
                time.sleep(0.02)
        try:
            yield
        except UserError:
            if fresh:
                (folder / workdir.LOCK).unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # another process wrote into it
                    folder.rmdir()
            raise


def arguments(config: ConfigDict) -> list[str]:
    """The overrides that turn the default config into this one."""
    plain = default()
    return [f"--config.{key}={spelled(value_of(config, key))}" for key in keys_of(config) if value_of(config, key) != value_of(plain, key)]


def _run_apart(flags: list[str]) -> int:
    """Runs `irl_jax run` with the flags in its own process and returns the exit status."""
    return apart([sys.executable, "-m", "irl_jax", "run", *flags])


def apart(command: list[str], **options) -> int:
    """Runs a command in its own process and returns its exit status; `options` go to subprocess.Popen.

    The process gets its own group, because a terminal sends Ctrl-C to a whole group. Signals to this process are passed on, so the member
    gets each once. It then saves a checkpoint, and this process waits for it.
    """
    process, seen = None, []

    def forward(number, _frame):
        seen.append(number)
        if process:
            process.send_signal(number)

    with contextlib.ExitStack() as stack:
        for number in _FORWARDED:
            stack.callback(signal.signal, number, signal.signal(number, forward))
        process = subprocess.Popen(command, process_group=0, **options)
        for number in seen[:1]:  # arrived before the process started
            process.send_signal(number)
        status = process.wait()
    return 128 - status if status < 0 else status or (128 + seen[0] if seen else 0)
