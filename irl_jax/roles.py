"""Roles: one shared trunk, plus the small leaves that each role owns.

| role   | own leaves if adapter.rank > 0    | if rank = 0       | starts from                                          |
|--------|-----------------------------------|-------------------|------------------------------------------------------|
| init   | {"trunk"}, only while pretrained  | {"trunk"}         | the trunk it is given                                |
| sft    | {"adapter"}                       | {"trunk"}         | init: a fresh adapter is the trunk itself            |
| policy | {"adapter"}                       | {"trunk"}         | sft's leaves (`start`)                               |
| value  | {"adapter", "head"}               | {"trunk", "head"} | init with a zero head; kept as the policy's "value"  |
| reward | {"adapter", "head"}               | {"trunk", "head"} | init with a zero head, or an earlier reward          |

A reward may also own a whole trunk while others own adapters, or a head alone ("frozen"). An ensemble stacks its members' leaves under
"members". A reward freed of length has "length": {"slope", "centre"}, which no step trains.

Init is the trunk. Once pretrained or imported, it needs no leaves: `variables(trunk, None)`. A role that owns a whole trunk owns a copy,
because its training state is donated and the shared trunk never is.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from irl_jax.models import adapters, heads
from irl_jax.models.transformer import ModelConfig
from irl_jax.types import PyTree

ROLES = ("init", "sft", "policy", "reward")


class RewardSpec(NamedTuple):
    """The structure of a reward's leaves; the keys of config.reward say more.

    body: "adapter", "trunk" or "frozen". head: "linear" or "mlp" with mlp_width hidden units. ensemble: members.
    length_residual: whether the finished reward has a "length" leaf.
    """

    body: str = "adapter"
    head: str = "linear"
    mlp_width: int = 64
    ensemble: int = 1
    length_residual: bool = False

    @classmethod
    def of(cls, reward_config) -> RewardSpec:
        """The spec in config.reward."""
        return cls(*(reward_config[name] for name in cls._fields))


def init_leaves(
    rng,
    role: str,
    model: ModelConfig,
    rank: int,
    trunk: PyTree,
    start: PyTree | None = None,
    *,
    reward: RewardSpec | None = None,
    value: bool = False,
) -> PyTree:
    """A role's trainable leaves, at their start.

    Args:
        rng: PRNG key. role: "init", "sft", "policy" or "reward". model: the architecture.
        rank: of the LoRA adapter; 0 gives the role a whole trunk. Init, which is being pretrained, always has one.
        trunk: the shared trunk, copied if the role owns one. start: leaves to copy, of another role or of an earlier state of this one. A
            policy starts from sft. Ensemble members start each from their own, or all from one reward. What `start` lacks, such as a
            reward's head, is fresh.
        reward: the reward's spec; None is the default one. value: whether the policy gets its own value head.

    Returns:
        {"adapter": ...} or {"trunk": ...}; with "head" for a reward (all stacked under "members" for an ensemble); with "value": {...} for
        a policy if asked. "length" is not trained and not included. No buffer is shared with `trunk` or `start`, so the leaves may be
        donated.

    Raises:
        ValueError: no such role, or a start without the leaf that this role continues.
    """
    if role not in ROLES:
        raise ValueError(f"role {role!r} is none of {', '.join(ROLES)}")
    if role == "reward":
        return _reward_leaves(rng, model, rank, trunk, start, reward or RewardSpec())
    leaves = _body(jax.random.split(rng)[0], "trunk" if role == "init" or rank == 0 else "adapter", model, rank, trunk, start, role)
    if value:
        body_rng, head_rng = jax.random.split(jax.random.fold_in(rng, 1))
        leaves["value"] = _body(body_rng, "trunk" if rank == 0 else "adapter", model, rank, trunk, None, "value")
        leaves["value"]["head"] = heads.init_head(head_rng, model)
    return leaves


def finished_leaves(rng, role: str, model: ModelConfig, rank: int, trunk: PyTree, *, reward: RewardSpec | None = None) -> PyTree:
    """Leaves with the structure of a finished role: those it trains, plus a reward's "length" if it has one."""
    leaves = init_leaves(rng, role, model, rank, trunk, reward=reward)
    if role == "reward" and reward and reward.length_residual:
        shape = (reward.ensemble,) if reward.ensemble > 1 else ()
        length = {"slope": jnp.zeros(shape, jnp.float32), "centre": jnp.zeros(shape, jnp.float32)}
        if reward.ensemble > 1:
            leaves["members"]["length"] = length
        else:
            leaves["length"] = length
    return leaves


def _reward_leaves(rng, model, rank, trunk, start, spec: RewardSpec) -> PyTree:
    def one(key, start):
        adapter_rng, head_rng = jax.random.split(key)
        body = "trunk" if spec.body == "adapter" and rank == 0 else spec.body
        leaves = {} if body == "frozen" else _body(adapter_rng, body, model, rank, trunk, start, "reward")
        hidden = spec.mlp_width if spec.head == "mlp" else 0
        leaves["head"] = _copy(start["head"]) if start and "head" in start else heads.init_head(head_rng, model, hidden)
        return leaves

    if spec.ensemble == 1:
        return one(rng, start)
    if start and "members" in start and len(start["members"]["head"]["bias"]) != spec.ensemble:
        raise ValueError(f"an ensemble of {spec.ensemble} cannot start from one of {len(start['members']['head']['bias'])}")
    own = lambda member: jax.tree.map(lambda x: x[member], start["members"]) if start and "members" in start else start
    members = [one(jax.random.fold_in(rng, member), own(member)) for member in range(spec.ensemble)]
    return {"members": jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)}


def _body(rng, body: str, model, rank, trunk, start, role) -> PyTree:
    """{"trunk": ...} or {"adapter": ...}, copied from `start` if given."""
    if start is not None and body not in start:
        raise ValueError(f"role {role!r} has a whole {body}, but starts from leaves that have {', '.join(sorted(start))}")
    if start is not None:
        return {body: _copy(start[body])}
    if body == "trunk":
        # The shared trunk may be bfloat16; trained leaves are float32.
        return {body: jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32, copy=True), trunk)}
    return {body: adapters.init_adapter(rng, model, rank)}


def variables(trunk: PyTree | None, leaves: PyTree | None) -> PyTree:
    """The variables to apply the model with: the role's own trunk or the shared one, and its adapter if it has one.

    Args:
        trunk: the shared trunk; unused, and may be None, if the leaves hold a whole one.
        leaves: the role's (for an ensemble, one member's); None or {} is init.

    Returns:
        {"params": trunk, "adapter": adapter}, without "adapter" if there is none.
    """
    leaves = leaves or {}
    out = {"params": leaves.get("trunk", trunk)}
    if "adapter" in leaves:
        out["adapter"] = leaves["adapter"]
    return out


def _copy(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree)
