"""Progress of a run or a sweep, read from its folder: what is done, running and left. Takes no lock and writes nothing."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from typing import NamedTuple

from irl_jax import artifacts, paths, variants, workdir
from irl_jax.config import GROUPS
from irl_jax.errors import UserError
from irl_jax.stages import STAGES
from irl_jax.sweep import SWEEP, names_in
from irl_jax.tracking import METRICS, PROGRESS

_NOTE = 1 << 12  # bytes, enough for a whole note in .lock
_TAIL = 1 << 16  # bytes at the end of metrics.jsonl, enough for a whole line


class Holder(NamedTuple):
    """Who works on a workdir. stage: its current stage, "" before the first. since: seconds since 1970.

    where: "here" (a live process on this machine), "elsewhere" (a process on another machine, which may be dead), "store" (an object store
    does not say), or "" (nobody).
    """

    where: str = ""
    pid: int = 0
    host: str = ""
    since: float = 0.0
    stage: str = ""


class Part(NamedTuple):
    """A stage or a method. state: "done", "running", "stopped", "begun" (running or stopped, unknown which), or "left"."""

    name: str
    state: str
    said: str = ""


def lines(text: str) -> list[str]:
    """What `irl_jax status` prints for the folder.

    Raises:
      UserError: it is neither a run's workdir nor a sweep's folder.
    """
    path = paths.of(text)
    try:
        if not path.exists():
            raise UserError(f"{path}: no such folder; give the --workdir of a run")
        return _told(path)
    except OSError as error:
        raise UserError(f"{error.filename or path}: cannot be read ({error.strerror or error})") from None


def _told(path) -> list[str]:
    if (path / SWEEP).exists():
        members = names_in(path)
        told = [(name, _headline(path / name) if (path / name / workdir.CONFIG).exists() else "left") for name in members]
        finished = sum(state == "finished" for _, state in told)
        return [f"{path}: a sweep, {finished} of {len(members)} members finished", *(f"  {name}: {state}" for name, state in told)]
    held = holder(path)
    shown = [f"{path}: {_headline(path)}{_by(held)}"]
    for stage, methods in _parts(path, held):
        rows = [stage, *(method._replace(name=f"  {method.name}") for method in methods)]
        shown += [f"  {row.name:28} {row.state:8} {row.said}".rstrip() for row in rows]
    return shown


def holder(path) -> Holder:
    """Who holds the workdir's lock. Does not touch the lock: its holder has written into the file who it is."""
    if not paths.is_local(path):
        return Holder("store")
    try:
        with open(paths.open_own(path / workdir.LOCK, os.O_RDONLY), "rb") as file:
            note, inode = json.loads(file.read(_NOTE)), os.fstat(file.fileno()).st_ino
        found = Holder("here", int(_number(note["pid"])), str(note["host"]), _number(note["since"]), str(note["stage"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return Holder()
    if found.host != socket.gethostname():
        return found._replace(where="elsewhere")
    if note.get("inode") != inode:  # the folder is a copy
        return Holder()
    alive = workdir.born(found.pid)  # process numbers are reused
    return found if alive and note.get("born") == alive else Holder()


def _number(value) -> float:
    """A count or a time from a file. Raises: ValueError, TypeError if it is none."""
    if isinstance(value, bool) or not 0 <= value < 2**33:
        raise ValueError(value)
    return float(value)


# ----------------------------------------------------------------------------------------------------------- the parts


def _parts(path, held: Holder) -> list[tuple[Part, list[Part]]]:
    """(stage, its methods) for every stage."""
    config = workdir.read_config(path, strict=False)
    parts = []
    for stage in STAGES:
        methods = variants.methods(config, stage) if stage in GROUPS else []
        told = [_method(path, method, held) for method in methods]
        parts.append((_stage(path, stage, held, told), told))
    return parts


def _stage(path, stage: str, held: Holder, methods: list[Part]) -> Part:
    if (path / stage / workdir.DONE).exists():
        return Part(stage, "done", _took(path / stage))
    if stage in GROUPS:
        done = sum(method.state == "done" for method in methods)
        said = f"{done} of {len(methods)} done" if methods else "no methods"
        begun = any(method.state != "left" for method in methods)
    else:
        said = _pieces(path / stage.replace("sample", "samples")) if stage == "sample" else _steps(path / stage, held, stage)
        begun = bool(said)
    return Part(stage, _state(held, stage, begun), said)


def _state(held: Holder, stage: str, begun: bool) -> str:
    if held.where in ("here", "elsewhere") and held.stage == stage:
        return "running"
    return ("begun" if held.where == "store" else "stopped") if begun else "left"


def _method(path, method: variants.Method, held: Holder) -> Part:
    folder, stage = path / method.role, method.role.split("/")[0]
    if (folder / workdir.DONE).exists():
        return Part(method.role, "done", _took(folder))
    iterations = method.config[stage].get("iterations", 0)
    if not iterations:
        said = _steps(folder, held, stage)
    else:
        inner = [folder / f"iteration-{number}" for number in range(iterations)]
        done = sum((one / workdir.DONE).exists() for one in inner)
        steps = _steps(inner[done], held, stage) if done < iterations else ""
        begun = done or any(one.exists() for one in inner)
        said = f"iteration {min(done + 1, iterations)} of {iterations}{', ' * bool(steps)}{steps}" if begun else ""
    return Part(method.role, _state(held, stage, True) if said else "left", said)


def _took(folder) -> str:
    done = artifacts.read_json(folder / workdir.DONE)
    try:
        return _span(_number(done["timing"]["seconds"]))
    except (KeyError, TypeError, ValueError):
        return ""


def _pieces(folder) -> str:
    """Progress of sampling: "sft/eval: 2 of 7 batches"."""
    found: dict[str, int] = {}
    for file in paths.files(folder) if folder.exists() else ():
        piece = re.fullmatch(r"(\w+)\.part\d+-of-(\d+)\.npz", file.name)
        if piece:
            name = f"{file.parent.name}/{piece[1]}: {{}} of {piece[2]} batches"
            found[name] = found.get(name, 0) + 1
    return ", ".join(name.format(count) for name, count in found.items())


def _steps(folder, held: Holder, stage: str) -> str:
    """Progress of the training in a folder; "" if it has not begun."""
    at = _last_step(folder / METRICS)
    if at is None:
        return ""
    steps, first, since = _session(folder / PROGRESS)
    said = f"step {at} of {steps}" if steps else f"step {at}"
    if _state(held, stage, True) == "stopped":
        saved = max(paths.numbered(folder / "checkpoints"), default=0)
        return f"{said}; goes on from {f'step {saved}' if saved else 'its beginning'}"
    written = paths.changed(folder / METRICS)
    if steps and at > first and written > since:
        rate = (at - first) / (written - since)
        said += f", {rate:.3g} steps/s, {_span((steps - at) / rate)} left"
    return said if held.where == "here" or not written else f"{said}, last written {_span(max(0.0, time.time() - written))} ago"


def _session(path) -> tuple[int, int, float]:
    """(total steps, first step of this session, when that was written) from progress.json; zeros if it does not say."""
    try:
        note = artifacts.read_json(path)
        return int(_number(note["steps"])), int(_number(note["step"])), _number(note["time"])
    except (UserError, KeyError, TypeError, ValueError):
        return 0, 0, 0.0


def _last_step(path) -> int | None:
    """The step of the last whole line of metrics.jsonl; None if there is none."""
    if not path.exists():
        return None
    if paths.is_local(path):
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL))
            content = file.read()
    else:
        content = path.read_bytes()
    whole = content.rpartition(b"\n")[0].rpartition(b"\n")[2]
    try:
        return int(_number(json.loads(whole)["step"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


# ------------------------------------------------------------------------------------------------------------- in words


def _headline(path) -> str:
    """One line about a run: finished, running or stopped."""
    held = holder(path)
    stages = _parts(path, held)
    done = sum(stage.state == "done" for stage, _ in stages)
    if done == len(stages):
        return "finished"
    count = f"{done} of {len(stages)} stages done"
    if not held.where:
        return f"not running, {count}; the same command goes on"
    verb = {"here": "running", "elsewhere": "perhaps running", "store": "begun"}[held.where]
    now = next((part for stage, methods in stages for part in (*methods, stage) if part.state in ("running", "begun")), None)
    return f"{verb}: {now.name}{': ' * bool(now.said)}{now.said}; {count}" if now else f"{verb}, {count}"


def _by(held: Holder) -> str:
    if held.where not in ("here", "elsewhere"):
        return ""
    unknown = "" if held.where == "here" else ", which cannot be asked from here"
    return f" (process {held.pid} on {held.host} since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(held.since))}{unknown})"


def _span(seconds: float) -> str:
    """"45 s", "3 min 20 s", "2 h 5 min"."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
