"""Nothing that bites: every malformed input is one clear line and status 2; nothing is lost or left behind, and nothing is executed."""

import contextlib
import os
import re
import resource
import sys

import pytest
from malformed_cases import CASES, Box
from test_export import GPT2, base_folder, run_on

from irl_jax import cli


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model's folder."""
    return base_folder(tmp_path_factory.mktemp("base") / "m", GPT2)


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory):
    """A workdir that stands on it."""
    return run_on(tmp_path_factory.mktemp("finished") / "w", base)


@pytest.fixture
def box(tmp_path, base, finished, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.chdir(tmp_path)
    return Box(tmp_path, base, finished)


def content(*folders):
    """{path: bytes, link or kind} of everything below the folders."""
    found = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            found[path] = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else "a folder or pipe"
    return found


@contextlib.contextmanager
def room(limit):
    """No file may grow beyond `limit` bytes, as on a full disk; None leaves the disk as it is."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, before if limit is None else (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", CASES)
def test_malformed(name, box, capsys):
    case = CASES[name]
    arguments = case.make(box)
    before = content(box.path, box.base, box.finished)
    with room(case.limit):
        status = cli.main(arguments)
    said = capsys.readouterr().err
    expected = re.escape(f"irl_jax: error: {case.says}\n".replace("~", str(box.path))).replace("…", ".{1,400}?")
    assert re.fullmatch(expected, said), said
    assert status == 2
    assert content(box.path, box.base, box.finished) == before


def test_every_row_has_a_line_of_its_own():
    assert len(CASES) >= 60 and all(len(case.says.replace("…", "")) > 20 for case in CASES.values())
