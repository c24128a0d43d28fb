"""The whole pipeline on a tiny testbed: what it leaves, that it resumes, both adapter modes, and the verbs on its workdir."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from tiny import tiny_config

from irl_jax import cli, stages
from irl_jax.config import CONTROLS, LEARNT, ROBUST
from irl_jax.errors import UserError
from irl_jax.stages import context as contexts
from irl_jax.stages import generate as verbs
from irl_jax.stages import sampling


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run in LoRA mode."""
    path = tmp_path_factory.mktemp("runs") / "lora"
    stages.run_pipeline(tiny_config(), path)
    return path


def _results(path):
    return json.loads((path / "results.json").read_text())


def test_results_have_the_schema(finished):
    results = _results(finished)
    assert results["schema"] == 1 and results["seed"] == 0 and results["golden"]["heldout_accuracy"] is None
    own = {role for role in results["policies"] if "@" not in role}
    assert own == {"init", "demo", "sft", "policy/init_sft"} and len(results["policies"]) == 4 + 2  # sft and the policy at the one temperature
    for row in results["policies"].values():
        assert {"golden_mean", "golden_stderr", "length_mean", "kl_to_sft", "distinct_2", "rewards", "n"} <= set(row)
    assert results["policies"]["sft"]["n"] == 8
    assert set(results["rewards"]) == {*LEARNT, *CONTROLS, ROBUST}
    for row in results["rewards"].values():
        assert {"heldout_auc", "spearman_golden", "spearman_length", "pair_accuracy", "best_of_n"} <= set(row)
        assert [point["n"] for point in row["best_of_n"]] == [1, 2, 4, 5, 8, 10, 16]
        assert row["best_of_n"][0]["win_rate"] == 0.5
        # one sample of sft is sft, whatever picks it
        assert row["best_of_n"][0]["golden"] == pytest.approx(results["policies"]["sft"]["golden_mean"], abs=1e-12)
    assert results["divergences"]["sft"]["forward_kl"] > 0 and results["divergences"]["sft"]["reverse_kl"] > 0
    assert set(results["timing"]) == set(stages.STAGES) - {"report"}
    assert (finished / "report" / "index.html").stat().st_size > 10_000


def test_oracle_is_the_best_selector(finished):
    rewards = _results(finished)["rewards"]
    oracle = rewards["golden"]["best_of_n"][-1]["golden"]
    assert all(row["best_of_n"][-1]["golden"] <= oracle + 1e-12 for row in rewards.values())


def test_a_finished_run_does_nothing(finished, capsys):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file() and p.name != ".lock"}
    stages.run_pipeline(tiny_config(), finished)
    assert "nothing to do" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file() and p.name != ".lock"}


def test_another_config_is_refused_unharmed(finished):
    before = (finished / "config.json").read_bytes()
    with pytest.raises(UserError, match="sft.learning_rate"):
        stages.run_pipeline(tiny_config(sft__learning_rate=0.5), finished)
    assert (finished / "config.json").read_bytes() == before


def test_unknown_stage(tmp_path):
    with pytest.raises(UserError, match="unknown stage 'rewards'"):
        stages.run_pipeline(tiny_config(), tmp_path / "w", ("rewards",))
    assert not (tmp_path / "w").exists()


def test_a_stage_without_what_it_needs(tmp_path):
    with pytest.raises(UserError, match="nothing is trained under 'pretrain'"):
        stages.run_pipeline(tiny_config(), tmp_path / "w", ("sft",))


def test_golden_trains_no_policy(tmp_path):
    with pytest.raises(UserError, match="golden"):
        stages.run_pipeline(tiny_config(policy__recipes=("golden",)), tmp_path / "w")


def test_whole_trunk_mode(tmp_path):
    stages.run_pipeline(tiny_config(adapter__rank=0, reward__recipes=("init_sft",), eval__prompts=4), tmp_path / "w")
    results = _results(tmp_path / "w")
    assert {"init", "demo", "sft", "policy/init_sft"} <= set(results["policies"])
    assert results["policies"]["policy/init_sft"]["kl_to_sft"] is not None


_RUN = """
import sys
sys.path.insert(0, {tests!r})
from tiny import tiny_config
from irl_jax import cli, stages
from irl_jax.config import CONTROLS, LEARNT, ROBUST
stages.run_pipeline(tiny_config(checkpoint__every_steps=1, pretrain__steps=40, policy__steps=8), {path!r})
"""


def _script(path) -> str:
    return _RUN.format(tests=os.path.dirname(__file__), path=str(path))


def _run_apart(path) -> None:
    """A run in a process of its own: bitwise equality is between processes that compile alike, whatever ran before in this one."""
    subprocess.run([sys.executable, "-c", _script(path)], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    from irl_jax import checkpoint

    config = tiny_config(checkpoint__every_steps=1, pretrain__steps=40, policy__steps=8)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    _run_apart(whole)
    script = _script(killed)
    for stage, line in (("pretrain", 9), ("reward/init_demo", 1), ("policy/init_sft", 3)):
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        metrics = killed / stage / "metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and len(metrics.read_text().splitlines()) > line):
            time.sleep(0.02)
        assert process.poll() is None, f"the run ended before it could be killed in {stage}"
        process.send_signal(signal.SIGKILL)
        process.wait()
    _run_apart(killed)
    for name in ("pretrain", "sft", "reward/init_sft", "reward/init_demo", "reward/preference", "policy/init_sft"):
        context = contexts.Context(config, contexts.Reader(whole))
        like = context.trunk if name == "pretrain" else context.leaves(name)
        again = checkpoint.load_tree(killed / name / "leaves", like)
        jax.tree.map(np.testing.assert_array_equal, like, again)
    a, b = _results(whole), _results(killed)
    a.pop("timing"), b.pop("timing")
    assert a == b


def test_samples_are_kept_as_drawn(finished):
    context = contexts.Context(tiny_config(), contexts.Reader(finished))
    arrays = sampling.load(context, "sft", "eval")
    assert arrays["tokens"].shape == (8, 16, context.config.data.max_response_tokens)
    ids = np.array([e.response[-1] for e in arrays["examples"]])
    ended = np.array([e.ended for e in arrays["examples"]])
    np.testing.assert_array_equal(ids == context.eos_id, ended)  # the EOS that was sampled is there, and no other
    own = arrays["logprobs"].sum(-1).reshape(-1)
    np.testing.assert_allclose(context.scorer.logprobs(context.leaves("sft"), arrays["examples"]), own, rtol=2e-5, atol=2e-4)


def test_generate_and_score_agree(finished, tmp_path):
    prompts, out, scored = (tmp_path / name for name in ("p.jsonl", "o.jsonl", "s.jsonl"))
    first = [json.loads(line)["prompt"] for line in (finished / "samples" / "sft" / "eval.jsonl").read_text().splitlines()]
    asked = list(dict.fromkeys(first))[:3]
    prompts.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in asked))
    generate = ["generate", f"--workdir={finished}", f"--prompts={prompts}", f"--out={out}"]
    assert cli.main([*generate, "--temperature=0", "--max_tokens=12"]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["prompt"] for line in lines] == asked and all(line["tokens"] <= 12 for line in lines)
    reward = ["--role=policy", "--reward=init_sft"]
    assert cli.main([*generate, *reward, "--best_of=8"]) == 0
    best = [json.loads(line) for line in out.read_text().splitlines()]
    assert cli.main(["score", f"--workdir={finished}", *reward, f"--data={out}", f"--out={scored}", "--eos"]) == 0
    for mine, theirs in zip(best, (json.loads(line) for line in scored.read_text().splitlines()), strict=True):
        if mine["ended"]:
            assert theirs["logprob"] == pytest.approx(mine["logprob"], abs=1e-3)
            assert theirs["reward"] == pytest.approx(mine["reward"], abs=1e-4)


def test_prompt_longer_than_the_context(finished, tmp_path, capsys):
    prompts = tmp_path / "p.jsonl"
    prompts.write_text(json.dumps({"prompt": "please help me " * 100}) + "\n")
    asked = ["generate", f"--workdir={finished}", f"--prompts={prompts}", f"--out={tmp_path / 'o.jsonl'}", "--max_tokens=8"]
    assert cli.main(asked) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "p.jsonl, line 1: " in err and "longer than the context" in err
    assert not (tmp_path / "o.jsonl").exists()


def test_verbs_know_the_model_context(finished):
    context = verbs._Reading(tiny_config(), contexts.Reader(finished))
    assert context.longest == context.model.max_positions >= contexts.Context(tiny_config(), None).longest


def test_every_step_is_traced_once_a_bucket(finished):
    """Prompts of mixed lengths: as many traces as (bucket, kind of leaves), not as many as batches."""
    context = contexts.Context(tiny_config(), contexts.Reader(finished))
    examples = sampling.load(context, "sft", "eval")["examples"]
    context.scorer.logprobs(context.leaves("sft"), examples)
    once = context.scorer.traces
    context.scorer.logprobs(context.leaves("sft"), list(reversed(examples))[:40])
    assert context.scorer.traces == once
