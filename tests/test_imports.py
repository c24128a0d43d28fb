"""The house's floors: imports go downwards only, only models/ knows flax, the three rooms of floor 2 do not know each other."""

import ast
import importlib.metadata
import pathlib
import re
import sys

import pytest
from packaging.requirements import Requirement

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / "irl_jax"
FLOORS = {
    "cli": 8, "__main__": 9,
    "status": 7.5, "sweep": 7.4,
    "stages": 7,
    "loop": 6, "tracking": 5.5,
    "checkpoint": 5, "workdir": 5, "hf": 5, "evaluation": 5, "rollouts": 5,
    "hf_import": 4.9, "hf_export": 4.8,
    "reward_steps": 4.5, "policy_steps": 4.5, "preference_steps": 4.5,
    "steps": 4, "sampler": 4, "drawing": 3,
    "sharding": 3, "roles": 3,
    "objectives": 2, "models": 2, "data": 2,
    "checks": 1.5, "feeding": 1, "variants": 1, "types": 1, "distributed": 1, "paths": 1, "outputs": 1.1, "progress": 1.1, "artifacts": 1.1,
    "describe": 1, "flags": 1,
    "config": 0.5, "overrides": 0.5, "chips": 0.5, "hlo": 0.5, "hlo_text": 0.4, "mappings": 0.5, "foreign": 0.5, "terminal": 0.5,
    "errors": 0, "": 0,  # the package itself: its version
}  # fmt: skip


def imports(source: str, module: str):
    """(line, dotted name) of everything that a module imports, at its top or inside its functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                base = ".".join(parts[: len(parts) - node.level] + ([base] if base else []))
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def room(name: str) -> str:
    """The room that a dotted name under irl_jax lies in: a module or a package of the top level; "" is the package itself."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in FLOORS else ""


def violations(source: str, module: str) -> list[str]:
    """What breaks the house's rules in one module's imports."""
    here, broken = room(module), []
    for line, name in imports(source, module):
        if name.split(".")[0] == "flax" and here != "models":
            broken.append(f"{module}:{line} imports {name}: only models/ knows flax")
        if name.split(".")[0] != "irl_jax":
            continue
        there = room(name)
        if there != here and FLOORS[there] >= FLOORS[here]:
            broken.append(f"{module}:{line} imports {name}: floor {FLOORS[there]} from floor {FLOORS[here]}")
    return broken


def modules() -> list[tuple[str, pathlib.Path]]:
    names = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ("irl_jax", *path.relative_to(PACKAGE).with_suffix("").parts)
        names.append((".".join(part for part in parts if part != "__init__"), path))
    return names


@pytest.mark.parametrize(("module", "path"), modules(), ids=[name for name, _ in modules()])
def test_imports_go_downwards(module, path):
    top = module.split(".")[1] if "." in module else ""
    assert top in FLOORS, f"{module} has no floor: give it one in this test and in the design's table"
    # a package's own modules resolve relative imports against the package, hence the suffix
    assert violations(path.read_text(), module + (".__init__" if path.name == "__init__.py" else "")) == []


@pytest.mark.parametrize(
    ("source", "module"),
    [
        ("from irl_jax.loop import train", "irl_jax.steps"),
        ("import irl_jax.cli", "irl_jax.stages.sft"),
        ("from irl_jax import data", "irl_jax.models.heads"),
        ("from ..objectives import reward", "irl_jax.data.recipes"),
        ("def f():\n    from irl_jax.models import heads", "irl_jax.objectives.reward"),
        ("from irl_jax.sampler import make_sampler", "irl_jax.steps"),
        ("import flax.linen as nn", "irl_jax.roles"),
        ("from irl_jax import types, stages", "irl_jax.evaluation.golden"),
    ],
)
def test_the_rule_catches(source, module):
    assert len(violations(source, module)) == 1


def test_the_rule_lets_through():
    assert violations("from irl_jax import types, roles\nimport jax\nfrom irl_jax.models import heads", "irl_jax.steps") == []
    assert violations("from .batching import pack_rows\nfrom irl_jax.data.sources import Record", "irl_jax.data.tokenize") == []
    assert violations("import flax.linen as nn", "irl_jax.models.transformer") == []
    assert violations("import irl_jax", "irl_jax.workdir") == []


UNSAID = {"jinja2"}  # transformers renders chat templates with it and does not require it
OF_EXTRAS = {"wandb"}  # imported where its extra was installed


def plain(name: str) -> str:
    """A distribution's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def brought_by(name: str, extras: frozenset[str], seen: set) -> set:
    """(distribution, extras of it) of all that `pip install name[extras]` brings."""
    for needed in map(Requirement, importlib.metadata.requires(name) or ()):
        one = (plain(needed.name), frozenset(needed.extras))
        if one not in seen and (needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras | {""})):
            seen.add(one)
            brought_by(*one, seen)
    return seen


def test_what_is_imported_comes_with_the_default_install():
    """Other packages of the tests' environment must not hide that one is missing from setup.py."""
    there = {name for name, _ in brought_by("irl_jax", frozenset(), set())}
    of = importlib.metadata.packages_distributions()
    names = {name.split(".")[0] for module, path in modules() for _, name in imports(path.read_text(), module)}
    for name in sorted((names | UNSAID) - {"irl_jax", "__future__"} - set(sys.stdlib_module_names) - OF_EXTRAS):
        assert {plain(each) for each in of.get(name, [name])} & there, f"{name} is imported and comes with none of setup.py's requirements"
