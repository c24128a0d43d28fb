"""The documentation's code: Python blocks run, commands are read by the command line itself, links and settings exist.

- Every `python` block is executed, a page's blocks in one namespace and one folder, in order. Pages that run the pipeline are slow tests.
- Every `python -m irl_jax ...` in a `bash` block goes through the command line's parser; its config file is loaded, its overrides are set,
  its sweep is spelled out, and what `run` would refuse at once is refused here.
- A `bash run` block is executed too, in its place among the page's Python blocks. It may hold nothing but commands of irl_jax.
- Other commands (git, pip, gcloud, ssh) need a network or an account: only scripts of this repository that they name must be there.
"""

import contextlib
import io
import json
import pathlib
import re

import documentation as pages
import pytest

from irl_jax import checks, cli
from irl_jax.config import default
from irl_jax.errors import UserError
from irl_jax.overrides import keys_of, override

SECTIONS = {key.split(".")[0] for key in keys_of(default()) if "." in key}
OUR_FILES = re.compile(r"(?:irl_jax|configs|tests|docs|launch|benchmarks|notebooks)/[\w./-]+\.\w+")
FILES = (".py", ".md", ".json", ".jsonl", ".safetensors")
SETTING = re.compile(r"(?:--config\.)?([a-z_]+(?:\.[a-z_0-9]+)+)(?: ?= ?(\S+))?")


def named(page: pathlib.Path) -> str:
    return str(page.relative_to(pages.ROOT))


def executed(page: pathlib.Path) -> list[pages.Block]:
    return [block for block in pages.blocks(page) if block.language == "python" or block.run]


def runs_pipeline(page: pathlib.Path) -> bool:
    """Whether a page trains something, which takes longer than a quick test may."""
    return any("run_pipeline(" in block.text or " irl_jax run " in block.text for block in executed(page))


EXECUTED = [pytest.param(page, id=named(page), marks=[pytest.mark.slow] if runs_pipeline(page) else []) for page in pages.PAGES
            if executed(page)]
SHELL = [pytest.param(page, id=named(page)) for page in pages.PAGES if any(block.language == "bash" for block in pages.blocks(page))]


def resolve(arguments: list[str]) -> None:
    """Reads a command's arguments as `main` would, up to where it would begin to work."""
    parsed, overrides = cli.parse(arguments)
    if getattr(parsed, "config", None) is None:
        return
    name = parsed.config.removeprefix("irl_jax/")  # a transcript's clone
    config = cli.load_config(str(pages.ROOT / name) if name else "")
    for key, text in overrides.items():
        override(config, key, text)
    checks.check_ranges(config)
    for sweep in getattr(parsed, "sweep", ()):
        from irl_jax import sweep as sweeps

        assert sweeps.members(config, [sweep], overrides)


def test_every_fence_says_what_it_holds():
    for page in pages.PAGES:
        for block in pages.blocks(page):
            assert block.language in pages.LANGUAGES, f"{block}: a fence needs one of {', '.join(pages.LANGUAGES)}"
            assert not block.run or block.language == "bash", f"{block}: only shell blocks are marked to be run"
        assert page.read_text().count("\n```") == 2 * len(pages.blocks(page)), f"{page}: a fence that nothing closes"


@pytest.mark.parametrize("page", EXECUTED)
def test_what_a_page_runs(page, tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(pages.ROOT / "configs")
    namespace = {"__name__": "__main__"}
    for block in executed(page):
        if block.language == "python":
            exec(compile("\n" * block.line + block.text, str(page), "exec"), namespace)
            continue
        for words in pages.commands(block.text, tmp_path_factory.mktemp("shell")):
            arguments = pages.irl_jax_arguments(words)
            assert arguments is not None, f"{block}: runs {words[0]}; a block that is run has commands of irl_jax only"
            said = io.StringIO()
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                status = cli.main(arguments)
            assert status == 0, f"{block}: {' '.join(words)}: {said.getvalue()}"


@pytest.mark.parametrize("page", SHELL)
def test_commands_are_ones(page, tmp_path, monkeypatch):
    monkeypatch.setenv("IRL_JAX_SHARED", "shared")
    for number, block in enumerate(block for block in pages.blocks(page) if block.language == "bash"):
        told = pages.commands(block.text, tmp_path / str(number))
        assert told, f"{block}: no command in it"
        for words in told:
            try:
                check_command(words)
            except (AssertionError, UserError) as error:
                pytest.fail(f"{block}: {' '.join(words)}: {error}")


def check_command(words: list[str]) -> None:
    """Refuses a command of irl_jax that it would refuse, a script that is not there, and a flag that a launch script does not have."""
    arguments = pages.irl_jax_arguments(words)
    if arguments is not None:
        resolve(arguments)
    for word in words[:2]:
        assert not OUR_FILES.fullmatch(word) or (pages.ROOT / word).is_file(), f"{word} is not there"
    if words[0] == "bash" and words[1].startswith("launch/tpu/"):
        own, passed = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
        script = (pages.ROOT / words[1]).read_text() + (pages.ROOT / "launch/tpu/_tpu.sh").read_text()
        for flag in (word.split("=")[0] for word in own if word.startswith("--")):
            assert flag in script, f"{words[1]} knows no {flag}"
        if passed:
            resolve(["run", *passed])


def test_json_is_json():
    for page in pages.PAGES:
        for block in pages.blocks(page):
            if block.language == "json":
                assert all(isinstance(json.loads(line), dict) for line in block.text.splitlines()), f"{block}: not one object a line"


def test_links_lead_somewhere():
    for page in pages.PAGES:
        for line, target in pages.links(page):
            name, _, anchor = target.partition("#")
            there = (page.parent / name).resolve() if name else page
            assert there.exists(), f"{named(page)}, line {line}: {target} is not there"
            if anchor:
                assert anchor in pages.anchors(there), f"{named(page)}, line {line}: no heading #{anchor}"


def test_settings_and_files_in_the_text_exist():
    keys = keys_of(default())
    for page in pages.PAGES:
        for line, word in pages.code_words(page):
            where = f"{named(page)}, line {line}: {word}"
            if OUR_FILES.fullmatch(word) and not word.startswith("irl_jax/launch"):
                assert (pages.ROOT / word).exists() or (pages.ROOT / word.removeprefix("irl_jax/")).exists(), f"{where} is not there"
            setting = SETTING.fullmatch(word)
            if setting and setting[1].split(".")[0] in SECTIONS and not setting[1].endswith(FILES):
                assert setting[1] in keys or any(key.startswith(setting[1] + ".") for key in keys), f"{where}: no such key"
                if setting[2]:
                    override(default(), setting[1], setting[2].strip("\"'"))


def test_every_page_stands_in_the_index():
    index = pages.ROOT / "docs" / "README.md"
    listed = {(index.parent / target.partition("#")[0]).resolve() for _, target in pages.links(index)}
    assert not set((pages.ROOT / "docs").glob("*.md")) - listed - {index}
