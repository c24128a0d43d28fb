"""Signs of a hacked reward: each bound by hand, the signs of a batch on device, and a policy's training that ends on them."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_rollouts import MODEL, PADDING_ID, PROMPTS, PromptBatch, drawn_and, scores
from tiny import tiny_config

from irl_jax import policy_steps, rollouts, stages, workdir
from irl_jax.evaluation import hacking, metrics

BASE = {"length": 20.0, "ended": 0.9, "distinct_2": 0.3, "mean_logprob": -2.0, "kl": 0.0}


@pytest.mark.parametrize(("sign", "inside", "outside", "says"), [
    ("length", 30.0, 30.1, "responses have 30.1 tokens where they had 20.0"),
    ("length", 13.4, 13.3, "responses have 13.3 tokens where they had 20.0"),
    ("ended", 0.81, 0.79, "79% of the responses end where 90% did"),
    ("distinct_2", 0.21, 0.19, "19% of the token pairs are distinct where 30% were"),
    ("mean_logprob", -2.49, -2.51, "the reference's mean log-probability is -2.51 nats a token where it was -2.00"),
    ("kl", 9.9, 10.1, "the KL is 10.1 nats a sequence, above 10"),
])
def test_each_bound(sign, inside, outside, says):
    assert hacking.reason({**BASE, sign: inside}, BASE) == ""
    assert hacking.reason({**BASE, sign: outside}, BASE) == says
    assert hacking.reason({sign: outside}, {sign: BASE[sign]}) == says
    assert hacking.reason({}, BASE) == "" and (sign == "kl" or hacking.reason({sign: outside}, {}) == "")


def test_what_is_better_is_no_sign():
    assert hacking.reason({"ended": 1.0, "distinct_2": 0.9, "mean_logprob": -0.1, "kl": 1.0}, BASE) == ""


def test_signs_of_a_batch_are_those_of_its_responses():
    """As `metrics` has them of the responses on the host; rows that only fill the batch count nowhere."""
    filled = PromptBatch(jnp.pad(PROMPTS.tokens, ((0, 1), (0, 0))), jnp.array([2, 3, 1]), jnp.array([0, 1, PADDING_ID]))
    trunk, policy, sft, drawn = drawn_and(filled)
    found = jax.jit(rollouts.signs)(drawn)
    mask = np.asarray(drawn.rows.mask)
    responses = [np.asarray(row)[own > 0] for row, own in zip(drawn.rows.tokens[:6], mask[:6], strict=True)]
    assert found["distinct_2"] == pytest.approx(metrics.distinct_n(responses, 2), rel=1e-6) and found["distinct_2"] < 1
    assert found["length"] == pytest.approx(np.mean([len(response) for response in responses]))
    assert found["ended"] == pytest.approx(np.mean([response[-1] == 1 for response in responses]))
    reference, own = scores(trunk, sft, drawn)[:6], scores(trunk, policy, drawn)[:6]
    assert found["mean_logprob"] == pytest.approx((reference.sum(1) / mask[:6].sum(1)).mean(), rel=1e-5)
    assert found["kl"] == pytest.approx((own - reference).sum(1).mean(), abs=1e-4)


@pytest.mark.parametrize("rows", [[[1, 2, 1, 2, 1]], [[1, 2], [2, 1], [1, 2]], [[7, 7, 7]], [[0, 0, 1]], [[3]]])
def test_distinct_pairs_by_hand(rows):
    tokens = np.zeros((len(rows) + 1, 6), np.int32)
    mask = np.zeros((len(rows) + 1, 6), np.float32)
    for i, row in enumerate(rows):
        tokens[i, 1 : 1 + len(row)], mask[i, 1 : 1 + len(row)] = row, 1
    expected = metrics.distinct_n(rows, 2)
    assert float(rollouts._distinct_2(jnp.asarray(tokens), jnp.asarray(mask))) == pytest.approx(1.0 if np.isnan(expected) else expected)


def test_signs_are_smoothed_change_nothing_and_are_there_where_asked():
    trunk, _, sft, drawn = drawn_and()
    logits = rollouts.make_judge(MODEL, "log_ratio")(trunk, sft, drawn)
    start = {f"smoothed_{name}": jnp.asarray(1.0) for name in hacking.SIGNS}
    batches = []
    for stop in ("", "gate"):
        make = rollouts.make_advantages(MODEL, policy_steps.PolicySettings(stop=stop), 3)
        batch, control, found = make({}, trunk, drawn, logits, policy_steps.init_control(0.3, start if stop else {}))
        assert ("distinct_2" in found) == bool(control.signs) == bool(stop)
        batches.append(batch)
    jax.tree.map(np.testing.assert_array_equal, *batches)
    for name in hacking.SIGNS:
        assert float(control.signs[f"smoothed_{name}"]) == float(found[f"smoothed_{name}"]) == pytest.approx(0.8 + 0.2 * float(found[name]))


def config_with(*variants, **changes):
    """A whole trunk that learns fast against the closed form alone: it leaves sft in a few steps."""
    small = {"model__num_layers": 1, "model__width": 16, "model__mlp_width": 32, "data__max_response_tokens": 24, "adapter__rank": 0,
             "policy__recipes": (), "reward__recipes": (), "policy__steps": 14, "policy__batch_size": 16, "policy__learning_rate": 0.03,
             "policy__beta": 0.0, "policy__warmup_fraction": 0.0, "checkpoint__every_steps": 1, "checkpoint__keep": 50}
    return tiny_config(**small, **changes, variants=variants)


def rows_of(path, role):
    return [json.loads(line) for line in (path / role / "metrics.jsonl").read_text().splitlines()]


CONFIG = config_with(
    "policy/gate = log_ratio policy.stop=gate", "policy/free = log_ratio",
    "policy/calm = log_ratio policy.stop=gate policy.learning_rate=0.000001",
    "adversarial/gate = demo policy.stop=gate adversarial.rounds=14 adversarial.reward_rows=8 adversarial.min_accuracy=0 "
    "adversarial.max_accuracy=1 adversarial.warmup_rounds=1 policy.learning_rate=0.3")
STAGES = ("pretrain", "sft", "policy", "adversarial")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "w"
    stages.run_pipeline(CONFIG, path, STAGES)
    return path


def test_a_hacked_policy_stops_and_others_do_not(finished):
    stopped, free, calm = (rows_of(finished, f"policy/{name}") for name in ("gate", "free", "calm"))
    assert len(stopped) < len(free) == len(calm) == 14
    assert "distinct_2" not in free[0]
    first = {name: calm[0][name] for name in hacking.SIGNS}
    smoothed = [hacking.reason({name: row[f"smoothed_{name}"] for name in hacking.SIGNS}, first) for row in stopped]
    assert smoothed[-2] and not any(smoothed[:-2])  # `stop` acts a step late


def test_an_adversarial_policy_stops_too(finished):
    assert len(rows_of(finished, "adversarial/gate")) < 14


def test_a_resumed_training_stops_at_the_same_step(finished, tmp_path):
    path = shutil.copytree(finished, tmp_path / "w")
    for role in ("policy/gate", "adversarial/gate"):
        folder = path / role
        shutil.rmtree(folder / "leaves")
        for done in (folder / workdir.DONE, folder.parent / workdir.DONE):
            done.unlink()
        for checkpoint in (folder / "checkpoints").iterdir():
            if checkpoint.name.isdigit() and int(checkpoint.name) > 2:
                shutil.rmtree(checkpoint)
    stages.run_pipeline(CONFIG, path, STAGES)
    for role in ("policy/gate", "adversarial/gate"):
        assert rows_of(path, role) == rows_of(finished, role)
