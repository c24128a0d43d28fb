"""Batches ahead of their updates, and the trace of a stage."""

import gzip
import json
import threading
import time

import jax
import pytest
from ml_collections import ConfigDict

from irl_jax.feeding import AHEAD, Ahead
from tests.test_loop import STEP, assert_same, checkpointing, feed, lines, run


def test_batches_come_in_order_and_no_more_than_so_many_ahead():
    asked, release = [], threading.Semaphore(0)

    def slow(number):
        asked.append(number)
        release.acquire()
        return 10 * number

    ahead = Ahead(slow, 3, 9)
    for number in range(3, 9):
        release.release()
        assert ahead(number) == 10 * number
        release.release(AHEAD)  # all that may be prepared is
        until = time.monotonic() + 5
        while len(asked) < min(number + AHEAD, 8) - 2 and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(0.01)
        assert asked == list(range(3, min(number + AHEAD, 8) + 1))
        while release.acquire(blocking=False):
            pass
    ahead.close()


def test_an_error_waits_for_its_batch():
    ahead = Ahead(lambda number: 1 // (2 - number), 0, 5)
    assert [ahead(0), ahead(1)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        ahead(2)
    ahead.close()


def test_batches_out_of_order_are_refused():
    ahead = Ahead(lambda number: number, 0, 5)
    with pytest.raises(ValueError, match="batch 1 was asked for where 0"):
        ahead(1)
    ahead.close()


def events(directory, name):
    """(start, end) in microseconds of the trace's events of a name, by start."""
    (path,) = directory.glob("**/*.trace.json.gz")
    found = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return sorted((e["ts"], e["ts"] + e["dur"]) for e in found if e.get("ph") == "X" and e["name"] == name)


def test_a_step_does_not_wait_for_a_feed_as_slow_as_itself(tmp_path):
    """Shown in the trace: preparing takes 30 ms a batch and computing 40 ms a step, and the wait for a batch next to nothing."""

    def slow_feed(number):
        time.sleep(0.03)
        return feed(number)

    def slow_step(*arguments):
        time.sleep(0.04)
        return STEP(*arguments)

    profile = ConfigDict({"first": 3, "steps": 6})
    got, _ = run(tmp_path / "a", step=slow_step, feed=slow_feed, profile=profile)
    assert_same(got, run(tmp_path / "b")[0])
    trace = tmp_path / "a" / "trace"
    updates, waits, prepared = (events(trace, name) for name in ("sft", "wait_for_batch", "prepare_batch"))
    assert len(updates) == len(waits) == 6 and len(prepared) >= 4
    assert sum(end - start for start, end in prepared) / len(prepared) > 30e3
    assert sorted(end - start for start, end in waits)[3] < 5e3
    assert not (tmp_path / "b" / "trace").exists()


def test_a_trace_ends_with_the_run(tmp_path):
    run(tmp_path, steps=4, profile=ConfigDict({"first": 3, "steps": 100}), checkpoint=checkpointing())
    assert len(events(tmp_path / "trace", "sft")) == 2
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]
    jax.profiler.start_trace(tmp_path / "free")  # none is running any more
    jax.profiler.stop_trace()
