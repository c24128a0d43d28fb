"""benchmarks/evidence: the plan, the command that runs it, intervals and verdicts, and the page made from records."""

import hashlib
import json
import math
import pathlib
import subprocess
import sys
import types

import evidence_records as made
import pytest
from matplotlib import image
from matplotlib.figure import Figure
from scipy import stats

from benchmarks import robust
from benchmarks.evidence import advice, claims, drawing, effects, figures, figures_why, foretell, plan, record, run, same, tables, write
from benchmarks.evidence.laws import TWIN
from irl_jax import artifacts, checks

TESTBED = plan.EXPERIMENTS["testbed"]
SMOKES = [pytest.param(name, marks=[pytest.mark.shared] if plan.EXPERIMENTS[name].shared else [], id=name)
          for name in ("testbed", "imdb", "hh", f"paradetox{TWIN}")]  # every kind of data and of judge, and both sampling laws


# ------------------------------------------------------------------ the plan


def test_one_factor_at_a_time():
    assert len(TESTBED.cells) == 11 and next(iter(TESTBED.cells)) == plan.BASE and not TESTBED.cells[plan.BASE][1]
    base = plan.config(TESTBED.of("testbed", (0,))[0])
    for name, factor in TESTBED.factors.items():
        assert list(factor.cells) == sorted(factor.cells) and plan.BASE in factor.cells.values(), name
        for level, cell in factor.cells.items():
            _, overrides = TESTBED.cells[cell]
            ((key, text),) = overrides.items() if overrides else ((next(iter(TESTBED.cells[_other(factor)][1])), None),)
            section, leaf = key.rsplit(".", 1)
            own = base
            for part in section.split("."):
                own = own[part]
            assert (float(text) if text else own[leaf]) == level, f"{name}: the base cell stands at another level than its own"


def _other(factor):
    return next(cell for cell in factor.cells.values() if cell != plan.BASE)


@pytest.mark.parametrize("smoke", [False, True])
@pytest.mark.parametrize("name", plan.EXPERIMENTS)
def test_every_cell_is_a_config_that_a_run_takes(name, smoke, monkeypatch):
    monkeypatch.setenv("IRL_JAX_SHARED", "shared")
    cells = plan.EXPERIMENTS[name].of(name)
    assert len({cell.path for cell in cells}) == len(cells)
    for cell in cells:
        checks.check_ranges(plan.config(cell, smoke))
        settings = plan.settings(cell, smoke)
        assert settings.get("seed", 0) == cell.seed and not set(settings) & set(plan.PATHS)
        assert all(key in settings for key in cell.overrides), "an override that changes nothing"


def test_a_factors_cell_has_the_bases_methods_with_the_same_settings():
    base, factor = (plan.config(cell) for cell in TESTBED.of("testbed", (0,))[:2])
    assert set(factor.variants) <= set(base.variants)
    assert set(factor.policy.recipes) <= set(base.policy.recipes) and factor.reward.recipes == base.reward.recipes
    for section in ("model", "pretrain", "sft", "reward", "adversarial"):
        assert factor[section] == base[section]
    assert factor.policy.to_dict() | {"recipes": ()} == base.policy.to_dict() | {"recipes": ()}


# ------------------------------------------------------------------ running


@pytest.fixture
def processes(monkeypatch):
    """The commands instead of the processes; a record's command writes one. .fail: what the next command ends with."""

    class Calls(list):
        fail = 0

        def __call__(self, command, **options):
            self.append(command)
            assert options["env"]["PYTHONPATH"].startswith(str(plan.ROOT)) and options["cwd"] == plan.ROOT
            if not self.fail and "benchmarks.evidence.record" in command:
                experiment, cell, seed, _, file, *smoke = command[3:]
                (one,) = [one for one in plan.EXPERIMENTS[experiment].of(experiment, (int(seed),)) if one.name == cell]
                record.write(pathlib.Path(file), made.record(experiment, cell, int(seed)) | {"settings": plan.settings(one, bool(smoke))})
            return self.fail

    calls = Calls()
    monkeypatch.setattr(run.sweep, "apart", calls)
    return calls


def test_cells_are_run_recorded_and_not_run_again(tmp_path, processes, capsys):
    given = ["testbed", "--seeds=0,1", "--cells=base,dialect-0", f"--out={tmp_path}/out", f"--records={tmp_path}/records"]
    assert run.main(given) == 0
    runs = [command for command in processes if "irl_jax" in command]
    assert len(processes) == 8 and len(runs) == 4 and all(command[:3] == [sys.executable, "-m", "irl_jax"] for command in runs)
    assert f"--workdir={tmp_path}/out/testbed/dialect-0/seed-1" in runs[3] and "--config.seed=1" in runs[3]
    assert "--config.data.testbed.dialect_strength=0.0" in runs[3] and runs[3][4].endswith("configs/paper/testbed.py:factor")
    (tmp_path / "records/testbed/base/seed-1.json").unlink()
    processes.clear()
    assert run.main(given) == 0 and len(processes) == 2 and f"--workdir={tmp_path}/out/testbed/base/seed-1" in processes[0]
    assert "3 of 4 cells are done" in capsys.readouterr().out
    stored = json.loads((tmp_path / "records/testbed/base/seed-0.json").read_text())
    record.write(tmp_path / "records/testbed/base/seed-0.json", stored | {"settings": {}})
    (tmp_path / "out/testbed/base/seed-1").mkdir(parents=True)
    (tmp_path / "out/testbed/base/seed-1/config.json").touch()
    (tmp_path / "records/testbed/base/seed-1.json").unlink()
    processes.clear()
    assert run.main([*given, "--list"]) == 0 and not processes
    states = [line.split(maxsplit=1)[1].rstrip(" s0123456789") for line in capsys.readouterr().out.splitlines()]
    assert states[:4] == ["other setting", "done", "begun", "done"]
    assert run.main(given) == 0 and len(processes) == 4


def test_the_first_failure_ends_the_command(tmp_path, processes, capsys):
    processes.fail = 3
    assert run.main(["testbed", f"--out={tmp_path}", f"--records={tmp_path}/r"]) == 3 and len(processes) == 1
    assert "testbed/base/seed-0 ended with status 3" in capsys.readouterr().err and not (tmp_path / "r").exists()


def test_miniatures_keep_their_records_apart(tmp_path, processes, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run.main(["testbed", "--smoke", "--seeds=0", "--cells=epochs-16"]) == 0
    assert processes[0][4].endswith(":factor_smoke") and processes[1][-1] == "--smoke"
    assert (tmp_path / "runs/paper-smoke/records/testbed/epochs-16/seed-0.json").is_file()


def test_data_are_prepared_once_and_named_to_every_run(tmp_path, processes, monkeypatch):
    asked = []
    prepared = TESTBED._replace(prepare=lambda out: asked.append(out) or {"data.preference_source": f"{out}/x.jsonl"})
    monkeypatch.setitem(plan.EXPERIMENTS, "testbed", prepared)
    given = ["testbed", "--cells=base", "--seeds=0,1", f"--out={tmp_path}", f"--records={tmp_path}/r"]
    assert run.main(given) == 0 and asked == [tmp_path / "testbed"]
    assert all(f"--config.data.preference_source={tmp_path}/testbed/x.jsonl" in command for command in processes[::2])
    assert run.main(given) == 0 and len(asked) == 1


@pytest.mark.parametrize("given, said", [
    (["nothing"], "no experiment 'nothing'"), (["testbed", "--cells=bse"], "no cell 'bse'"), (["testbed", "--seeds=a"], "whole numbers"),
])  # fmt: skip
def test_mistakes_are_one_line(given, said, tmp_path, capsys):
    assert run.main([*given, f"--out={tmp_path}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_broken_record_is_named(tmp_path, capsys):
    file = tmp_path / "testbed/base/seed-0.json"
    file.parent.mkdir(parents=True)
    file.write_text('{"settings": {}}')
    assert run.main(["testbed", f"--records={tmp_path}", "--list"]) == 2 and str(file) in capsys.readouterr().err
    assert write.main([f"--records={tmp_path}", f"--into={tmp_path}"]) == 2 and str(file) in capsys.readouterr().err


def test_a_record_holds_what_the_page_needs(tmp_path, monkeypatch):
    analyse = types.ModuleType("benchmarks.evidence.analyse")
    analyse.analyse = lambda folder: {"probes": {"from": folder.name, "one third": 1 / 3}}
    monkeypatch.setitem(sys.modules, "benchmarks.evidence.analyse", analyse)
    monkeypatch.setattr("benchmarks.evidence.analyse", analyse, raising=False)
    monkeypatch.setitem(plan.EXPERIMENTS, "testbed", TESTBED._replace(baselines=lambda folder: {"chance": {"accuracy": 0.5}}))
    work = tmp_path / "work"
    results = made.record()["results"] | {"timing": {"sft": {"seconds": 2.5, "compile_seconds": 1.0}}}
    (work / "evaluate").mkdir(parents=True)
    artifacts.write_json(work / "results.json", results)
    artifacts.write_json(work / "config.json", {"config": {}, "git_commit": "abc", "cores": 3})
    artifacts.write_json(work / "evaluate" / "report.json", {"over_training": {"policy/x": {"step": [1]}}, "samples": ["left out"]})
    assert record.main(["testbed", "base", "1", str(work), str(tmp_path / "r.json")]) == 0
    found = json.loads((tmp_path / "r.json").read_text())
    assert (found["experiment"], found["cell"], found["seed"], found["commit"], found["cores"]) == ("testbed", "base", 1, "abc", 3)
    assert found["settings"]["seed"] == 1 and found["settings"]["sample.eval_samples"] == 256
    assert found["seconds"]["sft"] == 2.5 and found["seconds"]["analyses"] >= 0 and found["over_training"] == {"policy/x": {"step": [1]}}
    assert found["analyses"] == {"probes": {"from": "work", "one third": 0.333333}, "baselines": {"chance": {"accuracy": 0.5}}}
    (work / "results.json").unlink()
    assert record.main(["testbed", "base", "1", str(work), str(tmp_path / "r.json")]) == 2


def test_two_records_are_compared(tmp_path, capsys):
    one = made.record()
    one["results"]["timing"] = {"sft": {"seconds": 1.0}}
    other = json.loads(json.dumps(one))
    other["commit"] = "fedcba"
    other["seconds"]["sft"], other["results"]["timing"]["sft"]["seconds"] = 2.0, 2.0
    files = [str(tmp_path / name) for name in ("one.json", "other.json")]
    for changed, said in ((False, 0), (True, 1)):
        if changed:
            other["results"]["policies"]["sft"]["golden_mean"] += 1e-6
            other["analyses"]["more"] = None
        for file, of in zip(files, (one, other), strict=True):
            record.write(pathlib.Path(file), of)
        assert same.main(files) == said
        lines = capsys.readouterr().out.splitlines()
        told = ["['analyses']['more']: absent | None", "['results']['policies']['sft']['golden_mean']: 0.64 | 0.640001"]
        assert sorted(lines[:-1]) == told * changed
        assert lines[-1].endswith(f" values, {2 * changed} differ") and int(lines[-1].split()[0].replace(",", "")) > 400
    assert same.main([files[0], str(tmp_path / "none.json")]) == 2 and "none.json" in capsys.readouterr().err


# ------------------------------------------------------------------ intervals and verdicts


def test_intervals_by_hand():
    # v = 1, 2, 3: std 1, over seeds 1/sqrt(3); t(0.975, 2) = 4.302653
    found = effects.effect([(1.0, 0.3), (2.0, 0.4), (3.0, 0.0)])
    assert found.mean == 2 and found.seeds == 3 and found.high - 2 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert found.over_prompts == pytest.approx(1.959964 * 0.5 / 3, rel=1e-6) and 2 - found.low == pytest.approx(found.high - 2)
    close = effects.effect([(1.0, 0.3), (1.0, 0.4)])  # the seeds agree by chance: the prompts' error counts
    assert close.high - 1 == pytest.approx(1.959964 * 0.25, rel=1e-6) == close.over_prompts
    one = effects.effect([(1.0, 0.3)])
    assert (one.low, one.high) == pytest.approx((1 - 1.959964 * 0.3, 1 + 1.959964 * 0.3)) and one.seeds == 1
    unknown = effects.effect([(1.0, None)])
    assert math.isnan(unknown.low) and math.isnan(unknown.over_prompts) and effects.effect([]) is None
    assert effects.effect([(1.0, None), (2.0, 0.1)]).high == pytest.approx(1.5 + 12.7062 * 0.5, rel=1e-5)  # t(0.975, 1)
    assert effects.minus((3.0, 0.3), (1.0, 0.4)) == (2.0, pytest.approx(0.5)) and effects.minus((3.0, 0.3), (1.0, None)) == (2.0, None)


@pytest.mark.parametrize("low, high, said", [
    (0.001, 0.5, "holds"), (0.001, 0.01, "holds"), (0.0, 0.5, "cannot tell"), (-0.1, 0.019, "does not hold"), (-0.1, 0.02, "cannot tell"),
    (-0.3, -0.1, "does not hold"), (math.nan, math.nan, "cannot tell"),
])  # fmt: skip
def test_the_verdicts_rule(low, high, said):
    assert claims.verdict(effects.Effect(0.0, low, high, 0.0, 3), 0.02) == said


def studies_of(*records):
    """{experiment: Study} of some records."""
    found = {}
    for one in records:
        found.setdefault(one["experiment"], {}).setdefault(one["cell"], {})[one["seed"]] = one
    return {name: effects.Study(name, cells) for name, cells in found.items()}


def seeds(experiment="testbed", cell="base", move=0.0, wins=None):
    return [made.record(experiment, cell, seed, move + 0.001 * seed, wins) for seed in (0, 1, 2)]


def test_effects_of_the_claims_by_hand():
    tested = claims.test_all(studies_of(*seeds(), *seeds(cell="dialect-0", move=-0.03), *seeds(cell="dialect-1")))
    mean = {key: one.base["testbed"].mean for key, one in tested.items() if one.base}
    assert mean["best_of_n"] == pytest.approx(0.081) and mean["over_preference"] == pytest.approx(0.041)
    assert mean["grows"] == pytest.approx(0.081 * (1 - math.log(5) / math.log(30)))
    assert mean["init_demo_below"] == pytest.approx(0.05) and mean["over_init_demo"] == pytest.approx(0.131)
    assert mean["heterogeneity"] == pytest.approx(0.03)  # 0.131 at dialect strength 1, 0.101 at 0
    assert mean["closed_form"] == pytest.approx(0.02 - 0.081 + claims.MARGIN) and mean["surface"] == pytest.approx(0.21)
    # the fall from positions 0 to 3 (a fifth of the responses reach no sixth position; a third of five is one): 4 slopes
    assert mean["compounding"] == pytest.approx(4 * (0.3 - 0.101)) and mean["less_compounding"] == pytest.approx(4 * (0.3 - 0.2))
    assert mean["policy"] == pytest.approx(0.02 + 0.001) and mean["adversarial"] == pytest.approx(0.04 + 0.001)
    assert mean["over_optimised"] == pytest.approx(0.14 - 0.001) and mean["foresees"] == pytest.approx(0.91)
    assert mean["beyond_kl"] == pytest.approx(0.01) and mean["dpo"] == pytest.approx(-0.239)
    assert not tested["few_demonstrations"].base and tested["few_demonstrations"].verdict == "not measured"
    at = tested["over_optimised"].base["testbed"]
    assert at.over_prompts == pytest.approx(1.959964 * 0.01 / math.sqrt(3), rel=1e-5)


def test_what_a_claim_depends_on():
    both = claims.test_all(studies_of(*seeds(), *seeds("imdb", move=-0.2)))["best_of_n"]
    assert [claims.decided(found, claims.MARGIN) for found in both.base.values()] == ["holds", "does not hold"]
    assert both.verdict == "depends on the data (holds on testbed; does not hold on imdb)"
    levels = claims.test_all(studies_of(*seeds(), *seeds(cell="entanglement-0.8", move=-0.2)))["best_of_n"]
    assert [claims.verdict(found, claims.MARGIN) for found in levels.levels["entanglement"].values()] == ["holds", "does not hold"]
    assert levels.verdict == "depends on entanglement"
    assert claims.test_all(studies_of(*seeds(), *seeds("imdb")))["best_of_n"].verdict == "holds"
    one = claims.test_all(studies_of(*seeds(), made.record(cell="entanglement-0.8", move=-0.2), made.record("imdb", move=-0.2)))["best_of_n"]
    for found in (one.levels["entanglement"][0.8], one.base["imdb"]):
        assert claims.marked(found, claims.verdict(found, claims.MARGIN)) == "does not hold (one seed)"
    assert one.verdict == "holds"
    assert claims.test_all(studies_of(made.record()))["best_of_n"].verdict == "cannot tell"
    unclear = [made.record(seed=seed, move=move) for seed, move in enumerate((-0.3, 0.1, 0.2))]
    assert claims.test_all(studies_of(*unclear))["best_of_n"].verdict == "cannot tell"


def test_the_grid_of_levels():
    tested = claims.test_all(studies_of(*seeds(), *seeds(cell="entanglement-0.4", move=-0.2), made.record(cell="entanglement-0.8")))
    head, _, *rows = (line.strip("| ").split(" | ") for line in tables.levels(tested).splitlines())
    assert head == ["claim", "entanglement 0", "entanglement 0.4", "entanglement 0.8"]
    assert ["Best-of-N by `init_sft` beats sft", "+", "−", "(+)"] in rows
    assert not any("heterogeneous" in row[0] for row in rows), "a claim about two cells has no level"
    assert tables.levels(claims.test_all(studies_of(*seeds()))) == ""


def test_advice_follows_the_verdicts():
    def said(*records):
        studies = studies_of(*records)
        return {question: " ".join(lines) for question, lines in advice.advice(studies, claims.test_all(studies))}

    good = said(*seeds(), *seeds(cell="demonstrations-50", move=-0.05), *seeds(cell="demonstrations-5000"))
    assert "Learn `init_sft`" in good["Which recipe"] and "highest win rate of best-of-30 is `init_sft`'s, 0.581" in good["Which recipe"]
    assert "gained more over sft with more demonstrations" in good["How many demonstrations"]
    assert "highest at N = 64 (0.599) and within 0.02 of that from N = 30 on" in good["Which N"]
    assert "below sft: `policy/far`" in good["Whether to train a policy, and which way"]
    assert "Stop early" in good["Which KL, and when to stop"] and "at the end (6.00 nats)" in good["Which KL, and when to stop"]
    bad = said(*seeds(move=-0.2))
    assert "Do not expect best-of-N by `init_sft`" in bad["Which recipe"] and "If you have labelled pairs, use them" in bad["Which recipe"]
    assert "Stay with best-of-N" in bad["Whether to train a policy, and which way"]
    assert all(text.startswith("Not known yet") for text in said().values())


# ------------------------------------------------------------------ the page


def every_record(root):
    """Records of every cell and seed of the plan."""
    for name, experiment in plan.EXPERIMENTS.items():
        for cell in experiment.of(name):
            record.write(root / f"{cell.path}.json", made.record(name, cell.name, cell.seed, 0.01 * cell.seed))


def digest(folder):
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*.*"))}


@pytest.mark.slow
def test_the_page_of_all_records_is_the_same_twice(tmp_path):
    every_record(tmp_path / "records")
    for place in ("a", "b"):
        assert write.main([f"--records={tmp_path}/records", f"--into={tmp_path}/{place}"]) == 0
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    page = (tmp_path / "a/evidence.md").read_text()
    images = {line.split("](")[1].rstrip(")") for line in page.splitlines() if line.startswith("![")}
    assert images == {name for name in digest(tmp_path / "a") if name.endswith(".png")} and len(images) > 20
    assert page.count("Not run yet") == 1 and "missing" not in page and "33 of 33" in page and "`0123456789`" in page


@pytest.mark.parametrize("left", [
    [], [made.record()], [made.record("imdb", seed=2)], [made.record(cell="dialect-1")],
    [made.record(cell="dialect-0"), made.record(cell="dialect-1")], [made.record("hh")],
], ids=["none", "one seed", "another experiment", "one cell", "no base", "dialogues"])  # fmt: skip
def test_any_subset_makes_a_page(left, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.evidence.drawing.DPI", 30)
    if left and left[0]["experiment"] == "hh":
        left = [_without_judge(left[0])]
    page = write.make(studies_of(*left), {}).text()
    assert ("`hh` has not been run." in page) == (not left or left[0]["experiment"] != "hh") and "nan" not in page
    if left:
        assert "(one seed)" in page or not claims.test_all(studies_of(*left))["best_of_n"].base
        assert f"Of `{left[0]['experiment']}` are missing" in page


def _without_judge(one):
    """A record of a run whose golden is none."""
    for row in one["results"]["rewards"].values():
        row["best_of_n"] = []
    for row in one["results"]["policies"].values():
        row["golden_mean"] = None
    less = dict(less_length=0.1, less_length_stderr=0.02, less_bag_of_words=-0.1, less_bag_of_words_stderr=0.02)
    baselines = {name: dict(accuracy=right, stderr=0.02) for name, right in (("chance", 0.5), ("length", 0.52), ("bag_of_words", 0.6))}
    one["results"]["paired"], one["over_training"] = [], {}
    one["analyses"] = {"probes": None, "baselines": {**baselines, "rewards": {"init_sft": less}}}
    return one


def test_old_figures_go_with_the_old_page(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.evidence.drawing.DPI", 30)
    write.write(studies_of(made.record()), {}, tmp_path)
    assert list((tmp_path / "evidence").glob("*.png"))
    write.write({}, {}, tmp_path)
    assert not list((tmp_path / "evidence").glob("*.png"))


def test_the_figures_numbers(monkeypatch):
    study = studies_of(*seeds())["testbed"]
    (line,) = [line for line in figures.win_lines(study) if line.name == "init_demo"]
    assert line.x[-1] == 64 and line.effects[-1].mean == pytest.approx(-0.05 * math.log(64) / math.log(30))
    curve = figures.training_line(study, "policy/far")
    assert curve.x == pytest.approx([0.2, 0.5, 1.0, 2.0, 4.0, 6.0])
    assert [one.mean for one in curve.effects] == pytest.approx([0.64, 0.66, 0.68, 0.66, 0.6, 0.5])
    assert figures.training_line(study, "policy/none") is None
    curve = {"step": [5, 0, 10], "kl": [1.0, -0.5, 2.0], "golden": [0.5, 0.7, None], "golden_stderr": [0.3, 0.4, 0.1]}
    assert effects.in_blocks([curve], "golden") == ([0.0, 5.0, 10.0], [0.0, 1.0, 2.0], [effects.effect([(0.7, 0.4)]),
                                                                                         effects.effect([(0.5, 0.3)]), None])
    monkeypatch.setattr(effects, "BLOCKS", 1)
    pair = [{key: values[:2] for key, values in curve.items()}] * 2
    assert effects.in_blocks(pair, "golden") == ([2.5], [0.25], [effects.effect([(0.6, 0.25)] * 2)])
    assert effects.in_blocks([], "golden") == ([], [], [])
    h, golden = figures_why.placed(study)["policy/init_sft"]
    assert h.mean == pytest.approx(3.5) and golden.mean == pytest.approx(0.66)  # init's own is at -2
    positions, found = figures_why.along(study, "sft", "demo_log_prob")
    assert positions == [0, 1, 2, 3, 4] and found[4].mean == pytest.approx(-2.2)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6])
def test_the_lowest_panel_of_each_column_has_numbers(count):
    planes = drawing.grid(Figure(), count, sharex=True)
    assert [axes.xaxis.get_tick_params()["labelbottom"] for axes in planes] == [place >= count - 2 for place in range(count)]


@pytest.mark.parametrize("file", sorted(path.name for path in (plan.ROOT / "docs/evidence").glob("*.png")))
def test_no_figure_is_cut_off(file):
    pixels = image.imread(plan.ROOT / "docs/evidence" / file)[..., :3]
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert edge.min() > 0.9, "something reaches beyond the edge"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("y, low, high", [((0.25, 0.25), 0.0, 1.0), ((0.5, 0.625), 0.5 - 0.125 * drawing.BEYOND, 0.625 + 0.125 * drawing.BEYOND)])
def test_bands_reach_a_little_beyond_lines_that_have_a_range(y, low, high):
    axes = Figure().subplots()
    axes.plot((1, 2), y)
    axes.set_ylim(0.0, 1.0)
    drawing.fit([axes])
    assert axes.get_ylim() == pytest.approx((max(low, 0.0), min(high, 1.0)))


def told_runs(*runs):
    """[(gain, AUC) of each reward of a run] as points."""
    return [foretell.Point(("testbed", "base", seed), "init_sft", gain, {foretell.AUC: auc})
            for seed, pairs in enumerate(runs) for gain, auc in pairs]


def test_what_foretells_by_hand():
    rising = [(0.25, 0.25), (0.5, 0.5), (0.75, 0.75)]
    same = foretell.correlation(told_runs(rising, rising, rising), foretell.AUC, within=False)
    assert same == pytest.approx((1.0, 1.0, 1.0, math.nan, 3), nan_ok=True)
    # within two of three runs the higher AUC gains less: of what is left of both, 0.125 - 2 * 0.125 over 3 * 0.125
    among = told_runs(rising, [(gain, -auc) for gain, auc in rising], [(gain - 4.0, -3.0 - auc) for gain, auc in rising])
    between, within = (foretell.correlation(among, foretell.AUC, one) for one in (False, True))
    assert within.mean == pytest.approx(-1 / 3) and between.mean > 0
    # by scipy on the very pairs, the jackknife of three runs by hand
    pairs = [(point.gain, point.known[foretell.AUC]) for point in among]
    left = [stats.spearmanr(*zip(*(pairs[: 3 * i] + pairs[3 * i + 3 :]), strict=True)).statistic for i in range(3)]
    half = 1.959964 * math.sqrt(2 / 3 * sum((one - sum(left) / 3) ** 2 for one in left))
    assert (between.mean, between.mean - between.low) == pytest.approx((stats.spearmanr(*zip(*pairs, strict=True)).statistic, half))
    assert between.high == 1.0 < between.mean + half, "no correlation lies beyond"
    assert foretell.correlation(told_runs(rising, rising), foretell.AUC, within=False) is None, "two runs"
    assert foretell.correlation(told_runs(*[[(0.1, 0.5)]] * 4), foretell.AUC, within=False) is None, "nothing varies"
    assert foretell.correlation(told_runs(*[[(0.1 * i, 0.1 * i)] for i in range(4)]), foretell.AUC, within=True) is None, "no run has two"


@pytest.mark.parametrize("sign, said", [(1, "The higher a reward's held-out AUC"), (-1, "Do not trust a reward for its held-out AUC")])
def test_what_is_said_of_the_auc(sign, said):
    records = seeds()
    for one in records:
        for name, row in one["results"]["rewards"].items():
            row["heldout_auc"] = 0.5 + sign * made.WINS[name]
            if probe := one["analyses"]["probes"].get(name):
                probe["on_sft"] = probe["on_sft"] | {"r2": 0.5 - sign * made.WINS[name]}
    sentences = advice.foretellers(studies_of(*records))
    assert said in sentences[0] and any("surface features explain least" in one for one in sentences) == (sign > 0)
    assert ("could not be shown to gain more" in sentences[1]) == (sign < 0) and "of the same data the one with the higher AUC" in sentences[1]


def test_points_of_the_records():
    among = foretell.points(studies_of(made.record(), made.record(seed=1), made.record("hh")))
    assert len(among) == 3 * 4 and {point.run for point in among} == {("testbed", "base", 0), ("testbed", "base", 1), ("hh", "base", 0)}
    (one,) = (point for point in among if point.run == ("testbed", "base", 0) and point.reward == "init_sft")
    assert one.gain == pytest.approx(0.08 * math.log(16) / math.log(30))
    assert one.known[foretell.AUC] == pytest.approx(0.88) and one.known[foretell.SURFACE] == 0.4
    assert one.known["rank correlation with length, absolute"] == pytest.approx(0.2)


def test_policies_of_the_records():
    studies = studies_of(*seeds(), made.record("hh"))
    among = foretell.policies(studies)
    assert [point.gain for point in among] == pytest.approx([0.02, 0.021, 0.022, 0.02]) and {point.reward for point in among} == {"init_sft"}
    assert among[1].known == {foretell.SAMPLED: pytest.approx(0.081 * math.log(16))}
    assert foretell.correlation(among, foretell.SAMPLED, within=False).mean == pytest.approx(1.0)
    assert any("the more the policy did (rank correlation +1.00" in one for one in advice.policies(studies, claims.test_all(studies)))


def test_the_committed_page_is_that_of_the_committed_records(monkeypatch):
    monkeypatch.setattr("benchmarks.evidence.drawing.DPI", 30)  # of the page, not of its figures
    assert (plan.ROOT / "docs" / "evidence.md").read_text() == write.make(effects.load(run.RECORDS), robust.load(robust.everything())).text()


# ------------------------------------------------------------------ end to end


@pytest.mark.slow
@pytest.mark.parametrize("name", SMOKES)
def test_miniature_from_the_runs_to_the_page(name, tmp_path, request, monkeypatch):
    if plan.EXPERIMENTS[name].shared:
        monkeypatch.setenv("IRL_JAX_SHARED", str(request.getfixturevalue("small_shared")))
    command = [sys.executable, "-m", "benchmarks.evidence.run", name, "--smoke", "--seeds=0", "--cells=base", f"--out={tmp_path}/out"]
    subprocess.run(command, cwd=plan.ROOT, check=True)
    (file,) = (tmp_path / "out/records").rglob("*.json")
    found = json.loads(file.read_text())
    assert found["analyses"]["shift"]["sft"]["position"] and found["analyses"]["probes"]["init_sft"]["auc"] is not None
    golden, told, rewards = (found["results"][key] for key in ("golden", "policies", "rewards"))
    if golden:
        assert (golden["heldout_accuracy"] or 1.0) > 0.7 and told["demo"]["golden_mean"] > told["init"]["golden_mean"]
    else:
        assert "golden" not in rewards and all(0 <= row["pair_accuracy"] <= 1 for row in rewards.values())
    assert write.main([f"--records={tmp_path}/out/records", f"--into={tmp_path}/docs"]) == 0
    page = (tmp_path / "docs/evidence.md").read_text()
    (row,) = (line for line in page.splitlines() if line.startswith(f"| `{name}` | {plan.EXPERIMENTS[name].title}"))
    assert "| 1 of " in row
    assert "(one seed)" in page or name.endswith(TWIN)  # whose few samples may be too few for any claim, as the machine rounds them
    again = subprocess.run(command, cwd=plan.ROOT, check=True, capture_output=True, text=True)
    assert again.stdout.splitlines() == ["1 of 1 cells are done"]
