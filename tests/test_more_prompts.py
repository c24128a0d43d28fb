"""Prompts without responses in a run: init and sft are sampled for them, evaluation has some, and no recipe that needs demonstrations does."""

import json

import numpy as np
import pytest
from malformed_box import RIGHT
from test_export import GPT2, base_folder
from tiny import tiny_config

from irl_jax import cli, workdir
from irl_jax.stages import context as contexts
from irl_jax.stages import recipe_data

ASKED = "".join(json.dumps({"prompt": f"w{i % 9} w{i // 9} w5"}) + "\n" for i in range(30))


def context_of(**changes):
    return contexts.Context(tiny_config(**changes), contexts.Reader("nowhere"))


def test_the_testbeds_demonstrations_come_first_and_stay():
    plain, more = context_of(), context_of(data__testbed__prompts=40)
    assert plain.corpus == more.corpus._replace(prompts=[]) and not plain.more_prompts
    own, all_of_them = ([prompt.tobytes() for prompt in context.training_prompts] for context in (plain, more))
    assert len(all_of_them) == len(set(all_of_them)) == len(own) + 40 and all_of_them[: len(own)] == own
    assert [prompt.tobytes() for prompt in more.demonstrated_prompts] == own
    assert [prompt.tobytes() for prompt in more.reward_prompts] == own[:32]
    more.config.sample.reward_prompts = 80
    assert len(more.reward_prompts) == 80


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    base = base_folder(folder / "m", GPT2)
    (folder / "d.jsonl").write_bytes(RIGHT)
    (folder / "p.jsonl").write_text(ASKED)
    settings = {"golden.kind": "none", "data.max_prompt_tokens": 12, "data.max_response_tokens": 8, "data.heldout_fraction": 0.2,
                "data.source": folder / "d.jsonl", "data.prompts_source": folder / "p.jsonl", "model.path": base, "sft.steps": 2,
                "reward.steps": 2, "reward.recipes": "init_sft,init_demo", "policy.recipes": "", "adversarial.recipes": "",
                "reward.controls": "length", "sample.reward_samples": 2, "sample.eval_samples": 4, "sample.policy_samples": 2,
                "eval.best_of": "1,2"}
    assert cli.main(["run", f"--workdir={folder / 'w'}", "--stages=pretrain,sft,sample,reward,evaluate,report",
                     *(f"--config.{key}={value}" for key, value in settings.items())]) == 0
    return contexts.Context(workdir.read_config(folder / "w"), contexts.Reader(folder / "w"))


def test_init_and_sft_are_sampled_for_them(run):
    demonstrated, total = len(run.demonstrated_prompts), len(run.training_prompts)
    assert (demonstrated, total) == (30, 54)  # 8 and 6 held out, 2 of the demonstrations' for early stopping
    for role in ("init", "sft"):
        assert np.load(run.workdir.path / f"samples/{role}/reward.npz")["tokens"].shape[0] == total
    assert {"init_sft": total, "init_demo": demonstrated} == {
        recipe: len({e.prompt.tobytes() for part in recipe_data.data_of(run, recipe)[:2] for side in part for e in side}
                    | {e.prompt.tobytes() for e in recipe_data.data_of(run, recipe)[2][0]}) for recipe in ("init_sft", "init_demo")}


def test_evaluation_without_a_reference_response(run):
    results = json.loads((run.workdir.path / "results.json").read_text())
    assert [len(example.response) > 0 for example in run.evaluation] == [True] * 8 + [False] * 6
    assert results["policies"]["sft"]["n"] == 14 and results["policies"]["demo"]["n"] == 8
    assert not {e.prompt.tobytes() for e in run.evaluation} & {prompt.tobytes() for prompt in run.training_prompts}
