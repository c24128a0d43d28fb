"""The workdir: one config, one process, atomic files."""

import errno
import json
import os
import pathlib
import resource
import subprocess
import sys

import ml_collections
import numpy as np
import pytest

import irl_jax
from irl_jax import artifacts, cli
from irl_jax import workdir as workdirs
from irl_jax.artifacts import write_json
from irl_jax.config import default
from irl_jax.errors import UserError
from irl_jax.workdir import Workdir


def snapshot(folder):
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def test_config_json_says_what_ran(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {2, 3, 7}, raising=False)
    with Workdir(tmp_path / "a" / "w", default()):
        pass
    stored = json.loads((tmp_path / "a" / "w" / "config.json").read_text())
    assert stored["config"]["sft"]["learning_rate"] == default().sft.learning_rate
    assert stored["seed"] == 0
    assert set(stored["versions"]) == {"irl_jax", "python", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tokenizers",
                                       "transformers"}
    assert stored["versions"]["irl_jax"] == irl_jax.__version__
    assert "git_commit" in stored
    assert stored["cores"] == 3
    assert str(os.path.dirname(irl_jax.__file__)) not in (tmp_path / "a" / "w" / "config.json").read_text()


def test_config_comes_back_exactly(tmp_path):
    config = default()
    config.reward.recipes = ("init_demo",)
    config.policy.beta = 1.0
    Workdir(tmp_path / "w", config).close()
    assert workdirs.read_config(tmp_path / "w") == config
    assert isinstance(workdirs.read_config(tmp_path / "w").reward.recipes, tuple)


def test_same_config_opens_again(tmp_path):
    for _ in range(2):
        with Workdir(tmp_path, default()) as workdir:
            workdir.stage("sft")


KILLED = """
import os, sys
from irl_jax.config import default
from irl_jax.workdir import Workdir
stages = sys.argv[2:]
if stages:
    opened = Workdir(sys.argv[1], default())
os.fsync = lambda _: os.kill(os.getpid(), 9)
opened.mark_done(stages[0], {}) if stages else Workdir(sys.argv[1], default())
"""


def killed_while_writing(*arguments):
    """A process that is killed while it writes a stage's done.json, or config.json where no stage is given."""
    assert subprocess.run([sys.executable, "-c", KILLED, *map(str, arguments)]).returncode == -9


def unfinished(folder):
    return [path for path in folder.rglob("*") if workdirs.paths.UNFINISHED.fullmatch(path.name)]


def test_what_a_killed_write_left_goes_when_the_run_goes_on(tmp_path):
    with Workdir(tmp_path / "w", default()):
        pass
    stage = tmp_path / "w" / "sft"
    killed_while_writing(tmp_path / "w", "sft")
    others = (tmp_path / "w" / ".notes.tmp", stage / ".done.json.28017.tmp")
    for path in others:
        path.write_text("{")
    with pytest.raises(UserError):
        Workdir(tmp_path / "w", _other())
    assert len(unfinished(stage)) == 1
    with Workdir(tmp_path / "w", default()):
        assert not unfinished(stage) and all(path.exists() for path in others)


def test_a_kill_in_the_first_write_keeps_nothing_from_beginning_again(tmp_path):
    killed_while_writing(tmp_path / "w")
    assert len(unfinished(tmp_path / "w")) == 1 and not (tmp_path / "w" / "config.json").exists()
    with Workdir(tmp_path / "w", default()):
        assert sorted(path.name for path in (tmp_path / "w").iterdir()) == [".lock", "config.json"]


def test_what_another_process_is_writing_there_stays(tmp_path):
    Workdir(tmp_path / "w", default()).close()

    def fill(file):
        Workdir(tmp_path / "w", default()).close()
        file.write(b"{}")

    workdirs.paths.write(tmp_path / "w" / "sft" / "judged.json", fill)
    assert (tmp_path / "w" / "sft" / "judged.json").read_text() == "{}"


@pytest.mark.parametrize("make", [
    lambda lock, aim: lock.symlink_to(aim), lambda lock, aim: os.mkfifo(lock), lambda lock, aim: lock.mkdir(),
    lambda lock, aim: (aim.unlink(), lock.symlink_to(aim))], ids=["a link", "a pipe", "a folder", "a link to nothing"])  # fmt: skip
@pytest.mark.parametrize("fresh", [True, False])
def test_a_lock_that_is_no_file_is_refused_and_what_it_leads_to_untouched(make, fresh, tmp_path):
    aim = tmp_path / "thesis.tex"
    aim.write_text("mine")
    if fresh:
        (tmp_path / "w").mkdir()
    else:
        Workdir(tmp_path / "w", default()).close()
        (tmp_path / "w" / ".lock").unlink()
    make(tmp_path / "w" / ".lock", aim)
    with pytest.raises(UserError, match=r"\.lock: is (a link|no plain file)|cannot write the workdir there: Is a directory"):
        Workdir(tmp_path / "w", default())
    assert not aim.exists() or aim.read_text() == "mine"
    assert (tmp_path / "w" / "config.json").exists() == (not fresh)


def test_no_note_is_written_into_a_file_of_other_names(tmp_path):
    Workdir(tmp_path / "w", default()).close()
    (tmp_path / "thesis.tex").write_text("mine")
    (tmp_path / "w" / ".lock").unlink()
    os.link(tmp_path / "thesis.tex", tmp_path / "w" / ".lock")
    with Workdir(tmp_path / "w", default()) as opened:
        opened.note("sft")
    assert (tmp_path / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_a_file_system_without_locks_is_one_line_and_goes_on(number, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fcntl.flock", lambda *_: (_ for _ in ()).throw(OSError(number, os.strerror(number))))
    with Workdir(tmp_path / "w", default()) as opened:
        opened.mark_done("sft", {"seconds": 1.0})
        opened.note("reward")
    said = capsys.readouterr().err
    assert said == (f"irl_jax: {tmp_path / 'w'}: its file system has no locks ({os.strerror(number)}); going on without one: start no "
                    "second run there meanwhile\n")
    Workdir(tmp_path / "w", default()).close()


@pytest.mark.parametrize("verb", ["run", "status", "generate"])
def test_a_system_without_fcntl_is_one_line(verb, tmp_path):
    """Windows."""
    script = "import sys\nsys.modules['fcntl'] = None\nfrom irl_jax import cli, workdir\nsys.exit(cli.main(sys.argv[1:]))"
    needed = {"run": [f"--workdir={tmp_path / 'w'}"], "status": [str(tmp_path)],
              "generate": [f"--workdir={tmp_path}", "--prompts=p", "--out=o"]}[verb]
    done = subprocess.run([sys.executable, "-c", script, verb, *needed], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "irl_jax: error: irl_jax runs on Linux and macOS; on Windows, run it in WSL (the Windows Subsystem for Linux)\n"
    helped = subprocess.run([sys.executable, "-c", script, verb, "--help"], capture_output=True, text=True)
    assert helped.returncode == 0 and "--" in helped.stdout and not (tmp_path / "w").exists()


def test_who_waits_for_a_lock_gets_that_of_the_file_that_is_there(tmp_path, monkeypatch):
    """A run that made nothing removes its lock's file: the lock of that file is nobody's any more."""
    lock, calls = workdirs.paths.lock, []

    def removed_meanwhile(descriptor):
        if not calls:
            (tmp_path / "w" / ".lock").unlink()
        calls.append(descriptor)
        return lock(descriptor)

    monkeypatch.setattr(workdirs.paths, "lock", removed_meanwhile)
    with Workdir(tmp_path / "w", default()) as opened:
        assert os.path.samestat(os.fstat(opened._lock.fileno()), os.stat(tmp_path / "w" / ".lock"))


def _other():
    config = default()
    config.seed = 1
    return config


def test_another_config_is_refused_and_nothing_changes(tmp_path):
    Workdir(tmp_path, default()).close()
    before = snapshot(tmp_path)
    config = default()
    config.sft.learning_rate = 0.5
    config.reward.recipes = ("init_sft",)
    with pytest.raises(UserError) as caught:
        Workdir(tmp_path, config)
    message = str(caught.value)
    assert f"sft.learning_rate is {default().sft.learning_rate} there and 0.5 now" in message
    assert f'reward.recipes is {json.dumps(default().reward.recipes)} there and ["init_sft"] now' in message
    assert "\n" not in message
    assert snapshot(tmp_path) == before
    Workdir(tmp_path, default()).close()  # and the lock was given back


def test_keys_that_change_no_result_may_differ(tmp_path):
    Workdir(tmp_path, default()).close()
    config = default()
    config.checkpoint.every_seconds = 1.0
    config.mesh.fsdp = 2  # another number of devices
    before = (tmp_path / "config.json").read_bytes()
    Workdir(tmp_path, config).close()
    assert (tmp_path / "config.json").read_bytes() == before
    assert workdirs.read_config(tmp_path) == default()


def fail(path, config, make=lambda workdir: None, error=UserError):
    """A run that makes something, then fails."""
    with pytest.raises(error), Workdir(path, config) as workdir:
        make(workdir)
        raise error("no such file")


def bad_and_good():
    bad = default()
    bad.data.source = "nowhere.jsonl"
    return bad, default()


def test_bad_input_does_not_bind_the_workdir(tmp_path):
    def make(workdir):
        workdir.mark_done("pretrain", {"seconds": 0.1})  # an imported model's: nothing but the mark
        workdir.stage("policy/init_sft")

    bad, good = bad_and_good()
    fail(tmp_path / "made", bad, make)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "there").mkdir()
    fail(tmp_path / "there", bad, make, PermissionError)
    assert [path.name for path in (tmp_path / "there").iterdir()] == [".lock"]
    for name in ("made", "there"):
        with Workdir(tmp_path / name, good) as workdir:
            assert not workdir.is_done("pretrain")


@pytest.mark.parametrize("name", ["pretrain/metrics.jsonl", "sft/checkpoints/3/manifest.json", "results.json"])
def test_results_bind_the_workdir_whatever_comes_later(tmp_path, name):
    bad, good = bad_and_good()
    fail(tmp_path / "w", bad, lambda workdir: artifacts.write_json(workdir.path / name, {}))
    assert (tmp_path / "w" / name).exists()
    with pytest.raises(UserError, match="data.source is"):
        Workdir(tmp_path / "w", good)


def test_a_workdir_stays_bound_by_a_bug_and_by_a_later_process(tmp_path):
    bad, good = bad_and_good()
    fail(tmp_path / "w", bad, error=KeyError)
    before = snapshot(tmp_path / "w")
    fail(tmp_path / "w", bad)  # did not make config.json
    assert snapshot(tmp_path / "w") == before
    with pytest.raises(UserError, match="another config"):
        Workdir(tmp_path / "w", good)


def test_second_process_is_refused(tmp_path):
    script = (
        "import sys; from irl_jax.config import default; from irl_jax.workdir import Workdir; Workdir(sys.argv[1], default())"
    )
    with Workdir(tmp_path, default()):
        with pytest.raises(UserError, match="another irl_jax process"):
            Workdir(tmp_path, default())
        other = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
        assert "another irl_jax process" in other.stderr
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)]).returncode == 0


def test_foreign_folder_is_refused_and_untouched(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="not a workdir"):
        Workdir(tmp_path, default())
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(UserError, match="is a file"):
        Workdir(tmp_path / "thesis.tex", default())
    with pytest.raises(UserError, match="cannot write"):
        Workdir(tmp_path / "thesis.tex" / "w", default())
    with pytest.raises(UserError, match="not a workdir"):
        workdirs.read_config(tmp_path)


@pytest.mark.parametrize("arguments", [
    ["run", "--workdir={}", "--stages=pretrain"], ["run", "--workdir={}", "--sweep=seed=0,1"], ["status", "{}"], ["config", "--workdir={}"],
    ["compare", "{}", "--out={}/out"], ["generate", "--workdir={}", "--prompts={}.jsonl", "--out={}.out"]], ids=" ".join)  # fmt: skip
@pytest.mark.parametrize("below", ["", "w"])
def test_a_folder_that_may_not_be_read_is_one_line(arguments, below, tmp_path, monkeypatch, capsys):
    """Root may read everything, hence the system's answer of its own."""
    closed, stat = tmp_path / "closed", pathlib.Path.stat

    def refuses(path, **how):
        if path.is_relative_to(closed) and path != closed:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return stat(path, **how)

    closed.mkdir()
    (tmp_path / "closed.jsonl").write_text('{"prompt": "a"}\n')
    monkeypatch.setattr(pathlib.Path, "stat", refuses)
    given = [part.replace("{}", str(closed / below) if part in ("{}", "--workdir={}") else str(closed)) for part in arguments]
    given = [part.replace(f"{closed}/out", f"{tmp_path}/out") for part in given]
    assert cli.main(given) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"irl_jax: error: {closed}") and said.count("\n") == 1 and "Permission denied" in said


def test_broken_config_json_is_refused(tmp_path):
    Workdir(tmp_path, default()).close()
    (tmp_path / "config.json").write_text('{"config": ')
    with pytest.raises(UserError, match="config.json: broken JSON"):
        Workdir(tmp_path, default())
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"config\.json: has no object 'config'"):
        Workdir(tmp_path, default())


def test_config_of_another_version_names_the_key(tmp_path):
    Workdir(tmp_path, default()).close()
    stored = json.loads((tmp_path / "config.json").read_text())
    stored["config"]["sft"]["batch_size"] = "many"
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match="another type: .*batch_size"):
        workdirs.read_config(tmp_path)
    stored["config"]["sft"] |= {"momentum": 1, "batch_size": default().sft.batch_size}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"sft\.momentum is unknown"):
        workdirs.read_config(tmp_path)
    with pytest.raises(UserError, match=r"sft\.momentum is 1 there and absent now"):
        Workdir(tmp_path, default())


def test_done_marks(tmp_path):
    with Workdir(tmp_path, default()) as workdir:
        assert not workdir.is_done("policy/init_sft")
        workdir.mark_done("policy/init_sft", {"seconds": np.float32(1.5)})
        assert workdir.is_done("policy/init_sft")
        assert workdir.timing("policy/init_sft") == {"seconds": 1.5}


def test_json_is_plain_and_whole(tmp_path):
    path = tmp_path / "results.json"
    artifacts.write_json(
        path, {"a": np.float64(0.5), "n": np.int64(3), "nan": float("nan"), "v": np.arange(2), "c": ml_collections.ConfigDict()}
    )
    assert artifacts.read_json(path) == {"a": 0.5, "n": 3, "nan": None, "v": [0, 1], "c": {}}
    with pytest.raises(TypeError):
        artifacts.write_json(path, {"a": object()})
    assert artifacts.read_json(path)["n"] == 3
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    artifacts.save_arrays(tmp_path / "a.npz", x=np.arange(3))
    with monkeypatch.context() as patch:
        patch.setattr(workdirs.paths.os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(UserError, match="disk full"):
            artifacts.save_arrays(tmp_path / "a.npz", x=np.arange(9))
    np.testing.assert_array_equal(artifacts.load_arrays(tmp_path / "a.npz")["x"], np.arange(3))
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def test_arrays_that_are_missing_or_broken_name_the_file(tmp_path):
    with pytest.raises(UserError, match=r"a\.npz: no such file; run the stage that writes it \(--stages=sample\)$"):
        artifacts.load_arrays(tmp_path / "a.npz", stage="sample")
    with pytest.raises(UserError, match=r"a\.npz: no such file; run the stage that writes it$"):
        artifacts.load_arrays(tmp_path / "a.npz")
    artifacts.save_arrays(tmp_path / "a.npz", x=np.arange(99))
    whole = (tmp_path / "a.npz").read_bytes()
    for part in (whole[:100], b"PK", b"x" * 50, b""):
        (tmp_path / "a.npz").write_bytes(part)
        with pytest.raises(UserError, match=r"a\.npz: broken"):
            artifacts.load_arrays(tmp_path / "a.npz")


def test_jsonl_appends_and_forgets_a_half_written_line(tmp_path):
    path = tmp_path / "m.jsonl"
    assert artifacts.read_jsonl(path) == []
    artifacts.append_jsonl(path, {"step": 1, "a\u2028b": 1.5}, {"step": 2})
    artifacts.append_jsonl(path, {"step": 3})
    with open(path, "a") as file:
        file.write('{"step": 4, "lo')
    assert [r["step"] for r in artifacts.read_jsonl(path)] == [1, 2, 3]
    assert artifacts.read_jsonl(path)[0]["a\u2028b"] == 1.5


def test_a_full_disk_is_one_line_and_leaves_what_was_there(tmp_path):
    """RLIMIT_FSIZE stands for the full disk: the system refuses to write on."""
    path = tmp_path / "results.json"
    write_json(path, {"a": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        with pytest.raises(UserError, match="results.json: cannot be written"):
            write_json(path, {"a": list(range(100))})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert json.loads(path.read_text()) == {"a": 1} and [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_a_host_that_does_not_see_the_workdir_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(workdirs.distributed, "primary_first", lambda function: None)  # another host opened it, in a folder of its own
    with pytest.raises(UserError, match="process 0 opened: give a folder that all hosts share"):
        Workdir(tmp_path / "w", default())


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_a_kill_while_a_workdir_is_taken_back_leaves_one_that_goes_on(tmp_path, monkeypatch, kept):
    real, removed = os.unlink, []

    def dies(path, **how):
        removed.append(path)
        if len(removed) == kept:
            raise KeyboardInterrupt
        real(path, **how)

    with pytest.raises(KeyboardInterrupt), Workdir(tmp_path / "w", default()) as opened:
        opened.mark_done("pretrain", {})
        write_json(opened.path / "inputs.json", {})
        monkeypatch.setattr(os, "unlink", dies)
        raise UserError("wrong input")
    monkeypatch.undo()
    opened.close()
    with Workdir(tmp_path / "w", default()):
        pass
