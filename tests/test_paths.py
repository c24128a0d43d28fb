"""Writing: whole or not at all, by whoever and however often at once; and object stores, for which a store in memory stands."""

import contextlib
import json
import os
import pathlib
import signal
import stat
import subprocess
import sys
import time

import events
import fsspec
import numpy as np
import pytest
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem

from irl_jax import artifacts, checkpoint, cli, hf_export, paths, tracking, workdir
from irl_jax.config import default
from irl_jax.errors import UserError
from irl_jax.stages import over_training, report


class Bucket(MemoryFileSystem):
    """What gcsfs would be: paths begin with gs://."""

    protocol = ("gcs", "gs")
    store, pseudo_dirs = {}, [""]

    def __init__(self, finalize_on_close=True, **how):
        super().__init__(**how)

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(str(path).removeprefix("gs://"))


@pytest.fixture
def bucket(monkeypatch):
    Bucket.store.clear()
    for name in ("gcs", "gs"):
        fsspec.register_implementation(name, Bucket, clobber=True)
    backend.fsspec_backend._get_filesystem.cache_clear()
    yield Bucket.store
    backend.fsspec_backend._get_filesystem.cache_clear()


def test_a_path_of_this_machine_is_pathlibs(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths.of("~/w") == tmp_path / "w" and paths.is_local(paths.of("~/w"))


def filled(content: bytes):
    return lambda file: file.write(content)


def write_folder(path, content: bytes) -> None:
    with paths.new_folder(path) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "f").write_bytes(content)


@pytest.mark.parametrize("mask, rights", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_what_is_written_has_the_rights_that_the_umask_leaves(mask, rights, tmp_path):
    before = os.umask(mask)
    try:
        paths.write(tmp_path / "f", filled(b"x"))
        paths.append(tmp_path / "g", b"x")
        with paths.new_folder(tmp_path / "d") as folder:
            hf_export.write_weights(folder, [])
            hf_export.save_tensors(folder / "more.safetensors", {"x": np.zeros(3, np.float32)})
    finally:
        os.umask(before)
    found = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(found) == 4 and {stat.S_IMODE(path.stat().st_mode) for path in found} == {rights}
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o777 & ~mask


def test_two_writers_at_once_do_not_mix(tmp_path):
    """Processes of two containers may have one number, and threads have: neither sees what the other has half written."""

    def fill(file):
        file.write(b"one")
        paths.write(tmp_path / "f", filled(b"two"))
        assert (tmp_path / "f").read_bytes() == b"two"
        file.write(b"one")

    paths.write(tmp_path / "f", fill)
    assert (tmp_path / "f").read_bytes() == b"oneone"
    with pytest.raises(UserError, match="cannot be written"), paths.new_folder(tmp_path / "d") as folder:
        (folder / "a").write_text("one")
        write_folder(tmp_path / "d", b"two")
    assert (tmp_path / "d" / "inner" / "f").read_bytes() == b"two" and not (tmp_path / "d" / "a").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "f"]


HANGS = """
import pathlib, sys, time
from irl_jax import paths
folder = pathlib.Path(sys.argv[1])
def fill(file):
    file.write(b"half")
    file.flush()
    with paths.new_folder(folder / "d") as inner:
        (inner / "half").write_text("half")
        print("up", flush=True)
        sys.stdin.readline()
paths.write(folder / "f", fill)
"""


@contextlib.contextmanager
def writing(folder):
    """Another process, in the middle of a file `f` and a folder `d`."""
    command = [sys.executable, "-c", HANGS, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"up\n"
        yield process
        process.kill()


def unfinished(folder):
    return [path for path in folder.rglob("*") if paths.UNFINISHED.fullmatch(path.name)]


def test_what_others_are_writing_stays_and_what_a_kill_left_goes(tmp_path):
    theirs = (tmp_path / ".irl_jax.tmp", tmp_path / ".f.28017.tmp", tmp_path / ".irl_jax.0123456789abcdef.tmp.npz")
    for path in theirs:
        path.write_text("of somebody")
    with writing(tmp_path) as process:
        paths.write(tmp_path / "g", filled(b"g"))
        assert len(unfinished(tmp_path)) == 2
        process.stdin.write(b"\n")
        process.stdin.close()
        assert process.wait() == 0
    assert (tmp_path / "f").read_bytes() == b"half" and (tmp_path / "d" / "half").exists() and not unfinished(tmp_path)
    (tmp_path / "d" / "half").unlink()
    with writing(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(unfinished(tmp_path)) == 2
    write_folder(tmp_path / "d", b"again")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["d", "f", "g", *(path.name for path in theirs)])


def test_where_there_are_no_locks_nothing_is_removed(tmp_path, monkeypatch):
    left = tmp_path / ".irl_jax.0123456789abcdef.tmp"
    left.write_text("perhaps somebody's")
    with monkeypatch.context() as patch:
        patch.setattr("fcntl.flock", lambda *_: (_ for _ in ()).throw(OSError(95, "Operation not supported")))
        paths.write(tmp_path / "f", filled(b"x"))
        write_folder(tmp_path / "d", b"x")
    assert (tmp_path / "f").exists() and (tmp_path / "d").exists() and left.exists() and unfinished(tmp_path) == [left]
    paths.write(tmp_path / "f", filled(b"x"))
    assert not left.exists()


@pytest.mark.parametrize("write, inside", [(lambda path: paths.write(path, filled(b"x")), 1), (lambda path: write_folder(path, b"x"), 3)])
def test_content_is_on_the_disk_before_its_name(write, inside, tmp_path, monkeypatch):
    done, sync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append(os.fstat(file).st_ino), sync(file)))
    monkeypatch.setattr(os, "replace", lambda old, new: (done.append("named"), replace(old, new)))
    write(tmp_path / "f")
    made = {path.stat().st_ino for path in (tmp_path / "f", *(tmp_path / "f").rglob("*"))}
    assert done.count("named") == 1 and set(done[: done.index("named")]) == made and len(made) == inside
    assert done[done.index("named") + 1 :] == [tmp_path.stat().st_ino]


def test_a_failure_takes_back_the_folders_that_were_made(tmp_path):
    (tmp_path / "a").mkdir()

    def fails(_):
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left"):
        paths.write(tmp_path / "a" / "b" / "c" / "f", fails)
    with pytest.raises(KeyError), paths.new_folder(tmp_path / "a" / "b" / "d"):
        raise KeyError
    assert [path.name for path in tmp_path.rglob("*")] == ["a"]


def test_a_name_as_long_as_the_file_system_takes(tmp_path):
    paths.write(tmp_path / ("n" * 255), filled(b"x"))
    assert (tmp_path / ("n" * 255)).read_bytes() == b"x"


def test_a_folder_in_the_place_of_an_empty_one(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    write_folder(tmp_path / "link", b"x")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "empty" / "inner" / "f").read_bytes() == b"x"
    with pytest.raises(UserError, match="is the root of a file system"), paths.new_folder(pathlib.Path("/proc")):
        pass


LINES = (lambda path: paths.append(path, b"x"), lambda path: artifacts.append_jsonl(path, {"step": 1}))


@pytest.mark.parametrize("append, target", [
    *((append, target) for append in LINES for target in ("nothing", "file", "pipe")),
    (lambda path: tracking.Tracker(path.parent, "sft", None, 0, 9).add(1, {"loss": 1.0}), "nothing")])  # fmt: skip
def test_nothing_is_written_through_a_link(append, target, tmp_path):
    aim, path = tmp_path / "aim", tmp_path / "sft" / "metrics.jsonl"
    path.parent.mkdir()
    if target == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(aim)
    if target == "file":
        aim.write_text("mine")
    with pytest.raises(UserError, match="remove it"):
        append(path)
    assert (aim.read_text() == "mine") if target == "file" else not aim.exists()


def test_linked_folders_are_looked_into(tmp_path):
    """A stage's folder that was moved to another disk is one still; links in a circle end."""
    for name in ("w/sft", "disk/reward/a"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    (tmp_path / "w" / "reward").symlink_to("../disk/reward")
    (tmp_path / "w" / "sft" / "back").symlink_to("..")
    (tmp_path / "w" / "gone").symlink_to("nowhere")
    w = tmp_path / "w"
    assert paths.files(w) == [w / "gone", w / "reward" / "a" / "metrics.jsonl", w / "sft" / "metrics.jsonl"]
    assert list(report._training_curves(w)) == ["reward/a", "sft"]


def test_files_of_other_names_are_not_ours(tmp_path, monkeypatch):
    folder = tmp_path / "policy" / "a" / "rollouts"
    folder.mkdir(parents=True)
    for name in ("0.npz", "10.npz", "2.npz", "0 (copy).npz", "02.npz", "x.npz", "3.npz.part", "\u0663.npz", "7"):
        (folder / name).write_text("")
    assert paths.numbered(folder, ".npz") == [0, 2, 10] and paths.numbered(folder) == [7] and paths.numbered(tmp_path / "none") == []
    monkeypatch.setattr(over_training, "_curve", lambda context, judge, files: [file.name for file in files])
    context = type("Context", (), {"workdir": type("Workdir", (), {"path": tmp_path})})
    assert over_training.curves(context, "judge", ["policy/a", "policy/b"]) == {"policy/a": ["0.npz", "2.npz", "10.npz"]}


@pytest.mark.parametrize("path", ["gs://bucket/w", "nowhere://bucket/w"])
def test_what_nothing_installed_can_reach_is_one_line(path):
    """gcsfs is in the tpu extra alone."""
    if path.startswith("gs") and fsspec.utils.get_package_version_without_import("gcsfs"):
        pytest.skip("gcsfs is installed")
    with pytest.raises(UserError, match="no way to reach"):
        paths.of(path)


def test_a_workdir_in_a_bucket(bucket):
    config = default()
    with workdir.Workdir("gs://bucket/runs/w", config) as opened:
        assert str(opened.path) == "gs://bucket/runs/w" and not opened.is_done("sft")
        opened.mark_done("sft", {"seconds": 1.0})
        assert opened.is_done("sft") and opened.timing("sft") == {"seconds": 1.0}
        file = opened.stage("samples") / "a.npz"
        artifacts.save_arrays(file, x=np.arange(5))
        np.testing.assert_array_equal(artifacts.load_arrays(file)["x"], np.arange(5))
        lines = opened.stage("sft") / "metrics.jsonl"
        for step in range(3):
            artifacts.append_jsonl(lines, {"step": step})
        assert artifacts.read_jsonl(lines) == []  # they wait, for objects cannot grow
        artifacts.flush_jsonl(lines)
        artifacts.append_jsonl(lines, {"step": 3})
        artifacts.flush_jsonl(lines)
        assert artifacts.read_jsonl(lines) == [{"step": step} for step in range(4)]
        assert sorted(path.name for path in opened.path.glob("*/metrics.jsonl")) == ["metrics.jsonl"]
        artifacts.remove(file)
        with pytest.raises(UserError, match="no such file"):
            artifacts.load_arrays(file)
    assert workdir.read_config("gs://bucket/runs/w").to_dict() == config.to_dict()
    other = default()
    other.seed = 1
    with pytest.raises(UserError, match="belongs to another config: seed"):
        workdir.Workdir("gs://bucket/runs/w", other)
    assert not [name for name in bucket if ".tmp" in name or ".lock" in name]


def test_a_stage_in_a_bucket_is_tracked_and_shown(bucket, tmp_path, capsys, monkeypatch):
    """Events are written with every checkpoint, the object anew, and made again where a session goes on."""
    with workdir.Workdir("gs://bucket/w", default()) as opened:
        opened.mark_done("pretrain", {"seconds": 1.0})
        opened.note("sft")
        folder = opened.path / "sft"
        tracker = tracking.Tracker(folder, "sft", default().log, 0, 9)
        for step in (1, 2, 3):
            tracker.add(step, {"loss": step / 2})
        assert not any("tfevents" in name or "metrics" in name for name in bucket)  # they wait
        tracker.flush()
        tracker.add(4, {"loss": 2.0})
        tracker.close()
        tracker = tracking.Tracker(folder, "sft", default().log, 2, 9)
        tracker.add(3, {"loss": 1.5})
        tracker.close()
    (name,) = (name for name in bucket if "tfevents" in name)
    (tmp_path / "tfevents").write_bytes(bucket[name].getvalue())
    assert events.rows(tmp_path) == [(1, {"loss": 0.5}), (2, {"loss": 1.0}), (3, {"loss": 1.5})]
    assert artifacts.read_jsonl(folder / "metrics.jsonl") == [{"step": step, "loss": step / 2} for step in (1, 2, 3)]
    assert cli.main(["status", "gs://bucket/w"]) == 0
    shown = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert shown[:3] == ["gs://bucket/w: begun: sft: step 3 of 9; 1 of 12 stages done", "pretrain done 1 s", "sft begun step 3 of 9"]
    monkeypatch.setattr(paths, "changed", lambda path: time.time() - 20)  # as gs:// says, and the store in memory does not
    assert cli.main(["status", "gs://bucket/w"]) == 0
    assert "step 3 of 9, last written 20 s ago; 1 of 12" in capsys.readouterr().out


def test_a_failed_run_leaves_no_config_behind(bucket):
    with pytest.raises(UserError), workdir.Workdir("gs://bucket/w", default()):
        raise UserError("wrong data")
    assert not list(bucket)


def test_a_checkpoint_in_a_bucket_is_one_once_its_manifest_is_there(bucket):
    """The arrays are tensorstore's to write, which knows gs:// itself: here they are files of any content."""
    folder, described = paths.of("gs://bucket/checkpoints"), {"x": [[2], "float32"]}

    def write(step):
        checkpoint._begin(folder, folder / str(step))
        (folder / str(step) / "tree").mkdir()
        (folder / str(step) / "tree" / "d").write_text("content")

    for step in (1, 2, 3):
        write(step)
        checkpoint._finish(folder, folder / str(step), step, described, keep=2)
    write(4)  # and killed
    assert checkpoint._steps(folder) == [2, 3, 4]
    assert checkpoint._newest_whole(folder, described) == 3
    (folder / "3" / "tree" / "d").write_text("cut")
    assert checkpoint._newest_whole(folder, described) == 2
    write(2)  # a run that overtakes the others
    checkpoint._finish(folder, folder / "2", 2, described, keep=2)
    assert checkpoint._steps(folder) == [2] and checkpoint._newest_whole(folder, described) == 2
    assert json.loads((folder / "2" / "manifest.json").read_text())["files"] == {"d": [7, None]}
