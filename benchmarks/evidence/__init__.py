"""The experiments behind docs/evidence.md: when Inverse-RLignment works, and what its rewards learn."""
