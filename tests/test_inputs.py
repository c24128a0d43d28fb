"""What makes a run what it is: other weights, configs, tokenizers, templates, records or judges are one line; moved ones are not."""

import copy
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
from hosts import environment, finish, free_port
from malformed_box import RIGHT
from safetensors.numpy import load_file, save_file
from test_export import GPT2, base_folder
from test_reward_model import classifier

from irl_jax import checkpoint, cli, hf, workdir
from irl_jax.config import default
from irl_jax.data import chat
from irl_jax.errors import UserError
from irl_jax.stages import context as contexts
from irl_jax.stages import generate, inputs
from irl_jax.stages.context import Context

DATED = ("{% set day = strftime_now('%d %b %Y') if strftime_now is defined else 'never' %}<{{ day }}>{% for m in messages %}"
         "{{ m.role }}: {{ m.content }}<eos>{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}")
CHATS = "".join(json.dumps({"messages": [{"role": "user", "content": f"w{i % 9} w{i // 9}"}, {"role": "assistant", "content": "w3"}]}) + "\n"
                for i in range(40)).encode()
RATED = b"".join(b'{"text": "w%d w2 w3 w4", "rating": %d}\n' % (i % 9, 1 + 8 * (i % 2)) for i in range(60))


class Run:
    """A run on files of its own that has imported its model; `go` is the same command again, a stage further."""

    def __init__(self, folder, content=RIGHT, **settings):
        self.folder, self.w = folder, folder / "w"
        self.base = base_folder(folder / "m", GPT2)
        (folder / "d.jsonl").write_bytes(content)
        (folder / "e.jsonl").write_bytes(b'{"prompt": "w8 w8", "response": "w2"}\n{"prompt": "w8 w7", "response": "w2"}\n')
        self.settings = {"golden.kind": "none", "data.max_prompt_tokens": 12, "data.max_response_tokens": 8, "sft.steps": 1, "reward.recipes": "init_sft",
                         "data.eval_source": folder / "e.jsonl", **settings}

    def go(self, stages="pretrain", *flags):
        return cli.main(["run", f"--workdir={self.w}", f"--stages={stages}", f"--config.model.path={self.base}",
                         f"--config.data.source={self.folder / 'd.jsonl'}",
                         *(f"--config.{key}={value}" for key, value in self.settings.items()), *flags])

    def edit(self, name, change):
        file = self.folder / name
        value = json.loads(file.read_text())
        change(value)
        file.write_text(json.dumps(value))


@pytest.fixture
def run(tmp_path):
    made = Run(tmp_path)
    assert made.go() == 0
    return made


def said(capsys):
    line = capsys.readouterr().err
    assert line.startswith("irl_jax: error: ") and line.count("\n") == 1, line
    return line


PROMPTS = b"".join(b'{"prompt": "w7 w%d w1"}\n' % (i % 9) for i in range(9))
CHANGES = {
    "weights": ("m/model.safetensors", lambda r: flip(r.base / "model.safetensors")),
    "an epsilon": ("m/config.json", lambda r: r.edit("m/config.json", lambda c: c.update(layer_norm_epsilon=0.5))),
    "the tokenizer": ("m/tokenizer.json", lambda r: r.edit("m/tokenizer.json", swapped)),
    "what a token is called": ("m/tokenizer_config.json", lambda r: r.edit("m/tokenizer_config.json", lambda c: c.update(eos_token="w3"))),
    "what ends a response": ("m/generation_config.json", lambda r: r.edit("m/generation_config.json", lambda c: c.update(eos_token_id=[2, 7]))),
    "a template": ("m/chat_template.jinja", lambda r: (r.base / "chat_template.jinja").write_text("{{ messages }}")),
    "training": ("training records", lambda r: (r.folder / "d.jsonl").write_bytes(RIGHT.replace(b"w3", b"w4"))),
    "evaluation": ("evaluation records", lambda r: (r.folder / "e.jsonl").write_bytes(b'{"prompt": "w8 w6", "response": "w2"}\n')),
    "fewer records": (r"records are not those that .* \((\d+) then, \1? ?", lambda r: (r.folder / "d.jsonl").write_bytes(
        b"".join(RIGHT.splitlines(keepends=True)[:30]))),
}


def flip(file):
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def swapped(table):
    vocabulary = table["model"]["vocab"]
    vocabulary["w1"], vocabulary["w2"] = vocabulary["w2"], vocabulary["w1"]


@pytest.mark.parametrize("change", [name for name in CHANGES if name != "fewer records"])
def test_other_inputs_are_refused_where_a_run_goes_on(run, change, capsys):
    named, make = CHANGES[change]
    make(run)
    assert run.go("sft") == 2
    line = said(capsys)
    assert named in line and ("begun with" in line) and "choose another --workdir" in line, line
    assert not (run.w / "sft").exists()


def test_other_prompts_are_refused_where_a_run_goes_on(tmp_path, capsys):
    (tmp_path / "p.jsonl").write_bytes(PROMPTS)
    run = Run(tmp_path, **{"data.prompts_source": tmp_path / "p.jsonl"})
    assert run.go() == 0
    assert json.loads((run.w / "inputs.json").read_text())["records"]["further prompt"]["records"] == 9
    (tmp_path / "p.jsonl").write_bytes(PROMPTS.replace(b"w7 w3", b"w7 w6 w6"))
    assert run.go("sft") == 2
    assert "the further prompt records are not those that this workdir was begun with (9 then, 9 now;" in said(capsys)


def test_a_count_that_changed_is_said(run, capsys):
    CHANGES["fewer records"][1](run)
    assert run.go("sft") == 2
    assert re.search(r"the training records are not those that this workdir was begun with \(38 then, 28 now;", said(capsys))


def test_a_file_of_the_same_size_and_time_is_read_again(run, capsys):
    file = run.base / "model.safetensors"
    before = file.stat()
    flip(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert run.go("sft") == 2 and "model.safetensors: not the file" in said(capsys)


def test_a_part_of_the_weights_that_is_gone(tmp_path, capsys):
    run = Run(tmp_path)
    tensors = load_file(run.base / "model.safetensors")
    (run.base / "model.safetensors").unlink()
    shards = {name: f"{place % 2}.safetensors" for place, name in enumerate(tensors)}
    for shard in set(shards.values()):
        save_file({name: tensors[name] for name in tensors if shards[name] == shard}, run.base / shard)
    (run.base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert run.go() == 0
    (run.base / "1.safetensors").unlink()
    capsys.readouterr()
    for again in (lambda: run.go("sft"), lambda: verb(run, "score"), lambda: verb(run, "export")):
        assert again() == 2 and f"{run.base / '1.safetensors'}: cannot be read (No such file or directory)" in said(capsys)


def test_files_of_one_name_in_two_folders(tmp_path, run, capsys):
    (run.base / "additional_chat_templates").mkdir()
    (run.base / "additional_chat_templates" / "chat_template.jinja").write_text("{{ messages }}")
    (run.base / "chat_template.jinja").write_text("{{ messages }}")
    run.w = tmp_path / "new"
    assert run.go() == 0
    (run.base / "additional_chat_templates" / "chat_template.jinja").write_text("{{ messages[0] }}")
    capsys.readouterr()
    assert run.go("sft") == 2 and "additional_chat_templates/chat_template.jinja: not the file" in said(capsys)


def test_the_same_content_elsewhere_or_later_goes_on(run):
    for file in run.base.iterdir():
        os.utime(file, (1, 1))
    (run.base / "README.md").write_text("of no weight")
    (run.folder / "d.jsonl").write_bytes(RIGHT + b"\n\n")
    assert run.go("sft") == 0


def test_a_file_that_is_gone_or_new_is_named(run, capsys):
    (run.base / "generation_config.json").rename(run.folder / "kept.json")
    assert run.go("sft") == 2
    assert f"{run.base} (model.path): has no generation_config.json, which this workdir was begun with" in said(capsys)
    (run.folder / "kept.json").rename(run.base / "generation_config.json")
    (run.base / "added_tokens.json").write_text("{}")
    assert run.go("sft") == 2
    assert "added_tokens.json: is not among the files of model.path that this workdir was begun with" in said(capsys)


def test_a_run_that_failed_before_it_made_anything_notes_nothing(tmp_path, capsys):
    run = Run(tmp_path)
    (tmp_path / "d.jsonl").write_bytes(RIGHT + b"{}\n")
    assert run.go() == 2 and "d.jsonl, line 41" in said(capsys) and not run.w.exists()
    (tmp_path / "d.jsonl").write_bytes(RIGHT)
    assert run.go() == 0


# ---------------------------------------------------------------- judges and starts


def test_other_judges_and_starts_are_refused(tmp_path, capsys):
    classifier(tmp_path / "judge", ("good",))
    (tmp_path / "rated.jsonl").write_bytes(RATED)
    runs = {"golden.model": {"golden.kind": "hf_reward", "golden.model": tmp_path / "judge"},
            "golden.source": {"golden.kind": "classifier", "golden.source": tmp_path / "rated.jsonl"},
            "reward.start=": {"reward.start": tmp_path / "judge", "reward.body": "trunk"}}
    for key, settings in runs.items():
        (tmp_path / key).mkdir()
        run = Run(tmp_path / key, **settings)
        assert run.go() == 0
        noted = json.loads((run.w / "inputs.json").read_text())["files"]
        assert [name for name in noted if name.startswith(key)] and len(noted) == 2
        if key == "golden.source":
            (tmp_path / "rated.jsonl").write_bytes(RATED + RATED)
        else:
            flip(tmp_path / "judge" / "model.safetensors")
        capsys.readouterr()
        assert run.go("sft") == 2 and "not the file that this workdir was begun with" in said(capsys)


def test_starts_of_two_revisions_are_two(tmp_path, monkeypatch):
    for revision in ("a", "b"):
        classifier(tmp_path / revision, ("good",))
    config = default()
    with config.unlocked():
        config.reward.start, config.reward.start_revision = "x/y", "a"
        config.variants = ("reward/other = init_sft reward.start_revision=b",)
    monkeypatch.setattr(hf, "resolve", lambda name, revision="": tmp_path / revision)
    found = inputs._files(types.SimpleNamespace(config=config))
    assert {name: files[0].parent.name for name, files in found.items()} == {"reward.start=x/y at a": "a", "reward.start=x/y at b": "b"}


def test_conversations_that_a_judge_reads_whole(tmp_path, capsys):
    template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    classifier(tmp_path / "judge", ("good",))
    (tmp_path / "judge" / "chat_template.jinja").write_text(template)
    chats = [{"messages": [{"role": "user", "content": f"{first} " + "w2 " * 15}, {"role": "assistant", "content": "w3"}]}
             for first in ("w1", "w4")]
    run = Run(tmp_path, **{"golden.kind": "hf_reward", "golden.model": tmp_path / "judge", "golden.chat": True,
                           "data.truncate_prompts": True})
    (run.base / "chat_template.jinja").write_text(template)
    (tmp_path / "e.jsonl").write_text(json.dumps(chats[0]))
    assert run.go() == 0
    (tmp_path / "e.jsonl").write_text(json.dumps(chats[1]))
    capsys.readouterr()
    assert run.go("sft") == 2 and "the judged records are not those" in said(capsys)


# ---------------------------------------------------------------- readers, and bases that moved


def verb(run, name, *flags):
    out = run.folder / "out"
    shutil.rmtree(out, ignore_errors=True) if out.is_dir() else out.unlink(missing_ok=True)
    records = {"score": f"--data={run.folder / 'e.jsonl'}", "generate": f"--prompts={run.folder / 'e.jsonl'}", "export": "--adapter"}[name]
    more = ["--max_tokens=3"] if name == "generate" else []
    return cli.main([name, f"--workdir={run.w}", "--role=sft", records, f"--out={out}", *more, *flags])


@pytest.mark.parametrize("name", ["score", "generate", "export"])
def test_what_reads_a_run_wants_its_model(run, name, capsys, tmp_path):
    assert run.go("sft") == 0 and verb(run, name) == 0
    wanted = (tmp_path / "out").read_bytes() if name != "export" else None
    moved = run.base.rename(tmp_path / "elsewhere")
    capsys.readouterr()
    assert verb(run, name) == 2
    assert "no such model folder; if it has moved, name its folder by --base" in said(capsys)
    assert verb(run, name, f"--base={moved}") == 0
    if name == "export":
        assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(moved)
    else:
        assert (tmp_path / "out").read_bytes() == wanted
    other = shutil.copytree(moved, tmp_path / "other")
    (other / "config.json").write_text((other / "config.json").read_text().replace("1e-05", "1e-01"))
    capsys.readouterr()
    assert verb(run, name, f"--base={other}") == 2
    assert f"{other / 'config.json'}: not the file that this workdir was begun with" in said(capsys)
    other.rename(run.base)  # where config.json says
    assert verb(run, name) == 2 and f"{run.base / 'config.json'}: not the file" in said(capsys)


def test_a_run_goes_on_where_its_base_is_now(run, capsys, tmp_path):
    moved = run.base.rename(tmp_path / "elsewhere")
    assert run.go("sft") == 2
    capsys.readouterr()
    assert run.go("sft", f"--base={moved}") == 0
    fresh = Run(tmp_path / "fresh") if (tmp_path / "fresh").mkdir() is None else None
    capsys.readouterr()
    assert fresh.go("pretrain", f"--base={moved}") == 2
    assert "is not begun yet; name the model in --config.model.path" in said(capsys) and not fresh.w.exists()


@pytest.mark.parametrize("name", ["score", "generate", "export"])
def test_leaves_that_are_not_finite_are_refused(run, name, capsys):
    assert run.go("sft") == 0
    context = generate.open_run(workdir.read_config(run.w), run.w)
    leaves = context.leaves("sft")
    leaves["adapter"]["blocks"]["attention"]["q"]["b"] *= np.nan
    shutil.rmtree(run.w / "sft" / "leaves")
    checkpoint.save_tree(run.w / "sft" / "leaves", context.place(leaves))
    capsys.readouterr()
    assert verb(run, name) == 2 and not (run.folder / "out").exists()
    assert f"{run.w}/sft/leaves: adapter/blocks/attention/q/b holds NaN or infinities" in said(capsys)


def test_a_base_is_no_use_elsewhere(run, capsys, tmp_path):
    assert cli.main(["score", f"--model={run.base}", "--base=x", f"--data={tmp_path / 'e.jsonl'}", f"--out={tmp_path / 'o'}"]) == 2
    assert "--base: needs --workdir" in said(capsys)
    assert cli.main(["run", f"--workdir={tmp_path / 't'}", "--stages=pretrain", f"--base={run.base}"]) == 2
    assert "began from scratch" in said(capsys)
    (run.w / "inputs.json").unlink()
    assert verb(run, "score", f"--base={run.base}") == 2 and "has no inputs.json" in said(capsys)


def test_notes_of_another_shape(run, capsys):
    (run.w / "inputs.json").write_text('{"files": 3}')
    assert run.go("sft") == 2 and "inputs.json: has no object 'files'" in said(capsys)
    assert verb(run, "score") == 2 and "inputs.json: has no object 'files'" in said(capsys)


# ---------------------------------------------------------------- dates


class Later(datetime.datetime):
    """The clock, three days on."""

    @classmethod
    def now(cls, tz=None):
        return super().now(tz) + datetime.timedelta(3)


def test_a_templates_date_is_that_of_the_runs_beginning(tmp_path, monkeypatch):
    run = Run(tmp_path, CHATS)
    (run.base / "chat_template.jinja").write_text(DATED.replace("<{{ day }}>", "{% if day[1] in '02468' %}w1{% else %}w2{% endif %} "))
    assert run.go() == 0
    began = datetime.datetime.fromisoformat(json.loads((run.w / "inputs.json").read_text())["began"])
    config = workdir.read_config(run.w)
    first = generate.open_run(config, run.w).chat.prompt([{"role": "user", "content": "w1"}])
    monkeypatch.setattr(contexts.datetime, "datetime", Later)
    assert run.go("sft") == 0  # the records are the same, though the day's last digit is not
    assert generate.open_run(config, run.w).chat.prompt([{"role": "user", "content": "w1"}]) == first
    assert abs(datetime.datetime.now() - began) < datetime.timedelta(3, 600)


def test_the_clock_of_a_template():
    from test_tokenize import build

    moment = datetime.datetime(2024, 7, 9, 13, 5)
    for code in ("%d %b %Y", "%A, %-d. %B %y", "%H:%M", "%Y-%m-%dT%H:%M:%S"):
        tokenizer = build(chat_template=DATED.replace("%d %b %Y", code))
        text = chat.of(tokenizer, moment).prompt([{"role": "user", "content": "a"}])
        assert text.startswith(f"<{moment.strftime(code)}>user: a"), text
    plain = build(chat_template=DATED)
    assert f"<{datetime.datetime.now():%d %b %Y}>" in chat.of(plain).prompt([{"role": "user", "content": "a"}])


# ---------------------------------------------------------------- hosts


@pytest.mark.parametrize("what", ["weights", "training"])
def test_hosts_with_other_files_in_the_same_places_end_with_one_line_each(tmp_path, what):
    (tmp_path / "0").mkdir()
    first = Run(tmp_path / "0")
    shutil.copytree(tmp_path / "0", tmp_path / "1")
    other = Run.__new__(Run)
    other.folder, other.base = tmp_path / "1", tmp_path / "1" / "m"
    CHANGES[what][1](other)
    port, running = free_port(), []
    settings = first.settings | {"data.eval_source": "e.jsonl", "model.path": "m", "data.source": "d.jsonl"}
    for index in range(2):
        command = [sys.executable, "-m", "irl_jax", "run", f"--workdir={tmp_path / 'w'}", "--stages=pretrain,sft", "--multihost",
                   f"--coordinator=127.0.0.1:{port}", "--processes=2", f"--process={index}",
                   *(f"--config.{key}={value}" for key, value in settings.items())]
        running.append(subprocess.Popen(command, env=environment(1), cwd=tmp_path / str(index), stdout=subprocess.DEVNULL,
                                        stderr=subprocess.PIPE, text=True))
    for status, line in finish(running, timeout=120):
        wanted = "model.safetensors (model.path)" if what == "weights" else "set of training records"
        assert status == 2 and f"process 1 has another {wanted} than process 0" in line.strip().splitlines()[-1], line
    assert not (tmp_path / "w" / "sft").exists()


def test_hosts_with_other_packages_or_code(run, monkeypatch):
    mine = inputs._found(Context(workdir.read_config(run.w), generate.Reader(run.w)), {})
    for package in ("irl_jax", "jaxlib", "numpy", "tokenizers", "irl_jax's code"):
        theirs = copy.deepcopy(mine)
        theirs["about"]["versions"][package] = "0"
        with pytest.raises(UserError, match=f"process 1 has another version of {package} than process 0"):
            inputs._same_on_all_hosts([mine, theirs])


# ---------------------------------------------------------------- revisions


def test_a_hub_models_revision_is_pinned(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **how: asked.append((name, how["revision"])) or str(tmp_path))
    hf.resolve("someone/something", "abc123")
    hf.resolve("someone/something")
    assert asked == [("someone/something", "abc123"), ("someone/something", None)]
    with pytest.raises(UserError, match="is a folder, which has no revision 'abc123'"):
        hf.resolve(tmp_path, "abc123")
    with pytest.raises(UserError, match="is a folder, which has no revision"):
        hf.read_config(tmp_path, "abc123")


def test_a_hash_is_kept_while_a_file_looks_the_same(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(b"one")
    first = inputs.files_of([file])
    assert first["a"]["bytes"] == 3 and inputs.files_of([file], first) == first
    planted = {"a": {**first["a"], "sha256": "planted"}}
    assert inputs.files_of([file], planted) == planted
    os.utime(file, (5, 5))
    assert inputs.files_of([file], planted)["a"]["sha256"] == first["a"]["sha256"]
