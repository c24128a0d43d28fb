"""The notebooks: clean as committed, their first cell finds what to install, and all of them run from top to bottom."""

import ast
import os
import pathlib
import re
import subprocess
import sys
import types

import nbformat
import numpy as np
import pytest

from irl_jax import artifacts
from irl_jax.config import default
from irl_jax.data.testbed import build_world
from irl_jax.errors import UserError
from irl_jax.stages import plots, report

ROOT = pathlib.Path(__file__).resolve().parent.parent
NAMES = ("01_quickstart.ipynb", "02_your_demonstrations.ipynb", "03_plan_a_tpu_run.ipynb", "04_the_paper.ipynb")
LIMIT = 300  # seconds, the smoke setting on two cores


def read(name):
    return nbformat.read(ROOT / "notebooks" / name, as_version=4)


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_these_are_all():
    assert tuple(sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_committed_clean(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in code_of(notebook):
        assert cell.outputs == [] and cell.execution_count is None and not cell.metadata
        ast.parse(cell.source)
    assert "IRL_JAX_NOTEBOOK_SMOKE" in "".join(cell.source for cell in code_of(notebook)[1:])


@pytest.mark.parametrize("name", NAMES)
def test_badge_and_first_cell(name):
    notebook = read(name)
    title, first = notebook.cells[:2]
    repository = re.search(r'^REPOSITORY = "https://github.com/([^"]+)"$', first.source, re.MULTILINE)[1]
    assert title.cell_type == "markdown" and title.source.startswith("# ")
    assert f'href="https://colab.research.google.com/github/{repository}/blob/main/notebooks/{name}"' in title.source
    assert first.source == code_of(read(NAMES[0]))[0].source, "the first cell is the same in all notebooks"


@pytest.mark.parametrize("name", NAMES)
def test_links_to_files_and_notebooks(name):
    prose = "\n".join(cell.source for cell in read(name).cells if cell.cell_type == "markdown")
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", prose):
        assert (ROOT / "notebooks" / target).exists(), target
    for target in re.findall(r"`((?:configs|docs|launch|notebooks)/[\w./-]+\.\w+|\d\d_\w+\.ipynb)", prose):
        assert (ROOT / target).exists() or (ROOT / "notebooks" / target).exists(), target


# ---------------------------------------------------------------- the first cell


def run_first_cell(monkeypatch, tmp_path, colab: bool, installed: bool = False, upgrade: bool = False):
    """Runs the first cell away from any network; (commands it ran, processes it ended)."""
    commands, ended = [], []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    if not installed:
        monkeypatch.setitem(sys.modules, "irl_jax.cli", None)
    if colab:
        monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    versions = {"nbformat": "1.0"}  # stands in for numpy: a package that is imported already
    monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: {"nbformat": ["nbformat"], "absent": ["absent"]})
    monkeypatch.setattr("importlib.metadata.version", versions.__getitem__)

    def noted(command, **how):
        commands.append([str(part) for part in command])
        if upgrade and "pip" in command:
            versions["nbformat"] = "2.0"
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", noted)
    monkeypatch.setattr(os, "kill", lambda process, signal: ended.append(process))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    cell = code_of(read(NAMES[0]))[0].source
    exec(compile(cell, "first cell", "exec"), {"__name__": "__main__"})
    return commands, ended


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A machine without an accelerator."""
    monkeypatch.delenv("TPU_ACCELERATOR_TYPE", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(pathlib.Path, "glob", lambda self, pattern: iter(()))


@pytest.mark.parametrize("colab", [False, True])
def test_where_it_is_installed_it_does_nothing(colab, monkeypatch, tmp_path, bare):
    assert run_first_cell(monkeypatch, tmp_path, colab, installed=True) == ([], [])


def test_outside_colab_it_says_what_to_do(monkeypatch, tmp_path, bare):
    with pytest.raises(ImportError, match="irl_jax is not installed: `git clone https://github.com/"):
        run_first_cell(monkeypatch, tmp_path, colab=False)


@pytest.mark.parametrize("extra", ["", "tpu", "cuda"])
def test_in_colab_it_installs_for_what_is_there(extra, monkeypatch, tmp_path, bare):
    if extra == "tpu":
        monkeypatch.setattr(pathlib.Path, "glob", lambda self, pattern: iter([self / "0"] if str(self) == "/dev/vfio" else ()))
    if extra == "cuda":
        (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    commands, ended = run_first_cell(monkeypatch, tmp_path, colab=True)
    clone, pip = commands[-2:]
    folder = str(tmp_path / "irl_jax-clone")
    assert clone[:2] == ["git", "clone"] and clone[-1] == folder
    assert pip == [sys.executable, "-m", "pip", "install", "--quiet", "-e", f"{folder}[{extra}]" if extra else folder]
    assert ended == []


def test_what_was_loaded_and_is_replaced_ends_the_kernel(monkeypatch, tmp_path, bare):
    assert run_first_cell(monkeypatch, tmp_path, colab=True, upgrade=True)[1] == [os.getpid()]


# ---------------------------------------------------------------- what they use of the package


def test_figures_show_themselves_where_a_cell_ends_in_them():
    image, how = plots.Plot("name", "title", "alt", "caption", b"light", b"dark")._repr_png_()
    assert image == b"light" and how == {"width": round(plots.WIDTH * 96)}  # inches of 96 pixels


def test_a_run_is_read_with_all_that_its_figures_need(tmp_path):
    with pytest.raises(UserError, match="results.json: no such file; run the stage that writes it"):
        report.read(tmp_path)
    (tmp_path / "evaluate").mkdir()
    (tmp_path / "sft").mkdir()
    artifacts.write_json(tmp_path / "results.json", {"seed": 3, "policies": {}, "rewards": {}})
    artifacts.write_json(tmp_path / "evaluate" / "report.json", {"histograms": {"a": {}}, "scatter": {}, "samples": [{"prompt": "p"}]})
    artifacts.write_jsonl(tmp_path / "sft" / "metrics.jsonl", [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}])
    material = report.read(tmp_path)
    assert material.results["seed"] == 3 and material.results["histograms"] == {"a": {}}
    assert material.samples == [{"prompt": "p"}] and material.curves == {"sft": {"loss": {"step": [1, 2], "value": [2.0, 1.0]}}}


def test_the_initial_writer_contains_the_demonstrator():
    """One of its classes, of share q d, is the demonstrator's law: so the ratio of the two is bounded, and the bound is reached."""
    settings = default().data.testbed
    settings.pretrain_responses = settings.pairs = 0
    world = build_world(settings, seed=0)
    prompts = [record.prompt for record in world.corpus.evaluation[:24]]
    responses = world.demonstrate(prompts, seed=1) + world.write_initially(prompts, seed=1)
    ratio = world.demonstrator_logprobs(prompts * 2, responses) - world.initial_logprobs(prompts * 2, responses)
    bound = -np.log(settings.initial_quality * settings.initial_dialect)
    assert (ratio <= bound + 1e-9).all() and bound - 0.01 < ratio.max()
    assert ratio[:24].min() > ratio[24:].min() and np.isfinite(ratio).all()


# ---------------------------------------------------------------- top to bottom


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the notebooks run, one after the other as a reader would: the last looks at the first one's run."""
    return tmp_path_factory.mktemp("notebooks")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_runs_top_to_bottom(name, folder, monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.setenv("IRL_JAX_NOTEBOOK_SMOKE", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    notebook = read(name)
    for cell in NotebookClient(notebook, timeout=LIMIT, resources={"metadata": {"path": str(folder)}}).execute().cells:
        for output in cell.get("outputs", ()):
            assert "irl_jax: error" not in output.get("text", "")
    pictures = [output for cell in code_of(notebook) for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= 3
