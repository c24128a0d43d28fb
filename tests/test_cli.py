"""The command line: verbs, flags, overrides, one clear line for the user's mistakes, a traceback for ours."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from irl_jax import cli, paths, stages
from irl_jax.config import default
from irl_jax.errors import UserError
from irl_jax.flags import VERBS
from irl_jax.models import published
from irl_jax.stages import generate as generate_verbs

ROOT = pathlib.Path(__file__).resolve().parent.parent


def command(*arguments, cwd=ROOT):
    return subprocess.run([sys.executable, "-m", "irl_jax", *arguments], cwd=cwd, capture_output=True, text=True)


def test_a_working_folder_that_is_gone_is_no_traceback(tmp_path):
    lines = 'mkdir gone && cd gone && rmdir ../gone && exec "$0" -m irl_jax status "$1"'
    done = subprocess.run(["bash", "-c", lines, sys.executable, str(tmp_path / "w")], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 2 and done.stderr == f"irl_jax: error: {tmp_path / 'w'}: no such folder; give the --workdir of a run\n"


@pytest.fixture
def pipeline(monkeypatch):
    """The calls of run_pipeline, instead of the pipeline."""
    calls = []
    monkeypatch.setattr(stages, "run_pipeline", lambda config, path, names, base: calls.append((config, path, names)))
    return calls


def refusal(capsys, *arguments) -> str:
    """The one line that main prints for the user's mistake."""
    assert cli.main(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.endswith("\n") and err.count("\n") == 1 and err.startswith("irl_jax: error: ")
    return err


def test_help_loads_no_jax():  # which is what makes it quick; benchmarks/run.sh --cases=startup times it
    assert "generate" in command("--help").stdout
    script = "import sys, irl_jax.cli as c; c.parse(['run', '--workdir=w']); c.load_config(''); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0
    assert "--config.SECTION.KEY=VALUE" in command("run", "--help").stdout


def test_run_dispatches_the_typed_config(pipeline):
    arguments = [
        "run", "--workdir=W", "--stages=sft,sample", "--config.sft.learning_rate=2", "--config.sft.steps=7", "--config.sft.packing=False",
        "--config.model.path=a=b", "--config.reward.recipes=init_sft,init_demo", "--config.eval.best_of=(1, 4)", "--config.reward.controls=",
    ]  # fmt: skip
    assert cli.main(arguments) == 0
    ((config, path, names),) = pipeline
    assert (path, names) == ("W", ("sft", "sample"))
    assert (config.sft.learning_rate, config.sft.steps, config.sft.packing) == (2.0, 7, False)
    assert isinstance(config.sft.learning_rate, float)
    assert config.model.path == "a=b"
    assert (config.reward.recipes, config.eval.best_of, config.reward.controls) == (("init_sft", "init_demo"), (1, 4), ())
    assert config.is_locked
    untouched = default()
    assert config.policy == untouched.policy and config.data == untouched.data


def test_default_config_is_the_testbed(pipeline):
    assert cli.main(["run", "--workdir=W"]) == 0
    assert cli.main(["run", "--workdir=W", f"--config={ROOT / 'configs' / 'testbed.py'}:hard"]) == 0
    assert pipeline[0] == pipeline[1] == (default(), "W", ())
    cli.main(["run", "--workdir=W", f"--config={ROOT / 'configs' / 'testbed.py'}:smoke"])
    assert pipeline[2][0].pretrain.steps < default().pretrain.steps


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_config_file_loads(path):
    for variant in ("", ":smoke"):
        assert cli.load_config(f"{path}{variant}").is_locked
    with pytest.raises(UserError, match="unknown variant 'nonesuch'"):
        cli.load_config(f"{path}:nonesuch")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["run,status,compare,config,prepare,generate,score"]),
        (["runn"], ["unknown verb 'runn'", "did you mean 'run'", "generate"]),
        (["run"], ["--workdir"]),
        (["run", "--workdir=W", "--stage=sft"], ["unknown argument '--stage'", "did you mean '--stages'"]),
        (["run", "--workdir=W", "sft"], ["unknown argument 'sft'", "--stages"]),
        (["run", "--workdir=W", "--config=configs/testbd.py"], ["no such file", "testbed.py"]),
        (["run", "--workdir=W", "--config.sft.learnig_rate=1"], ["'sft.learnig_rate'", "did you mean 'sft.learning_rate'"]),
        (["run", "--workdir=W", "--config.lerning_rate=1"], ["'lerning_rate'", "learning_rate'?"]),
        (["run", "--workdir=W", "--config.rewrad.steps=1"], ["did you mean 'reward.steps'"]),
        (["run", "--workdir=W", "--config.sft=1"], ["is a section", "sft.learning_rate"]),
        (["run", "--workdir=W", "--config.sft.steps=1.5"], ["sft.steps=1.5", "a whole number"]),
        (["run", "--workdir=W", "--config.sft.learning_rate=fast"], ["sft.learning_rate=fast", "a number"]),
        (["run", "--workdir=W", "--config.sft.learning_rate=nan"], ["finite"]),
        (["run", "--workdir=W", "--config.sft.packing=maybe"], ["true or false"]),
        (["run", "--workdir=W", "--config.eval.best_of=1,b"], ["eval.best_of=b", "a whole number"]),
        (["run", "--workdir=W", "--config.reward.recipes=(a"], ["separated by commas"]),
        (["run", "--workdir=W", "--config.sft.packing"], ["--config.sft.packing=VALUE"]),
        (["run", "--workdir=W", "--stages=sfft"], ["unknown stage 'sfft'", "pretrain"]),
        (["generate", "--model=M", "--out=o.jsonl"], ["--prompts"]),
        (["generate", "--model=M", "--prompts=none.jsonl", "--out=o.jsonl"], ["--prompts=none.jsonl: no such file"]),
        (["generate", "--prompts=p.jsonl", "--out=o.jsonl"], ["either --model=DIR", "--workdir=W"]),
        (["generate", "--model=M", "--workdir=W", "--prompts=p.jsonl", "--out=o.jsonl"], ["either"]),
        (["generate", "--model=M", "--role=sft", "--prompts=p.jsonl", "--out=o.jsonl"], ["--role: needs --workdir"]),
        (["score", "--model=M", "--reward=init_sft", "--data=p.jsonl", "--out=o.jsonl"], ["--reward: needs --workdir"]),
        (["generate", "--workdir=W", "--best_of=4", "--prompts=p.jsonl", "--out=o.jsonl"], ["--best_of: needs --reward"]),
        (["generate", "--workdir=W", "--reward=r", "--samples=4", "--prompts=p.jsonl", "--out=o.jsonl"], ["drop one"]),
        (["generate", "--model=M", "--prompts=p.jsonl", "--out=none/o.jsonl"], ["--out=none/o.jsonl", "folder that exists"]),
        (["generate", "--model=M", "--prompts=p.jsonl", "--out=o.jsonl", "--temperature=-1"], ["--temperature", "out of range"]),
        (["generate", "--model=M", "--prompts=p.jsonl", "--out=o.jsonl", "--top_p=0"], ["--top_p", "out of range"]),
        (["generate", "--model=M", "--prompts=p.jsonl", "--out=o.jsonl", "--samples=two"], ["--samples", "invalid int"]),
        (["score", "--workdir=W", "--data=p.jsonl", "--out=o.jsonl", "--config.seed=1"], ["score takes no config"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and value and value[0] in VERBS else "",
)
def test_mistakes_are_one_line_and_status_2(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n')
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "testbed.py").write_text("")
    line = refusal(capsys, *arguments)
    assert all(word in line for word in words), line
    assert sorted(p.name for p in tmp_path.iterdir()) == ["configs", "p.jsonl"]  # nothing was made on the way


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("c.sft.learnig_rate = 1", ["line 4", "unknown config key 'learnig_rate'; did you mean 'learning_rate'?"]),
        ("c.sft.batch_size = 'x'", ["line 4", "batch_size"]),
        ("c.policy = c.polcy", ["line 4", "unknown config key 'polcy'; did you mean 'policy'?"]),
        ("c.sft.zzzz", ["line 4", "unknown config key 'zzzz'"]),
        ("c.sftt.batch_size = 1", ["line 4", "unknown config key 'sftt'; did you mean 'sft'?"]),
        ("raise ValueError('c.py: unknown variant')", ["unknown variant"]),
        ("return c +", ["line 4", "invalid syntax"]),
        ("return {}", ["must return the ConfigDict"]),
        ("c = type(c)({'seed': 1})", ["'adapter.alpha' is missing"]),
        ("c.unlock(); c.sft.momentum = 1", ["unknown config key 'sft.momentum'"]),
    ],
)
def test_mistakes_in_a_config_file(tmp_path, capsys, body, words):
    path = tmp_path / "c.py"
    path.write_text(
        f"from irl_jax.config import default\ndef get_config(name=''):\n    c = default()\n    {body}\n    return c\n"
    )
    line = refusal(capsys, "run", f"--workdir={tmp_path / 'w'}", f"--config={path}")
    assert all(word in line for word in words), line
    assert not (tmp_path / "w").exists()


def test_config_file_without_get_config(tmp_path, capsys):
    (tmp_path / "c.py").write_text("x = 1\n")
    assert "has no get_config()" in refusal(capsys, "run", "--workdir=W", f"--config={tmp_path / 'c.py'}")


def test_a_bug_of_ours_met_by_a_config_file_keeps_its_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr("irl_jax.overrides.difflib", None)
    (tmp_path / "c.py").write_text("from irl_jax.overrides import nearest\ndef get_config(name=''):\n    return nearest('a', ['b'])\n")
    with pytest.raises(AttributeError):
        cli.main(["run", "--workdir=W", f"--config={tmp_path / 'c.py'}"])


def test_our_own_bug_keeps_its_traceback_and_status_1(tmp_path):
    script = (
        "import sys\nfrom irl_jax import cli, paths, stages\n"
        "stages.run_pipeline = lambda *_: {}['ours']\n"
        "sys.exit(cli.main(['run', '--workdir=W']))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" in done.stderr and "KeyError: 'ours'" in done.stderr


@pytest.mark.parametrize("where", [">/dev/full 2>/dev/full", ">&- 2>&- <&-", "| head -c1", "2>&1 | head -c1"])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_run_outlives_its_terminal(tmp_path, where, encoding):
    """And no file of its own gets the number of a stream that was closed."""
    done = tmp_path / "done"
    script = tmp_path / "s.py"
    script.write_text(f"""if True:
        import contextlib, os, sys, time
        from irl_jax import cli, distributed, progress, stages
        def run(*_):
            for _ in range(20):
                distributed.say("\u00e9\u2713" * 999)
                print("\u00e9" * 999, file=sys.stderr)
                time.sleep(0.01)
            progress.bar(range(3)).close()
            with open({str(done)!r}, "w") as file:
                for number in (1, 2):  # as libraries of C do
                    with contextlib.suppress(OSError):
                        os.write(number, b"more")
                file.write("whole")
        stages.run_pipeline = run
        sys.argv = ["irl_jax", "run", "--workdir=W"]
        cli.entry()""")
    command = f"{sys.executable} {script} {where}; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, errors="replace",
                           env=os.environ | {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)})
    assert ended.returncode == 0 and "Traceback" not in ended.stderr and "Exception" not in ended.stderr, ended.stderr
    assert done.read_text() == "whole"


@pytest.mark.parametrize(("where", "status"), [(">/dev/full", 2), (">&-", 2), ("| :", 141), (">/dev/null 2>&-", 0)])
def test_what_only_prints_must_be_able_to(where, status):
    command = f"{sys.executable} -m irl_jax config {where}; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == status
    assert ended.stderr == "" or status == 2 and ended.stderr.startswith("irl_jax: error: standard output: cannot be written (")
    assert ended.stderr.count("\n") == (status == 2)


def test_user_errors_from_below_are_one_line(monkeypatch, capsys):
    def refuse(*_):
        raise UserError("data.jsonl, line 3:\nno field 'prompt'")

    monkeypatch.setattr(stages, "run_pipeline", refuse)
    assert refusal(capsys, "run", "--workdir=W") == "irl_jax: error: data.jsonl, line 3: no field 'prompt'\n"


def test_interrupt_is_status_130(monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "run_pipeline", interrupt)
    assert cli.main(["run", "--workdir=W"]) == 130
    assert capsys.readouterr().err.count("\n") == 1


def test_generate_and_score_get_their_flags(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(generate_verbs, "generate", seen.append)
    monkeypatch.setattr(generate_verbs, "score", seen.append)
    (tmp_path / "p.jsonl").write_text("")
    files = [f"--prompts={tmp_path / 'p.jsonl'}", f"--out={tmp_path / 'o.jsonl'}"]
    assert cli.main(["generate", "--workdir=W", "--role=policy", "--reward=init_sft", "--best_of=16", *files]) == 0
    assert (
        cli.main(["generate", "--model=M", "--temperature=0", "--top_k=5", "--top_p=0.9", "--samples=3", "--seed=4", *files]) == 0
    )
    assert cli.main(["score", "--model=M", f"--data={tmp_path / 'p.jsonl'}", f"--out={tmp_path / 'o.jsonl'}", "--eos"]) == 0
    best, plain, score = seen
    assert (best.workdir, best.model, best.role, best.reward, best.best_of, best.max_tokens) == (
        "W",
        None,
        "policy",
        "init_sft",
        16,
        None,
    )
    assert (plain.temperature, plain.top_k, plain.top_p, plain.samples, plain.seed, plain.max_tokens) == (0.0, 5, 0.9, 3, 4, 64)
    assert (score.model, score.eos, score.role, score.reward) == ("M", True, None, None)


@pytest.mark.parametrize("letters", [1, 230, 240, 248, 255])
def test_what_cannot_be_written_is_known_before_the_work(monkeypatch, tmp_path, capsys, letters):
    """A name as long as the system has them, which what is written first may exceed."""
    out, written = tmp_path / ("o" * letters), []
    monkeypatch.setattr(generate_verbs, "score", lambda args: written.append(paths.write(paths.of(args.out), lambda file: file.write(b"x"))))
    (tmp_path / "d.jsonl").write_text("")
    status = cli.main(["score", "--model=M", f"--data={tmp_path / 'd.jsonl'}", f"--out={out}"])
    assert (status, len(written)) in ((0, 1), (2, 0)) and out.exists() == (status == 0)
    assert {path.name for path in tmp_path.iterdir()} <= {"d.jsonl", out.name}
    assert ("cannot be written" in capsys.readouterr().err) == (status == 2)


def test_another_config_in_a_workdir_is_status_2(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"config": {**json.loads(default().to_json_best_effort()), "seed": 5}}))
    done = command("run", f"--workdir={tmp_path}")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "seed is 5 there and 0 now" in done.stderr


def test_a_config_may_start_from_the_one_beside_it(tmp_path, capsys):
    """As the pods' configs do; what is imported so is forgotten, for another folder may have a file of the same name."""
    for folder, seed in (("a", 3), ("b", 4)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "base_of_it.py").write_text(f"from irl_jax.config import default\ndef get_config():\n    c = default()\n    c.seed = {seed}\n"
                                                         "    return c\n")
        (tmp_path / folder / "own.py").write_text("import base_of_it\ndef get_config(name=''):\n    return base_of_it.get_config()\n")
        assert cli.load_config(str(tmp_path / folder / "own.py")).seed == seed
    assert "base_of_it" not in sys.modules and str(tmp_path / "b") not in sys.path


@pytest.mark.parametrize("name", ["hh_gemma_2b", "hh_llama3_8b"])
def test_the_pods_configs_have_3072_tokens_a_chip(name):
    for variant, chips in (("", 16), (":v6e_64", 64), (":v5p_64", 32)):
        c = cli.load_config(f"{ROOT / 'configs' / name}.py{variant}")
        longest = c.data.max_prompt_tokens + c.data.max_response_tokens
        tokens = {c.sft.batch_size * c.sft.row_tokens, c.reward.batch_size * longest, c.policy.batch_size * c.policy.samples * longest}
        assert c.mesh.fsdp == chips and tokens == {3072 * chips} and c.model.path in published.HF_CONFIGS
    smoke = cli.load_config(f"{ROOT / 'configs' / name}.py:smoke")
    assert smoke.mesh.fsdp == 1 and smoke.policy.steps == 3 and smoke.policy.advantage == "gae"
    with pytest.raises(UserError, match="unknown variant 'v4'"):
        cli.load_config(f"{ROOT / 'configs' / name}.py:v4")


def test_compiled_programs_are_kept_where_they_are_told_to(tmp_path):
    (tmp_path / "c.py").write_text("from tiny import tiny_config\ndef get_config(name=''):\n    return tiny_config(pretrain__steps=2)\n")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_COMPILATION", "JAX_PERSISTENT"))}
    environment |= {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "HOME": str(tmp_path / "home"), "JAX_PLATFORMS": "cpu",
                    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-m", "irl_jax", "run", f"--config={tmp_path / 'c.py'}", "--stages=pretrain"]
    for number, (flags, kept) in enumerate([([], "home/.cache/irl_jax"), ([f"--compilation_cache={tmp_path / 'x'}"], "x"),
                                            (["--compilation_cache="], None)]):  # fmt: skip
        done = subprocess.run([*command, f"--workdir={tmp_path / str(number)}", *flags], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        caches = {str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("*-cache")}
        assert caches == ({kept} if kept else set()), caches
        for cache in caches:
            shutil.rmtree(tmp_path / cache)
