"""The config in words: help for every key, who set it, the reference, overrides by type."""

import json
import pathlib

import pytest

from irl_jax import cli, config, describe, workdir
from irl_jax.config import default
from irl_jax.errors import UserError
from irl_jax.overrides import keys_of, override, spelled, split, value_of

ROOT = pathlib.Path(__file__).resolve().parent.parent


def printed(capsys, *arguments, status=0) -> dict:
    """What `irl_jax config` prints: {key: (value, who set it, help)}."""
    assert cli.main(["config", *arguments]) == status
    found = {}
    for line in capsys.readouterr().out.splitlines():
        setting, _, told = line.partition("  # ")
        setting, _, who = setting.rstrip().rpartition("  ")
        key, _, value = setting.strip().partition(" = ")
        found[key] = (value, who, told)
    return found


def sections_of(keys) -> set:
    return {key.rpartition(".")[0] for key in keys} - {""}


def test_every_key_and_section_has_its_help():
    told, keys = describe.helps(), keys_of(default())
    assert [key for key in keys if len(told.keys.get(key, "")) < 4] == []
    assert [section for section in sections_of(keys) if len(told.sections.get(section, "")) < 10] == []


def test_a_key_without_help_is_seen():
    source = pathlib.Path(config.__file__).read_text()
    added = source.replace("    a.rank = 8", "    a.new = 3\n    a.rank = 8")
    told = describe.read_helps(added)
    assert told.keys["adapter.new"] == "" and told.keys["adapter.rank"].startswith("LoRA rank")


def test_help_is_the_comment_with_the_lines_in_which_it_goes_on():
    told = describe.read_helps(
        "def default():\n"
        '    """All\n    of it."""\n'
        "    c = ConfigDict()\n"
        "    # about something else\n"
        "    c.a = '# no comment'  # the first,\n"
        "    #   and more\n"
        "    #   of it\n"
        "    # not this\n"
        "    c.b = 1\n"
        "    c.s = made(3,\n"
        "               4)  # not the docstring\n"
        "    c.t = made(5, 6)\n"
        "    c.t.z = 1  # only here\n"
        "    c.u = ConfigDict()  # plain\n"
        "    return c\n\n"
        "def made(x, y):\n"
        '    """What is made."""\n'
        "    d = deeper()  # with a note\n"
        "    if x:\n"
        "        d.y = y  # the y\n"
        "    return d\n\n"
        "def deeper():\n"
        "    e = ConfigDict()\n"
        "    e.x = 1  # the x\n"
        "    return e\n"
    )  # fmt: skip
    assert told.keys == {"a": "the first, and more of it", "b": "", "s.x": "the x", "s.y": "the y", "t.x": "the x", "t.y": "the y",
                         "t.z": "only here"}
    assert told.sections == {"": "All of it.", "s": "not the docstring", "t": "What is made; with a note", "u": "plain"}


def test_the_reference_is_that_of_the_code(capsys):
    assert cli.main(["config", "--markdown"]) == 0
    text = capsys.readouterr().out
    assert text == (ROOT / "docs" / "configuration.md").read_text(), "python -m irl_jax config --markdown > docs/configuration.md"
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert sorted(row.split("`")[1] for row in rows) == sorted(keys_of(default()))
    assert all(row.replace(r"\|", "").count("|") == 4 for row in rows)


def test_who_set_a_key(tmp_path, capsys, monkeypatch):
    """The config file where a value is not the default; flags win."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(
        "from ml_collections import ConfigDict\nfrom irl_jax.config import default\n\n"
        "def get_config(name=''):\n    c = default()\n    c.sft.steps = 9\n    c.seed = 0\n    c.eval.prompts = 7\n"
        "    c.update_from_flattened_dict({'spin.beta': 0.5})\n"
        "    c.mesh = ConfigDict({'data': 1, 'fsdp': 2, 'tensor': 1})\n    return c\n")
    found = printed(capsys, "--config=own.py:v", "--config.eval.prompts=8", "--config.seed=0")
    assert found["sft.steps"][:2] == ("9", "own.py:v")
    assert found["spin.beta"][:2] == ("0.5", "own.py:v")
    assert found["mesh.fsdp"][:2] == ("2", "own.py:v") and found["mesh.tensor"][1] == "default"
    assert found["eval.prompts"][:2] == ("8", "--config.eval.prompts") and found["seed"][:2] == ("0", "--config.seed")
    assert found["reward.recipes"] == (str(default().reward.recipes), "default", "learnt rewards")
    assert list(found) == sorted(keys_of(default()), key=list(describe.helps().keys).index)


def test_a_runs_own_config(tmp_path, capsys):
    mine = default()
    mine.sft.steps = 9
    with workdir.Workdir(tmp_path / "w", mine):
        found = printed(capsys, f"--workdir={tmp_path / 'w'}")
    assert found["sft.steps"][:2] == ("9", str(tmp_path / "w" / "config.json")) and found["seed"][1] == "default"


def test_what_run_would_refuse_stands_below(capsys):
    assert printed(capsys, "--config.policy.kl=k1", status=2)["policy.kl"][:2] == ("'k1'", "--config.policy.kl")


@pytest.mark.parametrize("arguments, words", [
    (["--markdown", "--config=configs/testbed.py"], "exclude each other"),
    (["--workdir=nowhere", "--config.seed=1"], "exclude each other"),
    (["--workdir=nowhere"], "not a workdir"),
    (["--config.seed=1", "--config.seed=2"], "--config.seed: given twice, as 1 and as 2"),
    (["--config=a", "--config=b"], "--config: given twice"),
    (["--config.sed=1"], "did you mean 'seed'"),
])
def test_refusals(arguments, words, capsys):
    assert cli.main(["config", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and words in err and err.count("\n") == 1


@pytest.mark.parametrize("key, text, value", [
    ("seed", "1e3", 1000), ("seed", " 7 ", 7), ("mesh.data", "-1", -1), ("sft.steps", "1.5e1", 15), ("sft.steps", "15e-1", None),
    ("sft.steps", "15e-1e", None), ("sft.steps", "7.0", None), ("sft.steps", "nan", None), ("sft.steps", "1e30", None),
    ("sft.steps", "9" * 400, None), ("sft.steps", "9" * 5000, None), ("sft.steps", "True", None), ("sft.steps", "", None),
    ("sft.learning_rate", "1e-4", 1e-4), ("sft.learning_rate", "-3", -3.0), ("sft.learning_rate", "inf", None),
    ("sft.learning_rate", "-nan", None), ("sft.learning_rate", "1e999", None), ("sft.learning_rate", "", None),
    ("sft.packing", " false ", False), ("sft.packing", "1", None), ("sft.packing", "", None), ("eval.best_of", "1, 2e1,", (1, 20)),
    ("eval.best_of", "(4,)", (4,)), ("eval.best_of", "[1,2]", (1, 2)), ("eval.best_of", "", ()), ("eval.best_of", "1,,2", None),
    ("eval.best_of", "1,2.5", None), ("eval.best_of", "((1,2),3)", None), ("eval.best_of", "(1,2", None), ("eval.best_of", "nan", None),
    ("eval.best_of", "(" * 5000, None), ("reward.recipes", "(init_sft, 'sft_demo')", ("init_sft", "sft_demo")),
    ("reward.recipes", "a,,b", None), ("reward.recipes", "[ 'a,b', 'c' ]", ("a,b", "c")), ("model.path", " a,b ", " a,b "),
], ids=lambda part: str(part)[:20])  # fmt: skip
def test_overrides_by_type(key, text, value):
    changed = default()
    if value is None:
        with pytest.raises(UserError, match=f"^--config.{key}=") as caught:
            override(changed, key, text)
        assert len(str(caught.value)) < 5200 and changed == default()
    else:
        override(changed, key, text)
        assert value_of(changed, key) == value
        assert isinstance(value_of(changed, key), type(value_of(default(), key)))


def test_what_is_spelled_is_read_back():
    """A config as overrides above the default is that config, as a sweep passes it on."""
    mine, again = default(), default()
    changes = {"seed": 2**40, "variants": ("policy/a = init_sft policy.surrogate=ppo_clip", "dpo/b = init_demo"), "reward.recipes": (),
               "eval.best_of": (1, 3), "model.path": "a, 'b' [c", "data.min_rating": -1e-17, "sft.packing": False, "data.source": ""}
    mine.update_from_flattened_dict(changes)
    for key in keys_of(mine):
        override(again, key, spelled(value_of(mine, key)))
    assert json.loads(again.to_json_best_effort()) == json.loads(mine.to_json_best_effort())


@pytest.mark.parametrize("text, parts", [
    ("0,1, 2", ["0", "1", "2"]), ("(a,b),(c)", ["(a,b)", "(c)"]), ("'a,b',\"c\"", ["'a,b'", '"c"']), ("it's,b", ["it's", "b"]), ("", [""]),
    ("[(1,2),3],4", ["[(1,2),3]", "4"]), ("(a", None), ("a)(", None), ("'a", None), ("1,,2", ["1", "", "2"]),
])
def test_split(text, parts):
    if parts is None:
        with pytest.raises(ValueError, match="not closed"):
            split(text)
    else:
        assert split(text) == parts
