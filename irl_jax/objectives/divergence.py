"""f-divergences between demonstrator and policy, as rewards of the discriminator's logit.

D_f(demo || policy) = E_{y ~ policy}[f(u(y))] with u = demo(y) / policy(y), f convex and f(1) = 0. By d u = -u d log policy,

    grad D_f = E_{y ~ policy}[(f(u) - u f'(u)) grad log policy(y)],

so the policy gradient with reward u f'(u) - f(u) descends it, with u held fixed at the current policy (Ghasemipour et al. 2019,
"A divergence minimization perspective on imitation learning methods"; Nowozin et al. 2016 for the generators). If h is the logit
of a discriminator of demonstrations against the current policy's samples, u = e^h at its optimum. A reward that stays fixed
minimises no divergence, whatever its shape.

| divergence       | f(u)                                | reward, up to constants | known as                        |
|------------------|-------------------------------------|-------------------------|---------------------------------|
| reverse_kl       | -log u                              | h                       | AIRL; Inverse-RLignment's own   |
| jensen_shannon   | u log u - (u + 1) log((u + 1) / 2)  | softplus(h)             | GAIL                            |
| forward_kl       | u log u                             | e^h                     | the score-function form of SFT  |
| pearson          | (u - 1)^2                           | e^{2h} - 1              |                                 |
| neyman           | (1 - u)^2 / u                       | 2 - 2 e^{-h}            |                                 |
| hellinger        | (sqrt u - 1)^2                      | e^{h/2} - 1             |                                 |
| total_variation  | |u - 1| / 2                         | sign(h) / 2             |                                 |
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from irl_jax.types import Array

_GENERATORS = {
    "reverse_kl": lambda u: -jnp.log(u),
    "jensen_shannon": lambda u: u * jnp.log(u) - (u + 1) * jnp.log((u + 1) / 2),
    "forward_kl": lambda u: u * jnp.log(u),
    "pearson": lambda u: jnp.square(u - 1),
    "neyman": lambda u: jnp.square(1 - u) / u,
    "hellinger": lambda u: jnp.square(jnp.sqrt(u) - 1),
    "total_variation": lambda u: jnp.abs(u - 1) / 2,
}
_UNCLIPPED = {"reverse_kl": lambda h: h, "jensen_shannon": jax.nn.softplus, "total_variation": lambda h: jnp.sign(h) / 2}
_CLIPPED = {
    "forward_kl": jnp.exp,
    "pearson": lambda h: jnp.expm1(2 * h),
    "neyman": lambda h: -2 * jnp.expm1(-h),
    "hellinger": lambda h: jnp.expm1(h / 2),
}
DIVERGENCES = tuple(_GENERATORS)


def generator(name: str, u: Array) -> Array:
    """f(u) of a divergence: D_f(demo || policy) = E_policy[f(demo / policy)].

    Raises:
        ValueError: no such divergence.
    """
    return _GENERATORS[_known(name)](u)


def reward(name: str, logits: Array, clip: float) -> Array:
    """The policy-gradient reward of a divergence, u f'(u) - f(u) up to a constant, with u = e^h.

    Args:
        name: one of DIVERGENCES. logits: h, nats, any shape. clip: h is clipped to [-clip, clip] in rewards with
            exponentials (forward_kl, pearson, neyman, hellinger), since one confident logit would outweigh a batch. A clipped
            reward is no longer exactly the divergence's.

    Returns:
        The reward, in the logits' shape, unitless (nats for reverse_kl and jensen_shannon).

    Raises:
        ValueError: no such divergence.
    """
    if _known(name) in _UNCLIPPED:
        return _UNCLIPPED[name](logits)
    return _CLIPPED[name](jnp.clip(logits, -clip, clip))


def _known(name: str) -> str:
    if name not in _GENERATORS:
        raise ValueError(f"no divergence {name!r}; there are {', '.join(_GENERATORS)}")
    return name
