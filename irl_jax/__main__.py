"""`python -m irl_jax`."""

from irl_jax.cli import entry

entry()
