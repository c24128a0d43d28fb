"""The reward `robust`: its terms, its gate, its stage, who uses it; and sft at temperatures, which it is compared with."""

import itertools
import json

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

from irl_jax import cli, rollouts, stages, workdir
from irl_jax.data import batching
from irl_jax.evaluation import best_of_n, metrics, robust
from irl_jax.evaluation.golden import make_judge
from irl_jax.evaluation.robust import Responses, Term, combined, deviation, gate
from irl_jax.stages import context as contexts
from irl_jax.stages import evaluate, policy, report_run, sampling, scoring, temperatures

H, M = np.array([[0.0, 2.0], [1.0, 1.0]]), np.array([[-1.0, -3.0], [-2.0, -2.5]])


def responses(lengths=((9, 9), (9, 9)), ended=True, h=H, m=M):
    tokens = [[np.arange(size) + 10 * row for size in sizes] for row, sizes in enumerate(lengths)]
    return Responses({"init_sft": h, "mean_logprob": m}, np.array(lengths), np.broadcast_to(ended, h.shape), tokens)


def test_deviation_by_hand():
    assert deviation(H) == pytest.approx(np.sqrt((2.0 + 0.0) / 2))  # variances 2 and 0 within the two prompts
    assert np.isnan(deviation(H[:, :1]))


def test_terms_add_up_and_none_is_a_tie():
    values = combined((Term("init_sft", 0.5), Term("mean_logprob", 2.0)), {"init_sft": H, "mean_logprob": M}, H.shape)
    np.testing.assert_allclose(values, 0.5 * H + 2.0 * M)
    np.testing.assert_array_equal(combined((), {}, (3,)), np.zeros(3))


def gated(samples, h_z=3.0, m_z=3.0, weight=0.5):
    directions = {"init_sft": metrics.Paired(h_z, 1.0, h_z), "mean_logprob": metrics.Paired(m_z, 1.0, m_z)}
    return gate(directions, {"init_sft": 1.0, "mean_logprob": weight}, samples)


@pytest.mark.parametrize("z", [3.0, 0.0, -1.9])
def test_an_open_gate_has_both_terms_over_their_deviations(z):
    terms, reasons = gated(responses(), z, z)
    assert terms == (Term("init_sft", 1 / deviation(H)), Term("mean_logprob", 0.5 / deviation(M))) and reasons == ()


def test_a_term_that_points_away_from_the_demonstrations_is_left_out():
    terms, reasons = gated(responses(), h_z=-2.0)
    assert [term.reward for term in terms] == ["mean_logprob"] and reasons[0].startswith("init_sft puts demonstrations below")
    terms, reasons = gated(responses(), m_z=-5.0)
    assert [term.reward for term in terms] == ["init_sft"] and "z = -5.0" in reasons[0]
    assert gated(responses(), -3.0, -3.0)[0] == ()


def test_a_term_that_never_varies_is_left_out():
    assert [term.reward for term in gated(responses(h=np.ones_like(H)))[0]] == ["mean_logprob"]
    assert gated(responses(), weight=0.0)[0] == (Term("init_sft", 1 / deviation(H)), Term("mean_logprob", 0.0))


def test_a_sum_whose_choices_are_odd_gives_way_to_likelihood_alone_and_that_to_nothing():
    long = np.array([[14, 14, 14, 40]] * 2)  # what h chooses is long, what m chooses is not
    h, m = np.array([[0.0, 0.0, 0.0, 9.0]] * 2), np.array([[-1.0, -2.0, -2.0, -2.0]] * 2)
    terms, reasons = gated(responses(long, h=h, m=m), weight=0.1)
    assert [term.reward for term in terms] == ["mean_logprob"] and reasons[0].startswith("init_sft + mean_logprob: ")
    terms, reasons = gated(responses(np.array([[2, 30, 30, 30]] * 2), h=h, m=m), h_z=-3.0)
    assert terms == () and len(reasons) == 2 and reasons[1].startswith("mean_logprob: ")


def test_direction_is_paired_by_prompt():
    found = robust.direction(np.array([1.0, 2.0, 4.0]), np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 3.0]]))
    differences = np.array([0.5, 1.0, 1.5])
    assert found.difference == pytest.approx(1.0) and found.stderr == pytest.approx(differences.std(ddof=1) / np.sqrt(3))


# ------------------------------------------------------------------------------------------------------------- in a run
@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished miniature with a policy against robust, whose gate stands open by hand: its few steps would leave it to chance."""
    path = tmp_path_factory.mktemp("robust") / "w"
    config = tiny_config(robust__prompts=12, robust__samples=4, policy__recipes=("init_sft", "robust"), reward__recipes=("init_sft",),
                         eval__temperatures=(0.5, 0.0), sample__eval_samples=32, data__testbed__development_prompts=12)
    before = [stage for stage in stages.STAGES if stage not in ("policy", "evaluate", "report")]
    stages.run_pipeline(config, path, tuple(before))
    file = path / "robust" / "robust.json"
    written = json.loads(file.read_text())
    forced = written | {"terms": [{"reward": "init_sft", "weight": 2.0}, {"reward": "mean_logprob", "weight": 0.5}], "reasons": []}
    file.write_text(json.dumps(forced))
    stages.run_pipeline(config, path)
    return path, written, json.loads((path / "results.json").read_text())


@pytest.fixture(scope="module")
def context(run):
    return contexts.Context(workdir.read_config(run[0]), contexts.Reader(run[0]))


def test_the_stage_writes_what_it_found(run, context):
    written = run[1]
    assert written["recipe"] == "init_sft" and written["temperature"] == 0.5 and written["prompts"] == 12
    demos = sampling.development(context)
    plain = sampling.load(context, "sft", "development")["examples"]
    values = scoring.rewards(context, "init_sft", [*demos, *plain])
    gaps = values[:12] - values[12:].reshape(12, -1).mean(1)
    assert written["directions"]["init_sft"]["difference"] == pytest.approx(gaps.mean(), abs=1e-6)
    assert [example.source for example in demos] == list(range(12))
    cold = sampling.load(context, "sft@0.5", "development")["examples"]
    samples = Responses({name: scoring.rewards(context, name, cold).reshape(12, 4) for name in ("init_sft", "mean_logprob")},
                        np.array([len(e.response) for e in cold]).reshape(12, 4), np.array([e.ended for e in cold]).reshape(12, 4),
                        [[e.response for e in cold[4 * p : 4 * p + 4]] for p in range(12)])
    directions = {name: metrics.Paired(**written["directions"][name]) for name in ("init_sft", "mean_logprob")}
    terms, reasons = gate(directions, {"init_sft": 1.0, "mean_logprob": 0.5}, samples)
    assert written["terms"] == [term._asdict() for term in terms] and tuple(written["reasons"]) == reasons


def test_one_number_everywhere(run, context, tmp_path):
    """The sum of its terms in evaluation, in `score`, and within the policy gradient."""
    examples = sampling.load(context, "sft", "eval")["examples"][:6]
    h, m = (scoring.rewards(context, name, examples) for name in ("init_sft", "mean_logprob"))
    np.testing.assert_allclose(m, context.scorer.logprobs(context.leaves("sft"), examples) / [len(e.response) for e in examples])
    found = scoring.rewards(context, "robust", examples)
    np.testing.assert_allclose(found, 2.0 * h + 0.5 * m)
    judged = evaluate.samples_of(context, make_judge(context.config, context.world), "sft")
    np.testing.assert_allclose(judged.reward("robust")[:6], found, rtol=1e-5, atol=1e-6)
    leaves, granularity, combine = policy.robust_leaves(context)
    rows = batching.token_rows(examples, context.longest)
    last = jnp.array([len(e.prompt) + len(e.response) - 1 for e in examples])
    nothing = jnp.zeros(rows.mask.shape)
    drawn = rollouts.Drawn(rows, last, jnp.ones(6, bool), nothing, nothing, jnp.ones(6))
    np.testing.assert_allclose(rollouts.make_judge(context.model, "robust", granularity, combine)(context.trunk, leaves, drawn), found,
                               rtol=1e-4, atol=1e-5)
    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps({"prompt": context.text(e.prompt), "response": context.text(e.response)}) + "\n"
                            for e in examples if e.ended))
    assert cli.main(["score", f"--workdir={run[0]}", "--reward=robust", f"--data={data}", f"--out={tmp_path / 'o.jsonl'}"]) == 0
    scored = [json.loads(line)["reward"] for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(scored, [value for value, e in zip(found, examples, strict=True) if e.ended], rtol=1e-4, atol=1e-5)


def test_generate_samples_at_its_temperature(run, tmp_path, capsys):
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "mara asks what a fine pond wants."}\n')

    def generated(*flags):
        assert cli.main(["generate", f"--workdir={run[0]}", f"--prompts={prompts}", f"--out={tmp_path / 'o.jsonl'}", *flags]) == 0
        return (tmp_path / "o.jsonl").read_text(), capsys.readouterr().out

    chosen = generated("--reward=robust", "--best_of=4")
    assert "sampling at temperature 0.5, robust's own" in chosen[1]
    assert chosen[0] == generated("--reward=robust", "--best_of=4", "--temperature=0.5")[0]
    assert chosen[0] != generated("--reward=robust", "--best_of=4", "--temperature=1")[0]


def test_generate_without_a_robust_is_one_line(run, tmp_path, capsys):
    prompts, file = tmp_path / "p.jsonl", run[0] / "robust" / "robust.json"
    prompts.write_text('{"prompt": "mara asks what a fine pond wants."}\n')
    kept = file.read_text()
    file.unlink()
    try:
        status = cli.main(["generate", f"--workdir={run[0]}", f"--prompts={prompts}", f"--out={tmp_path / 'o.jsonl'}", "--reward=robust"])
    finally:
        file.write_text(kept)
    error = capsys.readouterr().err
    assert status == 2 and "has made no 'robust'; run its stage" in error and error.count("\n") == 1


# -------------------------------------------------------------------------------------------------------- temperatures
def test_policies_at_temperatures_stand_in_the_results(run, context):
    policies = run[2]["policies"]
    names = ["sft@0.5", "sft@greedy", "policy/init_sft@0.5", "policy/init_sft@greedy", "policy/robust@0.5", "policy/robust@greedy"]
    assert [name for name in policies if "@" in name] == names
    assert policies["sft@0.5"]["kl_to_sft"] is None and policies["sft@0.5"]["rewards"]["robust"] is not None
    assert sampling.load(context, "sft@0.5", "eval")["tokens"].shape[1] == 16  # half of eval_samples
    greedy = sampling.load(context, "sft@greedy", "eval")
    assert greedy["tokens"].shape[1] == 1
    assert temperatures.names(context.config, "sft") == ["sft@0.5", "sft@greedy"]
    other = tiny_config(eval__temperatures=(0.5, 0.0), robust__temperature=0.3)  # where robust chooses, sft is always looked at
    assert temperatures.names(other, "sft") == ["sft@0.5", "sft@greedy", "sft@0.3"]
    assert temperatures.names(other, "policy/init_sft") == ["policy/init_sft@0.5", "policy/init_sft@greedy"]
    other = tiny_config(eval__temperatures=(0.5, 0.0), sample__temperature=0.5)
    assert temperatures.names(other, "sft") == ["sft@greedy"]  # all samples have that temperature


def test_greedy_takes_the_likeliest_token(context):
    """By the scorer: no other token at the first place is likelier."""
    example = sampling.load(context, "sft@greedy", "eval")["examples"][0]
    others = [example._replace(response=np.array([token], np.int32), ended=False) for token in range(len(context.tokenizer))]
    assert context.scorer.logprobs(context.leaves("sft"), others).argmax() == example.response[0]


def test_best_of_n_at_a_temperature(run, context):
    judge = make_judge(context.config, context.world)
    cold = evaluate.samples_of(context, judge, "sft@0.5")
    values, gold = (cold.by_prompt(cold.reward(name)) for name in ("robust", "golden"))
    row = run[2]["rewards"]["robust"]["best_of_n_at"]["0.5"]
    assert [point["n"] for point in row] == [n for n in context.config.eval.best_of if n <= 16]
    assert row[-1]["golden"] == pytest.approx(best_of_n.best_of_n_per_prompt(values, gold, 16).golden.mean())


def test_comparisons_are_with_the_best_of_sft(run):
    results = run[2]
    own = {name: row["golden_mean"] for name, row in results["policies"].items() if name.partition("@")[0] == "sft"}
    assert own[results["baseline"]] == max(own.values())
    names = [row["name"] for row in results["paired"]]
    assert len(names) == len(set(names)) and "sft@0.5 - sft" in names
    assert "best-of-16 by robust at T = 0.5 - the best of sft" in names and "policy/robust at its best temperature - the best of sft" in names
    assert "best-of-16 by robust at T = 0.5 - best-of-16 by mean_logprob at T = 0.5" in names


def test_the_report_begins_with_the_best_of_sft(run):
    page = (run[0] / "report" / "index.html").read_text()
    short = page[page.index('id="headline"') :]
    assert short.index("Without any reward, the best is") < short.index("<table")
    assert "robust = 2 init_sft + 0.5 mean_logprob, with samples at temperature 0.5." in short
    assert "from sft&#x27;s samples at other temperatures" in page or "from sft's samples at other temperatures" in page
    assert (run[0] / "report" / "temperatures.png").exists()


RESULTS = {"baseline": "sft@0.5", "policies": {"sft@0.5": {"golden_mean": 0.9, "golden_stderr": 0.01}}, "rewards": {"init_sft": {}}}


@pytest.mark.parametrize("z, said", [(4.0, "is above it"), (-4.0, "is below it"), (1.0, "is not told apart from it")])
def test_what_the_page_says_of_robust(z, said):
    rows = [{"name": "best-of-16 by robust at T = 0.5 - the best of sft", "difference": 0.01 * z, "stderr": 0.01, "z": z, "n": 9},
            {"name": "best-of-16 by init_sft at T = 0.5 - the best of sft", "difference": 0.03, "stderr": 0.01, "z": 3.0, "n": 9},
            {"name": "best-of-16 by golden at T = 0.5 - the best of sft", "difference": 0.09, "stderr": 0.01, "z": 9.0, "n": 9}]
    found = {"terms": [], "temperature": 0.5, "reasons": ["because"]}
    text = report_run.baseline(RESULTS | {"paired": rows, "robust": found})
    assert said in text and "init_sft at T = 0.5 (+0.030 ± 0.010)" in text and "by golden" not in text
    assert "The gate of robust is closed" in text and "because." in text
    assert report_run.baseline({"policies": {}}) == ""


def test_a_policy_on_a_reward_that_points_away_from_demonstrations_is_warned_of(run, capsys):
    path = run[0] / "robust" / "robust.json"
    kept = path.read_text()
    context = contexts.Context(workdir.read_config(run[0]), contexts.Reader(run[0]))
    try:
        for z, warned in ((-2.5, True), (0.4, False)):
            path.write_text(json.dumps(json.loads(kept) | {"directions": {"init_sft": {"z": z}}}))
            policy._warn(context, "policy/init_sft", "init_sft")
            assert ("careful, its reward puts demonstrations below" in capsys.readouterr().out) is warned
    finally:
        path.write_text(kept)


def test_names_of_temperatures():
    for role, temperature in itertools.product(("sft", "policy/init_sft"), (0.5, 0.25, 0.0)):
        assert sampling.parted(sampling.at(role, temperature)) == (role, temperature)
    assert sampling.parted("sft") == ("sft", None) and sampling.at("sft", 0.0) == "sft@greedy"
