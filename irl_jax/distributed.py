"""Hosts: one process each, all running the same program on one mesh. They share files, which process 0 writes.

Without `initialize` there is one process and everything here is free. With it, process 0 decides whatever depends on a host's own clock,
signals or view of the file system, and tells the others (`agree`). Otherwise one host could enter a collective that another does not, and
wait forever. A watchdog in every process ends it with one line if another has died or hangs.

What crosses hosts besides the devices' own collectives goes through jax's coordination service, which process 0 holds.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
import time
from typing import Any

from irl_jax.errors import UserError, printable

LOST = 75  # exit status if another process is missing (EX_TEMPFAIL): the same command, started again, continues
_BEAT = 2.0  # seconds between heartbeats
_KEPT = 4096  # answers of `agree` kept for slower processes
_BUSY = 1800.0  # seconds that a process may compile (caches make this unequal) or work alone while others wait

_ABORTED = "jax's client has aborted, most likely because process 0 has gone (its own lines are above)"

_hosts = None  # this process's only _Hosts, after `initialize`


def initialize(coordinator: str = "", processes: int = 0, process: int = -1, patience: float = 60.0) -> None:
    """Joins the other processes. Must be the first call into jax, because it decides which devices there are.

    Args:
      coordinator: "HOST:PORT" of process 0. "" takes all three from the environment, as on Cloud TPU and under SLURM.
      processes: number of processes. process: this process's number, from 0.
      patience: seconds, at most, until the others end if one dies or stands still.

    Raises:
      UserError: the numbers don't fit, or the processes couldn't meet within five minutes.
    """
    global _hosts
    given = (bool(coordinator), processes > 0, process >= 0)
    if any(given) and not all(given):
        raise UserError("--coordinator, --processes and --process go together; give none of them where the environment says it all")
    if processes and process >= processes:
        raise UserError(f"--process={process}: there are {processes} processes, counted from 0")
    if coordinator and not coordinator.rpartition(":")[2].isdecimal():
        raise UserError(f"--coordinator={coordinator}: write it as HOST:PORT")
    import jax

    where: dict[str, Any] = {"coordinator_address": coordinator, "num_processes": processes, "process_id": process} if coordinator else {}
    try:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")  # for hosts without accelerators
        jax.distributed.initialize(**where, heartbeat_timeout_seconds=max(10, int(patience / 2)))
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--multihost: the processes could not meet: {reason}; start all of them, with one coordinator") from None
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # jax's own handler swallows it; the train loop sets ours
    if jax.process_count() > 1:
        _hosts = _Hosts(jax.process_index(), jax.process_count(), patience)
        _hosts.watch()


def index() -> int:
    """This process's number, from 0."""
    return _hosts.index if _hosts else 0


def is_primary() -> bool:
    """Whether this process writes text files and speaks to the user."""
    return index() == 0


def say(line: str) -> None:
    """Prints one line to the user, from process 0 only."""
    if is_primary():
        print(printable(line), flush=True)


def barrier() -> None:
    """Waits until every process gets here."""
    if _hosts:
        _hosts.barrier()


def agree(value):
    """Process 0's value (of JSON's types), returned to every process."""
    return _hosts.agree(value) if _hosts else value


def gather(value) -> list:
    """Every process's value (of JSON's types), by process number, returned to every process."""
    return _hosts.gather(value) if _hosts else [value]


def primary_first(function):
    """Calls `function()` on process 0. Every process gets its result (None or of JSON's types) or its UserError."""
    if not _hosts:
        return function()
    outcome = None
    if is_primary():
        try:
            with alone():
                outcome = [True, function()]
        except UserError as error:
            outcome = [False, str(error)]
    good, value = agree(outcome)
    if not good:
        raise UserError(value)
    return value


def anyone(flag: int) -> int:
    """The largest `flag` (a small number, 0 for nothing) that any process has given so far; every process gets the same."""
    return _hosts.anyone(flag) if _hosts else flag


def at(where: str, step: int) -> None:
    """Tells the watchdog which step of which stage this process begins."""
    if _hosts:
        _hosts.at(where, step)


@contextlib.contextmanager
def alone():
    """While entered, this process works on something that the others wait for. The watchdog counts it as busy, not hanging."""
    if _hosts:
        _hosts.busy = True
    try:
        yield
    finally:
        if _hosts:
            _hosts.busy = False


def finish() -> None:
    """Waits for the others and leaves. For a process that has done its work."""
    global _hosts
    if _hosts:
        import jax

        _hosts.barrier()
        _hosts.stop.set()
        _hosts = None
        jax.distributed.shutdown()


class _Hosts:
    """The coordination service behind the functions above, and the watchdog's thread."""

    def __init__(self, index: int, processes: int, patience: float):
        from jax._src import distributed  # as orbax does; jax has no public access to the client

        self.index, self.patience, self._processes = index, patience, processes
        self._client: Any = distributed.global_state.client  # set once jax.distributed is initialised
        self._calls = self._progress = 0  # progress counts points that all processes pass in the same order
        self._where, self._flag, self.busy = "before the first step", 0, False
        self.stop = threading.Event()

    # ------------------------------------------------------------------------------------------------ agreements
    def barrier(self) -> None:
        """See the function of the same name above; likewise for the next three."""
        self._calls += 1
        self._progress += 1
        self._client.wait_at_barrier(f"irl_jax/barrier/{self._calls}", 24 * 3600 * 1000)  # the watchdog gives up earlier
        self._progress += 1

    def agree(self, value):
        """Calls are numbered: every process makes the same calls in the same order."""
        self._calls += 1
        self._progress += 1
        name = "irl_jax/agree/{}".format
        if self.index == 0:
            self._client.key_value_set(name(self._calls), json.dumps(value))
            if self._calls > _KEPT:
                self._client.key_value_delete(name(self._calls - _KEPT))
        else:
            value = json.loads(self._client.blocking_key_value_get(name(self._calls), 24 * 3600 * 1000))
        self._progress += 1
        return value

    def gather(self, value) -> list:
        """Every process writes its own value and reads all."""
        self._calls += 1
        self._progress += 1
        name = f"irl_jax/gather/{self._calls}/{{}}".format
        self._client.key_value_set(name(self.index), json.dumps(value))
        every = [json.loads(self._client.blocking_key_value_get(name(i), 24 * 3600 * 1000)) for i in range(self._processes)]
        self._progress += 1
        return every

    def anyone(self, flag: int) -> int:
        """A flag stays where it was set. Process 0 looks at all of them."""
        if flag != self._flag:
            self._client.key_value_set(f"irl_jax/flag/{self.index}", str(flag))
            self._flag = flag
        if self.index:
            return self.agree(None)
        return self.agree(max([flag, *(int(value) for _, value in self._client.key_value_dir_get("irl_jax/flag/"))]))

    # -------------------------------------------------------------------------------------------------- watchdog
    def at(self, where: str, step: int) -> None:
        """See `at` above."""
        self._where = f"{where}, step {step}"
        self._progress += 1

    def watch(self) -> None:
        """Starts the watchdog. Also prints our own last words if jax's client aborts, as it does if process 0 is gone."""
        self._seen: dict[int, tuple[int, float, str, bool]] = {}  # peer -> (its last beat, when it came, where it was, busy)
        self._stands: dict[int, tuple[int, float]] = {}  # peer -> (progress, since when)
        self._on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: self._leave(self._missing(3 * _BEAT) or self._quietest()))
        ctypes.CDLL(None).signal(int(signal.SIGABRT), self._on_abort)
        import jax

        jax.monitoring.register_event_duration_secs_listener(self._note_compiling)
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def _note_compiling(self, event: str, duration_secs: float, **_: str | int) -> None:
        del duration_secs  # the arguments are named as jax names them
        if event.endswith("/jaxpr_to_mlir_module_duration"):  # compiling begins when this ends
            self.busy = True
        elif event.endswith("/backend_compile_duration"):
            self.busy = False

    def _watch(self) -> None:
        beat, answered = 0, time.monotonic()
        while not self.stop.wait(_BEAT):
            beat += 1
            try:
                self._client.key_value_set(f"irl_jax/beat/{self.index}", json.dumps([beat, self._progress, self._where, self.busy]),
                                           allow_overwrite=True)
                beats = {int(key.rpartition("/")[2]): json.loads(value) for key, value in self._client.key_value_dir_get("irl_jax/beat/")}
            except Exception:  # noqa: BLE001 - whatever the service's failure is called, it does not answer
                if time.monotonic() - answered > self.patience / 2:
                    self._leave("process 0, which coordinates, does not answer")
                continue
            answered = time.monotonic()
            for peer, (number, progress, where, busy) in beats.items():
                if self._seen.get(peer, [None])[0] != number:
                    self._seen[peer] = (number, answered, where, busy)
                if self._stands.get(peer, [None])[0] != progress:
                    self._stands[peer] = (progress, answered)
            trouble = self._missing() or self._hanging()
            if trouble and not self.stop.is_set():
                self._leave(trouble)

    def _quietest(self) -> str:
        """Why jax's client aborts if nobody has been silent for long: the coordinator is gone, or it noticed a failure before us."""
        others = [(when, peer, where) for peer, (_, when, where, _) in self._seen.items() if peer != self.index]
        if self.index or not others:
            return _ABORTED
        _, peer, where = min(others)
        return f"process {peer} has died or cannot be reached (last heard of at {where})"

    def _missing(self, silence: float = 0.0) -> str:
        """Which process has been silent for `silence` seconds, or "". 0 stands for half of the patience, less two beats."""
        silence = silence or self.patience / 2 - 2 * _BEAT
        for peer, (_, when, where, _) in self._seen.items():
            seconds = time.monotonic() - when
            if peer != self.index and seconds > silence:
                return f"process {peer} has died or cannot be reached (last heard of {seconds:.0f} s ago at {where})"
        return ""

    def _hanging(self) -> str:
        """Which process stands still while this one waits for it further on, or ""."""
        mine, since = self._stands.get(self.index, (0, time.monotonic()))
        for peer, (progress, when) in self._stands.items():
            waited = time.monotonic() - max(when, since)
            _, _, where, busy = self._seen[peer]
            if progress < mine and waited > (_BUSY if busy else self.patience - 4 * _BEAT):
                return f"process {peer} has stood still for {waited:.0f} s at {where}"
        return ""

    def _leave(self, why: str) -> None:
        print(f"irl_jax: error: process {self.index} at {self._where}: {why}; ending. Start all processes again with the same "
              "command: it goes on from the last checkpoint", file=sys.stderr, flush=True)
        os._exit(LOST)
