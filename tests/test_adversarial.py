"""The adversarial loop and the policy's options on a tiny testbed: what is logged, that it resumes, that no option is idle."""

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

from irl_jax import checkpoint, cli, stages, workdir
from irl_jax.errors import UserError
from irl_jax.stages import context as contexts
from irl_jax.stages import gradient, recipe_data, scoring

SMALL = {"model__num_layers": 1, "model__width": 16, "model__num_heads": 2, "model__num_kv_heads": 2, "model__mlp_width": 32,
         "data__max_response_tokens": 24, "policy__steps": 2, "policy__recipes": (), "reward__recipes": ("init_sft",),
         "policy__keep_rollouts_every": 2, "adversarial__rounds": 3, "adversarial__warmup_rounds": 1, "adversarial__reward_rows": 8,
         "adversarial__replay_capacity": 16, "adversarial__replay_share": 0.5, "policy__learning_rate": 0.01,
         "reward__learning_rate": 0.01}  # fmt: skip
LOOP = ("", "policy.divergence=jensen_shannon", "policy.divergence=forward_kl", "policy.divergence=pearson", "policy.divergence=neyman",
        "policy.divergence=hellinger", "policy.divergence=total_variation", "policy.divergence=forward_kl policy.clip_logit=0.01",
        "adversarial.reward_updates=2", "adversarial.replay_share=0.0", "adversarial.replay_capacity=4", "adversarial.warmup_rounds=0",
        "adversarial.reward_rows=4", "reward.label_smoothing=0.2", "reward.gradient_penalty=50.0", "reward.spectral_norm=0.001",
        "reward.body=frozen", "reward.head=mlp", "reward.head=mlp reward.mlp_width=8", "reward.body=trunk", "reward.granularity=token",
        "reward.granularity=token policy.gamma=0.5", "reward.ensemble=2", "reward.ensemble=2 reward.combine=min",
        "reward.ensemble=2 reward.combine=mean_minus_std")  # fmt: skip
FIXED = ("", "policy.advantage=reinforce", "policy.advantage=grpo", "policy.beta=1.0", "policy.kl=k2_loss", "policy.kl=k3_loss",
         "policy.kl=k3_weighted_loss", "policy.beta=1.0 policy.target_kl=0.000001", "policy.beta=1.0 policy.reference=init",
         "policy.entropy=1.0", "policy.normalise_rewards=true", "policy.surrogate=ppo_clip policy.epochs=4",
         "policy.surrogate=ppo_clip policy.minibatches=2", "policy.surrogate=ppo_clip policy.epochs=2 policy.clip_ratio=0.000001",
         "policy.advantage=gae policy.value_coefficient=0.5", "policy.advantage=gae policy.value_coefficient=0.5 policy.gamma=0.5",
         "policy.advantage=gae policy.value_coefficient=0.5 policy.gae_lambda=0.1", "policy.divergence=hellinger", "policy.samples=3", "policy.start=init")  # fmt: skip


def config_with(*variants, **changes):
    return tiny_config(**{**SMALL, **changes, "variants": variants})


def variants_of(group, recipe, lines):
    return tuple(f"{group}/{i} = {recipe} {line}" for i, line in enumerate(lines))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run in which every line above is a method."""
    path = tmp_path_factory.mktemp("runs") / "w"
    config = config_with(*variants_of("adversarial", "demo", LOOP), *variants_of("policy", "init_sft", FIXED), "adversarial/sft = sft",
                         "reward/ens = init_sft reward.ensemble=2", "reward/residual = init_sft reward.length_residual=true",
                         "policy/ens = ens", "policy/residual = residual", "policy/dense = log_ratio_dense", "policy/dense_gamma = log_ratio_dense policy.gamma=0.5", "policy/end = log_ratio")
    stages.run_pipeline(config, path, ("pretrain", "sft", "sample", "reward", "policy", "adversarial"))
    return path, contexts.Context(config, contexts.Reader(path))


def flat(context, role):
    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(context.leaves(role))])


@pytest.mark.parametrize(("group", "lines"), [("adversarial", LOOP), ("policy", FIXED)])
def test_no_option_is_idle(finished, group, lines):
    """Each line gives another policy than every other, and none is sft."""
    _, context = finished
    found = [flat(context, f"{group}/{i}") for i in range(len(lines))]
    assert not any(np.array_equal(one, flat(context, "sft")) for one in found)
    same = [(lines[i], lines[j]) for i in range(len(found)) for j in range(i) if np.array_equal(found[i], found[j])]
    assert not same, same


def test_the_positives_and_the_closed_forms_differ(finished):
    _, context = finished
    roles = ("adversarial/0", "adversarial/sft", "policy/0", "policy/ens", "policy/residual", "policy/dense", "policy/dense_gamma", "policy/end")
    found = [flat(context, role) for role in roles]
    assert all(not np.array_equal(found[i], found[j]) for i in range(len(found)) for j in range(i))


@pytest.mark.parametrize(("recipe", "eos_counts"), [("log_ratio_like", False), ("init_sft", False), ("log_ratio_dense", True)])
def test_a_reward_is_known_by_its_kind_and_not_by_how_its_name_begins(finished, monkeypatch, recipe, eos_counts):
    _, context = finished
    seen = []
    monkeypatch.setattr(gradient.training, "compiled", lambda context, name, make, donate=(0,): make())
    monkeypatch.setattr(gradient.rollouts, "make_advantages", lambda *_, **how: seen.append(how))
    gradient.PolicyGradient(context, "policy/0", recipe=recipe, granularity="token", combine="mean",
                            prompts=context.training_prompts, rounds=1)
    assert seen == [{"eos_counts": eos_counts}]


def test_a_residual_reward_has_nothing_of_length_within_the_classes(finished):
    _, context = finished
    assert set(context.leaves("reward/residual")) == {"adapter", "head", "length"}
    for part in recipe_data.data_of(context, "init_sft")[0]:
        assert len({len(e.response) for e in part}) > 1
    lengths, logits = [], []
    for part in recipe_data.data_of(context, "init_sft")[0]:
        own, h = np.array([len(e.response) for e in part], float), scoring.rewards(context, "residual", part)
        lengths.append(own - own.mean()), logits.append(h - h.mean())
    lengths, logits = np.concatenate(lengths), np.concatenate(logits)
    assert abs(np.mean(lengths * logits)) < 1e-4 * lengths.std() * logits.std() + 1e-7
    plain = scoring.rewards(context, "init_sft", part)
    assert np.abs(plain - scoring.rewards(context, "residual", part)).max() > 1e-4


def test_generate_with_an_ensemble_that_must_agree(finished, tmp_path, capsys):
    path, context = finished
    prompts, out = tmp_path / "p.jsonl", tmp_path / "o.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": context.text(e.prompt)}) + "\n" for e in context.demonstrations[:6]))
    generate = ["generate", f"--workdir={path}", f"--prompts={prompts}", f"--out={out}", "--best_of=8", "--max_tokens=8"]
    rewards = []
    for flags in (["--reward=ens"], ["--reward=ens", "--agreement=0"], ["--reward=ens", "--agreement=1000000"]):
        assert cli.main([*generate, *flags]) == 0
        rewards.append([json.loads(line)["reward"] for line in out.read_text().splitlines()])
    assert rewards[0] == rewards[1]  # 0 never stops
    assert rewards[2] != rewards[0] and all(a <= b for a, b in zip(rewards[2], rewards[0], strict=True))
    assert cli.main([*generate, "--reward=init_sft", "--agreement=1"]) == 2
    assert "is no ensemble" in capsys.readouterr().err
    assert cli.main([*generate, "--reward=ens", "--role=adversarial/sft"]) == 0
    assert cli.main([*generate, "--reward=ens", "--role=adversarial/fst"]) == 2
    assert "adversarial/sft" in capsys.readouterr().err


def lines_of(path, role):
    return [json.loads(line) for line in (path / role / "metrics.jsonl").read_text().splitlines()]


def test_accuracy_is_logged_by_source(finished):
    path, _ = finished
    rows = lines_of(path, "adversarial/0")
    assert len(rows) == 3 and "loss" not in rows[0] and all("loss" in row for row in rows[1:])
    for number, row in enumerate(rows):
        assert {"accuracy_positive", "accuracy_fresh", "balanced_accuracy", "smoothed_accuracy", "reward_loss"} <= set(row)
        assert row["balanced_accuracy"] == pytest.approx((row["accuracy_positive"] + row["accuracy_fresh"]) / 2, abs=1e-6)
        assert ("accuracy_replayed" in row) == (number > 0)  # the buffer is empty before the first round
    assert rows[0]["accuracy_positive"] == rows[0]["accuracy_fresh"] == 0.5  # a fresh head says 0 of everything
    assert rows[0]["reward_loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert rows[0]["smoothed_accuracy"] == 0.5


def test_rollouts_are_kept_as_asked(finished):
    path, context = finished
    kept = sorted(int(file.stem) for file in (path / "policy/0/rollouts").glob("*.npz"))
    assert kept == [0]
    arrays = dict(np.load(path / "policy/0/rollouts/0.npz"))
    rows = context.config.policy.batch_size * context.config.policy.samples
    assert arrays["tokens"].shape[0] == rows and set(arrays) == {"tokens", "prompt_lengths", "lengths", "ended", "reward", "kl"}
    np.testing.assert_allclose(arrays["kl"], 0, atol=1e-4)  # the first samples are sft's own
    assert arrays["reward"].mean() == pytest.approx(lines_of(path, "policy/0")[0]["reward"], abs=1e-5)


@pytest.mark.parametrize("line", ["", "policy.surrogate=ppo_clip policy.epochs=4", "policy.beta=1.0 policy.reference=init"])
def test_the_kl_that_is_logged_is_that_of_the_samples(finished, line):
    """policy.max_kl, policy.target_kl and the curves mean the policy that drew the samples, however many updates follow."""
    path, _ = finished
    role = f"policy/{FIXED.index(line)}"
    kept = np.load(path / role / "rollouts/0.npz")["kl"].mean()
    assert lines_of(path, role)[0]["kl"] == pytest.approx(kept, abs=1e-4)


def test_the_tracked_coefficient_moves(finished):
    path, _ = finished
    rows = lines_of(path, f"policy/{FIXED.index('policy.beta=1.0 policy.target_kl=0.000001')}")
    assert rows[0]["beta"] == 1.0 and rows[1]["beta"] != 1.0


def test_it_stops_where_the_reward_tells_too_easily(finished, tmp_path, capfd):
    path, context = finished
    stopping = config_with("adversarial/easy = demo adversarial.max_accuracy=0.4 adversarial.rounds=9")
    _continue(path, tmp_path / "w", stopping)
    assert len(lines_of(tmp_path / "w", "adversarial/easy")) < 9
    assert "too easily" in capfd.readouterr().err


def test_a_kl_budget_ends_the_loop(finished, tmp_path, capfd):
    path, _ = finished
    config = config_with("adversarial/budget = demo policy.max_kl=0.000001 adversarial.rounds=9 policy.learning_rate=0.05")
    _continue(path, tmp_path / "w", config)
    assert len(lines_of(tmp_path / "w", "adversarial/budget")) < 9
    assert "policy.max_kl" in capfd.readouterr().err


def test_a_loss_that_is_not_finite_stops_the_run(finished, tmp_path):
    path, _ = finished
    config = config_with("adversarial/wild = demo policy.learning_rate=1e6 policy.beta=1e30 adversarial.rounds=9", checkpoint__every_steps=1)
    with pytest.raises(UserError, match=r"adversarial/wild: .* at step \d+; the last good checkpoint is .*checkpoints.*learning_rate") as caught:
        _continue(path, tmp_path / "w", config)
    last = checkpoint.latest_step(tmp_path / "w" / "adversarial/wild/checkpoints")
    assert f"checkpoints/{last};" in str(caught.value)
    assert not (tmp_path / "w" / "adversarial/wild/leaves").exists()


def _continue(path, other, config):
    """Runs the adversarial stage of another config on what a finished run has trained before."""
    with workdir.Workdir(other, config):
        pass
    for name in ("pretrain", "sft", "sample", "samples", "reward"):
        os.symlink(path / name, other / name)
    stages.run_pipeline(config, other, ("adversarial",))


def test_whole_trunks_and_the_same_again(tmp_path):
    """adapter.rank = 0, twice: every random choice is keyed."""
    found = []
    for name in ("a", "b"):
        config = config_with("adversarial/x = demo policy.advantage=gae policy.value_coefficient=0.5", adapter__rank=0)
        stages.run_pipeline(config, tmp_path / name, ("pretrain", "sft", "adversarial"))
        found.append(flat(contexts.Context(config, contexts.Reader(tmp_path / name)), "adversarial/x"))
    np.testing.assert_array_equal(*found)


_RUN = """
import sys
sys.path.insert(0, {tests!r})
from test_adversarial import config_with
from irl_jax import stages
config = config_with("adversarial/x = demo policy.normalise_rewards=true policy.target_kl=0.1", "adversarial/token = demo reward.granularity=token "
                     "reward.ensemble=2", checkpoint__every_steps=1, adversarial__rounds=12)
stages.run_pipeline(config, {path!r}, ("pretrain", "sft", "adversarial"))
"""


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    """Bitwise: policy, reward, replay buffer, statistics, and the metrics that were logged."""
    scripts = {name: _RUN.format(tests=os.path.dirname(__file__), path=str(tmp_path / name)) for name in ("whole", "killed")}
    subprocess.run([sys.executable, "-c", scripts["whole"]], check=True, stdout=subprocess.DEVNULL)
    for role, line in (("x", 4), ("token", 5)):
        process = subprocess.Popen([sys.executable, "-c", scripts["killed"]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        metrics = tmp_path / "killed" / "adversarial" / role / "metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and len(metrics.read_text().splitlines()) > line):
            time.sleep(0.02)
        assert process.poll() is None, "the run ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([sys.executable, "-c", scripts["killed"]], check=True, stdout=subprocess.DEVNULL)
    for role in ("x", "token"):
        whole, killed = (tmp_path / name / "adversarial" / role for name in ("whole", "killed"))
        assert (whole / "metrics.jsonl").read_text() == (killed / "metrics.jsonl").read_text()
        manifests = [json.loads((folder / "checkpoints" / "12" / "manifest.json").read_text()) for folder in (whole, killed)]
        assert manifests[0]["leaves"] == manifests[1]["leaves"]
        names = [name for name in manifests[0]["leaves"] if not name.startswith("book.")]
        assert any("buffer" in name for name in names)
        trees = [_checkpoint(folder / "checkpoints" / "12" / "tree") for folder in (whole, killed)]
        for name in names:
            np.testing.assert_array_equal(trees[0][name], trees[1][name], err_msg=name)


def _checkpoint(path):
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        return checkpointer.restore(path.absolute())
