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
        golden = [] if any(setting.startswith("golden.kind=") for setting in settings) else ["--config.golden.kind=none"]
        return ["run", f"--workdir={workdir or self / 'w'}", f"--stages={stages}", f"--config.model.path={self.base}", *golden,
                "--config.data.max_prompt_tokens=12", "--config.data.max_response_tokens=12", *flags,
                *(f"--config.{setting}" for setting in settings)]

    def testbed(self, *settings, stages="pretrain", workdir=None) -> list[str]:
        return ["run", f"--workdir={workdir or self / 'w'}", f"--stages={stages}", *(f"--config.{setting}" for setting in settings)]

    def config(self, body, name="c.py") -> list[str]:
        """run with a config file."""
        return ["run", f"--workdir={self / 'w'}", f"--config={self.write(name, body)}"]

    def sweep(self, *sweeps, workdir=None) -> list[str]:
        """run with --sweep; the other flags among them stay as they are."""
        flags = [flag if flag.startswith("--") else f"--sweep={flag}" for flag in sweeps]
        return ["run", f"--workdir={workdir or self / 's'}", "--stages=pretrain", *flags]

    def swept(self, content) -> pathlib.Path:
        """A sweep's folder with a sweep.json."""
        return self.write("s/sweep.json", content if isinstance(content, (bytes, str)) else json.dumps(content)).parent

    def prepare(self, content=RIGHT, *flags, kind="demonstrations", out="out") -> list[str]:
        return ["prepare", f"--kind={kind}", f"--data={self.write('in.jsonl', content)}", f"--out={self / out}", *flags]

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
    "bytes that are no UTF-8": Case(lambda b: b.score(GOOD + b'{"prompt": "\xff"}\n'), "~/in.jsonl, line 2: byte 12 is not UTF-8"),
    "UTF-16": Case(lambda b: b.generate('{"prompt": "w1"}\n'.encode("utf-16")),
        "~/in.jsonl, line 1: byte 0 is not UTF-8; it looks like UTF-16: save it as UTF-8"),
    "a NUL byte in a text": Case(lambda b: b.score(b'{"prompt": "w1\x00", "response": "w2"}\n'),
        "~/in.jsonl, line 1: not JSON (… at column 15)"),
    "NUL bytes alone": Case(lambda b: b.generate(b"\x00" * 4096), "~/in.jsonl, line 1: not JSON (… at column 1)"),
    "gzip cut short": Case(lambda b: b.generate(gzip.compress(GOOD * 2000, mtime=0)[:-20]),
        "~/in.jsonl: the gzip file is truncated or damaged (…); fetch it again"),
    "gzip's first bytes alone": Case(lambda b: b.score(b"\x1f\x8b"),
        "~/in.jsonl: the gzip file is truncated or damaged (…); fetch it again"),
    "gzip of another method": Case(lambda b: b.score(b"\x1f\x8b\x09" + b"\0" * 20),
        "~/in.jsonl: the gzip file is truncated or damaged (…); fetch it again"),
    "gzip with a flipped byte": Case(lambda b: b.score(gzip.compress(GOOD, mtime=0)[:-8] + b"\0" * 8),
        "~/in.jsonl: the gzip file is truncated or damaged (…); fetch it again"),
    "gzip by its name only": Case(lambda b: b.score("<html>not found</html>", name="in.jsonl.gz"),
        "~/in.jsonl.gz, line 1: not JSON (… at column 1)"),
    "a zip archive": Case(lambda b: b.score(b"PK\x03\x04" + b"\0" * 26 + b"in.jsonl"), "~/in.jsonl, line 1: not JSON (… at column 1)"),
    "a gzip of one line without end": Case(lambda b: b.score(gzip.compress(b'{"prompt": "' + b"x" * 2**26, 1, mtime=0)),
        "~/in.jsonl, line 1: longer than 64 MiB; JSON lines have one record a line"),
    "a line of 10 MB that is no JSON": Case(lambda b: b.score(b'{"prompt": "' + b"x" * LONG),
        "~/in.jsonl, line 1: not JSON (… at column 12)"),
    "a prompt of 10 MB": Case(lambda b: b.generate(lines({"prompt": ("w1" + " " * (LONG // 30)) * 30})),
        "~/in.jsonl, line 1: the prompt is 30 tokens; with --max_tokens=4 that is longer than the context of 24; shorten the "
        "prompt or lower --max_tokens"),
    "a key of 10 MB": Case(lambda b: b.score(lines({"k" * LONG: 1})),
        "~/in.jsonl, line 1: no field 'prompt' (its fields: kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk...)"),
    "a thousand keys": Case(lambda b: b.score(lines({f"key{i}": i for i in range(1000)})),
        "~/in.jsonl, line 1: no field 'prompt' (its fields: key0, key1, key10, key100, key101, key102, key103, key104, key105, key106, "
        "key107, key108, key109, key11, key110, key111, key112, key113, key114, key115, and 980 more)"),
    "a key twice": Case(lambda b: b.generate(b'{"prompt": "w1", "prompt": "w2"}\n'),
        "~/in.jsonl, line 1: not usable JSON (the key 'prompt' stands in one object twice)"),
    "a key twice in a turn": Case(lambda b: b.generate(b'{"messages": [{"role": "user", "content": "w1", "content": "w2"}]}\n'),
        "~/in.jsonl, line 1: not usable JSON (the key 'content' stands in one object twice)"),
    "an array": Case(lambda b: b.score(GOOD + b"[1]\n"), "~/in.jsonl, line 2: a JSON object is needed, not list"),
    "a bare text": Case(lambda b: b.generate(b'"w1"\n'), "~/in.jsonl, line 1: a JSON object is needed, not str"),
    "null": Case(lambda b: b.generate(b"null\n"), "~/in.jsonl, line 1: a JSON object is needed, not NoneType"),
    "two objects on one line": Case(lambda b: b.score(GOOD.strip() + GOOD), "~/in.jsonl, line 1: not JSON (… at column 39)"),
    "one object on several lines": Case(lambda b: b.score(json.dumps(json.loads(GOOD), indent=1)),
        "~/in.jsonl, line 1: not JSON (… at column 1)"),
    "a prompt that is a number": Case(lambda b: b.generate(lines({"prompt": 3})),
        "~/in.jsonl, line 1: field 'prompt' must be text, not int"),
    "a prompt that is null": Case(lambda b: b.generate(lines({"prompt": None})),
        "~/in.jsonl, line 1: field 'prompt' must be text, not NoneType"),
    "a response that is a list": Case(lambda b: b.score(lines({"prompt": "w1", "response": ["w2"]})),
        "~/in.jsonl, line 1: field 'response' must be text, not list"),
    "a response that is empty": Case(lambda b: b.score(lines({"prompt": "w1", "response": " \u2003\n"})),
        "~/in.jsonl, line 1: field 'response' is empty; give it some text or remove the record"),
    "no response": Case(lambda b: b.score(lines({"prompt": "w1"})), "~/in.jsonl, line 1: no field 'response' (its fields: prompt)"),
    "NaN": Case(lambda b: b.score(b'{"prompt": "w1", "response": "w2", "weight": NaN}\n'),
        "~/in.jsonl, line 1: not usable JSON (NaN is no number of JSON's)"),
    "-Infinity": Case(lambda b: b.generate(b'{"prompt": "w1", "weight": -Infinity}\n'),
        "~/in.jsonl, line 1: not usable JSON (-Infinity is no number of JSON's)"),
    "a number of 5000 digits": Case(lambda b: b.generate(b'{"prompt": "w1", "n": ' + b"9" * 5000 + b"}"),
        "~/in.jsonl, line 1: not usable JSON (a number of thousands of digits)"),
    "nested without end": Case(lambda b: b.score(DEEP), "~/in.jsonl, line 1: not usable JSON (nested too deeply)"),
    "an empty file": Case(lambda b: b.generate(b""), "~/in.jsonl: no records; give one JSON object a line"),
    "blank lines alone": Case(lambda b: b.score(b"\n \r\n\t\n"), "~/in.jsonl: no records; give one JSON object a line"),
    "a byte order mark alone": Case(lambda b: b.score(b"\xef\xbb\xbf"), "~/in.jsonl: no records; give one JSON object a line"),
    "a byte order mark in the middle": Case(lambda b: b.score(GOOD + b"\xef\xbb\xbf" + GOOD),
        "~/in.jsonl, line 2: not JSON (… at column 1)"),
    "half of a surrogate pair": Case(lambda b: b.generate(b'{"prompt": "\\ud800"}\n'),
        "~/in.jsonl, line 1: field 'prompt' holds half of a surrogate pair, which is not valid Unicode"),
    "half of a surrogate pair in another field": Case(lambda b: b.generate(b'{"prompt": "w1", "id": ["\\udc00"]}\n'),
        "~/in.jsonl, line 1: one of its fields holds half of a surrogate pair, which is not valid Unicode"),
    "what marks control tokens": Case(lambda b: b.generate(lines({"prompt": "w1 \ufdd0<eos>\ufdd1"})),
        "~/in.jsonl, line 1: field 'prompt' holds U+FDD0, which Unicode keeps out of texts; take it out"),
    "a prompt beyond the context": Case(lambda b: b.generate(lines({"prompt": "w1 " * 22})),
        "~/in.jsonl, line 1: the prompt is 22 tokens; with --max_tokens=4 that is longer than the context of 24; shorten the prompt or "
        "lower --max_tokens"),
    "a record beyond the context": Case(lambda b: b.score(lines({"prompt": "w1 " * 22, "response": "w2 " * 9})),
        "~/in.jsonl, line 1: prompt and response are 31 tokens, longer than the context of 24; shorten the record"),
    "messages without a template": Case(lambda b: b.generate(lines({"messages": [{"role": "user", "content": "w1"}]})),
        "~/in.jsonl, line 1: field 'messages' needs a chat template, and the tokenizer has none; give prompt and response"),
    "a role that is a control token": Case(lambda b:
        b.generate(lines({"messages": [{"role": "eos", "content": "w1"}]}), model=b.talker()),
        "~/in.jsonl, line 1: role 'eos' is no speaker's: give one word, and none that names a control token"),
    "a role that holds a control token": Case(lambda b: b.generate(
        lines({"messages": [{"role": "user><eos", "content": "w1"}]}), model=b.talker()),
        "~/in.jsonl, line 1: role 'user><eos' is no speaker's: give one word, and none that names a control token"),
    "a turn that is no object": Case(lambda b: b.generate(lines({"messages": ["w1"]}), model=b.talker()),
        "~/in.jsonl, line 1: turn 1 of field 'messages' must be {role, content}, both text; calls of tools and contents in parts are "
        "not read"),
    "a turn in parts": Case(lambda b: b.generate(
        lines({"messages": [{"role": "user", "content": [{"type": "text", "text": "w1"}]}]}), model=b.talker()),
        "~/in.jsonl, line 1: turn 1 of field 'messages' must be {role, content}, both text; calls of tools and contents in parts are "
        "not read"),
    "messages without a turn": Case(lambda b: b.score(lines({"messages": []}), model=b.talker()),
        "~/in.jsonl, line 1: field 'messages' must be a list of {role, content} of two or more turns, the last one the assistant's"),
    "messages with tools": Case(lambda b: b.generate(
        lines({"messages": [{"role": "user", "content": "w1"}], "tools": [{}]}), model=b.talker()),
        "~/in.jsonl, line 1: field 'tools' is not read; leave it out, or give prompt and response as the template renders them, whose "
        "control tokens are read with data.control_tokens or --control_tokens"),
    "a template that is no template": Case(lambda b: b.generate(
        lines({"messages": [{"role": "user", "content": "w1"}]}), model=b.edit(
            b.model() / "tokenizer_config.json", lambda c: c.update(chat_template="{% for %}"))),
        "~/in.jsonl, line 1: the tokenizer's chat template refuses the conversation (…)"),
    "a template that reaches for Python": Case(lambda b: b.generate(
        lines({"messages": [{"role": "user", "content": "w1"}]}), model=b.edit(b.model() / "tokenizer_config.json", lambda c: c.update(
            chat_template="{{ ''.__class__.__mro__[1].__subclasses__() }}"))),
        "~/in.jsonl, line 1: the tokenizer's chat template refuses the conversation (…)"),
    "a terminal's commands in a name": Case(lambda b: b.generate(lines({"\x1b[2J\x07\u202e": 1})),
        "~/in.jsonl, line 1: no field 'prompt' (its fields: \\x1b[2J\\x07\\u202e)"),
    "a folder for the records": Case(lambda b: ["score", f"--model={b.base}", f"--data={b.path}", f"--out={b / 'o'}"],
        "--data=~: is no file that can be read"),
    "a loop of links for the records": Case(lambda b:
        ["score", f"--model={b.base}", f"--data={link(b, 'in', 'in')}", f"--out={b / 'o'}"], "--data=~/in: is no file that can be read"),
    "a link to nothing": Case(lambda b: ["generate", f"--model={b.base}", f"--prompts={link(b, 'in', 'none')}", f"--out={b / 'o'}"],
        "--prompts=~/in: is no file that can be read"),
}  # fmt: skip

DATA = {  # the same readers in `run`, and what only it reads
    "run: gzip cut short": Case(lambda b: b.run(data__source=gzip.compress(GOOD * 2000, mtime=0)[:-20]),
        "~/data__source.jsonl: the gzip file is truncated or damaged (…); fetch it again"),
    "run: a key twice": Case(lambda b: b.run(data__source=GOOD * 9 + b'{"prompt": "a", "response": "b", "response": "c"}\n'),
        "~/data__source.jsonl, line 10: not usable JSON (the key 'response' stands in one object twice)"),
    "run: a loop of links": Case(lambda b: b.run(f"data.source={link(b, 'in', 'in')}"), "~/in: cannot be read (…)"),
    "run: a folder": Case(lambda b: b.run(f"data.source={b.path}"), "~: cannot be read (…)"),
    "run: an empty file": Case(lambda b: b.run(data__source=b""),
        "~/data__source.jsonl: no record in it can be used; give a file with records"),
    "run: one record": Case(lambda b: b.run(data__source=GOOD),
        "~/data__source.jsonl: no demonstration is left for training out of 1 records of 1 prompts; lower data.min_rating, "
        "data.heldout_fraction or data.development_fraction, or give more records"),
    "run: a prompt too long": Case(lambda b: b.run(data__source=RIGHT + lines({"prompt": "w1 " * 20, "response": "w2"})),
        "record …: the prompt has 20 tokens, the limit is 12; raise data.max_prompt_tokens, or cut prompts with data.truncate_prompts"),
    "run: a rating that is text": Case(lambda b: b.run(
        "data.kind=continuations", "data.min_rating=5", "data.prompt_words=1,2", data__source=many(rating="9")),
        "~/data__source.jsonl, line 40: field 'rating' must be a number, not str"),
    "run: a rating of 400 digits": Case(lambda b: b.run(
        "data.kind=continuations", "data.min_rating=5", "data.prompt_words=1,2", data__source=many(rating=10**400)),
        "~/data__source.jsonl, line 40: field 'rating' must be a finite number"),
    "run: a rating beyond all numbers": Case(lambda b: b.run("data.kind=continuations", "data.min_rating=5", "data.prompt_words=1,2",
                                                             data__source=many().replace(b'"rating": 9}', b'"rating": 1e999}')),
        "~/data__source.jsonl, line 10: field 'rating' must be a finite number"),
    "run: a pair without its other side": Case(lambda b: b.run(
        data__source=RIGHT, data__preference_source=lines({"prompt": "w1", "chosen": "w2"})),
        "~/data__preference_source.jsonl, line 1: no field 'rejected' (its fields: chosen, prompt); see data.fields"),
    "run: a transcript that is none": Case(lambda b:
        b.run(f"data.source=hh:{b.write('h.jsonl', lines({'chosen': 'a', 'rejected': 'b'}))}"),
        "~/h.jsonl, line 1: field 'chosen' has no '\\n\\nAssistant:' in it; HH-RLHF transcripts do"),
    "run: TFDS that is not prepared": Case(lambda b: b.run("data.source=tfds:../../etc", f"data.tfds_data_dir={b.path}"),
        "tfds:../../etc, split 'train': not found prepared as array_record in ~ (…); prepare it with tfds.builder('../../etc', "
        "file_format='array_record').download_and_prepare(), or see data.tfds_data_dir"),
    "run: the testbed for evaluation": Case(lambda b: b.run("data.eval_source=testbed", data__source=RIGHT),
        "config.data.eval_source: 'testbed' is a data.source only; name a file of records"),
    "run: a judge's file that is broken": Case(lambda b: b.run(
        "golden.kind=classifier", f"golden.source={b.path}", data__source=RIGHT),
        "config.golden.source: ~: no such file, or none that can be read"),
}  # fmt: skip

MODELS = {
    "weights as a pickle": Case(lambda b:
        b.score(model=replaced(without(b.model(), "model.safetensors"), "pytorch_model.bin", pickled(b))),
        "~/m: has neither model.safetensors nor model.safetensors.index.json; other formats must be converted to safetensors first"),
    "a pickle named safetensors": Case(lambda b: b.generate(model=replaced(b.model(), "model.safetensors", pickled(b))),
        "~/m/model.safetensors: truncated or not a safetensors file (…); fetch it again"),
    "safetensors cut short": Case(lambda b: b.score(model=replaced(
        b.model(), "model.safetensors", (b.base / "model.safetensors").read_bytes()[:-100])),
        "~/m/model.safetensors: truncated or not a safetensors file (…); fetch it again"),
    "safetensors with a header without end": Case(lambda b: b.score(model=replaced(
        b.model(), "model.safetensors", struct.pack("<Q", 2**63) + b"{}")),
        "~/m/model.safetensors: truncated or not a safetensors file (…); fetch it again"),
    "safetensors with offsets outside": Case(lambda b: b.score(model=replaced(b.model(), "model.safetensors", safetensors(
        b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,1600]}}', b"\0" * 16))),
        "~/m/model.safetensors: truncated or not a safetensors file (…); fetch it again"),
    "safetensors of a dtype that is none": Case(lambda b: b.score(model=replaced(b.model(), "model.safetensors", safetensors(
        b'{"a":{"dtype":"PICKLE","shape":[4],"data_offsets":[0,16]}}', b"\0" * 16))),
        "~/m/model.safetensors: truncated or not a safetensors file (…); fetch it again"),
    "an empty weight file": Case(lambda b: b.generate(model=replaced(b.model(), "model.safetensors", b"")),
        "~/m/model.safetensors: truncated or not a safetensors file (…); fetch it again"),
    "an index that leads out of the folder": Case(lambda b: b.score(model=replaced(
        without(b.model(), "model.safetensors"), "model.safetensors.index.json", '{"weight_map": {"a": "../m/model.safetensors"}}')),
        "~/m/model.safetensors.index.json: weight_map names '../m/model.safetensors', which is no file of this folder"),
    "an index with a path from the root": Case(lambda b: b.score(model=replaced(
        without(b.model(), "model.safetensors"), "model.safetensors.index.json", '{"weight_map": {"a": "/etc/passwd"}}')),
        "~/m/model.safetensors.index.json: weight_map names '/etc/passwd', which is no file of this folder"),
    "a config nested without end": Case(lambda b: b.score(model=replaced(b.model(), "config.json", b'{"a":' * 100_000)),
        "~/m/config.json: not usable JSON (nested too deeply, or a number of thousands of digits)"),
    "a config of 5000 digits": Case(lambda b: b.score(model=replaced(b.model(), "config.json", b'{"n_embd": ' + b"9" * 5000 + b"}")),
        "~/m/config.json: not usable JSON (nested too deeply, or a number of thousands of digits)"),
    "a config that is no UTF-8": Case(lambda b: b.generate(model=replaced(b.model(), "config.json", b'{"\xff": 1}')),
        "~/m/config.json: not valid JSON (…)"),
    "a config that is a loop of links": Case(lambda b: b.generate(model=link(
        Box(without(b.model(), "config.json"), b.base, b.finished), "config.json", "config.json").parent),
        "~/m/config.json: cannot be read (…)"),
    "a tokenizer that is no JSON": Case(lambda b: b.score(model=replaced(b.model(), "tokenizer.json", '{"version": ')),
        "~/m: no tokenizer that transformers can read (…)"),
    "a tokenizer of an unknown kind": Case(lambda b: b.score(model=b.edit(
        b.model() / "tokenizer.json", lambda t: t["model"].update(type="Pickle"))), "~/m: no tokenizer that transformers can read (…)"),
    "no tokenizer": Case(lambda b: b.score(model=without(b.model(), "tokenizer.json")),
        "~/m: no tokenizer; one of tokenizer.json, tokenizer.model, vocab.json, vocab.txt must be there"),
    "a model that is a file": Case(lambda b: b.score(model=b.write("m", "x")), "~/m: no such model folder"),
    "a model that is a loop of links": Case(lambda b: b.score(model=link(b, "m", "m")), "~/m: no such model folder"),
    "a reward model that is none": Case(lambda b: b.run(f"reward.start={b.base}", data__source=RIGHT),
        "config.reward.start: @/config.json: architectures says GPT2LMHeadModel, a reward model is a *ForSequenceClassification"),
    "a judge's model without its folder": Case(lambda b: b.run(
        "golden.kind=hf_reward", f"golden.model={b / 'none'}", data__source=RIGHT), "config.golden.model: ~/none: no such model folder"),
}  # fmt: skip

CONFIGS = {
    "a config that refuses": Case(lambda b: b.config(get_config("raise ValueError('only on Tuesdays')")),
        "~/c.py, line 4: only on Tuesdays"),
    "a config that breaks": Case(lambda b: b.config(get_config("return {}['steps']")), "~/c.py, line 4: KeyError: 'steps'"),
    "a config that divides by zero": Case(lambda b: b.config(get_config("c.seed = 1 // 0")),
        "~/c.py, line 4: ZeroDivisionError: integer division or modulo by zero"),
    "a config that leaves": Case(lambda b: b.config(get_config("raise SystemExit(0)")), "~/c.py, line 4: SystemExit: 0"),
    "a config that imports what is not there": Case(lambda b: b.config("import no_such_module\n"),
        "~/c.py, line 1: ModuleNotFoundError: No module named 'no_such_module'"),
    "a config that calls itself": Case(lambda b: b.config(get_config("return get_config()")),
        "~/c.py, line …maximum recursion depth exceed…"),
    "a config that is no Python": Case(lambda b: b.config("def get_config(:\n"), "~/c.py, line 1: …"),
    "a config whose neighbour is no Python": Case(lambda b: (b.write("beside.py", "\n\nx = ("), b.config("import beside\n"))[1],
        "~/beside.py, line 3: …"),
    "a config file that is no UTF-8": Case(lambda b: b.config(b"x = '\xff'\n"), "~/c.py, line 1: (unicode error) …"),
    "a config with a NUL byte": Case(lambda b: b.config(b"x = 1\x00\n"), "~/c.py, line 1: …"),
    "a config that is empty": Case(lambda b: b.config(""), "~/c.py: has no get_config() function"),
    "a config whose get_config is none": Case(lambda b: b.config("get_config = 3\n"), "~/c.py: has no get_config() function"),
    "a config that returns nothing": Case(lambda b: b.config("def get_config(name=''):\n    pass\n"),
        "~/c.py: get_config() must return the ConfigDict of irl_jax.config.default(), changed as needed"),
    "a config of another type": Case(lambda b: b.config(get_config("c.sft.steps = '7'")), "~/c.py, line 4: Could not override…"),
    "a config that is not a number": Case(lambda b: b.config(get_config("c.policy.beta = float('nan')")),
        "config.policy.beta = nan: must be a finite number, and at most 1e+30"),
    "a config beyond all numbers": Case(lambda b: b.config(get_config("c.sft.learning_rate = float('inf')")),
        "config.sft.learning_rate = inf: must be a finite number, and at most 1e+30"),
    "a config of nothing": Case(lambda b: b.config(get_config("c.seed = None")), "config.seed: None must be a whole number"),
    "a config with a NUL in a path": Case(lambda b: b.config(get_config("c.data.source = 'a\\0b'")),
        "config.data.source = 'a\\x00b': must be text without control characters"),
    "a config with words for numbers": Case(lambda b: b.config(get_config("c.eval.best_of = (1, 'two')")),
        "config.eval.best_of: 'two' must be a whole number"),
    "a config of three words": Case(lambda b: b.config(get_config("c.data.prompt_words = (1, 2, 3)")),
        "config.data.prompt_words = (1, 2, 3): two numbers are needed, 1 or more, the smaller one first"),
    "a config that is JSON": Case(lambda b: b.config('{"seed": 3}', name="c.json"),
        "--config=~/c.json: must be a .py file with a get_config(); a workdir's config.json is a run's record, which nothing runs"),
    "a config that is a workdir's": Case(lambda b: ["run", f"--workdir={b / 'w'}", f"--config={b.workdir() / 'config.json'}"],
        "--config=~/w/config.json: must be a .py file with a get_config(); a workdir's config.json is a run's record, which nothing "
        "runs"),
    "a config that is a folder": Case(lambda b: ["aot", f"--config={b.path}", "--topology=v5e:4x4"],
        "--config=~: is no file that can be read"),
    "a config file that is a loop of links": Case(lambda b: ["run", f"--workdir={b / 'w'}", f"--config={link(b, 'c.py', 'c.py')}"],
        "--config=~/c.py: is no file that can be read"),
    "aot: a config that breaks": Case(lambda b:
        ["aot", "--topology=v5e:4x4", f"--config={b.write('c.py', get_config('c.seed = [][0]'))}"],
        "~/c.py, line 4: IndexError: list index out of range"),
}  # fmt: skip

KEYS = {  # one or two of every section
    "seed": ("seed=99999999999999999999", "--config.seed=99999999999999999999: takes a whole number of at most 63 bits"),
    "seed, of 32 bits": ("seed=2147483648", "config.seed = 2147483648: must be a finite number, and at most 2,147,483,647"),
    "variants": ("variants=policy/a",
        'config.variants: cannot read "policy/a"; write "GROUP/NAME = RECIPE key=value ..." with GROUP one of reward, policy, '
        'adversarial, dpo, spin, rejection, and NAME of up to 100 letters, digits, dots and dashes'),
    "variants, out of the workdir": ("variants=policy/.. = init_sft",
        'config.variants: cannot read "policy/.. = init_sft"; write "GROUP/NAME = RECIPE key=value ..." with GROUP one of reward, '
        'policy, adversarial, dpo, spin, rejection, and NAME of up to 100 letters, digits, dots and dashes'),
    "variants, a name too long": (f"variants=policy/{'a' * 300} = init_sft",
        'config.variants: cannot read '
        '"policy/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'
        'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'
        'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa = init_sft"; write "GROUP/NAME = RECIPE key=value ..." with GROUP '
        'one of reward, policy, adversarial, dpo, spin, rejection, and NAME of up to 100 letters, digits, dots and dashes'),
    "variants, a setting out of range": ("variants=policy/a = init_sft policy.beta=-1",
        "config.variants, policy/a: config.policy.beta = -1.0: must not be negative"),
    "data.kind": ("data.kind=parquet", "config.data.kind = 'parquet': must be one of pairs, continuations"),
    "data.heldout_fraction": ("data.heldout_fraction=1e30", "config.data.heldout_fraction = 1e+30: must be at least 0 and below 1"),
    "data.max_prompt_tokens": ("data.max_prompt_tokens=0", "config.data.max_prompt_tokens = 0: must be positive"),
    "data.max_records": ("data.max_records=-1", "config.data.max_records = -1: must not be negative"),
    "data.fields": ("data.fields.prompt=a\x00b", "config.data.fields.prompt = 'a\\x00b': must be text without control characters"),
    "data.prompt_words": ("data.prompt_words=5,2",
        "config.data.prompt_words = (5, 2): two numbers are needed, 1 or more, the smaller one first"),
    "data.streaming": ("data.streaming=true",
        "config.data.streaming: data.source = 'testbed' is not read by random access; prepare it (python -m irl_jax prepare --help) and "
        "name it as tfds:NAME"),
    "data.streaming_records": ("data.streaming_records=0", "config.data.streaming_records = 0: must be positive"),
    "log": ("log.wandb=../a", "config.log.wandb = '../a': a project's name has at most 128 characters and none of / \\ # ? % :"),
    "log.tensorboard": ("log.tensorboard=maybe", "--config.log.tensorboard=maybe: takes true or false"),
    "data.testbed": ("data.testbed.noise=1e30", "config.data.testbed.noise = 1e+30: must lie between 0 and 1"),
    "data.testbed, huge": ("data.testbed.demonstrations=2147483647",
        "config.data.testbed.demonstrations = 2147483647: must be at most 10,000,000"),
    "model": ("model.width=-96", "config.model.width = -96: must be positive"),
    "model, huge": ("model.num_layers=100000", "config.model.num_layers = 100000: must be at most 1,024"),
    "model.architecture": ("model.architecture=../../gpt2", "config.model.architecture = '../../gpt2': must be one of gpt2, llama, gemma"),
    "adapter": ("adapter.alpha=-inf", "--config.adapter.alpha=-inf: takes a finite number"),
    "mesh": ("mesh.fsdp=0", "config mesh.fsdp = 0: must be at least 1"),
    "pretrain": ("pretrain.learning_rate=nan", "--config.pretrain.learning_rate=nan: takes a finite number"),
    "sft": ("sft.batch_size=1e30", "--config.sft.batch_size=1e30: takes a whole number of at most 63 bits"),
    "sft.b2": ("sft.b2=1", "config.sft.b2 = 1.0: must be at least 0 and below 1"),
    "sample": ("sample.rows=0", "config.sample.rows = 0: must be positive"),
    "sample, huge": ("sample.eval_samples=1000000000", "config.sample.eval_samples = 1000000000: must be at most 1,048,576"),
    "reward": ("reward.ensemble=-3", "config.reward.ensemble = -3: must be positive"),
    "reward.recipes": ("reward.recipes=init_sft,../../etc",
        "config.reward.recipes: unknown '../../etc'; choose from init_sft, init_demo, sft_demo, preference"),
    "policy": ("policy.clip_ratio=0", "config.policy.clip_ratio = 0.0: must be positive"),
    "policy.entropy": ("policy.entropy=-1e30", "config.policy.entropy = -1e+30: must not be negative"),
    "adversarial": ("adversarial.max_accuracy=2", "config.adversarial.max_accuracy = 2.0: must lie between 0 and 1"),
    "dpo": ("dpo.beta=-0.1", "config.dpo.beta = -0.1: must be positive"),
    "spin": ("spin.iterations=0", "config.spin.iterations = 0: must be positive"),
    "rejection": ("rejection.samples=1", "config.rejection.samples = 1: must be at least 2, for samples of one prompt are compared"),
    "golden": ("golden.kind=__import__('os')",
        'config.golden.kind = "__import__(\'os\')": must be one of testbed, classifier, hf_reward, none'),
    "golden.window_words": ("golden.window_words=0", "config.golden.window_words = 0: must be positive"),
    "eval": ("eval.best_of=()", "config.eval.best_of = (): at least one n is needed, and every n must be at least 1"),
    "eval, a call": ("eval.best_of=(__import__('os').system('true'),)",
        "--config.eval.best_of=(__import__('os').system('true'),): takes values separated by commas, such as a,b,c"),
    "checkpoint": ("checkpoint.keep=0", "config.checkpoint.keep = 0: must be positive"),
    "profile": ("profile.first=-1", "config.profile.first = -1: must be positive"),
    "a key that is none": ("policy.__class__=x", "unknown config key 'policy.__class__'; did you mean 'policy.steps'?"),
}
KEY_CASES = {f"--config.{name}": Case(lambda b, setting=setting: b.testbed(setting), says) for name, (setting, says) in KEYS.items()}

WORKDIRS = {
    "config.json cut short": Case(lambda b: b.of_workdir("score", workdir=replaced(b.workdir(), "config.json", '{"config": {"seed')),
        "~/w/config.json: broken JSON (…); bring the run's own back, or choose another --workdir"),
    "config.json that is a list": Case(lambda b: b.of_workdir("score", workdir=replaced(b.workdir(), "config.json", "[1, 2]")),
        "~/w/config.json: has no object 'config', which irl_jax writes there; bring the run's own back, or choose another --workdir"),
    "config.json nested without end": Case(lambda b: b.of_workdir("generate", workdir=replaced(b.workdir(), "config.json", DEEP)),
        "~/w/config.json: broken JSON (…); bring the run's own back, or choose another --workdir"),
    "config.json with a key too many": Case(lambda b: b.of_workdir(
        "score", workdir=b.edit(b.workdir() / "config.json", lambda c: c["config"].update(run_me="evil.py"))),
        "~/w/config.json: key run_me is unknown to this version; the workdir was written by another version of irl_jax"),
    "config.json of another type": Case(lambda b: b.of_workdir(
        "generate", workdir=b.edit(b.workdir() / "config.json", lambda c: c["config"]["adapter"].update(rank="8"))),
        "~/w/config.json: a key of another type: …"),
    "config.json out of range": Case(lambda b: b.of_workdir(
        "score", workdir=b.edit(b.workdir() / "config.json", lambda c: c["config"]["adapter"].update(rank=-8))),
        "~/w/config.json: config.adapter.rank = -8: must not be negative"),
    "config.json with a list for a number": Case(lambda b: b.of_workdir(
        "score", workdir=b.edit(b.workdir() / "config.json", lambda c: c["config"].update(seed=[1]))),
        "~/w/config.json: a key of another type: …"),
    "config.json with a number for a section": Case(lambda b: b.of_workdir(
        "score", workdir=b.edit(b.workdir() / "config.json", lambda c: c["config"].update(adapter=3))),
        "~/w/config.json: key adapter.alpha is missing; the workdir was written by another version of irl_jax"),
    "config.json whose variant leads out": Case(lambda b: b.of_workdir("export", "--role=policy/..", workdir=b.edit(
        b.workdir() / "config.json", lambda c: c["config"].update(variants=["policy/.. = init_sft"]))),
        'config.variants: cannot read "policy/.. = init_sft"; write "GROUP/NAME = RECIPE key=value ..." with GROUP one of reward, '
        'policy, adversarial, dpo, spin, rejection, and NAME of up to 100 letters, digits, dots and dashes'),
    "config.json that names a model that is gone": Case(lambda b: b.of_workdir("export", "--role=sft", workdir=b.edit(
        b.workdir() / "config.json", lambda c: c["config"]["model"].update(path="/nowhere/m"))),
        "~/w: its config.json names model.path = '/nowhere/m' (a relative path starts at the current folder): /nowhere/m: no such "
        "model folder"),
    "config.json that is a folder": Case(lambda b: b.of_workdir("score", workdir=(
        without(b.workdir(), "config.json"), (b / "w/config.json").mkdir(), b / "w")[2]),
        "~/w: not a workdir (no config.json there); give the --workdir of a run"),
    "config.json that is a loop of links": Case(lambda b: b.of_workdir("score", workdir=link(
        Box(without(b.workdir(), "config.json"), b.base, b.finished), "config.json", "config.json").parent),
        "~/w: not a workdir (no config.json there); give the --workdir of a run"),
    "run: config.json cut short": Case(lambda b: b.run(data__source=RIGHT, workdir=replaced(b.workdir(), "config.json", "{")),
        "~/w/config.json: broken JSON (…); bring the run's own back, or choose another --workdir"),
    "run: config.json of another config": Case(lambda b: b.run(data__source=RIGHT, workdir=b.workdir()),
        "~/w: belongs to another config: …; choose another --workdir or the same config"),
    "trunk.json of another shape": Case(lambda b: b.of_workdir("score", workdir=replaced(b.workdir(), "trunk.json", '{"files": 3}')),
        "~/w/trunk.json: has no object 'files', which irl_jax writes there; remove it"),
    "trunk.json of other weights": Case(lambda b: b.of_workdir("score", workdir=replaced(b.workdir(), "trunk.json", json.dumps(
        {"files": {"model.safetensors": {"sha256": "0" * 64}}}))),
        "@/model.safetensors: not the weights that this workdir was begun with (~/w/trunk.json has their SHA-256), to which its "
        "adapters belong; bring those back or choose another --workdir"),
    "leaves that are gone": Case(lambda b: b.of_workdir("export", "--role=sft", workdir=(
        w := b.workdir(), shutil.rmtree(w / "sft" / "leaves"))[0]),
        "~/w: nothing is trained under 'sft' yet; run that stage first (--stages=sft)"),
    "a role that leads out": Case(lambda b: b.of_workdir("export", "--role=../../etc"),
        "--role: unknown role '../../etc'; one of init, sft, reward/init_sft, reward/init_demo, reward/sft_demo, reward/preference, "
        "policy/init_sft"),
    "a reward that leads out": Case(lambda b: b.of_workdir("score", "--reward=../sft"),
        "--reward: unknown reward '../sft'; one of init_sft, init_demo, sft_demo, preference, log_ratio"),
    "a workdir that is a file": Case(lambda b: b.testbed(workdir=b.write("w", "x")), "~/w: is a file; --workdir takes a folder"),
    "a workdir that is a loop of links": Case(lambda b: b.testbed(workdir=link(b, "w", "w")),
        "~/w: is a link to nothing; --workdir takes a folder"),
    "a workdir that is somebody's": Case(lambda b: b.testbed(workdir=b.write("w/thesis.tex", "x").parent),
        "~/w: not empty and not a workdir (no config.json there); choose another --workdir"),
    "a workdir below a file": Case(lambda b: b.testbed(workdir=b.write("w", "x") / "deeper"),
        "~/w/deeper: cannot write the workdir there: …"),
    "a workdir that cannot be made": Case(lambda b: b.testbed(workdir="/proc/irl_jax/w"),
        "/proc/irl_jax/w: cannot write the workdir there: …"),
    "a workdir of another store": Case(lambda b: b.testbed(workdir="s3://bucket/w"),
        "s3://bucket/w: no way to reach s3://; the object store that is known is gs://"),
    "a workdir in use": Case(lambda b: b.testbed(workdir=b.used()),
        "~/w: another irl_jax process is using this workdir; wait for it or choose another"),
    "results.json cut short": Case(lambda b: b.testbed(stages="report", workdir=b.begun(results='{"policies": {')),
        "~/w/results.json: broken JSON (…); remove it and the done.json of the stage that writes it, and start the same command again"),
    "results.json that is a list": Case(lambda b: b.testbed(stages="report", workdir=b.begun(results="[]")),
        "~/w/results.json: has no object 'policies', which irl_jax writes there; remove it and the done.json of the stage that writes "
        "it, and start the same command again"),
    "results.json with text for numbers": Case(lambda b: b.testbed(stages="report", workdir=b.begun(results='{"policies": "x"}')),
        "~/w/results.json: has no object 'policies', which irl_jax writes there; remove it and the done.json of the stage that writes "
        "it, and start the same command again"),
    "results.json that is gone": Case(lambda b: b.testbed(stages="report", workdir=b.begun()),
        "~/w/results.json: no such file; run the stage that writes it"),
    "report.json cut short": Case(lambda b: b.testbed(stages="report", workdir=b.begun(
        results=NOTHING, evaluate__report="[")),
        "~/w/evaluate/report.json: broken JSON (…); remove it and the done.json of the stage that writes it, and start the same "
        "command again"),
    "metrics.jsonl that is no JSON": Case(lambda b: b.testbed(stages="report", workdir=replaced(b.begun(
        results=NOTHING, evaluate__report=NOTHING), "sft/metrics.jsonl", '{"step": 1}\n{"step"\n')),
        "~/w/sft/metrics.jsonl: broken JSON lines (…); remove the file, of which only the report's curves are made"),
    "metrics.jsonl without steps": Case(lambda b: b.testbed(stages="report", workdir=replaced(b.begun(
        results=NOTHING, evaluate__report=NOTHING), "sft/metrics.jsonl", '{"loss": 1}\n')),
        "~/w/sft/metrics.jsonl: a line without its step; remove the file, of which only the report's curves are made"),
    "metrics.jsonl with text for a number": Case(lambda b: b.testbed(stages="report", workdir=replaced(b.begun(
        results=NOTHING, evaluate__report=NOTHING), "sft/metrics.jsonl", '{"step": 1, "loss": "low"}\n')),
        "~/w/sft/metrics.jsonl: a line without a number as 'loss'; remove the file, of which only the report's curves are made"),
    "metrics.jsonl with a number of hundreds of digits": Case(lambda b: b.testbed(stages="report", workdir=replaced(b.begun(
        results=NOTHING, evaluate__report=NOTHING), "sft/metrics.jsonl", f'{{"step": 1, "loss": {"9" * 400}}}\n')),
        "~/w/sft/metrics.jsonl: a line without a number as 'loss'; remove the file, of which only the report's curves are made"),
    "done.json that is no JSON": Case(lambda b: b.testbed(stages="report", workdir=b.begun(
        results=NOTHING, sft__done="\0")),
        "~/w/sft/done.json: broken JSON (…); remove it and the done.json of the stage that writes it, and start the same command again"),
    "done.json of another shape": Case(lambda b: b.testbed(stages="report", workdir=b.begun(
        results=NOTHING, sft__done='{"timing": 3}')),
        "~/w/sft/done.json: has no object 'timing', which irl_jax writes there; remove it and the done.json of the stage that writes "
        "it, and start the same command again"),
    "a workdir that is none": Case(lambda b: b.of_workdir("generate", workdir=b / "nowhere"),
        "~/nowhere: not a workdir (no config.json there); give the --workdir of a run"),
}  # fmt: skip

FLAGS = {
    "a verb that is none": Case(lambda b: ["evaluate"],
        "unknown verb 'evaluate'; did you mean 'generate'?; the verbs are run, status, config, prepare, generate, score, "
        "export, aot"),
    "a flag with a terminal's commands": Case(lambda b: ["run", "--workdir=w", "--\x1b[31mred"],
        "run: unknown argument '--\\x1b[31mred'; its flags are --help, --config, --workdir, --stages, --sweep, --multihost, "
        "--coordinator, --processes, --process, --patience, --compilation_cache"),
    "samples beyond all memory": Case(lambda b: b.generate(GOOD, "--samples=1000000000000"),
        "argument --samples: 1000000000000 is out of range (see irl_jax generate --help)"),
    "a temperature that is not a number": Case(lambda b: b.generate(GOOD, "--temperature=nan"),
        "argument --temperature: nan is out of range: 0, or from 0.001 to 1000 (see irl_jax generate --help)"),
    "a temperature of almost nothing": Case(lambda b: b.generate(GOOD, "--temperature=1e-40"),
        "argument --temperature: 1e-40 is out of range: 0, or from 0.001 to 1000 (see irl_jax generate --help)"),
    "top_p above 1": Case(lambda b: b.generate(GOOD, "--top_p=1.5"), "argument --top_p: 1.5 is out of range (see irl_jax generate --help)"),
    "top_k of 30 digits": Case(lambda b: b.generate(GOOD, f"--top_k={10**30}"),
        "argument --top_k: 1000000000000000000000000000000 is out of range (see irl_jax generate --help)"),
    "a negative seed": Case(lambda b: b.generate(GOOD, "--seed=-1"), "argument --seed: -1 is out of range (see irl_jax generate --help)"),
    "out is the input": Case(lambda b: [*b.score()[:3], f"--out={b / 'in.jsonl'}"],
        "--out=~/in.jsonl: is the file of --data, which would be replaced; choose another"),
    "out is the input by another name": Case(lambda b: [*b.generate()[:3], f"--out={link(b, 'same', 'in.jsonl')}"],
        "--out=~/same: is the file of --prompts, which would be replaced; choose another"),
    "out is a folder": Case(lambda b: [*b.score()[:3], f"--out={b.path}"], "--out=~: must be a file in a folder that exists"),
    "out is a pipe": Case(lambda b: (os.mkfifo(b / "pipe"), [*b.score()[:3], f"--out={b / 'pipe'}"])[1],
        "--out=~/pipe: must be a plain file, and is something else"),
    "out is a loop of links": Case(lambda b: [*b.score()[:3], f"--out={link(b, 'o', 'o')}"],
        "--out=~/o: must be a plain file, and is something else"),
    "out below a file": Case(lambda b: [*b.score()[:3], f"--out={b / 'in.jsonl' / 'o'}"],
        "--out=~/in.jsonl/o: must be in a folder that exists"),
    "a full disk for generate": Case(lambda b: b.generate(),
        "~/out.jsonl: cannot be written (…); what was there before is whole: make room and start the same command again", limit=16),
    "a full disk for score": Case(lambda b: b.score(),
        "~/out.jsonl: cannot be written (…); what was there before is whole: make room and start the same command again", limit=16),
    "a full disk for export": Case(lambda b: b.of_workdir("export", "--role=sft"),
        "~/out: cannot be written (…); what was there before is whole: make room and start the same command again", limit=16),
    "a full disk for run": Case(lambda b: b.run(data__source=RIGHT),
        "~/w/config.json: cannot be written (…); what was there before is whole: make room and start the same command again", limit=16),
    "export: out is there": Case(lambda b: (b.write("out/thesis.tex", "x"), b.of_workdir("export", "--role=sft"))[1],
        "--out=~/out: is there already and not an empty folder; choose another, or remove it"),
    "export: out is a link to nothing": Case(lambda b: (link(b, "out", "none/x"), b.of_workdir("export", "--role=sft"))[1],
        "--out=~/out: is there already and not an empty folder; choose another, or remove it"),
    "export: shards of no size": Case(lambda b: b.of_workdir("export", "--role=sft", "--max_shard_size=1e30GB"),
        "argument --max_shard_size: '1e30GB' is no size; write it as 5GB, 500MB or 1GiB (see irl_jax export --help)"),
    "export: shards beyond all disks": Case(lambda b: b.of_workdir("export", "--role=sft", f"--max_shard_size={'9' * 400}GB"),
        "argument --max_shard_size: '9999999999999999999999999999999999999999' is no size; write it as 5GB, 500MB or 1GiB (see irl_jax "
        "export --help)"),
    "export: another base": Case(lambda b: b.of_workdir("export", "--role=sft", "--adapter", f"--base={b / 'none'}"),
        "--base=~/none: ~/none: no such model folder"),
    "aot: a chip that is none": Case(lambda b: ["aot", "--topology=v99:1x1"],
        "--topology=v99:1x1: unknown chip 'v99'; write CHIP:SHAPE, such as v5e:4x4 (16 chips), v5e:16x16 (256), v6e:8x8 (64), "
        "v5p:2x4x4 (32, sold as v5p-64)"),
    "aot: a step that is none": Case(lambda b: ["aot", "--topology=v5e:4x4", "--steps=../../sft"],
        "--steps: unknown step '../../sft'; did you mean 'sft'?; one of sft, sample, score, reward, prefill, decode, draw, judge, "
        "advantages, policy"),
    "aot: slices beyond all": Case(lambda b: ["aot", "--topology=v5e:4x4", "--slices=99999999999999999999"],
        "argument --slices: 99999999999999999999 is out of range (see irl_jax aot --help)"),
    "aot: out is a file": Case(lambda b: ["aot", "--topology=v5e:4x4", f"--out={b.write('o', 'x')}"],
        "--out=~/o: is a file; give a folder"),
    "aot: a value out of range": Case(lambda b: ["aot", "--topology=v5e:4x4", "--config.policy.samples=0"],
        "config.policy.samples = 0: must be positive"),
    "aot: a model that is none": Case(lambda b: ["aot", "--topology=v5e:4x4", "--config.data.source=x", "--config.golden.kind=none"],
        "config.model.path: name a Hugging Face folder or hub model for data.source = 'x' (only the testbed initialises from scratch)"),
    "run: hosts without --multihost": Case(lambda b: ["run", f"--workdir={b / 'w'}", "--processes=2"],
        "--coordinator, --processes and --process: need --multihost"),
}  # fmt: skip

CASES = RECORDS | DATA | MODELS | CONFIGS | KEY_CASES | WORKDIRS | FLAGS
