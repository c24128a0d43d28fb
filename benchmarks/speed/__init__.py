"""irl_jax beside transformers, TRL and Tunix: one module a family of cases, `ours` and one module a peer. See benchmarks/run.sh."""
