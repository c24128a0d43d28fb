"""Takes the Markdown pages apart: code blocks, commands of irl_jax in shell blocks, links, anchors, settings named in the text."""

import pathlib
import re
import shutil
import subprocess
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = tuple(sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "launch").glob("*.md")]))
LANGUAGES = ("python", "bash", "json", "text")
_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`\n]+)`")
_HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)
BASH = shutil.which("bash") or "bash"
_END = "<end of the command>"
_TELL = f"""command_not_found_handle() {{{{ printf '%s\\0' "$@" >> '{{log}}'; echo '{_END}' >> '{{log}}'; }}}}"""


class Block(NamedTuple):
    """A fenced block. language: of the fence. run: whether the fence says that a shell block is cheap enough to be run."""

    page: pathlib.Path
    line: int
    language: str
    run: bool
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}, line {self.line}"


def blocks(page: pathlib.Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text()
    found = []
    for fence in _FENCE.finditer(text):
        language, *more = fence[1].split() or [""]
        found.append(Block(page, text.count("\n", 0, fence.start()) + 1, language, more == ["run"], fence[2]))
        assert not more or more == ["run"], f"{found[-1]}: a fence is LANGUAGE, or LANGUAGE run"
    return found


def prose(page: pathlib.Path) -> str:
    """A page without its fenced blocks, whose lines stay, empty."""
    return _FENCE.sub(lambda fence: "\n" * fence[0].count("\n"), page.read_text())


def commands(shell: str, folder: pathlib.Path) -> list[list[str]]:
    """The commands of a shell block, as the shell itself gives them: quotes, loops, variables and pipes done; only builtins run.

    Args:
        shell: the block. folder: an empty one, in which the shell finds no program, so that it tells the name and the arguments of each.

    Raises:
        AssertionError: what the shell has to say against the block.
    """
    for activate in ("venv/bin/activate", "irl_jax/.venv/bin/activate"):  # what blocks source, enter or write into
        (folder / activate).parent.mkdir(parents=True, exist_ok=True)
        (folder / activate).touch()
    (folder / "docs").mkdir(exist_ok=True)
    log = folder / "commands"
    environment = {"PATH": str(folder / "docs"), "HOME": "/home/you"}
    script = f"{_TELL.format(log=log)}\n{shell}\nwait"
    told = subprocess.run([BASH, "--norc", "-c", script], cwd=folder, env=environment, capture_output=True, text=True)
    assert told.returncode == 0 and not told.stderr, f"the shell says: {told.stderr}"
    lines = log.read_text().split(f"{_END}\n")[:-1] if log.exists() else []
    return [line.split("\0")[:-1] for line in dict.fromkeys(lines)]


def irl_jax_arguments(words: list[str]) -> list[str] | None:
    """What follows `irl_jax` or `PYTHON -m irl_jax`, or None where the command is another one."""
    if words[0] == "irl_jax":
        return words[1:]
    if re.fullmatch(r"(.*/)?python3?", words[0]) and words[1:3] == ["-m", "irl_jax"]:
        return words[3:]
    return None


def links(page: pathlib.Path) -> list[tuple[int, str]]:
    """(line, target) of the links that stay within the repository."""
    text = prose(page)
    return [(text.count("\n", 0, link.start()) + 1, link[1]) for link in _LINK.finditer(text) if "://" not in link[1]]


def anchors(page: pathlib.Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    seen: dict[str, int] = {}
    found = set()
    for heading in _HEADING.findall(prose(page)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        number = seen.get(slug, 0)
        seen[slug] = number + 1
        found.add(f"{slug}-{number}" if number else slug)
    return found


def code_words(page: pathlib.Path) -> list[tuple[int, str]]:
    """(line, text) of what stands between single backticks."""
    text = prose(page)
    return [(text.count("\n", 0, word.start()) + 1, word[1]) for word in _CODE.finditer(text)]
