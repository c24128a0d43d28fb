"""What the config refuses before anything is written."""

import pathlib

import pytest

from irl_jax import cli
from irl_jax.checks import check
from irl_jax.config import LEARNT, default
from irl_jax.data import recipes
from irl_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_the_default_is_fine():
    check(default())


@pytest.mark.parametrize("key, value, message", [
    ("policy.kl", "k1", "policy.kl = 'k1'"),
    ("golden.kind", "human", "golden.kind"),
    ("model.param_dtype", "float16", "model.param_dtype"),
    ("sft.schedule", "step", "cosine, linear, constant"),
    ("policy.recipes", ("golden",), "unknown 'golden'"),
    ("reward.recipes", ("init_sft", "sft_init"), "unknown 'sft_init'"),
    ("reward.recipes", ("sft_demo",), "'init_sft' has no reward"),
    ("reward.batch_size", 0, "reward.batch_size = 0"),
    ("policy.samples", 1, "at least 2"),
    ("model.num_heads", 5, "must divide width"),
    ("adapter.rank", -1, "adapter.rank = -1"),
    ("sft.epochs", 0.0, "steps or of epochs"),
    ("sft.steps", -1, "sft.steps = -1: must not be negative"),
    ("seed", -1, "seed = -1: must not be negative"),
    ("policy.warmup_fraction", 1.0, "policy.warmup_fraction = 1.0: must be at least 0 and below 1"),
    ("sft.final_fraction", -0.1, "sft.final_fraction = -0.1"),
    ("data.heldout_fraction", 1.5, "data.heldout_fraction = 1.5"),
    ("data.development_fraction", -0.5, "data.development_fraction = -0.5"),
    ("reward.heldout_fraction", 1.0, "reward.heldout_fraction = 1.0"),
    ("eval.best_of", (1, 128), "no n is above 1 and at most sample.eval_samples = 64"),
    ("eval.best_of", (1, 0), "every n must be at least 1"),
    ("eval.divergence_prompts", 0, "eval.divergence_prompts = 0"),
    ("model.path", "gpt2", "testbed brings its own vocabulary"),
    ("golden.kind", "classifier", "testbed has a golden reward of its own"),
])
def test_refusals(key, value, message):
    with pytest.raises(UserError, match=message) as caught:
        check(changed(**{key: value}))
    assert "\n" not in str(caught.value)


def changed(**keys):
    config = default()
    config.update_from_flattened_dict(keys)
    return config


@pytest.fixture
def rated(tmp_path):
    """Two files, of which one may be the golden reward's."""
    for name in ("data.jsonl", "golden.jsonl"):
        (tmp_path / name).write_text("")
    return tmp_path


def records(folder, **keys):
    """A config of records in a file, judged by a classifier."""
    return changed(**{"data.source": str(folder / "data.jsonl"), "model.path": "gpt2", "golden.kind": "classifier",
                      "golden.source": str(folder / "golden.jsonl"), **keys})


def test_data_model_and_golden_that_go_together(rated):
    check(records(rated))
    check(records(rated, **{"golden.kind": "none", "golden.source": ""}))  # the control 'golden' is left out then
    check(changed(**{"golden.kind": "none"}))


@pytest.mark.parametrize("key, value, message", [
    ("golden.kind", "testbed", "'testbed' needs data.source = 'testbed'"),
    ("model.path", "", "config.model.path: name a Hugging Face folder"),
    ("golden.source", "", "golden.source: 'classifier' needs"),
    ("golden.source", "{folder}/nowhere.jsonl", "nowhere.jsonl: no such file"),
    ("golden.source", "{folder}/data.jsonl", "data.jsonl is data.source too"),
    ("data.source", "hh:{folder}/./golden.jsonl", "golden.jsonl is data.source too"),
    ("data.preference_source", "{folder}/golden.jsonl", "golden.jsonl is data.preference_source too"),
])
def test_data_model_and_golden_that_do_not(rated, key, value, message):
    with pytest.raises(UserError, match=message) as caught:
        check(records(rated, **{key: value.format(folder=rated)}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["testbed", "methods", "demonstrations", "hh_harmless", "imdb"])
def test_every_config_file_passes(name, monkeypatch, tmp_path):
    golden = tmp_path / "data" / "imdb" / "test.jsonl.gz"
    golden.parent.mkdir(parents=True)
    golden.write_text("")
    monkeypatch.setenv("IRL_JAX_SHARED", str(tmp_path))
    for variant in ("", ":smoke"):
        check(cli.load_config(f"{ROOT / 'configs' / name}.py{variant}"))


def test_the_hard_testbed_has_every_default_and_the_quickstart_another_world():
    path = f"{ROOT / 'configs' / 'testbed.py'}"
    assert cli.load_config(f"{path}:hard").to_dict() == default().to_dict()
    for variant in ("", ":smoke"):
        assert cli.load_config(path + variant).data.testbed.kinds == 1.0
    hard = cli.load_config(f"{path}:hard_smoke")
    check(hard)
    assert hard.data.testbed.kinds == 0.0 and hard.pretrain.steps == cli.load_config(f"{path}:smoke").pretrain.steps
    with pytest.raises(ValueError, match="unknown variant 'easy'; one of 'smoke', 'hard', 'hard_smoke'"):
        cli.load_config(f"{path}:easy")


def test_the_learnt_recipes_are_those_that_have_data():
    assert LEARNT == (*recipes.RECIPES, "preference")
