"""Object stores: a store in memory stands for gs://, behind the same libraries."""

import json
import time

import events
import fsspec
import numpy as np
import pytest
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem

from irl_jax import artifacts, checkpoint, cli, paths, tracking, workdir
from irl_jax.config import default
from irl_jax.errors import UserError


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
    assert shown[:3] == ["gs://bucket/w: begun: sft: step 3 of 9; 1 of 11 stages done", "pretrain done 1 s", "sft begun step 3 of 9"]
    monkeypatch.setattr(paths, "changed", lambda path: time.time() - 20)  # as gs:// says, and the store in memory does not
    assert cli.main(["status", "gs://bucket/w"]) == 0
    assert "step 3 of 9, last written 20 s ago; 1 of 11" in capsys.readouterr().out


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
