"""DPO, SPIN and rejection fine-tuning on a tiny testbed: what they train on, what they leave, that they resume."""

import json
import shutil

import jax
import numpy as np
import pytest
from tiny import tiny_config

from irl_jax import stages, variants
from irl_jax.artifacts import load_arrays
from irl_jax.stages import context as contexts
from irl_jax.stages import pairs, rejection, sampling, scoring, spin
from irl_jax.types import Example

METHODS = {
    "dpo__recipes": ("init_sft",), "dpo__steps": 3, "dpo__batch_size": 4,
    "spin__recipes": ("demo",), "spin__steps": 2, "spin__batch_size": 4, "spin__prompts": 8, "spin__samples": 2,
    "rejection__recipes": ("log_ratio",), "rejection__prompts": 8, "rejection__samples": 4, "rejection__steps": 2,
    "rejection__iterations": 2, "reward__recipes": (), "policy__recipes": (),
    "variants": (
        "dpo/sharp = init_sft dpo.beta=2.0",
        "spin/once = demo spin.iterations=1",
        "rejection/two = log_ratio rejection.samples=2 rejection.iterations=1",
    ),
}  # fmt: skip
STAGES = ("pretrain", "sft", "sample", "dpo", "spin", "rejection")
ROLES = ("dpo/init_sft", "dpo/sharp", "spin/demo", "spin/once", "rejection/log_ratio", "rejection/two")


def config(**changes):
    small = {"model__num_layers": 1, "sample__reward_prompts": 16, "sample__eval_samples": 2, "eval__prompts": 2}
    return tiny_config(**small | METHODS | changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The three stages, each with a variant, in LoRA mode."""
    path = tmp_path_factory.mktemp("baselines") / "lora"
    stages.run_pipeline(config(), path, STAGES)
    return path


@pytest.fixture(scope="module")
def reading(finished):
    return contexts.Context(config(), contexts.Reader(finished))


def flat(leaves):
    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(leaves)])


def differ(a, b):
    return not np.array_equal(flat(a), flat(b))


def metrics_of(path, name):
    return [json.loads(line) for line in (path / name / "metrics.jsonl").read_text().splitlines()]


def test_every_method_leaves_a_policy_of_its_own(finished, reading):
    leaves = {role: reading.leaves(role) for role in ("sft", *ROLES)}
    structure = jax.tree.structure(leaves["sft"])
    assert all(jax.tree.structure(tree) == structure for tree in leaves.values())
    for i, one in enumerate(leaves):
        assert all(differ(leaves[one], leaves[other]) for other in list(leaves)[i + 1 :]), one
    for role in ROLES:
        timing = json.loads((finished / role / "done.json").read_text())["timing"]
        assert timing["seconds"] > 0 and timing["tokens_per_second"] > 0
    for role, count in (("spin/demo", 2), ("spin/once", 1), ("rejection/log_ratio", 2), ("rejection/two", 1)):
        assert len(list((finished / role).glob("iteration-*"))) == count


def test_dpo_starts_at_its_reference(finished):
    for role in ("dpo/init_sft", "dpo/sharp", "spin/demo/iteration-0", "spin/demo/iteration-1"):
        first = metrics_of(finished, role)[0]
        assert first["loss"] == pytest.approx(np.log(2), abs=1e-4) and first["margin"] == pytest.approx(0, abs=1e-4), role
    timing = json.loads((finished / "dpo/init_sft" / "done.json").read_text())["timing"]
    assert 0 <= timing["heldout_accuracy"] <= 1


def test_the_iterates_are_a_chain(finished, reading):
    """The samples of an iteration are of the last one's policy, which is also its reference."""
    sft = reading.leaves("sft")
    first = reading.load("spin/demo/iteration-0", sft)
    assert differ(first, sft) and differ(first, reading.leaves("spin/demo"))
    np.testing.assert_array_equal(flat(reading.load("spin/demo/iteration-1", sft)), flat(reading.leaves("spin/demo")))
    prompts = reading.training_prompts[:8]
    for name, leaves in (("spin/demo/iteration-0", sft), ("spin/demo/iteration-1", first)):
        samples = sampling.load_from(finished / name / "samples.npz", prompts, stage="spin")
        own = samples["logprobs"].sum(-1).reshape(-1)
        np.testing.assert_allclose(reading.scorer.logprobs(leaves, samples["examples"]), own, rtol=2e-5, atol=2e-4)
        positives, negatives = spin.against_demonstrations(reading.demonstrations, samples["examples"])
        kept = load_arrays(finished / name / pairs.REFERENCE)["logprobs"]
        np.testing.assert_allclose(kept, reading.scorer.logprobs(leaves, positives + negatives).reshape(2, -1), rtol=1e-6)


def test_the_best_of_n_is_the_rewards_argmax(finished, reading):
    prompts = reading.training_prompts[:8]
    for name, count in (("rejection/log_ratio/iteration-0", 4), ("rejection/two/iteration-0", 2)):
        samples = sampling.load_from(finished / name / "samples.npz", prompts, stage="rejection")["examples"]
        assert len(samples) == 8 * count
        rewards = np.asarray(scoring.rewards(reading, "log_ratio", samples)).reshape(8, count)
        kept = load_arrays(finished / name / rejection.CHOSEN)
        np.testing.assert_allclose(kept["rewards"], rewards, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(kept["best"], rewards.argmax(axis=1))
        timing = json.loads((finished / name / "done.json").read_text())["timing"]
        assert timing["chosen_reward_mean"] == pytest.approx(rewards.max(axis=1).mean(), abs=1e-4)
        assert timing["chosen_reward_mean"] > timing["reward_mean"]


def test_rejection_trains_on_the_best_alone(monkeypatch, finished, reading):
    """The examples that the SFT feed is given are the chosen samples, one a prompt."""
    seen = []

    def feed(context, examples, config, name):
        seen.extend(examples)
        raise InterruptedError

    monkeypatch.setattr(rejection.training, "sequence_feed", feed)
    with pytest.raises(InterruptedError):
        rejection._improve(_Kept(reading, finished), "rejection/log_ratio/iteration-0", None, "log_ratio")
    prompts = reading.training_prompts[:8]
    samples = sampling.load_from(finished / "rejection/log_ratio/iteration-0/samples.npz", prompts, stage="rejection")["examples"]
    kept = load_arrays(finished / "rejection/log_ratio/iteration-0" / rejection.CHOSEN)["best"]
    assert len(seen) == 8
    for p, example in enumerate(seen):
        np.testing.assert_array_equal(example.response, samples[4 * p + kept[p]].response)
        np.testing.assert_array_equal(example.prompt, prompts[p])


class _Kept:
    """A reading context."""

    def __init__(self, context, path):
        self._context, self._path = context, path

    def __getattr__(self, name):
        return getattr(self._context, name)

    def directory(self, name):
        return self._path / name


def test_a_killed_run_goes_on_from_its_finished_iterations(finished, tmp_path):
    """Killed in the last iteration after its samples were drawn: the first is not redone, and the policy is the same."""
    path, roles = tmp_path / "w", ("dpo/init_sft", "spin/demo", "rejection/log_ratio")
    shutil.copytree(finished, path)
    unfinished = [path / "dpo/init_sft", path / "spin/demo/iteration-1", path / "rejection/log_ratio/iteration-1"]
    written = {path / role / "done.json" for role in roles} | {path / role.split("/")[0] / "done.json" for role in roles}
    for role in roles:
        shutil.rmtree(path / role / "leaves")
    for folder in unfinished:
        for left in ("leaves", "checkpoints"):
            shutil.rmtree(folder / left, ignore_errors=True)
        for left in ("done.json", "metrics.jsonl", "progress.json", "events.out.tfevents.000001"):
            (folder / left).unlink(missing_ok=True)
    for mark in written:
        mark.unlink(missing_ok=True)
    kept = {p: p.stat().st_mtime_ns for p in path.rglob("*") if p.is_file() and p.name != ".lock"}
    stages.run_pipeline(config(), path, ("dpo", "spin", "rejection"))
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    again = contexts.Context(config(), contexts.Reader(path))
    whole = contexts.Context(config(), contexts.Reader(finished))
    for role in roles:
        np.testing.assert_array_equal(flat(again.leaves(role)), flat(whole.leaves(role)))


def test_whole_trunk_mode(tmp_path):
    changes = {"adapter__rank": 0, "variants": (), "spin__iterations": 1, "rejection__iterations": 1, "dpo__recipes": ("preference",)}
    stages.run_pipeline(config(**changes), tmp_path / "w", ("pretrain", "sft", "dpo", "spin", "rejection"))
    context = contexts.Context(config(**changes), contexts.Reader(tmp_path / "w"))
    trunk = flat(context.trunk)
    for role in ("dpo/preference", "spin/demo", "rejection/log_ratio"):
        assert set(context.leaves(role)) == {"trunk"} and differ(context.leaves(role), context.leaves("sft"))
        assert not np.array_equal(flat(context.leaves(role)), trunk)


def test_pairs_stand_on_the_same_prompt_and_leave_nothing_out():
    def example(prompt, number):
        return Example(np.array([prompt], np.int32), np.array([number], np.int32), True)

    demonstrations = [example(1, 0), example(2, 1), example(2, 2), example(3, 3)]
    samples = [example(1, 10), example(1, 11), example(2, 12), example(4, 13)]
    ours, theirs = spin.against_demonstrations(demonstrations, samples)
    numbers = [(int(a.prompt[0]), int(b.prompt[0]), int(a.response[0]), int(b.response[0])) for a, b in zip(ours, theirs, strict=True)]
    assert numbers == [(1, 1, 0, 10), (1, 1, 0, 11), (2, 2, 1, 12), (2, 2, 2, 12)]


def test_best_takes_the_first_of_a_tie():
    np.testing.assert_array_equal(rejection.best(np.array([[0.0, 2.0, 2.0], [3.0, 1.0, 3.0]])), [1, 0])


def test_methods_are_those_of_the_config():
    assert tuple(m.role for group in ("dpo", "spin", "rejection") for m in variants.methods(config(), group)) == ROLES
