"""What kinds of sentences a policy writes, and reward against golden over training: by hand."""

import math
import types

import numpy as np
import pytest

from irl_jax import workdir
from irl_jax.config import default
from irl_jax.data.testbed import build_world, coverage, grammar, vocabulary
from irl_jax.data.testbed.world import text_of
from irl_jax.evaluation import metrics
from irl_jax.stages import over_training

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
    from irl_jax.data.testbed.prompts import read_prompt

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
    curve = {"kl": [0.0, 1.0, 0.8, 2.0], "golden": [0.5, 0.6, 0.9, 0.4]}
    assert over_training.at_same_kl(curve, 0.5, start=0.5) == pytest.approx(0.55)
    assert over_training.at_same_kl(curve, 1.5, start=0.5) == pytest.approx(0.5)
    assert over_training.at_same_kl(curve, 0.0, start=0.5) == pytest.approx(0.5)
    assert over_training.at_same_kl(curve, 2.5, start=0.5) is None


def test_curves_judge_the_kept_rollouts_in_order(tmp_path):
    folder = tmp_path / "policy" / "x" / "rollouts"
    folder.mkdir(parents=True)
    for step, shift in ((0, 0.0), (10, 1.0), (9, 0.5)):
        workdir.save_arrays(folder / f"{step}.npz", tokens=np.array([[1, 2, 3, 0], [1, 2, 4, 5]]), prompt_lengths=np.array([2, 1]),
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
    assert over_training.curves(context, None, ["policy/x"]) == {}
