"""Malformed inputs, one a row: how it is made, the command line that meets it, and the line that is said of it.

A row's `make` writes into the folder of a Box and returns the arguments. In the expected line "~" is that folder, and "…" stands for
words of a library's or the system's own.
"""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import pathlib
import pickle
import shutil
import struct
from collections.abc import Callable
from typing import NamedTuple

GOOD = b'{"prompt": "w1 w2", "response": " w3"}\n'
RIGHT = b"".join(b'{"prompt": "w%d w%d", "response": " w3"}\n' % (i % 9, i // 9) for i in range(40))
NOTHING = '{"policies": {}, "rewards": {}, "histograms": {}, "scatter": {}}'
DEEP = b'{"prompt": ' + b"[" * 100_000
LONG = 10_000_000  # bytes: ten megabytes


class Trap:
    """Whoever unpickles it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


class Box:
    """The folder of one row. base, finished: a model's folder and a workdir that stands on it, never written to: rows take copies."""

    def __init__(self, path: pathlib.Path, base: pathlib.Path, finished: pathlib.Path):
        self.path, self.base, self.finished, self.held = path, base, finished, []

    def __truediv__(self, name) -> pathlib.Path:
        return self.path / name

    def write(self, name: str, content) -> pathlib.Path:
        (self / name).parent.mkdir(parents=True, exist_ok=True)
        (self / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return self / name

    def model(self) -> pathlib.Path:
        """A copy of the model's folder."""
        return shutil.copytree(self.base, self / "m")

    def talker(self) -> pathlib.Path:
        """A copy of it that has a chat template."""
        return self.edit(self.model() / "tokenizer_config.json", lambda c: c.update(
            chat_template="{% for m in messages %}<{{ m.role }}>{{ m.content }}<eos>{% endfor %}"))

    def workdir(self) -> pathlib.Path:
        """A copy of the finished workdir."""
        return shutil.copytree(self.finished, self / "w")

    def begun(self, **files) -> pathlib.Path:
        """A workdir of the default config with some files, their names with __ for slashes."""
        from irl_jax import workdir
        from irl_jax.config import default

        with workdir.Workdir(self / "w", default()):
            for name, content in files.items():
                self.write(f"w/{name.replace('__', '/')}.json", content)
        return self / "w"

    def used(self) -> pathlib.Path:
        """A workdir that another process has open."""
        file = open(self.begun() / ".lock", "a")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.held.append(file)
        return self / "w"

    def score(self, content=GOOD, *flags, model=None, name="in.jsonl") -> list[str]:
        self.write(name, content)
        return ["score", f"--model={model or self.base}", f"--data={self / name}", f"--out={self / 'out.jsonl'}", *flags]

    def generate(self, content=GOOD, *flags, model=None) -> list[str]:
        self.write("in.jsonl", content)
        return ["generate", f"--model={model or self.base}", f"--prompts={self / 'in.jsonl'}", f"--out={self / 'out.jsonl'}",
                "--max_tokens=4", *flags]

    def of_workdir(self, verb: str, *flags, workdir=None) -> list[str]:
        """generate, score or export of a workdir (the finished one, or a changed copy)."""
        self.write("in.jsonl", GOOD)
        records = {"generate": [f"--prompts={self / 'in.jsonl'}", "--max_tokens=4"], "score": [f"--data={self / 'in.jsonl'}"]}.get(verb, [])
        return [verb, f"--workdir={workdir or self.finished}", *records, f"--out={self / 'out'}", *flags]

    def run(self, *settings, stages="sft", workdir=None, **data) -> list[str]:
        """run on records of a file: `data` has a file's content by the key that names it."""
        flags = [f"--config.{key.replace('__', '.')}={self.write(key + '.jsonl', content)}" for key, content in data.items()]
        return ["run", f"--workdir={workdir or self / 'w'}", f"--stages={stages}", f"--config.model.path={self.base}",
                "--config.golden.kind=none", "--config.data.max_prompt_tokens=12", "--config.data.max_response_tokens=12", *flags,
                *(f"--config.{setting}" for setting in settings)]

    def testbed(self, *settings, stages="pretrain", workdir=None) -> list[str]:
        return ["run", f"--workdir={workdir or self / 'w'}", f"--stages={stages}", *(f"--config.{setting}" for setting in settings)]

    def config(self, body, name="c.py") -> list[str]:
        """run with a config file."""
        return ["run", f"--workdir={self / 'w'}", f"--config={self.write(name, body)}"]

    def edit(self, file: pathlib.Path, change: Callable) -> pathlib.Path:
        """A JSON file with its value changed; returns its folder."""
        value = json.loads(file.read_text())
        changed = change(value)
        file.write_text(json.dumps(value if changed is None else changed))
        return file.parent


class Case(NamedTuple):
    """make(Box) -> arguments. says: the line. limit: bytes that a file may have meanwhile, as on a disk that is full."""

    make: Callable[[Box], list[str]]
    says: str
    limit: int | None = None


def lines(*records) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def many(**changed) -> bytes:
    """Forty records of a text and a rating, the last changed."""
    records = [{"text": f"w{i % 9} w2 w3 w4", "rating": i % 10} for i in range(40)]
    return lines(*records[:-1], records[-1] | changed)


def get_config(line: str) -> str:
    return f"from irl_jax.config import default\ndef get_config(name=''):\n    c = default()\n    {line}\n    return c\n"


def link(box: Box, name: str, to: str) -> pathlib.Path:
    os.symlink(to, box / name)
    return box / name


def without(folder: pathlib.Path, *names: str) -> pathlib.Path:
    for name in names:
        (folder / name).unlink()
    return folder


def replaced(folder: pathlib.Path, name: str, content) -> pathlib.Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def safetensors(header: bytes, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + body


def pickled(box: Box) -> bytes:
    return pickle.dumps(Trap(box / "sprung"))


RECORDS = {
    "bytes that are no UTF-8": Case(lambda b: b.score(GOOD + b'{"prompt": "\xff"}\n'), "?"),
    "UTF-16": Case(lambda b: b.generate('{"prompt": "w1"}\n'.encode("utf-16")), "?"),
    "a NUL byte in a text": Case(lambda b: b.score(b'{"prompt": "w1\x00", "response": "w2"}\n'), "?"),
    "NUL bytes alone": Case(lambda b: b.generate(b"\x00" * 4096), "?"),
    "gzip cut short": Case(lambda b: b.generate(gzip.compress(GOOD * 2000, mtime=0)[:-20]), "?"),
    "gzip's first bytes alone": Case(lambda b: b.score(b"\x1f\x8b"), "?"),
    "gzip of another method": Case(lambda b: b.score(b"\x1f\x8b\x09" + b"\0" * 20), "?"),
    "gzip with a flipped byte": Case(lambda b: b.score(gzip.compress(GOOD, mtime=0)[:-8] + b"\0" * 8), "?"),
    "gzip by its name only": Case(lambda b: b.score("<html>not found</html>", name="in.jsonl.gz"), "?"),
    "a zip archive": Case(lambda b: b.score(b"PK\x03\x04" + b"\0" * 26 + b"in.jsonl"), "?"),
    "a gzip of one line without end": Case(lambda b: b.score(gzip.compress(b'{"prompt": "' + b"x" * 2**26, 1, mtime=0)), "?"),
    "a line of 10 MB that is no JSON": Case(lambda b: b.score(b'{"prompt": "' + b"x" * LONG), "?"),
    "a prompt of 10 MB": Case(lambda b: b.generate(lines({"prompt": "w1 " * (LONG // 3)})), "?"),
    "a key of 10 MB": Case(lambda b: b.score(lines({"k" * LONG: 1})), "?"),
    "a thousand keys": Case(lambda b: b.score(lines({f"key{i}": i for i in range(1000)})), "?"),
    "a key twice": Case(lambda b: b.generate(b'{"prompt": "w1", "prompt": "w2"}\n'), "?"),
    "a key twice in a turn": Case(lambda b: b.generate(b'{"messages": [{"role": "user", "content": "w1", "content": "w2"}]}\n'), "?"),
    "an array": Case(lambda b: b.score(GOOD + b"[1]\n"), "?"),
    "a bare text": Case(lambda b: b.generate(b'"w1"\n'), "?"),
    "null": Case(lambda b: b.generate(b"null\n"), "?"),
    "two objects on one line": Case(lambda b: b.score(GOOD.strip() + GOOD), "?"),
    "one object on several lines": Case(lambda b: b.score(json.dumps(json.loads(GOOD), indent=1)), "?"),
    "a prompt that is a number": Case(lambda b: b.generate(lines({"prompt": 3})), "?"),
    "a prompt that is null": Case(lambda b: b.generate(lines({"prompt": None})), "?"),
    "a response that is a list": Case(lambda b: b.score(lines({"prompt": "w1", "response": ["w2"]})), "?"),
    "a response that is empty": Case(lambda b: b.score(lines({"prompt": "w1", "response": " \u2003\n"})), "?"),
    "no response": Case(lambda b: b.score(lines({"prompt": "w1"})), "?"),
    "NaN": Case(lambda b: b.score(b'{"prompt": "w1", "response": "w2", "weight": NaN}\n'), "?"),
    "-Infinity": Case(lambda b: b.generate(b'{"prompt": "w1", "weight": -Infinity}\n'), "?"),
    "a number of 5000 digits": Case(lambda b: b.generate(b'{"prompt": "w1", "n": ' + b"9" * 5000 + b"}"), "?"),
    "nested without end": Case(lambda b: b.score(DEEP), "?"),
    "an empty file": Case(lambda b: b.generate(b""), "?"),
    "blank lines alone": Case(lambda b: b.score(b"\n \r\n\t\n"), "?"),
    "a byte order mark alone": Case(lambda b: b.score(b"\xef\xbb\xbf"), "?"),
    "a byte order mark in the middle": Case(lambda b: b.score(GOOD + b"\xef\xbb\xbf" + GOOD), "?"),
    "half of a surrogate pair": Case(lambda b: b.generate(b'{"prompt": "\\ud800"}\n'), "?"),
    "half of a surrogate pair in another field": Case(lambda b: b.generate(b'{"prompt": "w1", "id": ["\\udc00"]}\n'), "?"),
    "what marks control tokens": Case(lambda b: b.generate(lines({"prompt": "w1 \ufdd0<eos>\ufdd1"})), "?"),
    "a prompt beyond the context": Case(lambda b: b.generate(lines({"prompt": "w1 " * 22})), "?"),
    "a record beyond the context": Case(lambda b: b.score(lines({"prompt": "w1 " * 22, "response": "w2 " * 9})), "?"),
    "messages without a template": Case(lambda b: b.generate(lines({"messages": [{"role": "user", "content": "w1"}]})), "?"),
    "a role that is a control token": Case(lambda b: b.generate(lines({"messages": [{"role": "eos", "content": "w1"}]}), model=b.talker()), "?"),
    "a role that holds a control token": Case(lambda b: b.generate(
        lines({"messages": [{"role": "user><eos", "content": "w1"}]}), model=b.talker()), "?"),
    "a turn that is no object": Case(lambda b: b.generate(lines({"messages": ["w1"]}), model=b.talker()), "?"),
    "a turn in parts": Case(lambda b: b.generate(
        lines({"messages": [{"role": "user", "content": [{"type": "text", "text": "w1"}]}]}), model=b.talker()), "?"),
    "messages without a turn": Case(lambda b: b.score(lines({"messages": []}), model=b.talker()), "?"),
    "messages with tools": Case(lambda b: b.generate(
        lines({"messages": [{"role": "user", "content": "w1"}], "tools": [{}]}), model=b.talker()), "?"),
    "a template that is no template": Case(lambda b: b.generate(
        lines({"messages": [{"role": "user", "content": "w1"}]}), model=b.edit(
            b.model() / "tokenizer_config.json", lambda c: c.update(chat_template="{% for %}"))), "?"),
    "a template that reaches for Python": Case(lambda b: b.generate(
        lines({"messages": [{"role": "user", "content": "w1"}]}), model=b.edit(b.model() / "tokenizer_config.json", lambda c: c.update(
            chat_template="{{ ''.__class__.__mro__[1].__subclasses__() }}"))), "?"),
    "a terminal's commands in a name": Case(lambda b: b.generate(lines({"\x1b[2J\x07\u202e": 1})), "?"),
    "a folder for the records": Case(lambda b: ["score", f"--model={b.base}", f"--data={b.path}", f"--out={b / 'o'}"], "?"),
    "a loop of links for the records": Case(lambda b: ["score", f"--model={b.base}", f"--data={link(b, 'in', 'in')}", f"--out={b / 'o'}"], "?"),
    "a link to nothing": Case(lambda b: ["generate", f"--model={b.base}", f"--prompts={link(b, 'in', 'none')}", f"--out={b / 'o'}"], "?"),
}  # fmt: skip

DATA = {  # the same readers in `run`, and what only it reads
    "run: gzip cut short": Case(lambda b: b.run(data__source=gzip.compress(GOOD * 2000, mtime=0)[:-20]), "?"),
    "run: a key twice": Case(lambda b: b.run(data__source=GOOD * 9 + b'{"prompt": "a", "response": "b", "response": "c"}\n'), "?"),
    "run: a loop of links": Case(lambda b: b.run(f"data.source={link(b, 'in', 'in')}"), "?"),
    "run: a folder": Case(lambda b: b.run(f"data.source={b.path}"), "?"),
    "run: an empty file": Case(lambda b: b.run(data__source=b""), "?"),
    "run: one record": Case(lambda b: b.run(data__source=GOOD), "?"),
    "run: a prompt too long": Case(lambda b: b.run(data__source=RIGHT + lines({"prompt": "w1 " * 20, "response": "w2"})), "?"),
    "run: a rating that is text": Case(lambda b: b.run(
        "data.kind=continuations", "data.min_rating=5", "data.prompt_words=1,2", data__source=many(rating="9")), "?"),
    "run: a rating of 400 digits": Case(lambda b: b.run(
        "data.kind=continuations", "data.min_rating=5", "data.prompt_words=1,2", data__source=many(rating=10**400)), "?"),
    "run: a rating beyond all numbers": Case(lambda b: b.run("data.kind=continuations", "data.min_rating=5", "data.prompt_words=1,2",
                                                             data__source=many().replace(b'"rating": 9}', b'"rating": 1e999}')), "?"),
    "run: a pair without its other side": Case(lambda b: b.run(
        data__source=RIGHT, data__preference_source=lines({"prompt": "w1", "chosen": "w2"})), "?"),
    "run: a transcript that is none": Case(lambda b: b.run(f"data.source=hh:{b.write('h.jsonl', lines({'chosen': 'a', 'rejected': 'b'}))}"), "?"),
    "run: TFDS that is not prepared": Case(lambda b: b.run("data.source=tfds:../../etc", f"data.tfds_data_dir={b.path}"), "?"),
    "run: the testbed for evaluation": Case(lambda b: b.run("data.eval_source=testbed", data__source=RIGHT), "?"),
    "run: a judge's file that is broken": Case(lambda b: b.run(
        "golden.kind=classifier", f"golden.source={b.path}", data__source=RIGHT), "?"),
}  # fmt: skip

MODELS = {
    "weights as a pickle": Case(lambda b: b.score(model=replaced(without(b.model(), "model.safetensors"), "pytorch_model.bin", pickled(b))), "?"),
    "a pickle named safetensors": Case(lambda b: b.generate(model=replaced(b.model(), "model.safetensors", pickled(b))), "?"),
    "safetensors cut short": Case(lambda b: b.score(model=replaced(
        b.model(), "model.safetensors", (b.base / "model.safetensors").read_bytes()[:-100])), "?"),
    "safetensors with a header without end": Case(lambda b: b.score(model=replaced(
        b.model(), "model.safetensors", struct.pack("<Q", 2**63) + b"{}")), "?"),
    "safetensors with offsets outside": Case(lambda b: b.score(model=replaced(b.model(), "model.safetensors", safetensors(
        b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,1600]}}', b"\0" * 16))), "?"),
    "safetensors of a dtype that is none": Case(lambda b: b.score(model=replaced(b.model(), "model.safetensors", safetensors(
        b'{"a":{"dtype":"PICKLE","shape":[4],"data_offsets":[0,16]}}', b"\0" * 16))), "?"),
    "an empty weight file": Case(lambda b: b.generate(model=replaced(b.model(), "model.safetensors", b"")), "?"),
    "an index that leads out of the folder": Case(lambda b: b.score(model=replaced(
        without(b.model(), "model.safetensors"), "model.safetensors.index.json", '{"weight_map": {"a": "../../m/model.safetensors"}}')), "?"),
    "an index with a path from the root": Case(lambda b: b.score(model=replaced(
        without(b.model(), "model.safetensors"), "model.safetensors.index.json", '{"weight_map": {"a": "/etc/passwd"}}')), "?"),
    "a config nested without end": Case(lambda b: b.score(model=replaced(b.model(), "config.json", b'{"a":' * 100_000)), "?"),
    "a config of 5000 digits": Case(lambda b: b.score(model=replaced(b.model(), "config.json", b'{"n_embd": ' + b"9" * 5000 + b"}")), "?"),
    "a config that is no UTF-8": Case(lambda b: b.generate(model=replaced(b.model(), "config.json", b'{"\xff": 1}')), "?"),
    "a config that is a loop of links": Case(lambda b: b.generate(model=link(
        Box(without(b.model(), "config.json"), b.base, b.finished), "config.json", "config.json").parent), "?"),
    "a tokenizer that is no JSON": Case(lambda b: b.score(model=replaced(b.model(), "tokenizer.json", '{"version": ')), "?"),
    "a tokenizer of an unknown kind": Case(lambda b: b.score(model=b.edit(
        b.model() / "tokenizer.json", lambda t: t["model"].update(type="Pickle"))), "?"),
    "no tokenizer": Case(lambda b: b.score(model=without(b.model(), "tokenizer.json")), "?"),
    "a model that is a file": Case(lambda b: b.score(model=b.write("m", "x")), "?"),
    "a model that is a loop of links": Case(lambda b: b.score(model=link(b, "m", "m")), "?"),
    "a reward model that is none": Case(lambda b: b.run(f"reward.start={b.base}", data__source=RIGHT), "?"),
    "a judge's model without its folder": Case(lambda b: b.run(
        "golden.kind=hf_reward", f"golden.model={b / 'none'}", data__source=RIGHT), "?"),
}  # fmt: skip

CONFIGS = {
    "a config that refuses": Case(lambda b: b.config(get_config("raise ValueError('only on Tuesdays')")), "?"),
    "a config that breaks": Case(lambda b: b.config(get_config("return {}['steps']")), "?"),
    "a config that divides by zero": Case(lambda b: b.config(get_config("c.seed = 1 // 0")), "?"),
    "a config that leaves": Case(lambda b: b.config(get_config("raise SystemExit(0)")), "?"),
    "a config that imports what is not there": Case(lambda b: b.config("import no_such_module\n"), "?"),
    "a config that calls itself": Case(lambda b: b.config(get_config("return get_config()")), "?"),
    "a config that is no Python": Case(lambda b: b.config("def get_config(:\n"), "?"),
    "a config whose neighbour is no Python": Case(lambda b: (b.write("beside.py", "\n\nx = ("), b.config("import beside\n"))[1], "?"),
    "a config file that is no UTF-8": Case(lambda b: b.config(b"x = '\xff'\n"), "?"),
    "a config with a NUL byte": Case(lambda b: b.config(b"x = 1\x00\n"), "?"),
    "a config that is empty": Case(lambda b: b.config(""), "?"),
    "a config whose get_config is none": Case(lambda b: b.config("get_config = 3\n"), "?"),
    "a config that returns nothing": Case(lambda b: b.config("def get_config(name=''):\n    pass\n"), "?"),
    "a config of another type": Case(lambda b: b.config(get_config("c.sft.steps = '7'")), "?"),
    "a config that is not a number": Case(lambda b: b.config(get_config("c.policy.beta = float('nan')")), "?"),
    "a config beyond all numbers": Case(lambda b: b.config(get_config("c.sft.learning_rate = float('inf')")), "?"),
    "a config of nothing": Case(lambda b: b.config(get_config("c.seed = None")), "?"),
    "a config with a NUL in a path": Case(lambda b: b.config(get_config("c.data.source = 'a\\0b'")), "?"),
    "a config with words for numbers": Case(lambda b: b.config(get_config("c.eval.best_of = (1, 'two')")), "?"),
    "a config of three words": Case(lambda b: b.config(get_config("c.data.prompt_words = (1, 2, 3)")), "?"),
    "a config that is JSON": Case(lambda b: b.config('{"seed": 3}', name="c.json"), "?"),
    "a config that is a workdir's": Case(lambda b: ["run", f"--workdir={b / 'w'}", f"--config={b.workdir() / 'config.json'}"], "?"),
    "a config that is a folder": Case(lambda b: ["aot", f"--config={b.path}", "--topology=v5e:4x4"], "?"),
    "a config file that is a loop of links": Case(lambda b: ["run", f"--workdir={b / 'w'}", f"--config={link(b, 'c.py', 'c.py')}"], "?"),
    "aot: a config that breaks": Case(lambda b: ["aot", "--topology=v5e:4x4", f"--config={b.write('c.py', get_config('c.seed = [][0]'))}"], "?"),
}  # fmt: skip

KEYS = {  # one or two of every section
    "seed": ("seed=99999999999999999999", "?"),
    "variants": ("variants=policy/a", "?"),
    "variants, out of the workdir": ("variants=policy/.. = init_sft", "?"),
    "variants, a name too long": (f"variants=policy/{'a' * 300} = init_sft", "?"),
    "variants, a setting out of range": ("variants=policy/a = init_sft policy.beta=-1", "?"),
    "data.kind": ("data.kind=parquet", "?"),
    "data.heldout_fraction": ("data.heldout_fraction=1e30", "?"),
    "data.max_prompt_tokens": ("data.max_prompt_tokens=0", "?"),
    "data.max_records": ("data.max_records=-1", "?"),
    "data.fields": ("data.fields.prompt=a\x00b", "?"),
    "data.prompt_words": ("data.prompt_words=5,2", "?"),
    "data.testbed": ("data.testbed.noise=1e30", "?"),
    "data.testbed, huge": ("data.testbed.demonstrations=2147483647", "?"),
    "model": ("model.width=-96", "?"),
    "model, huge": ("model.num_layers=100000", "?"),
    "model.architecture": ("model.architecture=../../gpt2", "?"),
    "adapter": ("adapter.alpha=-inf", "?"),
    "mesh": ("mesh.fsdp=0", "?"),
    "pretrain": ("pretrain.learning_rate=nan", "?"),
    "sft": ("sft.batch_size=1e30", "?"),
    "sft.b2": ("sft.b2=1", "?"),
    "sample": ("sample.rows=0", "?"),
    "sample, huge": ("sample.eval_samples=1000000000", "?"),
    "reward": ("reward.ensemble=-3", "?"),
    "reward.recipes": ("reward.recipes=init_sft,../../etc", "?"),
    "policy": ("policy.clip_ratio=0", "?"),
    "policy.entropy": ("policy.entropy=-1e30", "?"),
    "adversarial": ("adversarial.max_accuracy=2", "?"),
    "dpo": ("dpo.beta=-0.1", "?"),
    "spin": ("spin.iterations=0", "?"),
    "rejection": ("rejection.samples=1", "?"),
    "golden": ("golden.kind=__import__('os')", "?"),
    "golden.window_words": ("golden.window_words=0", "?"),
    "eval": ("eval.best_of=()", "?"),
    "eval, a call": ("eval.best_of=(__import__('os').system('true'),)", "?"),
    "checkpoint": ("checkpoint.keep=0", "?"),
    "profile": ("profile.first=-1", "?"),
    "a key that is none": ("policy.__class__=x", "?"),
}
KEY_CASES = {f"--config.{name}": Case(lambda b, setting=setting: b.testbed(setting), says) for name, (setting, says) in KEYS.items()}

WORKDIRS = {
    "config.json cut short": Case(lambda b: b.of_workdir("score", workdir=replaced(b.workdir(), "config.json", '{"config": {"seed')), "?"),
    "config.json that is a list": Case(lambda b: b.of_workdir("score", workdir=replaced(b.workdir(), "config.json", "[1, 2]")), "?"),
    "config.json nested without end": Case(lambda b: b.of_workdir("generate", workdir=replaced(b.workdir(), "config.json", DEEP)), "?"),
    "config.json with a key too many": Case(lambda b: b.of_workdir(
        "score", workdir=b.edit(b.workdir() / "config.json", lambda c: c["config"].update(run_me="evil.py"))), "?"),
    "config.json of another type": Case(lambda b: b.of_workdir(
        "generate", workdir=b.edit(b.workdir() / "config.json", lambda c: c["config"]["adapter"].update(rank="8"))), "?"),
    "config.json out of range": Case(lambda b: b.of_workdir(
        "score", workdir=b.edit(b.workdir() / "config.json", lambda c: c["config"]["adapter"].update(rank=-8))), "?"),
    "config.json with a list for a number": Case(lambda b: b.of_workdir(
        "score", workdir=b.edit(b.workdir() / "config.json", lambda c: c["config"].update(seed=[1]))), "?"),
    "config.json with a number for a section": Case(lambda b: b.of_workdir(
        "score", workdir=b.edit(b.workdir() / "config.json", lambda c: c["config"].update(adapter=3))), "?"),
    "config.json whose variant leads out": Case(lambda b: b.of_workdir("export", "--role=policy/..", workdir=b.edit(
        b.workdir() / "config.json", lambda c: c["config"].update(variants=["policy/.. = init_sft"]))), "?"),
    "config.json that names a model that is gone": Case(lambda b: b.of_workdir("export", "--role=sft", workdir=b.edit(
        b.workdir() / "config.json", lambda c: c["config"]["model"].update(path="/nowhere/m"))), "?"),
    "config.json that is a folder": Case(lambda b: b.of_workdir("score", workdir=(
        without(b.workdir(), "config.json"), (b / "w/config.json").mkdir(), b / "w")[2]), "?"),
    "config.json that is a loop of links": Case(lambda b: b.of_workdir("score", workdir=link(
        Box(without(b.workdir(), "config.json"), b.base, b.finished), "config.json", "config.json").parent), "?"),
    "run: config.json cut short": Case(lambda b: b.run(data__source=RIGHT, workdir=replaced(b.workdir(), "config.json", "{")), "?"),
    "run: config.json of another config": Case(lambda b: b.run(data__source=RIGHT, workdir=b.workdir()), "?"),
    "trunk.json of another shape": Case(lambda b: b.of_workdir("score", workdir=replaced(b.workdir(), "trunk.json", '{"files": 3}')), "?"),
    "trunk.json of other weights": Case(lambda b: b.of_workdir("score", workdir=replaced(b.workdir(), "trunk.json", json.dumps(
        {"files": {"model.safetensors": {"sha256": "0" * 64}}}))), "?"),
    "leaves that are gone": Case(lambda b: b.of_workdir("export", "--role=sft", workdir=(
        w := b.workdir(), shutil.rmtree(w / "sft" / "leaves"))[0]), "?"),
    "a role that leads out": Case(lambda b: b.of_workdir("export", "--role=../../etc"), "?"),
    "a reward that leads out": Case(lambda b: b.of_workdir("score", "--reward=../sft"), "?"),
    "a workdir that is a file": Case(lambda b: b.testbed(workdir=b.write("w", "x")), "?"),
    "a workdir that is a loop of links": Case(lambda b: b.testbed(workdir=link(b, "w", "w")), "?"),
    "a workdir that is somebody's": Case(lambda b: b.testbed(workdir=b.write("w/thesis.tex", "x").parent), "?"),
    "a workdir below a file": Case(lambda b: b.testbed(workdir=b.write("w", "x") / "deeper"), "?"),
    "a workdir that cannot be made": Case(lambda b: b.testbed(workdir="/proc/irl_jax/w"), "?"),
    "a workdir of another store": Case(lambda b: b.testbed(workdir="s3://bucket/w"), "?"),
    "a workdir in use": Case(lambda b: b.testbed(workdir=b.used()), "?"),
    "results.json cut short": Case(lambda b: b.testbed(stages="report", workdir=b.begun(results='{"policies": {')), "?"),
    "results.json that is a list": Case(lambda b: b.testbed(stages="report", workdir=b.begun(results="[]")), "?"),
    "results.json with text for numbers": Case(lambda b: b.testbed(stages="report", workdir=b.begun(results='{"policies": "x"}')), "?"),
    "results.json that is gone": Case(lambda b: b.testbed(stages="report", workdir=b.begun()), "?"),
    "report.json cut short": Case(lambda b: b.testbed(stages="report", workdir=b.begun(
        results=NOTHING, evaluate__report="[")), "?"),
    "metrics.jsonl that is no JSON": Case(lambda b: b.testbed(stages="report", workdir=replaced(b.begun(
        results=NOTHING, evaluate__report=NOTHING), "sft/metrics.jsonl", '{"step": 1}\n{"step"\n')), "?"),
    "metrics.jsonl without steps": Case(lambda b: b.testbed(stages="report", workdir=replaced(b.begun(
        results=NOTHING, evaluate__report=NOTHING), "sft/metrics.jsonl", '{"loss": 1}\n')), "?"),
    "done.json that is no JSON": Case(lambda b: b.testbed(stages="report", workdir=b.begun(
        results=NOTHING, sft__done="\0")), "?"),
    "done.json of another shape": Case(lambda b: b.testbed(stages="report", workdir=b.begun(
        results=NOTHING, sft__done='{"timing": 3}')), "?"),
    "a workdir that is none": Case(lambda b: b.of_workdir("generate", workdir=b / "nowhere"), "?"),
}  # fmt: skip

FLAGS = {
    "a verb that is none": Case(lambda b: ["evaluate"], "?"),
    "a flag with a terminal's commands": Case(lambda b: ["run", "--workdir=w", "--\x1b[31mred"], "?"),
    "samples beyond all memory": Case(lambda b: b.generate(GOOD, "--samples=1000000000000"), "?"),
    "a temperature that is not a number": Case(lambda b: b.generate(GOOD, "--temperature=nan"), "?"),
    "a temperature of almost nothing": Case(lambda b: b.generate(GOOD, "--temperature=1e-40"), "?"),
    "top_p above 1": Case(lambda b: b.generate(GOOD, "--top_p=1.5"), "?"),
    "top_k of 30 digits": Case(lambda b: b.generate(GOOD, f"--top_k={10**30}"), "?"),
    "a negative seed": Case(lambda b: b.generate(GOOD, "--seed=-1"), "?"),
    "out is the input": Case(lambda b: [*b.score()[:3], f"--out={b / 'in.jsonl'}"], "?"),
    "out is the input by another name": Case(lambda b: [*b.generate()[:3], f"--out={link(b, 'same', 'in.jsonl')}"], "?"),
    "out is a folder": Case(lambda b: [*b.score()[:3], f"--out={b.path}"], "?"),
    "out is a pipe": Case(lambda b: (os.mkfifo(b / "pipe"), [*b.score()[:3], f"--out={b / 'pipe'}"])[1], "?"),
    "out is a loop of links": Case(lambda b: [*b.score()[:3], f"--out={link(b, 'o', 'o')}"], "?"),
    "out below a file": Case(lambda b: [*b.score()[:3], f"--out={b / 'in.jsonl' / 'o'}"], "?"),
    "a full disk for generate": Case(lambda b: b.generate(), "?", limit=16),
    "a full disk for score": Case(lambda b: b.score(), "?", limit=16),
    "a full disk for export": Case(lambda b: b.of_workdir("export", "--role=sft"), "?", limit=16),
    "a full disk for run": Case(lambda b: b.run(data__source=RIGHT), "?", limit=16),
    "export: out is there": Case(lambda b: (b.write("out/thesis.tex", "x"), b.of_workdir("export", "--role=sft"))[1], "?"),
    "export: out is a link to nothing": Case(lambda b: (link(b, "out", "none/x"), b.of_workdir("export", "--role=sft"))[1], "?"),
    "export: shards of no size": Case(lambda b: b.of_workdir("export", "--role=sft", "--max_shard_size=1e30GB"), "?"),
    "export: shards beyond all disks": Case(lambda b: b.of_workdir("export", "--role=sft", f"--max_shard_size={'9' * 400}GB"), "?"),
    "export: another base": Case(lambda b: b.of_workdir("export", "--role=sft", "--adapter", f"--base={b / 'none'}"), "?"),
    "aot: a chip that is none": Case(lambda b: ["aot", "--topology=v99:1x1"], "?"),
    "aot: a step that is none": Case(lambda b: ["aot", "--topology=v5e:4x4", "--steps=../../sft"], "?"),
    "aot: slices beyond all": Case(lambda b: ["aot", "--topology=v5e:4x4", "--slices=99999999999999999999"], "?"),
    "aot: out is a file": Case(lambda b: ["aot", "--topology=v5e:4x4", f"--out={b.write('o', 'x')}"], "?"),
    "aot: a value out of range": Case(lambda b: ["aot", "--topology=v5e:4x4", "--config.policy.samples=0"], "?"),
    "aot: a model that is none": Case(lambda b: ["aot", "--topology=v5e:4x4", "--config.data.source=x", "--config.golden.kind=none"], "?"),
    "run: hosts without --multihost": Case(lambda b: ["run", f"--workdir={b / 'w'}", "--processes=2"], "?"),
}  # fmt: skip

CASES = RECORDS | DATA | MODELS | CONFIGS | KEY_CASES | WORKDIRS | FLAGS
