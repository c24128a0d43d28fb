"""benchmarks/robust.py: its standard errors by hand, what robust stands for, and the table."""

import json

import numpy as np
import pytest

from benchmarks import more_prompts, robust


def record(shift=0.0, terms=("init_sft", "mean_logprob"), temperature=0.5):
    prompts = np.linspace(0.0, 0.4, 5)
    golden = {"sft": prompts, "sft@0.5": prompts + 0.1, "sft@greedy": prompts + 0.05, "policy/init_sft": prompts + 0.6,
              "best-of-16 by robust at T = 0.5": prompts + 0.3 + shift + 0.1 * prompts, "best-of-16 by length at T = 0.5": prompts + 0.2,
              "best-of-16 by init_sft": prompts + 0.25, "best-of-16 by golden at T = 0.5": prompts + 0.5}
    return {"robust": {"terms": [{"reward": name, "weight": 1.0} for name in terms], "temperature": temperature}, "baseline": "sft@0.5",
            "bound": {"0.5": 0.6}, "golden_by_prompt": {name: list(values) for name, values in golden.items()}}


def test_standard_errors_add_the_prompts_and_the_seeds():
    differences = [np.array([0.0, 1.0]), np.array([1.0, 3.0])]  # means 0.5 and 2, variances 0.5 and 2
    found = robust.compared(differences)
    assert found.mean == pytest.approx(1.25) and found.seeds == 2
    assert found.stderr == pytest.approx(np.sqrt((0.5 / 2 + 2 / 2) / 4 + 1.125 / 2))
    assert robust.compared(differences[:1]).stderr == pytest.approx(0.5)  # one seed: the prompts' is all there is


def test_honest_baselines_are_those_that_train_nothing():
    names = robust.baselines(record()["golden_by_prompt"])
    assert names == ["sft", "sft@0.5", "sft@greedy", "best-of-16 by length at T = 0.5"]


def test_a_closed_gate_stands_for_sft_at_its_temperature():
    assert robust.chosen(record())[0] == "best-of-16 by robust at T = 0.5"
    name, golden = robust.chosen(record(terms=()))
    assert name == "sft@0.5" and golden.mean() == pytest.approx(0.3)


def test_verdict_finds_the_closest_baseline():
    said = robust.verdict([record(), record(0.02)])
    assert said["closest"] == "best-of-16 by length at T = 0.5"
    assert said["less the best of sft"].mean == pytest.approx(0.2 + 0.02 + 0.01)
    assert said["less the closest"].mean == pytest.approx(0.1 + 0.02 + 0.01)


def test_the_table_and_the_records(tmp_path):
    for seed in (200, 202):
        (tmp_path / f"hard-{seed}.json").write_text(json.dumps(record()))
    found = robust.load(robust.everything(), tmp_path)
    assert list(found) == ["hard"] and len(found["hard"]) == 2
    row = robust.table(found).splitlines()[2]
    assert row.startswith("| `hard` | 2 | open in 2 of 2; init_sft + mean_logprob | 0.300 | 0.520 | +0.220 ± ") and row.endswith(" | 0.600 | 0.700 |")
    assert robust.main(["table", "hard", "--seeds=7"]) == 0
    with pytest.raises(SystemExit):
        robust.main(["table", "soft"])


def test_the_tables_in_the_pages_are_those_of_the_records():
    readme, page = ((robust.ROOT / name).read_text() for name in ("README.md", "docs/testbed.md"))
    assert robust.summary(robust.load(robust.everything())) in readme
    records = robust.load(robust.everything(("testbed",)))["testbed"]
    assert len(records) == 3 and robust.gains(records) in page
    runs = [(name, seed) for seed in more_prompts.SEEDS for name in more_prompts.SETS]
    assert more_prompts.table(robust.load(runs, more_prompts.RECORDS)) in (robust.ROOT / "docs" / "data.md").read_text()


def test_what_is_said_of_the_rule_that_fell_is_in_its_record():
    text = " ".join((robust.ROOT / "docs" / "robust.md").read_text().split())
    (record,) = robust.load([("testbed", 200)])["testbed"]
    sft = np.array(record["golden_by_prompt"][record["baseline"]])
    for name in ("robust", "init_demo", "sft_demo"):
        less = robust.compared([np.array(record["golden_by_prompt"][f"best-of-16 by {name} at T = 0.5"]) - sft])
        assert less.text().lstrip("+") in text, (name, less.text())
    z = [f"{record['robust']['directions'][name]['z']:.1f}" for name in ("init_sft", "init_demo", "sft_demo")]
    assert "z = {} for `init_sft`, {} for `init_demo`, {} for `sft_demo`".format(*z) in text


def test_the_verdict_in_words_has_the_numbers_of_the_records():
    text = " ".join((robust.ROOT / "docs" / "robust.md").read_text().split())
    found = robust.load(robust.everything())
    for name, records in found.items():
        said, means = robust.verdict(records), robust.means(records)
        assert said["less the best of sft"].text() in text, name
        assert said["less the best of sft"].z > -2
        assert said["less the closest"].text().lstrip("+") in text, name
        if said["less the closest"].z < 3:
            assert said["closest"] == "best-of-16 by mean_logprob at T = 0.5" and f"{means[2]:.3f}" in text, name
    assert sum(robust.verdict(records)["less the closest"].z >= 3 for records in found.values()) == 2
    assert all(record["robust"]["terms"] for records in found.values() for record in records)
    for seed, record in zip((200, 201), found["paradetox"], strict=False):
        assert f"On seed {seed}" in text and f"{robust.chosen(record)[1].mean():.3f}" in text
    z = [found["paradetox"][1]["robust"]["directions"][name]["z"] for name in ("init_sft", "init_demo", "sft_demo")]
    assert "z = {:.1f}, {:.1f} and {:.1f}".format(*z) in text
    assert f"z = {found['imdb'][0]['robust']['directions']['init_demo']['z']:.1f}" in text
