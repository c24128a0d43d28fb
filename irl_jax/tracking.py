"""Tracks a training stage in metrics.jsonl, and the same numbers in TensorBoard events and Weights & Biases.

metrics.jsonl is the truth. The events are written beside it, one for each of its lines. When a run resumes, lines past its checkpoint are
removed and the events are rebuilt from the remaining lines, so nothing appears twice or in two versions. Only process 0 writes.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import struct
import sys
import tempfile
import time
import uuid

from irl_jax import distributed, paths
from irl_jax.artifacts import append_jsonl, flush_jsonl, read_json, read_jsonl, write_jsonl
from irl_jax.errors import UserError, printable
from irl_jax.workdir import CONFIG

METRICS, PROGRESS, EVENTS, WANDB = "metrics.jsonl", "progress.json", "events.out.tfevents.", "wandb.json"
_LOCAL, _STORE = 5.0, 30.0  # seconds that events wait in memory; objects in a store cannot grow and are rewritten each time


def check(settings) -> None:
    """Refuses, before training, settings that cannot be tracked.

    Args:
      settings: config.log.

    Raises:
      UserError: Weights & Biases is requested, but is not installed, not logged in, or takes no such project.
    """
    if settings.wandb:
        distributed.primary_first(lambda: _check_wandb(settings.wandb))


def _check_wandb(project: str) -> None:
    wrong = [mark for mark in "/\\#?%:" if mark in project]
    if wrong or not project.strip() or len(project) > 128:
        raise UserError(f"config.log.wandb = {project[:128]!r}: a project's name has at most 128 characters and none of / \\ # ? % :")
    found = importlib.util.find_spec("wandb")
    if found is None or found.origin is None:  # without an origin it is a folder of that name, such as wandb's own
        raise UserError("config.log.wandb: the package wandb is not installed: pip install 'irl_jax[wandb]', or leave log.wandb empty")
    import wandb

    if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False, verify=False):
        raise UserError("config.log.wandb: not logged in: `wandb login` or WANDB_API_KEY, or WANDB_MODE=offline to keep it in the workdir")


class Tracker:
    """Records what the train loop reports for one stage.

    Args:
      directory: the stage's folder. name: the stage's or method's name: the end of that folder's path. settings: config.log, or None for
        metrics.jsonl alone. done: updates done before; lines of later ones are removed. steps: total updates.
    """

    def __init__(self, directory, name: str, settings, done: int, steps: int):
        self._directory, self._path, self._steps, self._sinks, self._noted = directory, directory / METRICS, steps, [], False
        if self._path.exists():
            lines = read_jsonl(self._path)
            write_jsonl(self._path, [line for line in lines if line["step"] <= done])
        if settings is None or not distributed.is_primary():
            return
        lines = read_jsonl(self._path)
        if settings.tensorboard:
            self._sinks.append(Events(directory, lines))
        elif events_in(directory):  # left by an earlier session; they must not contradict the lines
            Events(directory, lines)
        self._sinks += _wandb(directory, name, settings.wandb) if settings.wandb else []

    def add(self, step: int, values: dict[str, float]) -> None:
        """Records the metrics of an update (or of an evaluation after it)."""
        append_jsonl(self._path, {"step": step, **values})
        if not self._noted and distributed.is_primary():
            note = {"steps": self._steps, "step": step, "time": time.time()}  # nothing compiles from here: `irl_jax status` counts
            paths.write(self._directory / PROGRESS, lambda file: file.write((json.dumps(note) + "\n").encode()))
        self._noted = True
        for sink in self._sinks:
            sink.add(step, values)

    def flush(self) -> None:
        """Writes what is buffered. Called before every checkpoint, so the metrics up to the checkpoint are written."""
        flush_jsonl(self._path)
        for sink in self._sinks:
            sink.flush()

    def close(self) -> None:
        """Flushes and closes."""
        self.flush()
        for sink in self._sinks:
            sink.close()


# ----------------------------------------------------------------------------------------------------------- TensorBoard


class Events:
    """TensorBoard's events of a stage, one file per session. A resumed session's file replaces those before.

    Args:
      directory: the stage's folder. lines: the kept lines of its metrics.jsonl. Their events are taken from the existing files, with the
        time they were written at, or made anew.

    If a viewer has read more than is kept, the new file's first event tells it to forget what it knows.
    """

    def __init__(self, directory, lines: list[dict]):
        old = events_in(directory)
        number = 1 + max((int(path.name.removeprefix(EVENTS)) for path in old), default=0)
        self._path, self._since, self._started = directory / f"{EVENTS}{number:06d}", time.monotonic(), False
        self._waiting: list[bytes] = []
        if old or lines:
            self._start([_event(session_log=True, step=lines[0]["step"] if lines else 1), *_again(lines, old)])
            paths.write(self._path, lambda file: file.writelines(self._waiting))
            self._waiting = []
        for path in old:
            path.unlink()

    def _start(self, records: list[bytes]) -> None:
        self._waiting, self._started = [_event(file_version="brain.Event:2"), *records], True

    def add(self, step: int, values: dict[str, float]) -> None:
        """One event: every metric as a scalar."""
        if not self._started:
            self._start([])
        self._waiting.append(_event(step=step, values=values))
        if time.monotonic() - self._since > (_LOCAL if paths.is_local(self._path) else _STORE):
            self.flush()

    def flush(self) -> None:
        """Writes what is buffered."""
        if self._waiting:
            paths.append(self._path, b"".join(self._waiting))
            self._waiting = []
        self._since = time.monotonic()

    def close(self) -> None:
        """Nothing is open."""


def events_in(directory) -> list:
    """The event files that stages left in a folder, oldest first."""
    names = [path.name for path in directory.iterdir()] if directory.exists() else []  # a store has no empty folders
    return [directory / name for name in sorted(names) if name.startswith(EVENTS) and name.removeprefix(EVENTS).isdecimal()]


@functools.cache
def _tensorboard():
    """(event_pb2, summary_pb2, masked_crc32c) of tensorboardX. Hides torch from it: importing torch would take seconds for nothing."""
    unasked = "torch" not in sys.modules
    if unasked:
        sys.modules["torch"] = None  # type: ignore[assignment]  # any import of it fails, which tensorboardX takes for its absence
    try:
        from tensorboardX.proto import event_pb2, summary_pb2
        from tensorboardX.record_writer import masked_crc32c
    finally:
        if unasked:
            del sys.modules["torch"]
    return event_pb2, summary_pb2, masked_crc32c


def _event(values: dict[str, float] | None = None, session_log: bool = False, **fields) -> bytes:
    """One record of an events file: length, its checksum, an Event, its checksum."""
    event_pb2, summary_pb2, masked_crc32c = _tensorboard()
    event = event_pb2.Event(wall_time=time.time(), **fields)
    for tag, value in (values or {}).items():
        if value is not None:  # null in metrics.jsonl: not finite
            event.summary.value.append(summary_pb2.Summary.Value(tag=tag, simple_value=value))
    if session_log:
        event.session_log.status = event_pb2.SessionLog.START
    data = event.SerializeToString()
    size = struct.pack("<Q", len(data))
    return size + struct.pack("<I", masked_crc32c(size)) + data + struct.pack("<I", masked_crc32c(data))


def _again(lines: list[dict], files: list) -> list[bytes]:
    """One record per line: from the files, as far as they have the same steps, else a new one."""
    kept = [record for file in files for record in _records(file.read_bytes())]
    records = []
    for number, line in enumerate(lines):
        values = {key: value for key, value in line.items() if key != "step"}
        known = number < len(kept) and kept[number][0] == line["step"]
        records.append(kept[number][1] if known else _event(step=line["step"], values=values))
    return records


def _records(content: bytes) -> list[tuple[int, bytes]]:
    """(step, record) of every event with metrics, up to a record that a kill truncated."""
    from google.protobuf.message import DecodeError

    event_pb2, *_ = _tensorboard()
    found, at = [], 0
    while at + 12 <= len(content):
        end = at + 16 + struct.unpack_from("<Q", content, at)[0]
        if end > len(content):
            break
        try:
            event = event_pb2.Event.FromString(content[at + 12 : end - 4])
        except DecodeError:
            break
        if event.HasField("summary"):
            found.append((event.step, content[at:end]))
        at = end
    return found


# ------------------------------------------------------------------------------------------------------ Weights & Biases


def _wandb(directory, name: str, project: str) -> list:
    """The stage's run, in a list that is empty if there is none; see `_with_wandb`."""
    found = _with_wandb(name, lambda: Wandb(directory, name, project))
    return [found] if found else []


def _with_wandb(name: str, what):
    """what(); or None, with one line printed, if the service is unavailable: metrics.jsonl has everything."""
    import wandb

    try:
        return what()
    except (wandb.errors.Error, OSError, TimeoutError) as error:
        reason = printable(" ".join(str(error).split())[:200])
        print(f"irl_jax: {name}: no Weights & Biases ({reason}); going on without, {METRICS} has the same numbers", file=sys.stderr)
        return None


class Wandb:
    """A stage's run at Weights & Biases, in the group of its workdir. A resumed stage continues its run.

    After a kill, steps logged before it come again with the same numbers. The service drops them, since its steps only grow.
    """

    def __init__(self, directory, name: str, project: str):
        import wandb

        self._name, self._lost = name, False
        root = directory
        for _ in name.split("/"):
            root = root.parent
        note = read_json(directory / WANDB) if (directory / WANDB).exists() else {}
        if not isinstance(note, dict) or note.get("project") != project or not isinstance(note.get("id"), str):
            note = {"project": project, "id": uuid.uuid4().hex}
            paths.write(directory / WANDB, lambda file: file.write((json.dumps(note) + "\n").encode()))
        config = read_json(root / CONFIG)["config"] if (root / CONFIG).exists() else {}
        self._run = wandb.init(
            project=project, id=note["id"], name=f"{root.name}/{name}"[-128:], group=root.name[-128:], job_type=name.split("/")[0],
            config=config, dir=str(directory) if paths.is_local(directory) else tempfile.gettempdir(), resume="allow",
            settings=wandb.Settings(silent=True, console="off"))
        if not self._run.offline and self._run.url:
            print(f"irl_jax: {name}: {self._run.url}", file=sys.stderr)

    def add(self, step: int, values: dict[str, float]) -> None:
        """One row of its history. Evaluations join the row of the update before."""
        self._ask(lambda: self._run.log(values, step=step))

    def flush(self) -> None:
        """It sends what it has on its own."""

    def close(self) -> None:
        """Waits until everything is sent (or, offline, written)."""
        self._ask(self._run.finish)

    def _ask(self, what) -> None:
        """Calls what(), until it fails once."""
        if not self._lost:
            self._lost = _with_wandb(self._name, lambda: (what(), self)[1]) is None
