"""Roles: one shared trunk, plus the small leaves that each role owns.

| role   | own leaves where adapter.rank > 0 | where rank = 0    | starts from                                          |
|--------|-----------------------------------|-------------------|------------------------------------------------------|
| init   | {"trunk"}, only while pretrained  | {"trunk"}         | the trunk it is given                                |
| sft    | {"adapter"}                       | {"trunk"}         | init: a fresh adapter is the trunk itself            |
| policy | {"adapter"}                       | {"trunk"}         | sft's leaves (`start`)                               |
| reward | {"adapter", "head"}               | {"trunk", "head"} | init with a zero head, or a reward it goes on from   |

Init is the trunk, so that once it is pretrained or imported it needs no leaves: `variables(trunk, None)`. A role that owns
a whole trunk owns a copy, for its training state is donated and the shared trunk never is.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from irl_jax.models import adapters, heads
from irl_jax.models.transformer import ModelConfig
from irl_jax.types import PyTree

ROLES = ("init", "sft", "policy", "reward")


def init_leaves(rng, role: str, model: ModelConfig, rank: int, trunk: PyTree, start: PyTree | None = None) -> PyTree:
    """The leaves a role trains, at their start.

    Args:
        rng: key of the adapter's draw. role: "init", "sft", "policy" or "reward". model: the architecture.
        rank: of the LoRA adapter; 0 gives the role a whole trunk. Init, which is being pretrained, always has one.
        trunk: the shared trunk, copied where the role owns one. start: leaves of another role, or of an earlier state of
            this one, to copy (policy from sft); what it does not have, such as a reward's head, is fresh.

    Returns:
        {"adapter": ...} or {"trunk": ...}, and "head" for a reward. No buffer is shared with `trunk` or `start`, so that
        the leaves may be donated.

    Raises:
        ValueError: no such role, or a start without the leaf that this role continues.
    """
    if role not in ROLES:
        raise ValueError(f"role {role!r} is none of {', '.join(ROLES)}")
    body = "trunk" if role == "init" or rank == 0 else "adapter"
    if start is not None and body not in start:
        raise ValueError(f"role {role!r} has a whole {body}, but starts from leaves that have {', '.join(sorted(start))}")
    adapter_rng, head_rng = jax.random.split(rng)
    if start is not None:
        leaves = {body: _copy(start[body])}
    elif body == "trunk":
        leaves = {body: _copy(trunk)}
    else:
        leaves = {body: adapters.init_adapter(adapter_rng, model, rank)}
    if role == "reward":
        leaves["head"] = _copy(start["head"]) if start and "head" in start else heads.init_head(head_rng, model)
    return leaves


def variables(trunk: PyTree | None, leaves: PyTree | None) -> PyTree:
    """What the model is applied with: the role's own trunk or the shared one, and its adapter if it has one.

    Args:
        trunk: the shared trunk; unused, and may be None, where the leaves hold a whole one.
        leaves: the role's; None or {} is init.

    Returns:
        {"params": trunk, "adapter": adapter}, "adapter" left out where there is none.
    """
    leaves = leaves or {}
    out = {"params": leaves.get("trunk", trunk)}
    if "adapter" in leaves:
        out["adapter"] = leaves["adapter"]
    return out


def _copy(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree)
