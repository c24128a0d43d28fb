"""The embedded testbed: a small world in readable English, drawn from a seed, in which everything can be measured."""

from irl_jax.data.testbed.world import World, build_world

__all__ = ["World", "build_world"]
