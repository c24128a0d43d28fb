"""The decoder, its checkpoint families, LoRA adapters and scalar heads: everything that uses Flax."""
