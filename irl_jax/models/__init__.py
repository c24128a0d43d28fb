"""The decoder, its families of checkpoints, LoRA adapters and scalar heads: everything that knows Flax."""
