"""The scripts that print tables over seeds, on made-up results whose figures are known."""

import json
import math
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture
def methods(monkeypatch):
    """benchmarks/methods.py, imported as when it is run."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.delitem(sys.modules, "methods", raising=False)
    import methods

    yield methods
    sys.modules.pop("methods", None)


def made_up(shift=0.0):
    def policy(golden, kl, **more):
        return dict(golden_mean=golden + shift, golden_stderr=0.03, length_mean=20.0, kl_to_sft=kl, kl_to_sft_stderr=0.1, distinct_2=0.3,
                    init_logprob=-2.0, **more)

    def reward(best, **more):
        return dict(heldout_auc=0.8, heldout_auc_stderr=0.02, spearman_golden=0.4, spearman_golden_stderr=0.01, spearman_length=0.1,
                    spearman_length_stderr=0.01, pair_accuracy=None, best_of_n=[
                        dict(n=16, golden=best + shift, stderr=0.04, win_rate=0.6, win_rate_stderr=0.02)], **more)

    def divergence(**more):
        row = dict(coverage=0.7, coverage_unweighted=0.6, kind_entropy=3.1, other_kinds=0.3, **more)
        return row | {f"{key}_stderr": 0.01 for key in row}

    kls = dict(forward_kl=3.0 + shift, reverse_kl=14.0, jensen_shannon=0.5)
    extra = dict(noise_rate=0.05, off_grammar_share=0.07)
    members = [dict(heldout_auc=0.75, spearman_golden=0.3, spearman_golden_stderr=0.02)] * 2
    agreed = dict(golden=0.66, stderr=0.01, mean_n=12.25, plain_golden=0.64, plain_stderr=0.01, max_n=32)
    return dict(
        policies={"sft": policy(0.5, 0.0), "dpo/x": policy(0.6, 1.0, at_same_kl=0.05, at_same_kl_stderr=0.04),
                  "spin/far": policy(0.4, 9.0, at_same_kl=None, at_same_kl_stderr=None)},
        rewards={"init_sft": reward(0.61), "many": reward(0.63, members=members, best_of_agreed=agreed)},
        paired=[dict(name="dpo/x - sft", difference=0.1, stderr=0.02, z=5.0, n=9)],
        divergences={"demo": divergence(), "sft": divergence(**kls) | extra}, timing={"sft": dict(seconds=3.0)})


@pytest.fixture
def runs(tmp_path):
    paths = []
    for seed, shift in enumerate((0.0, 0.2)):
        path = tmp_path / f"seed-{seed}"
        (path / "dpo" / "x").mkdir(parents=True)
        (path / "results.json").write_text(json.dumps(made_up(shift)))
        (path / "dpo" / "x" / "done.json").write_text(json.dumps({"timing": {"seconds": 10.0 + 4 * seed}}))
        paths.append(str(path))
    return paths


def rows_of(text):
    """{first cell: cells} of all Markdown tables, the last of a name winning; and lists of all rows."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_figures_are_means_with_errors_over_prompts_and_seeds(methods, runs, capsys):
    assert methods.main(runs) == 0
    out = capsys.readouterr().out
    rows = rows_of(out)
    within, between = math.sqrt(2 * 0.03**2) / 2, 0.1  # of the mean of 0.6 and 0.8
    row = next(row for row in rows if row[0] == "`dpo/x`")
    assert row[1] == f"0.700 ± {within:.3f} / {between:.3f}" and row[2].startswith("0.100 ± 0.014")
    assert row[3] == "+5.0, +5.0" and row[4].startswith("1.00 ± 0.07") and row[5].startswith("0.050 ± 0.028") and row[-1] == "12"
    far = next(row for row in rows if row[0] == "`spin/far`")
    assert far[2] == far[3] == far[5] == far[-1] == "–"
    demo = next(row for row in rows if row[0] == "`demo`")
    assert demo[1:4] == ["–"] * 3 and demo[4].startswith("0.700 ± 0.007") and demo[5].startswith("0.600") and demo[6].startswith("3.100")
    assert next(row for row in rows if row[0] == "member 2")[1].startswith("0.750")
    assert "Best-of-32" in out and "0.660 ± 0.007" in out and "12.2" in out
    assert all(len(row) == len(rows[0]) for row in rows[:5])


def test_without_a_judge_of_the_ensemble(methods, runs, capsys):
    results = made_up()
    results["rewards"]["many"]["best_of_agreed"] = None
    pathlib.Path(runs[0], "results.json").write_text(json.dumps(results))
    assert methods.main(runs[:1]) == 0
    assert "member 1" in (out := capsys.readouterr().out) and "Best-of" not in out


def test_every_seed_is_run_and_then_printed(methods, runs, tmp_path, monkeypatch, capsys):
    called = []
    monkeypatch.setattr(methods.subprocess, "run", lambda command, **options: called.append((command, options)))
    assert methods.main(["--run", str(tmp_path), "--seeds=0,1", "--smoke"]) == 0
    assert [command[1:4] for command, _ in called] == [["-m", "irl_jax", "run"]] * 2 and all(options["check"] for _, options in called)
    for seed, (command, _) in enumerate(called):
        assert f"--workdir={tmp_path}/seed-{seed}" in command and f"--config.seed={seed}" in command
        (config,) = (part for part in command if part.startswith("--config="))
        assert pathlib.Path(config.removeprefix("--config=").removesuffix(":smoke")).is_file() and config.endswith(":smoke")
    assert "`dpo/x`" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["some/run", "--run", "out"]])
def test_finished_runs_or_new_ones(methods, arguments, capsys):
    with pytest.raises(SystemExit):
        methods.main(arguments)
    assert "--run OUT" in capsys.readouterr().err
