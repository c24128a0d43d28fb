"""Nothing that bites: every malformed input is one clear line and status 2; nothing is lost or left behind, and nothing is executed."""

import contextlib
import gzip
import io
import os
import pathlib
import pickle
import random
import re
import resource
import sys

import jax
import malformed_verbs
import numpy as np
import pytest
from malformed_box import GOOD, Box, Trap, lines
from malformed_files import DATA, MODELS, RECORDS
from malformed_settings import CONFIGS, FLAGS, KEY_CASES, KEYS, WORKDIRS
from test_export import GPT2, base_folder, run_on

from irl_jax import artifacts, checks, cli, workdir
from irl_jax.config import default
from irl_jax.data import sources
from irl_jax.errors import UserError
from irl_jax.flags import VERBS
from irl_jax.overrides import leaves, override
from irl_jax.stages import sampling

ROOT = pathlib.Path(__file__).resolve().parent.parent
TABLES = (RECORDS, DATA, MODELS, CONFIGS, KEY_CASES, WORKDIRS, FLAGS, malformed_verbs.CASES)
CASES = {name: case for table in TABLES for name, case in table.items()}


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
    if limit is None:
        yield
        return
    before, least = resource.getrlimit(resource.RLIMIT_FSIZE), "jax_persistent_cache_min_compile_time_secs"
    kept = getattr(jax.config, least)
    jax.config.update(least, 1e9)  # or programs cut short would lie in the cache that all tests share
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        jax.config.update(least, kept)


@pytest.mark.parametrize("name", CASES)
def test_malformed(name, box, capsys):
    case = CASES[name]
    arguments = case.make(box)
    before = content(box.path, box.base, box.finished)
    with room(case.limit):
        status = cli.main(arguments)
    said = capsys.readouterr().err
    line = f"irl_jax: error: {case.says}\n".replace("~", str(box.path)).replace("@", str(box.base))
    assert re.fullmatch(re.escape(line).replace("…", ".{1,400}?"), said), said
    assert status == 2
    assert content(box.path, box.base, box.finished) == before


def test_the_table():
    assert len(CASES) == sum(map(len, TABLES)) >= 60 and all(len(case.says.replace("…", "")) > 15 for case in CASES.values())
    verbs, sections = VERBS, [key for key in default()]
    source = "".join(file.read_text() for file in (ROOT / "tests").glob("malformed_*.py"))
    assert all(f'["{verb}"' in source or f'"{verb}", "--' in source for verb in verbs)
    assert {setting.split("=")[0].split(".")[0] for setting, _ in KEYS.values()} >= set(sections)


def test_every_number_of_the_config_has_a_range():
    bounded = {*checks._POSITIVE, *checks._NOT_NEGATIVE, *checks._SHARES, *checks._HALVES, *checks._UNIT}
    free = {"data.min_rating", "golden.positive_rating", "mesh.data", "mesh.fsdp", "mesh.tensor"}  # make_mesh looks at the last three
    numbers = {key for key, value in leaves(default()).items() if isinstance(value, (int, float)) and not isinstance(value, bool)}
    assert numbers - bounded == free


@pytest.mark.parametrize("key", sorted(leaves(default())))
def test_no_value_of_a_key_is_more_than_a_refusal(key):
    """Whatever text or, from a config file, whatever object: the config is checked, or one line says why not."""
    texts = ["0", "-1", "1e30", "nan", "", "9" * 400, "-" + "9" * 4000, "()", "(1,)", "((1,),)", "(((((", "a\0b", "\ud800", "../../x",
             "True", "'"]
    values = [None, -1, 10**400, float("nan"), float("inf"), "\0", "\ud800", ("a",) * 3, (1.5,), (None,), ((1,),), (-5,), True]
    for value in [*texts, *values]:
        config = default()
        try:
            if isinstance(value, str) and value in texts:
                override(config, key, value)
            else:
                config.update_from_flattened_dict({key: value})
        except UserError as error:
            assert key in str(error)
            continue
        except (TypeError, ValueError, OverflowError):  # ml_collections' own, which the command line turns into a line
            continue
        with contextlib.suppress(UserError):
            checks.check(config)


@pytest.mark.parametrize("own", [
    {"auto_map": {"AutoTokenizer": ["evil.Tok", "evil.Tok"]}, "tokenizer_class": "Tok"},
    {"auto_map": {"AutoProcessor": "evil.Tok"}, "tokenizer_class": "AutoProcessor"},
    {"auto_map": {"AutoProcessor": "evil.Tok"}, "tokenizer_class": "AutoProcessorFast"},
    {"auto_map": {"AutoTokenizer": ["evil.Tok", "evil.Tok"]}, "tokenizer_class": "AutoTokenizer"},
], ids=["a class of its own", "a processor", "a fast processor", "no class"])
@pytest.mark.parametrize("file", ["tokenizer_config.json", "config.json"])
def test_a_tokenizer_with_code_of_its_own_is_read_without_it(box, monkeypatch, own, file):
    folder = box.model()
    monkeypatch.setattr("builtins.input", lambda _: "yes")  # transformers may ask
    box.write("m/evil.py", f"open({str(box / 'sprung')!r}, 'w')\nclass Tok: pass\n")
    box.edit(folder / "tokenizer_config.json", lambda c: c.pop("tokenizer_class", None) and None)
    box.edit(folder / file, lambda c: c.update(own))
    assert cli.main(box.score(model=folder)) in (0, 2)
    assert not (box / "sprung").exists()


@pytest.mark.parametrize("same", [
    b"\xef\xbb\xbf" + GOOD + GOOD, (GOOD + GOOD).replace(b"\n", b"\r\n"), b"\n\n" + GOOD + b" \n" + GOOD.rstrip(), gzip.compress(GOOD) * 2],
    ids=["byte order mark", "CRLF", "blank lines, no last end", "gzip in two pieces"])
def test_files_that_are_as_good(same, box):
    scored = []
    for content in (GOOD + GOOD, same):
        assert cli.main(box.score(content)) == 0
        scored.append((box / "out.jsonl").read_bytes())
    assert scored[0] == scored[1] and scored[0].count(b"\n") == 2


def test_arrays_are_never_objects(box):
    kept, trap = box / "samples.npz", Trap(box / "sprung")
    whole = {"tokens": np.zeros((2, 3, 4), int), "mask": np.zeros((2, 3, 4)), "ended": np.zeros((2, 3)), "logprobs": np.zeros((2, 3, 4))}
    prompts = [np.array([1]), np.array([2])]
    np.savez(kept, **whole)
    assert len(sampling.load_from(kept, prompts, "sample")["examples"]) == 6
    one = io.BytesIO()
    np.save(one, whole["tokens"])
    for content, says in ((pickle.dumps(trap), "broken"), (one.getvalue(), "broken (a single array"), (b"", "broken"),
                          (kept.read_bytes()[:-60], "broken")):
        kept.write_bytes(content)
        with pytest.raises(UserError, match=re.escape(f"{kept}: {says}")):
            sampling.load_from(kept, prompts, "sample")
    for changed, says in (({"tokens": np.array([trap] * 8, dtype=object)}, "broken"), ({"ended": np.zeros((2, 4))}, "not the samples of"),
                          ({"tokens": np.zeros((9, 3, 4), int)}, "not the samples of this run's 2 prompts")):
        np.savez(kept, **(whole | changed))
        with pytest.raises(UserError, match=re.escape(f"{kept}: {says}")):
            sampling.load_from(kept, prompts, "sample")
    assert not (box / "sprung").exists()


def mutated(content: bytes, draws: random.Random) -> bytes:
    """A few bytes cut, changed, doubled or put in."""
    some = [b"\0", b"\xff", b'"', b"{", b"}", b"[", b"\\u", b"\\ud800", b"NaN", b"1e999", b"9" * 400, b"null", b"\n", b":", b",", b"\\"]
    for _ in range(draws.randint(1, 5)):
        at, kind = draws.randint(0, len(content)), draws.randint(0, 4)
        put = draws.choice(some)
        content = [content[:at] + put + content[at:], content[:at] + put + content[at + len(put):], content[:at] + content[at + 5:],
                   content[:at], content[:at] + content[at : at + 20] * 2 + content[at + 20:]][kind]
    return content


@pytest.mark.parametrize("kind", ["records", "gzip", "arrays", "config.json"])
def test_damage_anywhere_is_a_refusal(kind, box):
    draws, file, refused = random.Random(kind), box / "config.json", 0
    pairs = lines(*({"prompt": f"p{i} é", "response": "r", "messages": [{"role": "user", "content": "x"}]} for i in range(4)))
    arrays = io.BytesIO()
    np.savez_compressed(arrays, tokens=np.arange(12).reshape(3, 4), ended=np.zeros(3, bool))
    whole = {"records": pairs, "gzip": gzip.compress(pairs, mtime=0), "arrays": arrays.getvalue(),
             "config.json": (box.finished / "config.json").read_bytes()}[kind]
    read = {"arrays": lambda: artifacts.load_arrays(file), "config.json": lambda: workdir.read_config(box.path)}.get(
        kind, lambda: [sources.text_field(record, "prompt", where) for where, record in sources.read_jsonl(str(file))])
    for _ in range(150 if kind == "config.json" else 400):
        file.write_bytes(mutated(whole, draws))
        try:
            read()
        except UserError:
            refused += 1
    assert refused > 100
