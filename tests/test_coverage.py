"""What kinds of sentences a policy writes, and reward against golden over training: by hand."""

import math
import types

import numpy as np
import pytest

from irl_jax import artifacts
from irl_jax.config import default
from irl_jax.data.testbed import build_world, coverage, grammar, vocabulary
from irl_jax.data.testbed.prompts import read_prompt
from irl_jax.data.testbed.world import text_of
from irl_jax.evaluation import metrics
from irl_jax.stages import divergences, evaluate, over_training, temperatures

TOPIC, HARM = vocabulary.TOPICS[0], vocabulary.HARMS[0]


def named(prompt, response):
    counts = coverage.kind_counts([prompt], [response])[0]
    return {coverage.KINDS[i]: int(n) for i, n in enumerate(counts) if n}


@pytest.fixture(scope="module")
def world():
    config = default().data.testbed
    config.pretrain_responses, config.demonstrations, config.pairs, config.eval_prompts = 50, 60, 0, 20
    return build_world(config, 0)


def prompt_of(world, kind):
    return next((record.prompt, read_prompt(record.prompt)) for record in world.corpus.train if read_prompt(record.prompt).kind == kind)


def test_sentences_by_hand(world):
    prompt, asked = prompt_of(world, "request")
    (verb, noun), (verb2, noun2) = grammar.items_of("request", asked.group)[:2]
    opening, register = " ".join(vocabulary.PLAIN_OPENINGS[0]), " ".join(vocabulary.REGISTERS[1][0])
    text = f"{opening}. first {verb} the {noun}. then {verb2} the {noun2}. {verb} the {noun}. i cannot help with that. blah blah."
    assert named(prompt, text) == {"opening 0": 1, "request 0": 2, "request 1": 1, coverage.OTHER: 2}
    assert named(prompt, f"{register}.") == {f"opening {len(vocabulary.PLAIN_OPENINGS) + 1}": 1}
    prompt, asked = prompt_of(world, "harm")
    reason, alternative = grammar.items_of("harm", asked.group)[0], grammar.items_of("harm", asked.group)[3]
    text = f"i cannot help with that. it would {reason[0]} the {reason[1]}. {alternative[0]} the {alternative[1]}."
    assert named(prompt, text) == {"refusal": 1, "harm 0": 1, "harm 3": 1}


def test_the_demonstrator_writes_hardly_anything_else(world):
    prompts = [record.prompt for record in world.corpus.train] * 5
    texts = [text_of(ids, list(world.ids)) for ids in world.demonstrate(prompts, seed=3)]
    counts = world.sentence_counts(prompts, texts)
    share = counts.sum(0) / counts.sum()
    assert share[-1] < 0.1 and np.all(share[:-1] > 0)
    initial = world.sentence_counts(prompts, [text_of(ids, list(world.ids)) for ids in world.write_initially(prompts, seed=3)])
    assert initial.sum(0)[-1] / initial.sum() > 0.25


def test_coverage_by_hand():
    shares = np.array([0.5, 0.3, 0.2])  # the last is other
    row = metrics.coverage(np.array([[4.0, 0, 1], [2, 0, 3]]), shares)  # q = .6, 0, .4
    assert row["coverage"] == pytest.approx(0.5 / 0.8) and row["kind_entropy"] == 0 and row["other_kinds"] == pytest.approx(0.4)
    assert row["coverage_unweighted"] == pytest.approx(0.5)  # one kind of two, the common one
    rare = metrics.coverage(np.array([[0.0, 6, 0, 4]]), np.array([0.6, 0.2, 0.0, 0.2]))  # one kind is never the demonstrator's
    assert rare["coverage"] == pytest.approx(0.2 / 0.8) and rare["coverage_unweighted"] == pytest.approx(0.5)
    same = metrics.coverage(np.tile(shares * 10, (4, 1)), shares)
    assert same["coverage"] == pytest.approx(1) and same["coverage_stderr"] == pytest.approx(0)
    p = np.array([0.5, 0.3]) / 0.8
    assert same["kind_entropy"] == pytest.approx(-(p * np.log(p)).sum())


def test_the_bootstrap_is_that_of_the_mean():
    """other_kinds with one sentence a prompt is a share of prompts: its standard error is the binomial's."""
    rng = np.random.default_rng(0)
    other = (rng.random(400) < 0.3).astype(float)
    row = metrics.coverage(np.stack([1 - other, np.zeros(400), other], axis=1), np.array([0.6, 0.2, 0.2]), resamples=2000)
    q = other.mean()
    assert row["other_kinds_stderr"] == pytest.approx(math.sqrt(q * (1 - q) / 400), rel=0.06)


def test_golden_at_the_same_kl():
    curve = {"kl": [0.0, 1.0, 0.8, 2.0], "golden": [0.5, 0.6, 0.9, 0.4], "golden_stderr": [9.0, 0.04, 9.0, 0.02]}
    start = (0.5, 0.03)
    assert over_training.at_same_kl(curve, 0.5, start) == pytest.approx((0.55, math.hypot(0.015, 0.02)))
    assert over_training.at_same_kl(curve, 1.25, start) == pytest.approx((0.55, math.hypot(0.03, 0.005)))
    assert over_training.at_same_kl(curve, 0.0, start) == pytest.approx(start)
    assert over_training.at_same_kl(curve, 2.0, start) == pytest.approx((0.4, 0.02))
    assert over_training.at_same_kl(curve, 2.5, start) is None and over_training.at_same_kl(curve, -0.1, start) is None
    never_moved = {"kl": [-0.1, 0.0], "golden": [0.1, 0.2], "golden_stderr": [1.0, 1.0]}
    assert over_training.at_same_kl(never_moved, 0.0, start) == pytest.approx(start)


def test_the_comparison_at_the_same_kl_is_with_sft_or_not_at_all():
    policies = {"sft": dict(golden_mean=0.5, golden_stderr=0.0), "policy/init_sft": dict(golden_mean=0.7, kl_to_sft=1.0, golden_stderr=0.0),
                "dpo/far": dict(golden_mean=0.7, kl_to_sft=3.0, golden_stderr=0.0),
                "dpo/near": dict(golden_mean=0.9, kl_to_sft=0.5, golden_stderr=0.03)}
    curves = {"policy/init_sft": {"kl": [1.0], "golden": [0.6], "golden_stderr": [0.08]}}
    config = default()
    evaluate._compare_at_kl(config, policies, curves)
    assert policies["dpo/near"]["at_same_kl"] == pytest.approx(0.35) and policies["dpo/far"]["at_same_kl"] is None
    assert policies["dpo/near"]["at_same_kl_stderr"] == pytest.approx(0.05)
    assert "at_same_kl" not in policies["policy/init_sft"]
    config.policy.reference = "init"  # the curve's KL is then to another policy
    others = {role: {k: v for k, v in row.items() if not k.startswith("at_")} for role, row in policies.items()}
    evaluate._compare_at_kl(config, others, curves)
    assert not any("at_same_kl" in row for row in others.values())


def test_paired_rows_compare_with_sft_and_with_the_baseline():
    class Some:
        def __init__(self, golden):
            self.golden, self.lengths = np.array(golden), np.array(golden) * 10

        def by_prompt(self, values):
            return values.reshape(2, -1)

    sets = {"init": Some([0.0, 0.0]), "demo": Some([1.0]), "sft": Some([0.2, 0.4, 0.3, 0.5]), "policy/init_sft": Some([0.4, 0.5]),
            "dpo/x": Some([0.5, 0.7])}
    golden = {role: judged.by_prompt(judged.golden).mean(1) for role, judged in sets.items() if role != "demo"}

    def compared(*policies):
        return {row["name"]: row for row in temperatures.differences(evaluate._paired(sets, golden, [], policies))}

    rows = compared("policy/init_sft", "dpo/x")
    assert rows["dpo/x - policy/init_sft"]["difference"] == pytest.approx(0.15) and rows["dpo/x - policy/init_sft"]["n"] == 2
    assert rows["dpo/x - sft"]["difference"] == pytest.approx(0.25)
    assert "policy/init_sft - policy/init_sft" not in rows
    assert not any("policy/init_sft" in name for name in compared("dpo/x"))


def test_curves_judge_the_kept_rollouts_in_order(tmp_path):
    folder = tmp_path / "policy" / "x" / "rollouts"
    folder.mkdir(parents=True)
    for step, shift in ((0, 0.0), (10, 1.0), (9, 0.5)):
        artifacts.save_arrays(folder / f"{step}.npz", tokens=np.array([[1, 2, 3, 0], [1, 2, 4, 5]]), prompt_lengths=np.array([2, 1]),
                            lengths=np.array([3, 4]), ended=np.array([True, False]), reward=np.array([1.0, 3.0]) + shift,
                            kl=np.array([0.2, 0.4]) + shift)
    context = types.SimpleNamespace(workdir=types.SimpleNamespace(path=tmp_path), text=lambda ids: " ".join(map(str, ids)))
    seen = []

    class Judge:
        def score(self, prompts, responses):
            seen.append((prompts, responses))
            return [len(response) for response in responses]

    got = over_training.curves(context, Judge(), ["policy/x", "policy/none"])
    assert list(got) == ["policy/x"] and got["policy/x"]["step"] == [0, 9, 10]
    assert seen[0] == (["1 2", "1"], ["3", "2 4 5"])
    np.testing.assert_allclose(got["policy/x"]["reward"], [2, 2.5, 3])
    np.testing.assert_allclose(got["policy/x"]["golden"], [3, 3, 3])
    np.testing.assert_allclose(got["policy/x"]["golden_stderr"], [2, 2, 2])
    np.testing.assert_allclose(got["policy/x"]["kl"], [0.3, 0.8, 1.3])
    np.testing.assert_allclose(got["policy/x"]["reward_stderr"], [1, 1, 1])
    assert over_training.curves(context, None, ["policy/x"]) == {}


def test_errors_of_the_curves_are_over_prompts(tmp_path):
    """Four samples of two prompts, equal within a prompt, are two pieces of evidence."""
    folder = tmp_path / "policy" / "x" / "rollouts"
    folder.mkdir(parents=True)
    artifacts.save_arrays(folder / "0.npz", tokens=np.array([[1, 9], [1, 9], [2, 9], [2, 9]]), prompt_lengths=np.ones(4, int),
                        lengths=np.full(4, 2), ended=np.ones(4, bool), reward=np.array([1.0, 1.0, 3.0, 3.0]), kl=np.zeros(4))
    context = types.SimpleNamespace(workdir=types.SimpleNamespace(path=tmp_path), text=lambda ids: " ".join(map(str, ids)))
    judge = types.SimpleNamespace(score=lambda prompts, responses: [float(prompt) for prompt in prompts])
    curve = over_training.curves(context, judge, ["policy/x"])["policy/x"]
    assert curve["reward"] == [2.0] and curve["reward_stderr"] == [pytest.approx(1.0)]
    assert curve["golden"] == [1.5] and curve["golden_stderr"] == [pytest.approx(0.5)]


def test_the_demonstrators_own_row_has_as_many_samples_as_a_policy(world):
    config = default()
    config.sample.policy_samples = 16
    words = list(world.ids)
    evaluation = [types.SimpleNamespace(prompt=record.prompt) for record in world.corpus.evaluation]
    context = types.SimpleNamespace(config=config, world=world, evaluation=evaluation,
                                    text=lambda part: part if isinstance(part, str) else text_of(part, words))
    counts = divergences._demonstrator_counts(context, 2)
    assert counts.shape == (len(evaluation), 16, len(coverage.KINDS))
    asked = [read_prompt(example.prompt).kind for example in evaluation]
    refusals = counts[:, :, coverage.KINDS.index("refusal")].sum(1)
    assert all((refused > 0) == (kind == "harm") for refused, kind in zip(refusals, asked, strict=True))  # prompt by prompt
    row = metrics.coverage(counts.sum(1), divergences._demonstrator_shares(context))
    fewer = metrics.coverage(counts[:, 0], divergences._demonstrator_shares(context))
    assert row["coverage"] > fewer["coverage"] + 0.1  # what one sample a prompt cannot show
