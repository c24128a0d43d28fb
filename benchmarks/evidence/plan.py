"""What is run: experiments, their cells (one setting each), and the settings that a record must have been made with."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

from irl_jax import artifacts, cli
from irl_jax.config import default
from irl_jax.overrides import leaves, override

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SEEDS = (0, 1, 2)
BASE = "base"  # the cell of the setting from which one factor at a time is moved
PATHS = ("model.path", "data.source", "data.eval_source", "data.prompts_source", "data.preference_source", "data.tfds_data_dir",
         "golden.source", "golden.model", "reward.start")  # where files lie, which is another place on every machine


class Cell(NamedTuple):
    """One setting of an experiment.

    experiment, name: what its folder and its records are called. config: FILE.py or FILE.py:VARIANT, from the repository's root.
    overrides: {key: text} above it. seed: which draw of data, training and samples.
    """

    experiment: str
    name: str
    config: str
    overrides: Mapping[str, str]
    seed: int

    @property
    def path(self) -> str:
        """EXPERIMENT/CELL/seed-S: its folder under runs and, with .json, its record under records."""
        return f"{self.experiment}/{self.name}/seed-{self.seed}"

    def config_of(self, smoke: bool) -> str:
        """The config, or its miniature: FILE.py:smoke, FILE.py:VARIANT_smoke."""
        name, _, variant = self.config.partition(":")
        variants = [variant] * bool(variant) + ["smoke"] * smoke
        return str(ROOT / name) + (f":{'_'.join(variants)}" if variants else "")


class Factor(NamedTuple):
    """One setting that is moved while the others stay. title: with its unit. cells: {level: cell}, ascending; log: the axis."""

    title: str
    cells: Mapping[float, str]
    log: bool = False


class Experiment(NamedTuple):
    """An experiment. title: for headings. cells: {name: (config, overrides)}, the base first. factors: over its cells.

    golden: what judges, in a sentence. shared: whether it reads data that the repository does not bring. prepare: makes its data below
    a folder and returns the overrides that name them, or None. baselines: what a finished workdir is judged beside, or None.
    """

    title: str
    golden: str
    cells: Mapping[str, tuple[str, Mapping[str, str]]]
    factors: Mapping[str, Factor] = {}
    shared: bool = True
    prepare: Callable[[pathlib.Path], dict[str, str]] | None = None
    baselines: Callable[[pathlib.Path], dict] | None = None

    def of(self, name: str, seeds=SEEDS) -> list[Cell]:
        """Every cell and seed of this experiment, whose name is given: all cells of the first seed first."""
        return [Cell(name, cell, config, overrides, seed) for seed in seeds for cell, (config, overrides) in self.cells.items()]


TESTBED = "configs/paper/testbed.py"
FACTORS = {
    "heterogeneity": Factor("strength of the demonstrator's dialect (heterogeneity)",
                            {0.0: "dialect-0", 0.35: "dialect-0.35", 0.7: BASE, 1.0: "dialect-1"}),
    "entanglement": Factor("entanglement of quality and dialect", {0.0: BASE, 0.4: "entanglement-0.4", 0.8: "entanglement-0.8"}),
    "demonstrations": Factor("demonstrations", {50: "demonstrations-50", 200: "demonstrations-200", 1200: BASE,
                                                5000: "demonstrations-5000"}, log=True),
    "epochs": Factor("strength of SFT (epochs)", {1: "epochs-1", 4: BASE, 16: "epochs-16"}, log=True),
}
_KEYS = {"heterogeneity": "data.testbed.dialect_strength", "entanglement": "data.testbed.entanglement",
         "demonstrations": "data.testbed.demonstrations", "epochs": "sft.epochs"}


def _factor_cells() -> dict:
    return {cell: (f"{TESTBED}:factor", {_KEYS[name]: str(level)}) for name, factor in FACTORS.items()
            for level, cell in factor.cells.items() if cell != BASE}


def _prepare_paradetox(out: pathlib.Path) -> dict[str, str]:
    from benchmarks.evidence import paradetox

    return paradetox.prepare(out)


def _prepare_hh(out: pathlib.Path) -> dict[str, str]:
    from benchmarks.evidence import hh

    return hh.prepare(out)


def _baselines_hh(folder: pathlib.Path) -> dict:
    from benchmarks.evidence import hh

    return hh.baselines(folder)


def _alone(config: str) -> dict:
    """The cells of an experiment that has one."""
    return {BASE: (config, {})}


_STARS = "a classifier fitted to the human stars of other films' reviews"
_TOXICITY = "a toxicity classifier fitted on held-out sentences, times content preservation"
EXPERIMENTS: dict[str, Experiment] = {
    "testbed": Experiment("The embedded testbed", "exact, by the world's grammar", {BASE: (TESTBED, {}), **_factor_cells()}, FACTORS,
                          shared=False),
    "imdb": Experiment("Movie reviews", _STARS, _alone("configs/paper/imdb.py")),
    "imdb_top_p": Experiment("Movie reviews, sampled at top-p 0.95", _STARS, _alone("configs/paper/imdb.py:top_p")),
    "paradetox": Experiment("Detoxifying (ParaDetox)", _TOXICITY, _alone("configs/paper/paradetox.py"), prepare=_prepare_paradetox),
    "paradetox_top_p": Experiment("Detoxifying, sampled at top-p 0.95", _TOXICITY, _alone("configs/paper/paradetox.py:top_p"),
                                  prepare=_prepare_paradetox),
    "hh": Experiment("Dialogues (HH harmless)", "none: agreement with the human preferences held out", _alone("configs/paper/hh.py"),
                     prepare=_prepare_hh, baselines=_baselines_hh),
}


def config(cell: Cell, smoke: bool = False, more: Mapping[str, str] | None = None):
    """The cell's whole config, as `irl_jax run` makes it.

    Raises:
      UserError: no such file, or an override that names no key or is not of its type.
    """
    made = cli.load_config(cell.config_of(smoke))
    for key, text in {**cell.overrides, **(more or {}), "seed": str(cell.seed)}.items():
        override(made, key, text)
    return made


def settings(cell: Cell, smoke: bool = False) -> dict:
    """What a record says of how it was made: the keys that differ from irl_jax's defaults, without those that say where files lie."""
    standard = artifacts.plain(leaves(default()))
    found = artifacts.plain(leaves(config(cell, smoke)))
    return {key: value for key, value in found.items() if value != standard[key] and key not in PATHS}
