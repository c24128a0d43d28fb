"""What rows of malformed inputs are made of: the folder that they are made in, and the row itself.

A row's `make` writes into the folder of a Box and returns the arguments. In the expected line "~" is that folder, and "…" stands for
words of a library's or the system's own.
"""

from __future__ import annotations

import fcntl
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
WANTED = "JSON lines are needed: one object a line, plain or gzip"
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

    def prepared(self, features: str) -> pathlib.Path:
        """TFDS's data_dir with a builder x, of the class that its features name."""
        self.write("x/1.0.0/dataset_info.json", '{"name": "x", "version": "1.0.0", "fileFormat": "array_record"}')
        return self.write("x/1.0.0/features.json", json.dumps({"pythonClassName": features, "text": {}})).parents[2]

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
