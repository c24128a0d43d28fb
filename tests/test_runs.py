"""Whole runs of other kinds: files and imported models, several devices, every config's miniature, and the leak check."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from tiny import tiny_config

from irl_jax import artifacts, cli, hf, stages, workdir
from irl_jax.models import transformer
from irl_jax.stages import context as contexts
from irl_jax.stages import policy, pretrain, reward, sample, sft

ROOT = pathlib.Path(__file__).resolve().parent.parent


def _tiny_folder(path):
    """A GPT-2 folder of a few hundred parameters with a word-level tokenizer."""
    import jax
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<eos>", "<pad>", "<unk>", *"abcdefghijklmnopqrstuvwxyz"]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")
    model = transformer.ModelConfig(vocab_size=len(words), num_layers=1, width=16, num_heads=2, num_kv_heads=2, head_dim=8, mlp_width=32,
                                    max_positions=64)
    hf.save_folder(path, model, transformer.init_trunk(jax.random.key(0), model), tokenizer)
    return str(path)


def _records(path, count=60):
    rng = np.random.default_rng(0)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    lines = [{"prompt": " ".join(rng.choice(letters, 4)), "response": " " + " ".join(rng.choice(letters, 6))} for _ in range(count)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def _file_config(tmp_path, **changes):
    return tiny_config(model__path=_tiny_folder(tmp_path / "model"), data__source=_records(tmp_path / "d.jsonl"), golden__kind="none",
                       data__max_prompt_tokens=8, data__max_response_tokens=8, data__heldout_fraction=0.2, sft__steps=2,
                       reward__recipes=("init_sft", "init_demo"), reward__controls=("log_ratio", "length", "random"),
                       **changes)


def test_imported_model_and_a_file_without_a_judge(tmp_path):
    stages.run_pipeline(_file_config(tmp_path), tmp_path / "w")
    results = json.loads((tmp_path / "w" / "results.json").read_text())
    assert results["golden"] is None and results["divergences"] is None and results["paired"] == []
    assert {role for role in results["policies"] if "@" not in role} == {"init", "demo", "sft", "policy/init_sft"}
    assert all(row["golden_mean"] is None and row["length_mean"] > 0 for row in results["policies"].values())
    assert all(row["best_of_n"] == [] and row["spearman_golden"] is None for row in results["rewards"].values())
    assert 0 <= results["rewards"]["init_demo"]["heldout_auc"] <= 1
    assert (tmp_path / "w" / "report" / "index.html").exists()


@pytest.mark.parametrize("stage, line, message", [
    ("data", '{"prompt": "a b", "respons": "c"}', "line 3"),
    ("data", '{"prompt": "a b", "response": ""}', "line 3"),
    ("data", '{"prompt": ', "line 3"),
    ("data", json.dumps({"prompt": "a " * 30, "response": "b"}), "30"),
])
def test_bad_records_are_one_line_and_bind_no_workdir(tmp_path, capsys, stage, line, message):
    config = _file_config(tmp_path)
    source = pathlib.Path(config.data.source)
    good = source.read_text().splitlines()
    source.write_text("\n".join([*good[:2], line, *good[2:]]) + "\n")
    file = tmp_path / "config.py"
    settings = {"model__path": config.model.path, "data__source": config.data.source, "golden__kind": "none",
                "data__max_prompt_tokens": 8, "data__max_response_tokens": 8, "reward__recipes": ("init_sft",)}
    file.write_text(f"import sys\nsys.path.insert(0, {str(ROOT / 'tests')!r})\nfrom tiny import tiny_config\n"
                    f"def get_config(name=''):\n    return tiny_config(**{settings!r})\n")
    status = cli.main(["run", f"--config={file}", f"--workdir={tmp_path / 'w'}"])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert status == 2 and error.startswith("irl_jax: error:") and message in error
    assert not (tmp_path / "w" / "config.json").exists()


def test_every_step_is_traced_once_a_bucket_in_a_run(tmp_path):
    config = tiny_config()
    with workdir.Workdir(tmp_path / "w", config) as place:
        context = contexts.Context(config, place)
        for stage in (pretrain, sft, sample, reward, policy):
            stage.run(context)
    assert {name: step.traces for name, step in context.steps.items() if step.traces != 1} == {}
    kinds = [name[0] if name[0] != "reward" else name[1] for name in context.steps]
    assert sorted(kinds) == ["advantages", "bce", "bradley_terry", "draw", "judge", "policy", "pretrain", "sft"]  # three rewards share one
    buckets = len({-(-len(e.prompt) // 8) for e in context.demonstrations + context.evaluation})
    (draw,) = context.samplers.values()
    assert draw.traces <= buckets  # init has an adapter of zeros, as sft has its own


_EIGHT = """
import sys
sys.path.insert(0, {tests!r})
import jax
assert len(jax.devices()) == {devices}
from tiny import tiny_config
from irl_jax import stages
STAGES = ("pretrain", "sft", "sample", "reward", "policy", "adversarial", "dpo")
changes = dict(pretrain__batch_size=13, sft__batch_size=5, sft__accumulate=2, reward__batch_size=10, policy__batch_size=3, dpo__batch_size=3)
changes |= dict(reward__recipes=("init_sft",), dpo__recipes=("sft_demo",), dpo__steps=3, adversarial__recipes=("demo",), adversarial__rounds=3)
changes |= dict(adversarial__warmup_rounds=1, adversarial__reward_rows=10, policy__advantage="reinforce", policy__normalise_rewards=True)
changes |= dict(policy__keep_rollouts_every=1)
stages.run_pipeline(tiny_config(mesh__fsdp={fsdp}, mesh__tensor={tensor}, **changes), {path!r}, STAGES)
"""


@pytest.mark.slow
def test_eight_devices_through_the_stages(tmp_path):
    """No batch size here is a multiple of eight: rows that count nothing fill them, and nothing is miscounted."""
    kept = {}
    for devices, fsdp, tensor in ((1, 1, 1), (8, 4, 2)):
        path = tmp_path / str(devices)
        script = _EIGHT.format(tests=str(ROOT / "tests"), devices=devices, fsdp=fsdp, tensor=tensor, path=str(path))
        environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        subprocess.run([sys.executable, "-c", script], check=True, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL)
        kept[devices] = {stage: artifacts.read_jsonl(path / stage / "metrics.jsonl") for stage in (
            "pretrain", "sft", "reward/init_sft", "policy/init_sft", "dpo/sft_demo")}
        assert len(artifacts.read_jsonl(path / "adversarial" / "demo" / "metrics.jsonl")) == 3
    for role in ("init", "sft"):
        one, eight = (dict(np.load(tmp_path / str(devices) / "samples" / role / "reward.npz")) for devices in (1, 8))
        assert (one["tokens"] != eight["tokens"]).any(-1).sum() <= 1 + one["mask"].sum() / 10_000  # that part somewhere
    # what follows a sample that another rounding parted is another run: near-ties are the samples' to bear, not the metrics'
    rollouts = [[np.load(path)["tokens"] for path in sorted((tmp_path / str(devices) / "policy" / "init_sft" / "rollouts").glob("*.npz"))]
                for devices in (1, 8)]
    same = next((i for i, (one, eight) in enumerate(zip(*rollouts, strict=True)) if (one != eight).any()), len(rollouts[0]))
    assert rollouts[0][0].shape == (3 * 4, rollouts[0][0].shape[1])  # and none of the rows that fill the batch
    for stage, one in kept[1].items():
        steps = same if stage.startswith("policy") else len(one)
        for name in {name for line in one for name in line}:
            start = int((stage, name) == ("dpo/sft_demo", "accuracy"))  # at the first step margins are nil but for rounding
            values = [[line[name] for line in kept[devices][stage][start:steps] if name in line] for devices in (8, 1)]
            np.testing.assert_allclose(*values, rtol=1e-5, atol=1e-5, err_msg=f"{stage}: {name}")


@pytest.mark.slow
def test_no_learnt_reward_tells_sft_from_init_better_than_the_log_ratio(tmp_path):
    """Neyman-Pearson: the exact log-ratio is the best test there is; a higher AUC by more than noise is a leak."""
    config = tiny_config(pretrain__steps=150, sft__steps=60, sft__batch_size=16, reward__steps=80, reward__batch_size=32,
                         reward__eval_every=20, reward__learning_rate=3e-3, sample__reward_prompts=200, sample__reward_samples=4,
                         data__testbed__pretrain_responses=4000, data__testbed__demonstrations=300, reward__recipes=("init_sft",))
    stages.run_pipeline(config, tmp_path / "w")
    rewards = json.loads((tmp_path / "w" / "results.json").read_text())["rewards"]
    gap = rewards["init_sft"]["auc_minus_log_ratio"]
    assert gap["difference"] <= 3 * gap["stderr"]
    assert rewards["log_ratio"]["heldout_auc"] > 0.7 and rewards["init_sft"]["heldout_auc"] > 0.55  # there was something to tell


def _config(name, variant):
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["testbed", "imdb", "hh_harmless", "demonstrations"])
@pytest.mark.parametrize("variant", ["", "smoke"])
def test_configs_pass_the_check(name, variant, shared, monkeypatch):
    from irl_jax.checks import check

    monkeypatch.setenv("IRL_JAX_SHARED", str(shared))
    check(_config(name, variant))
