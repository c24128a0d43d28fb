"""benchmarks/evidence: estimators on arrays whose answers are known, and the whole analysis of finished runs."""

import hashlib
import json
import math
import pathlib

import numpy as np
import pytest

from benchmarks.evidence import analyse, clustered, disagreement, matched, probes, shift, surface
from irl_jax import cli, stages, workdir
from irl_jax.evaluation import metrics
from irl_jax.evaluation.golden import Judge
from irl_jax.stages import context as contexts
from irl_jax.stages import sampling
from irl_jax.types import Example

ROOT = pathlib.Path(__file__).resolve().parent.parent


# -------------------------------------------------------------------------------------------------------------- clustered
def test_a_clustered_mean_by_hand():
    mean, stderr = clustered.mean([1.0, 2.0, 6.0], [7, 7, 3])
    assert mean == 3.0 and stderr == pytest.approx(math.sqrt(2 / 1 * ((-2 - 1) ** 2 + 3**2)) / 3)  # the deviations' sums: -3 and 3
    values = np.random.default_rng(0).normal(size=20)
    assert clustered.mean(values, np.arange(20))[1] == pytest.approx(values.std(ddof=1) / math.sqrt(20))
    assert math.isnan(clustered.mean([1.0, 2.0], [0, 0])[1]) and math.isnan(clustered.mean([], [])[0])


def test_least_squares_has_the_clustered_sandwichs_errors():
    rng = np.random.default_rng(1)
    groups, x = np.repeat(np.arange(12), 5), rng.normal(size=60)
    y = 2.0 * x + rng.normal(size=12)[groups] + rng.normal(size=60)
    (slope,), (error,) = clustered.least_squares(x[:, None], y, groups)
    assert slope == pytest.approx((x @ y) / (x @ x))
    residual = y - slope * x
    by_hand = sum((x[groups == g] @ residual[groups == g]) ** 2 for g in range(12)) * 12 / 11
    assert error == pytest.approx(math.sqrt(by_hand) / (x @ x))
    (mean,), (of_mean,) = clustered.least_squares(np.ones((60, 1)), y, groups)
    assert (mean, of_mean) == pytest.approx(clustered.mean(y, groups))


def test_the_jackknife_of_a_mean_is_its_standard_error():
    rng = np.random.default_rng(2)
    values, groups = rng.normal(size=(30, 4)), np.repeat(np.arange(30), 4)
    (error,) = clustered.jackknife(lambda keep: np.array([values.ravel()[keep].mean()]), groups)
    assert error == pytest.approx(metrics.mean_stderr(values)[1])
    many, blocks = rng.normal(size=1000), np.arange(1000)
    (error,) = clustered.jackknife(lambda keep: np.array([many[keep].mean()]), blocks)
    assert error == pytest.approx(metrics.mean_stderr(many.reshape(100, 10))[1])  # blocks of ten


# ----------------------------------------------------------------------------------------------------------------- probes
PROMPTS, EACH = 80, 4
GROUPS = np.tile(np.repeat(np.arange(PROMPTS), EACH), 2)
LABELS = np.repeat([1, 0], PROMPTS * EACH)


def draw(seed, *shape):
    return np.random.default_rng([11, seed]).normal(size=shape or len(LABELS))


def test_a_reward_that_is_length_is_explained_by_it_and_nothing_is_left():
    length = np.round(20 + 4 * LABELS + 3 * draw(0) + draw(1, PROMPTS)[GROUPS])
    found = probes.probe(0.3 * length - 2, LABELS, {"tokens": length, "tail": draw(2)}, GROUPS)
    assert found["auc"] == pytest.approx(metrics.auc(length[LABELS == 1], length[LABELS == 0])[0]) and found["auc"] > 0.7
    assert found["residual_auc"] == found["residual_auc_both"] == 0.5 and found["explained"] == found["explained_both"] == 1.0
    assert found["r2"] == pytest.approx(1.0)
    assert found["features_auc"] == pytest.approx(found["auc"], abs=0.03)
    assert found["coefficients"]["tokens"] == pytest.approx(1.0) and found["coefficients"]["tail"] == pytest.approx(0.0, abs=1e-9)
    assert found["explained_stderr"] == pytest.approx(0.0, abs=1e-9) and found["n"] == len(LABELS) and found["prompts"] == PROMPTS


def test_a_reward_that_the_features_say_nothing_of_keeps_its_auc():
    found = probes.probe(LABELS + draw(3), LABELS, {"a": draw(4), "b": draw(5), "fixed": np.ones(len(LABELS))}, GROUPS)
    assert found["auc"] > 0.7 and abs(found["features_auc"] - 0.5) < 0.08 and abs(found["r2"]) < 0.02
    assert abs(found["explained"]) < 0.05 and abs(found["explained_both"]) < 0.05 and found["explained_stderr"] < 0.05
    assert all(abs(found["coefficients"][name]) < 4 * found["coefficients_stderr"][name] for name in "ab")
    assert found["coefficients"]["fixed"] is None and found["coefficients_stderr"]["fixed"] is None


def test_what_is_taken_out_is_the_slope_within_the_classes():
    feature = LABELS + draw(6)
    rest = 0.5 * LABELS + 0.5 * draw(7)
    found = probes.probe(2 * feature + rest, LABELS, {"feature": feature}, GROUPS)
    assert found["residual_auc"] == pytest.approx(metrics.auc(rest[LABELS == 1], rest[LABELS == 0])[0], abs=0.02)
    expected = 1 - (found["residual_auc"] - 0.5) / (found["auc"] - 0.5)
    assert found["explained"] == pytest.approx(expected) and 0 < found["explained_stderr"] < 0.2
    assert found["explained"] < found["explained_both"] < 1  # the feature also stands for the label's own part
    hidden = probes.probe(rest - 0.4 * feature, LABELS, {"feature": feature}, GROUPS)
    assert hidden["residual_auc"] > hidden["auc"] + 0.1 and (hidden["explained"] is None or hidden["explained"] < 0)


def test_folds_share_no_prompt():
    """What only names the prompt explains the logits it was fitted to, and none of other prompts'."""
    of_prompt = np.eye(PROMPTS)[GROUPS]
    logits = 3 * draw(8, PROMPTS)[GROUPS] + 0.1 * draw(9)
    found = probes.probe(logits, LABELS, {str(i): of_prompt[:, i] for i in range(PROMPTS)}, GROUPS)
    assert found["r2"] < 0.05 and found["explained"] is None  # the logits tell no class


def test_too_few_samples_for_the_features_leave_the_fits_out():
    few, many = np.tile(np.arange(4), 4), {str(i): draw(30 + i, 16) for i in range(9)}
    found = probes.probe(draw(40, 16), np.repeat([0, 1], 8), many, few)
    assert found["auc"] is not None and found["prompts"] == 4
    assert found["features_auc"] is found["residual_auc"] is found["explained"] is found["r2"] is None


def test_within_prompts_only_differences_between_a_prompts_samples_count():
    a, b, offset = draw(10, 40, 8), draw(11, 40, 8), 50 * draw(12, 40, 1)
    a, b = (x - x.mean(1, keepdims=True) for x in (a, b))
    a, b = a / a.std(), b / b.std()
    values = 2 * a - b + offset
    found = probes.within_prompts(values, {"a": a + offset, "b": b - 3 * offset, "prompt": offset + 0 * a})
    spread = (2 * a - b).std()
    assert found["coefficients"]["a"] == pytest.approx(2 / spread) and found["coefficients"]["b"] == pytest.approx(-1 / spread)
    assert found["coefficients"]["prompt"] is None and found["r2"] == pytest.approx(1.0)
    noise = probes.within_prompts(draw(13, 40, 8), {"a": a})
    assert abs(noise["r2"]) < 0.05 and abs(noise["coefficients"]["a"]) < 4 * noise["coefficients_stderr"]["a"]
    constant = probes.within_prompts(np.ones((40, 8)), {"a": a})
    assert constant["r2"] is None and constant["coefficients"]["a"] is None


# ---------------------------------------------------------------------------------------------------------- matched pairs
def test_pairs_of_equal_golden_by_hand():
    golden = np.array([[0.0, 0.01, 0.0, 0.9, 0.9], [0.5, 0.2, 0.5, 0.8, 0.3]])
    feature = np.array([[1.0, 3.0, 2.0, 5.0, 5.0], [4.0, 0.0, 1.0, 9.0, 0.0]])
    pairs = matched.of_equal_golden(golden, feature, 0.05)
    assert [x.tolist() for x in pairs] == [[0, 1], [0, 2], [1, 0]]
    assert pairs.difference(feature).tolist() == [2.0, 3.0]


def test_pairs_of_equal_surface_by_hand():
    features = np.array([[[0.0, 1.0, 1.0, 0.0, 5.0]]])
    golden = np.array([[0.0, 1.0, 0.2, 1.0, 0.5]])
    pairs, largest = matched.of_equal_surface(features, golden, 0.3)
    assert largest == 0.0 and sorted(zip(*(x.tolist() for x in pairs), strict=True)) == [(0, 0, 3), (0, 2, 1)]
    assert matched.of_equal_surface(features, golden, 0.9)[0].low.tolist() == [0]
    assert not len(matched.of_equal_surface(features, 0 * golden, 0.0)[0].low)


def planted(prompts=60, samples=32):
    """Samples whose feature goes along with golden and with length, and a reward that likes golden (3) and the feature (delta)."""
    golden = np.round(draw(20, prompts, samples)) / 4
    feature = (draw(21, prompts, samples) + 4 * golden > 0).astype(float)
    length = np.round(10 + 3 * feature + 2 * draw(22, prompts, samples))
    return golden, feature, length, draw(23, prompts, 1) + 0.5 * draw(24, prompts, samples)


@pytest.mark.parametrize("delta", [-0.7, 0.0, 0.7])
def test_a_planted_effect_is_found_with_its_sign_and_size(delta):
    golden, feature, length, noise = planted()
    reward = 3 * golden + delta * feature + noise
    unmatched = reward[feature == 1].mean() - reward[feature == 0].mean()
    assert unmatched > delta + 0.5  # golden goes along
    found, by = matched.of_rewards({"r": reward}, {"feature": feature, "length": length}, golden)
    row, unit = found["r"]["feature"], clustered.within_std(reward)
    assert row["difference"] == pytest.approx(delta / unit, abs=4 * row["stderr"]) and row["stderr"] < 0.05
    assert row["adjusted"] == pytest.approx(delta / unit, abs=4 * row["adjusted_stderr"]) and row["adjusted_stderr"] > row["stderr"]
    assert row["pairs"] > 300 and row["prompts"] == 60 and by["feature_difference"]["feature"] == 1.0
    assert by["golden_tolerance"] == pytest.approx(0.1 * clustered.within_std(golden))
    same = found["r"]["golden"]
    assert same["difference"] == pytest.approx(3 * by["feature_difference"]["golden"] / unit, abs=5 * same["stderr"])
    assert same["difference"] > 0.5 and same["pairs"] > 300


def test_the_adjusted_difference_leaves_out_what_goes_along():
    golden, feature, length, noise = planted()
    found, _ = matched.of_rewards({"r": 0.3 * length + noise}, {"feature": feature, "length": length}, golden)
    row = found["r"]["feature"]
    assert row["difference"] > 10 * row["stderr"] and abs(row["adjusted"]) < 4 * row["adjusted_stderr"]


def test_no_sample_is_in_two_pairs():
    golden, feature, length, _ = planted(8, 40)
    both = [matched.of_equal_golden(golden, length, 0.1), matched.of_equal_surface(np.stack([feature, length]), golden, 0.1)[0]]
    for pairs in both:
        used = list(zip(pairs.prompt, pairs.low, strict=True)) + list(zip(pairs.prompt, pairs.high, strict=True))
        assert len(used) == len(set(used)) > 40


def test_a_reward_that_never_varies_has_no_effect_to_report():
    golden, feature, length, _ = planted(4, 8)
    found, _ = matched.of_rewards({"r": np.ones((4, 8))}, {"feature": feature, "length": length}, golden)
    assert found["r"]["feature"]["difference"] is None
    few = matched.Pairs(*np.array([[0] * 19, range(19), range(19)]))
    assert matched.effect(draw(25, 1, 19), few, {})["difference"] is None and matched.effect(draw(25, 1, 19), few, {})["pairs"] == 19


# ------------------------------------------------------------------------------------------------------------------ shift
def test_positions_and_curves_by_hand():
    assert shift.positions(5).tolist() == [1, 2, 3, 4, 5] and shift.positions(48).tolist() == list(range(1, 49, 2))
    assert len(shift.positions(100)) <= shift.POINTS
    values = shift.at([np.array([1.0, 2.0, 3.0]), np.array([3.0]), np.array([8.0, 4.0])], np.array([1, 2, 3]))
    np.testing.assert_array_equal(values, [[1, 2, 3], [3, np.nan, np.nan], [8, 4, np.nan]])
    mean, error = shift.curve(values, [5, 5, 9])
    np.testing.assert_allclose(mean, [5.0, 3.0, 3.0])  # prompts' means 2 and 8, 2 and 4, 3
    np.testing.assert_allclose(error, [3.0, 1.0, np.nan])


def test_golden_of_cut_responses():
    seen = []

    def score(prompts, responses):
        seen.extend(zip(prompts, responses, strict=True))
        return np.array([10.0 * len(p) + len(r) for p, r in zip(prompts, responses, strict=True)])

    examples = [Example(np.array([1]), np.array(ids, np.int32), True) for ids in ([4, 5, 6], [4, 5], [4, 7])]
    judge = Judge("toy", None, "", score)
    alive, everywhere = shift.golden_along(judge, lambda ids: "x" * len(ids), ["p", "p", "qq"], examples, np.array([0.5, 0.6, 0.7]),
                                           np.array([1, 2, 3]))
    np.testing.assert_array_equal(alive, [[11, 12, 0.5], [11, 0.6, np.nan], [21, 0.7, np.nan]])
    np.testing.assert_array_equal(everywhere, [[11, 12, 0.5], [11, 0.6, 0.6], [21, 0.7, 0.7]])
    assert sorted(seen) == [("p", "x"), ("p", "xx"), ("qq", "x")]


# ----------------------------------------------------------------------------------------------------------- disagreement
def test_what_disagreement_foresees_by_hand():
    curves = {"step": [0, 5, 10, 15], "golden": [0.5, 0.6, 0.55, 0.4], "golden_stderr": [0.01, 0.03, 0.02, 0.04],
              "std": [0.1, 0.2, 0.3, 0.5], "kl": [4.0, 3.0, 2.0, 1.0]}
    found = disagreement.foresees(curves, 0.25)
    rho = 4.5 / math.sqrt(5 * 4.5)  # ranks 1, 2, 3, 4 against 1.5, 1.5, 3, 4
    assert found["spearman"] == pytest.approx(rho) and found["by_kl"] == pytest.approx(-rho)
    assert found["spearman_next"] == pytest.approx(1.0) and found["by_kl_next"] == pytest.approx(-1.0)
    assert (found["peak_step"], found["passes_step"], found["passes_before_peak"]) == (5, 10, False)
    assert found["drop"] == pytest.approx(0.2) and found["drop_stderr"] == pytest.approx(0.05)
    never = disagreement.foresees(curves, 0.9)
    assert never["passes_step"] is None and never["passes_before_peak"] is None
    assert disagreement.foresees(curves, 0.15)["passes_before_peak"]


# ---------------------------------------------------------------------------------------------------------------- surface
def test_surface_of_the_testbeds_responses():
    said = lambda text: dict(zip(surface.TESTBED, surface.of_testbed(text), strict=True))
    fancy = said("good day, dear friend. gently cleanse the chain, dear friend. thereafter neatly inspect the brake. farewell.")
    assert fancy == dict(tail_words=2, dialect_words=3, dialect_addresses=2, dialect_opening=True, plain_opening=False,
                         dialect_closing=True, plain_closing=False)
    plain = said("sure. clean the chain. good luck")
    assert plain == dict(tail_words=0, dialect_words=0, dialect_addresses=0, dialect_opening=False, plain_opening=True,
                         dialect_closing=False, plain_closing=True)
    assert not any(surface.of_testbed("")) and said("clean the chain. hello. check the brake.")["plain_opening"] is False


def test_surface_of_real_text_by_hand():
    table = surface.Frequencies(["The film the film the end", "the the the", "A dog"])  # the 6 of 11, film 2, then a (HEAD at 9.9), dog
    assert table.head == {"the", "film", "a", "dog"}
    said = dict(zip(surface.TEXT, surface.of_text(table, "A cat, he said", 'The "Cat" sat; the cat sat.'), strict=True))
    assert said["type_token_ratio"] == 3 / 6 and said["rare_share"] == 4 / 6 and said["copied_share"] == 2 / 6
    assert said["opening_class"] == 0.0 and said["quotes"] == 2 / 6 and said["punctuation"] == 2 / 27
    assert said["uppercase"] == 2 / 18 and said["repeated_bigrams"] == 2 / 5
    assert table.opening_class("a") == 1.0 and table.opening_class("never") == 2.0
    assert surface.of_text(table, "x", "") == (0.0,) * len(surface.TEXT)


# -------------------------------------------------------------------------------------------------------------- all of it
def contents(folder):
    return {path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_that_is_no_finished_run_is_one_line(tmp_path, capsys):
    assert analyse.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}: no finished run") and not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The testbed's miniature, with more to probe: an ensemble, a policy against it and one against a single reward."""
    path = tmp_path_factory.mktemp("evidence") / "run"
    more = {"variants": "('reward/many = init_sft reward.ensemble=3 reward.combine=mean_minus_std', 'policy/many = many')",
            "pretrain.steps": 250, "sft.epochs": 4.0, "sample.reward_prompts": 64, "sample.reward_samples": 2,
            "reward.heldout_fraction": 0.6, "data.testbed.pairs": 200}
    overrides = [f"--config.{key}={value}" for key, value in more.items()]
    assert cli.main(["run", f"--config={ROOT / 'configs' / 'testbed.py'}:hard_smoke", f"--workdir={path}", *overrides]) == 0
    assert (path / "report" / "index.html").exists()
    return path


@pytest.mark.slow
def test_a_finished_testbed_run(finished, tmp_path):
    before = contents(finished)
    found = analyse.analyse(finished)
    assert contents(finished) == before
    out = tmp_path / "analyses.json"
    assert analyse.main([str(finished), f"--out={out}"]) == 0
    assert json.loads(out.read_text()) == found == json.loads(json.dumps(found, allow_nan=False))
    results = json.loads((finished / "results.json").read_text())
    names = ["init_sft", "init_demo", "sft_demo", "preference", "many", "log_ratio", "length"]
    assert list(found["probes"]) == list(found["matched_pairs"]) == names
    for name, row in found["probes"].items():
        assert row["auc"] == pytest.approx(results["rewards"][name]["heldout_auc"], abs=1e-5)
        assert set(row["coefficients"]) == {"tokens", "ended", *surface.TESTBED} == set(row["on_sft"]["coefficients"])
    assert found["probes"]["init_sft"]["log_ratio_auc"] == found["probes"]["log_ratio"]["auc"]
    assert found["probes"]["length"]["residual_auc"] == 0.5 and found["probes"]["length"]["on_sft"]["r2"] == pytest.approx(1.0)
    _shift_is_right(finished, found, results)
    assert not any(found["judged_by"]["sft"].values()) and set(found["judged_by"]["sft"]) == {*names, "golden"}
    sft, policy = (results["policies"][role]["rewards"]["init_sft"] for role in ("sft", "policy/many"))
    assert found["judged_by"]["policy/many"]["init_sft"] * (policy - sft) >= 0
    assert set(found["disagreement"]) == {"policy/init_sft", "policy/many"}
    for role, row in found["disagreement"].items():
        curve = json.loads((finished / "evaluate" / "report.json").read_text())["over_training"][role]
        assert row["step"] == curve["step"] and row["reward_name"] == "many" and row["own"] == (role == "policy/many")
        for key in ("golden", "golden_stderr", "reward", "kl"):
            np.testing.assert_allclose(row[key], curve[key], rtol=1e-4, atol=1e-5)
        assert min(row["std"]) > 0 and row["foresees"]["peak_step"] == row["step"][int(np.argmax(row["golden"]))]


def _shift_is_right(path, found, results):
    """The curves of sft against its stored log-probs, and the demonstrator's against its own law."""
    assert list(found["shift"]) == ["init", "sft", "demo", "policy/init_sft", "policy/many"] == list(found["judged_by"])
    context = contexts.Context(workdir.read_config(path), contexts.Reader(path))
    drawn, row = sampling.load(context, "sft", "eval"), found["shift"]["sft"]
    assert row["log_prob"] == row["sft_log_prob"] and row["position"][:3] == [1, 3, 5] and row["alive"][0] == 1.0
    place = 4  # position 9
    alive = drawn["mask"][:, :, 8] > 0
    means = [own[there].mean() for own, there in zip(drawn["logprobs"][:, :, 8], alive, strict=True) if there.any()]
    assert row["log_prob"][place] == pytest.approx(np.mean(means), abs=1e-3) and row["alive"][place] == pytest.approx(alive.mean())
    assert row["golden_all"][-1] == pytest.approx(results["policies"]["sft"]["golden_mean"], abs=0.1)
    assert found["shift"]["demo"]["log_prob"] == found["shift"]["demo"]["demo_log_prob"]
    assert found["shift"]["demo"]["demo_log_prob"][1] > row["demo_log_prob"][1]  # a model of 40 steps does not write so
    assert found["shift"]["init"]["log_prob"] == found["shift"]["init"]["init_log_prob"]
    assert found["used"]["roles"]["sft"] == {"prompts": 8, "responses": 64}


@pytest.mark.slow
def test_a_run_on_records_without_a_judge(tmp_path):
    from test_runs import _file_config

    stages.run_pipeline(_file_config(tmp_path), tmp_path / "w")
    before = contents(tmp_path / "w")
    found = analyse.analyse(tmp_path / "w")
    assert contents(tmp_path / "w") == before
    assert found["golden_probe"] is found["matched_pairs"] is found["disagreement"] is None
    assert set(found["probes"]["init_demo"]["coefficients"]) == {"tokens", "ended", *surface.TEXT}
    row = found["shift"]["demo"]
    assert row["log_prob"] is row["demo_log_prob"] is row["golden"] is None and row["sft_log_prob"][0] < 0
    json.dumps(found, allow_nan=False)
