"""irl_jax: inverse reinforcement learning from demonstrations, for language models, in JAX."""

__version__ = "0.1.0"
