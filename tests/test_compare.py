"""Runs side by side: grouped by config, pooled over seeds, on made-up results whose figures are known."""

import json
import math
import subprocess
import sys

import pytest
from test_benchmarks import ROOT, made_up, rows_of
from test_report import Checker, read

from irl_jax import cli
from irl_jax.config import default
from irl_jax.evaluation.pooling import pool, pooled
from irl_jax.stages import compare, run_tables


def made_run(path, seed=0, shift=0.0, results=None, **changes):
    """A folder that looks like a finished run's; `changes` are dotted keys with __ for dots."""
    config = default()
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()} | {"seed": seed})
    path.mkdir(parents=True)
    about = dict(config=config.to_dict(), seed=seed, versions={}, git_commit="f00dbeef" * 5)
    (path / "config.json").write_text(json.dumps(about))
    made = made_up(shift) | dict(seed=seed, golden=dict(name="testbed", heldout_accuracy=None, unit="score"))
    (path / "results.json").write_text(json.dumps(made if results is None else results))
    return str(path)


@pytest.fixture
def four(tmp_path):
    """Two seeds of two configs that differ in sft.learning_rate; the second's golden is 0.1 higher."""
    return [made_run(tmp_path / f"{name}-{seed}", seed, 0.2 * seed + more, sft__learning_rate=rate)
            for name, rate, more in (("a", 1e-3, 0.0), ("b", 2e-3, 0.1)) for seed in (0, 1)]


def table_rows(text, title):
    """Rows of the first Markdown table whose head starts so."""
    return rows_of(text[text.index(f"| {title} |") :].split("\n\n")[0])[2:]


def test_pooling_by_hand():
    assert pool([1.0, 3.0], [0.3, 0.4]) == pytest.approx((2.0, 0.25, 1.0))
    assert pooled([1.0, 3.0], [0.3, 0.4], 2) == "2.00 ± 0.25 / 1.00"
    assert pooled([1.0], [0.3]) == "1.000 ± 0.300" and pooled([1.0]) == "1.000" and pooled([1.0, 3.0], [0.3, None], 1) == "2.0 ± 1.0"
    assert pool([1.0, None]) is None and pooled([]) == "–"
    assert pool([1.0], [0.3]).stderr == 0.3 and pool([1.0, 3.0], [0.3, 0.4]).stderr == pytest.approx(1.0)


def test_one_config_over_seeds_is_one_group(four, tmp_path, capsys):
    assert cli.main(["compare", *four[:2], f"--out={tmp_path / 'new' / 'out'}"]) == 0
    out = capsys.readouterr().out
    within = math.sqrt(2 * 0.03**2) / 2  # of the mean of 0.6 and 0.8
    row = next(row for row in table_rows(out, "policy") if row[0] == "`dpo/x`")
    assert row[1:4] == [f"0.700 ± {within:.3f} / 0.100", "20.0 ± 0.0", "1.00 ± 0.07 / 0.00"]
    row = next(row for row in table_rows(out, "reward") if row[0] == "`init_sft`")
    assert row[4] == f"0.710 ± {math.sqrt(2 * 0.04**2) / 2:.3f} / 0.100" and row[6] == "–"
    (row,) = table_rows(out, "difference on the same prompts")
    assert row[2] == "+5.0, +5.0"
    assert "`demo`" not in out.split("forward KL", 1)[1].split("\n\n")[0]  # its own row has no divergence
    assert "Settings that differ" not in read(tmp_path / "new" / "out" / "compare.html") and "less that of" not in out


def test_configs_stand_side_by_side(four, tmp_path, capsys):
    assert cli.main(["compare", *four, f"--out={tmp_path}"]) == 0
    out = capsys.readouterr().out
    rows = [row for row in table_rows(out, "policy") if row[0] == "`sft`"]
    assert [row[1:3] for row in rows] == [["A", "0.600 ± 0.021 / 0.100"], ["B", "0.700 ± 0.021 / 0.100"]]
    differing = rows_of(out[out.index("| setting |") :].split("\n\n")[0])[2:]
    assert differing == [["`sft.learning_rate`", "0.001", "0.002"]]
    less = [row for row in rows_of(out[out.index("| policy or best-of-n |") :].split("\n\n")[0]) if row[0] == "`best-of-16 by init_sft`"]
    assert less == [["`best-of-16 by init_sft`", "B", f"0.100 ± {math.sqrt(2 * 2 * 0.04**2) / 2:.3f} / 0.000", "2"]]  # seed by seed
    page = Checker(read(tmp_path / "compare.html"))
    assert all(four_path in page.text for four_path in four) and "f00dbeeff00d" in page.text
    assert [tag for tag, _ in page.images].count("img") == 2 and page.headings[0] == 1
    assert all(link.startswith("data:") or link[1:] in page.ids for link in page.links)


def test_runs_that_were_not_judged_or_have_other_methods(tmp_path, capsys):
    bare = made_up()
    for row in bare["policies"].values():
        row |= dict(golden_mean=None, golden_stderr=None)
    for row in bare["rewards"].values():
        row |= dict(best_of_n=[], spearman_golden=None)
    bare |= dict(seed=0, golden=None, divergences=None, paired=[])
    del bare["policies"]["dpo/x"]
    paths = [made_run(tmp_path / "a", results=bare, golden__kind="none"),
             made_run(tmp_path / "b", golden__kind="none", sft__steps=3)]
    assert cli.main(["compare", *paths, f"--out={tmp_path}"]) == 0
    rows = table_rows(capsys.readouterr().out, "policy")
    assert [row[1] for row in rows if row[0] == "`dpo/x`"] == ["B"] and next(row for row in rows if row[0] == "`sft`")[2] == "–"
    assert cli.main(["compare", paths[0], f"--out={tmp_path}"]) == 0 and "<img" not in read(tmp_path / "compare.html")


def test_names_from_outside_do_nothing(tmp_path, capsys):
    evil = "<script>alert(1)</script>"
    results = made_up() | dict(seed=0)
    results["policies"][evil] = results["policies"]["sft"]
    assert cli.main(["compare", made_run(tmp_path / "a<b>", results=results), f"--out={tmp_path}"]) == 0
    text = read(tmp_path / "compare.html")
    assert text.count("<script") == 1 and evil in Checker(text).text and "<b>" not in text


def test_what_is_printed_moves_no_terminal_and_stays_one_table(tmp_path, capsys):
    """Text of another's workdir: escape sequences, what Markdown obeys, and text where a number belongs."""
    evil = "\x1b[2J\x9b31m`|<img src=x>\n| x |\u202e"
    results = made_up() | dict(seed=0, timing={"sft": {"seconds": evil}})
    results["policies"][evil] = results["policies"]["sft"] | {"golden_mean": evil, "length_mean": evil}
    results["rewards"]["init_sft"] |= {"heldout_auc": evil, "auc_minus_log_ratio": {"difference": evil, "stderr": evil}}
    results["paired"][0] |= {"z": evil, "name": evil}
    run = made_run(tmp_path / "w", results=results)
    about = json.loads((tmp_path / "w" / "config.json").read_text())
    (tmp_path / "w" / "config.json").write_text(json.dumps(about | {"git_commit": evil}))
    assert cli.main(["compare", run, f"--out={tmp_path}"]) == 0
    out = capsys.readouterr().out
    assert all(line.isprintable() for line in out.splitlines()) and "\\x1b[2J\\x9b31m" in out
    assert r"| `` \x1b[2J\x9b31m`\|<img src=x> \| x \|\u202e `` | – | – |" in out
    assert r"\`\|\<img src=x>" in out  # in the commit's cell, which is no code
    assert "<img" not in read(tmp_path / "compare.html").replace('<img src="data:', "")


def test_the_settings_of_another_workdir_move_no_terminal(tmp_path, capsys):
    run = made_run(tmp_path / "w", data__source="a\u202eb")  # control characters are refused already, what turns text around is not
    assert cli.main(["config", f"--workdir={run}"]) == 0
    assert r"a\u202eb" in (out := capsys.readouterr().out) and all(line.isprintable() for line in out.splitlines())


def broken(tmp_path):
    """{case: (arguments, what the line says)}."""
    good = made_run(tmp_path / "good")
    (tmp_path / "file").write_text("")
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "config.json").write_text('{"config": {}}')
    cut = made_run(tmp_path / "cut", 1)
    (tmp_path / "cut" / "results.json").write_text('{"policies": ')
    listed = made_run(tmp_path / "listed", 2, results=[])
    other = made_run(tmp_path / "other", data__testbed__entanglement=0.5)
    return {
        "no workdir": ([str(tmp_path / "nowhere")], "not a workdir"), "a file": ([str(tmp_path / "file")], "not a workdir"),
        "unfinished": ([good, str(tmp_path / "unfinished")], "no results.json yet"), "cut": ([cut], "broken JSON"),
        "no results": ([listed], "results.json: has no object 'policies'"), "twice": ([good, good], "same config and seed (0)"),
        "other data": ([good, other], "data.testbed.entanglement is 0.5 here and 0.0 there"), "none": ([], "required: W"),
        "judge": ([good, made_run(tmp_path / "unjudged", golden__kind="none")], "golden.kind"),
        "out": ([good, f"--out={tmp_path / 'file'}"], "--out="), "below a file": ([good, f"--out={tmp_path / 'file' / 'x'}"], "--out="),
        "a store": (["s3://bucket/x"], "no way to reach s3://"), "override": ([good, "--config.seed=1"], "compare takes no config"),
    }


@pytest.mark.parametrize("case", ["no workdir", "a file", "unfinished", "cut", "no results", "twice", "other data", "none", "judge", "out",
                                  "below a file", "a store", "override"])
def test_mistakes_are_one_line_and_nothing_is_written(tmp_path, monkeypatch, capsys, case):
    arguments, said = broken(tmp_path)[case]
    monkeypatch.chdir(tmp_path)
    assert cli.main(["compare", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("irl_jax: error: ") and said in err
    assert not (tmp_path / "compare.html").exists()


def test_what_is_trained_on_may_differ(tmp_path):
    runs = [compare.load(made_run(tmp_path / str(n), data__max_demonstrations=n, mesh__fsdp=n or 1)) for n in (0, 10)]
    assert [len(group) for group in compare.grouped(runs).values()] == [1, 1]
    (shown,) = compare.what_differs(compare.grouped(runs))
    assert shown.rows == [["data.max_demonstrations", "0", "10"]]  # the mesh changes no result
    many = [run._replace(settings={"sft.steps": i}) for i, run in enumerate(runs * 14)]
    assert list(compare.grouped(many))[-1] == "28"


def test_seeds_that_only_one_has_are_left_out_of_the_difference():
    groups = {"A": [made_up() | dict(seed=0)], "B": [made_up(0.1) | dict(seed=0), made_up(5.0) | dict(seed=1)]}
    row = next(row for row in run_tables.differences(groups).rows if row[0] == "sft")
    assert row[2].startswith("0.100 ± ") and row[3] == "1"


def test_a_mistake_loads_nothing_heavy(tmp_path):
    code = "import sys; from irl_jax import cli; print(cli.main(['compare', 'nowhere']), {'jax', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "2 set()\n"


EVIL = "<b>\x1b[31m"
MISSHAPEN = {  # of results.json
    "policies.sft": EVIL, "policies": [1], "rewards.init_sft": 3, "rewards.init_sft.best_of_n": EVIL, "rewards.init_sft.best_of_n[0]": 1,
    "rewards.init_sft.best_of_n[0].n": 1.5, "rewards.init_sft.best_of_n[0].golden": EVIL, "rewards.many.members[1]": None, "paired": {},
    "paired[0].name": None, "divergences.sft": True, "timing.sft": 5, "golden": EVIL,
}


def put(tree, place, value):
    """The tree with another value at a place such as a.b[0]."""
    *way, last = [int(key) if key.isdigit() else key for key in place.replace("[", ".").replace("]", "").split(".")]
    at = tree
    for key in way:
        at = at[key]
    at[last] = value
    return tree


@pytest.mark.parametrize("place", MISSHAPEN)
def test_results_of_another_shape_are_one_line(tmp_path, capsys, place):
    other = made_run(tmp_path / "b", 1)
    run = made_run(tmp_path / "a", results=put(made_up() | {"golden": {}}, place, MISSHAPEN[place]))
    assert cli.main(["compare", run, other, f"--out={tmp_path}"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and f"'{place}', which irl_jax writes there" in line and "\x1b" not in line
    assert not (tmp_path / "compare.html").exists()


def test_what_is_null_or_no_number_is_not_known(tmp_path, capsys):
    made = made_up()
    made["policies"]["sft"]["golden_mean"], made["policies"]["dpo/x"]["golden_mean"] = 10**400, math.inf
    made["rewards"]["many"] = made["policies"]["spin/far"] = made["divergences"]["sft"] = made["timing"]["sft"] = None
    runs = [made_run(tmp_path / "a", results=made), made_run(tmp_path / "b", 1)]
    assert cli.main(["compare", *runs, f"--out={tmp_path}"]) == 0
    assert [row[1] for row in table_rows(capsys.readouterr().out, "policy") if row[0] == "`sft`"] == ["–"]
