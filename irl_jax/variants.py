"""Methods: what one run trains besides sft. By default there is one per recipe; `config.variants` adds more.

A variant is a line "GROUP/NAME = RECIPE key=value key=value". It adds one method to the group (reward, policy, adversarial, dpo, spin,
rejection), trained as RECIPE says with its own settings. Its role, and its folder in the workdir, is GROUP/NAME.

    "policy/clipped = init_sft policy.surrogate=ppo_clip policy.epochs=2"
    "adversarial/gail = demo policy.divergence=jensen_shannon policy.beta=0.0"
    "reward/cheap = init_sft reward.body=frozen reward.head=mlp"      # ... and "policy/cheap = cheap" optimises it

A name means one thing in a run. A variant may not have the name of a reward or source of samples (`RESERVED`), unless that is its own
recipe. Names that differ only in case are one name, since they are one folder on some file systems.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ml_collections import ConfigDict

from irl_jax.config import CLOSED_FORMS, CONTROLS, GROUPS, LEARNT, POSITIVES, ROBUST
from irl_jax.errors import UserError
from irl_jax.overrides import nearest, override

SECTIONS = {group: (group,) for group in GROUPS} | {"adversarial": ("adversarial", "policy", "reward")}  # what a variant may set
_LINE = re.compile(r"\s*(?P<group>[^\s/=]+)/(?P<name>[A-Za-z0-9_]([\w.+-]{0,98}[\w+-])?)\s*=\s*(?P<recipe>[^\s=]+)"
                   r"(?P<settings>(\s+[^\s=]+=\S*)*)\s*", re.ASCII)
RESERVED = frozenset((*LEARNT, *CONTROLS, *CLOSED_FORMS, *POSITIVES, ROBUST, "init", "done.json"))  # the last is a file


class Method(NamedTuple):
    """One method of a run.

    role: "GROUP/NAME". name: NAME. recipe: what it is trained on. config: the run's, with the method's own settings.
    """

    role: str
    name: str
    recipe: str
    config: ConfigDict


def methods(config: ConfigDict, group: str) -> list[Method]:
    """The methods of a group: one per entry of config.<group>.recipes, then the variants, in order.

    Raises:
      UserError: a variant cannot be read, sets an unknown key or one of another section, or has a name that is taken.
    """
    found = [Method(f"{group}/{recipe}", recipe, recipe, config) for recipe in config[group].recipes]
    for line in config.variants:
        parsed = _LINE.fullmatch(line)
        if not parsed or parsed["group"] not in GROUPS:
            raise UserError(f'config.variants: cannot read "{line}"; write "GROUP/NAME = RECIPE key=value ..." with GROUP one of '
                            f"{', '.join(GROUPS)}, and NAME of up to 100 letters (a-z), digits, dots and dashes, no dot at its end")
        if parsed["group"] == group:
            found.append(_variant(config, line, parsed))
    names = [method.name.lower() for method in found]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"config.variants: the name {group}/{name} is taken twice (capitals do not count)")
    return found


def all_methods(config: ConfigDict) -> list[Method]:
    """Every method of a run, group by group."""
    return [method for group in GROUPS for method in methods(config, group)]


def find(config: ConfigDict, role: str) -> Method:
    """The method of a role.

    Raises:
      UserError: the run has no method of that name.
    """
    group = role.split("/")[0]
    known = {method.role: method for method in methods(config, group)} if group in GROUPS else {}
    if role not in known:
        raise UserError(f"the run has no method '{role}'{nearest(role, known)}; of this kind it has {', '.join(known) or 'none'}")
    return known[role]


def _variant(config: ConfigDict, line: str, parsed) -> Method:
    group, name = parsed["group"], parsed["name"]
    if name.lower() in RESERVED and name != parsed["recipe"]:
        raise UserError(f'config.variants: "{line.strip()}": {name} is the name of something else in every run; choose another name')
    own = ConfigDict(config.to_dict()).lock()
    for setting in parsed["settings"].split():
        key, _, text = setting.partition("=")
        if key.split(".")[0] not in SECTIONS[group] or key.split(".")[-1] == "recipes":
            allowed = " and ".join(f"{section}.*" for section in SECTIONS[group])
            raise UserError(f'config.variants: "{line}" sets {key}; a variant of {group} may set {allowed} (its recipe stands after the =)')
        try:
            override(own, key, text, "config.")
        except UserError as error:
            raise UserError(f'config.variants, "{line}": {error}') from None
    return Method(f"{group}/{name}", name, parsed["recipe"], own)
