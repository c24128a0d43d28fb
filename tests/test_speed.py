"""benchmarks/speed without its peers: timing, table, models, and our own side of the cases at a tiny size."""

import json
import pathlib

import numpy as np
import pytest

from benchmarks.speed import job, ours, plot, run, sampling, sizes, startup, table, timing
from irl_jax.types import Example


@pytest.fixture
def clock(monkeypatch):
    """A clock that only sides and pauses move; returns what makes a side of so many seconds."""
    now = [0.0]
    calls = []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(timing.time, "sleep", lambda seconds: None)

    def side(name, durations, units=None):
        left = iter(durations)

        def run_it():
            calls.append(name)
            now[0] += next(left)
            return units

        return run_it

    side.calls = calls
    return side


def test_sides_alternate_and_the_warm_up_counts_nothing(clock):
    timed = timing.alternate(clock("a", [100, 1, 2, 4]), clock("b", [100, 3, 2, 4]), timing.Budget(3, 3, 1e9))
    assert clock.calls == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert timed[:2] == ([1, 2, 4], [3, 2, 4])
    found = timing.summary(timed)
    assert (found["ours_seconds"], found["theirs_seconds"], found["rounds"]) == (2, 3, 3)
    assert found["ratio"] == 1 and found["ratio_quartiles"] == [1, 2]  # of the rounds' ratios 3, 1, 1


def test_seconds_are_of_a_unit_and_rounds_end_with_the_budget(clock):
    timed = timing.alternate(clock("a", [10] * 99, 5.0), clock("b", [20] * 99), timing.Budget(2, 50, 100.0), warm=False)
    assert timed[:2] == ([2.0] * 4, [20.0] * 4)  # 30 s a round: the fourth begins at 90, a fifth would at 120
    assert len(timing.alternate(clock("a", [99] * 9), clock("b", [99] * 9), timing.Budget(2, 50, 1.0), warm=False).ours) == 2


def test_short_calls_are_timed_together(clock):
    side = clock("a", [0.15] + [0.05] * 2, 2.0)
    assert timing.once(side) == pytest.approx(0.025) and len(clock.calls) == 3  # 0.2 / 0.15 calls, rounded up, after the first


def test_differences_are_refused():
    assert timing.agree("x", [1.0, 2.0], [1.0, 2.5], 0.5) == 0.5
    for other in ([1.0, 2.6], [1.0, float("nan")], [1.0]):
        with pytest.raises(AssertionError, match="^x: "):
            timing.agree("x", [1.0, 2.0], other, 0.5)


def test_others_are_not_ourselves():
    others = timing.Others()
    sum(range(3_000_000))
    assert 0.0 <= others.share() <= 1.0
    start = others._start
    others._now = lambda: (start[0] + 10, start[1] + 8, start[2] + 5)
    assert others.share() == pytest.approx(0.3)


def test_the_table_says_met_or_short_and_keeps_what_was_not_measured_again():
    target = table.Target(">= 2x", 2.0)
    rows = [table.row(case, "6M", "peer", timing.Timed([1.0], [seconds], busy), "work", target=target, note="a note")
            for case, seconds, busy in (("fast", 2.0, 0.0), ("slow", 1.9, 0.5))]
    assert [r["met"] for r in rows] == [True, False]
    text = table.markdown(rows)
    fast, slow = text.splitlines()[2:4]
    assert ">= 2x: met" in fast and "(!)" not in fast and ">= 2x: short" in slow and "(!)" in slow and "50%" in text
    again = table.row("slow", "6M", "peer", timing.Timed([1.0], [3.0]), "work")
    merged = table.merge(rows, [again, table.row("new", "6M", "peer", timing.Timed([1.0], [1.0]), "work")])
    assert [r["case"] for r in merged] == ["fast", "slow", "new"] and merged[1]["ratio"] == 3.0
    assert table.verdict(again) == "–"


def test_results_are_written_and_read(tmp_path):
    assert table.read(tmp_path / "r.json")["rows"] == []
    table.write(tmp_path / "r.json", {"rows": [{"case": "x"}]})
    assert table.read(tmp_path / "r.json") == {"rows": [{"case": "x"}]} and [p.name for p in tmp_path.iterdir()] == ["r.json"]


@pytest.mark.parametrize("arguments", [["--cases=sampling,nothing"], ["--sizes=huge"], ["--peers=vllm"]])
def test_unknown_names_are_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        run.parse(arguments)
    assert "is none of" in capsys.readouterr().err


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    arguments = run.parse(["--sizes=tiny", "--dtypes=float32", "--repeats=1"])
    return run.setting_of(arguments, tmp_path_factory.mktemp("models"), 1)


def test_without_the_trained_model_there_are_random_weights(monkeypatch, tmp_path):
    monkeypatch.setenv("IRL_JAX_SHARED", str(tmp_path))
    assert sizes.found_model("") is None and sizes.label(sizes.SIZES["6m"], None) == "6M shape"
    folder = tmp_path / "models" / "imdb-gpt2-6m"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert sizes.found_model("") == folder and sizes.label(sizes.SIZES["6m"], folder) == "imdb-gpt2-6m"
    assert sizes.label(sizes.SIZES["gpt2"], folder) == "GPT-2 small shape"


def test_our_side_draws_and_scores_alike(setting):
    size, prompts = sizes.TINY, sizes.prompts(sizes.TINY)
    mine = ours.load(setting.folder(size, "llama"))
    drawn = ours.sampling(mine, prompts, 2, size.response, sizes.eos_ids(size, None))(0)
    assert drawn.tokens.shape == (sizes.PROMPTS, 2, size.response) and drawn.mask.all()  # no end can be drawn
    examples = [Example(prompt, tokens, False) for prompt, both in zip(prompts, drawn.tokens, strict=True) for tokens in both]
    scored = ours.scorer(mine, 16).logprobs(None, examples)
    np.testing.assert_allclose(drawn.behaviour_logprobs.sum(-1).reshape(-1), scored, rtol=1e-5)
    many = ours.sampling(mine, prompts, 16, size.response, sizes.eos_ids(size, 3.0))(0).mask.sum(-1)
    assert 2.0 < many.mean() < 4.5 and many.max() > 8  # geometric


def test_our_steps_start_from_the_same_weights(setting):
    size, rows = sizes.TINY, sizes.rows(sizes.TINY, 4, 64)
    mine = ours.load(setting.folder(size))
    scores = ours.token_scores(mine, rows)
    whole, adapter = ours.sft(mine, rows)()["loss"], ours.sft(mine, rows, 2)()["loss"]
    assert whole == pytest.approx(adapter, abs=1e-6) == -scores.sum() / (scores != 0).sum()
    head = np.zeros(size.width, np.float32)
    assert ours.reward(mine, rows, head)()["loss"] == pytest.approx(np.log(2))
    advantages = np.array([1.0, -1.0, 2.0, 0.5], np.float32)
    metrics = ours.policy(mine, rows, advantages, scores)()
    assert metrics["loss"] == pytest.approx(-(advantages * scores.sum(-1)).mean(), rel=1e-5) and abs(metrics["behaviour_gap"]) < 1e-5
    np.testing.assert_allclose(ours.scores(mine, rows)(), scores.sum(-1), rtol=1e-5)


def test_the_jobs_text_is_its_tokens_one_to_one(setting):
    spec = job.make_spec(setting, sizes.TINY)
    assert spec == json.loads(pathlib.Path(spec["path"]).read_text()) and spec["policy_steps"] == 2
    words = sizes.tokenizer(sizes.TINY.vocabulary)
    for record in job.read(pathlib.Path(spec["folder"]) / "demonstrations.jsonl"):
        ids = words(record["prompt"] + record["response"])["input_ids"]
        assert min(ids) >= sizes.SPECIAL and words.decode(ids) == record["prompt"] + record["response"]
        assert len(words(record["response"])["input_ids"]) == job.RESPONSE - 1


def test_curves_are_drawn(monkeypatch, setting, tmp_path):
    asked = []
    monkeypatch.setattr(ours, "sampling", lambda mine, prompts, samples, tokens, ends: (
        asked.append((len(prompts), samples, tokens)) or (lambda seed: None)))
    curves = sampling.curves(setting)
    assert [point["tokens"] for point in curves["points"]["tokens"]] == list(sampling.CURVES["tokens"])
    assert asked[0] == (8, 1, 64) and asked[-1] == (8, 16, 128) and len(asked) == len(set(asked)) + 2  # the point held at, thrice
    plot.draw(curves, tmp_path / "docs" / "x.png")
    assert (tmp_path / "docs" / "x.png").read_bytes().startswith(b"\x89PNG")


def test_a_failing_side_shows_why():
    with pytest.raises(RuntimeError, match="no such thing"):
        startup._seconds([startup.sys.executable, "-c", "raise SystemExit('no such thing')"])
