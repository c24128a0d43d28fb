"""config.json fields of published models, by hub name: with them, planning needs neither network nor weights."""

from __future__ import annotations

_GEMMA = {
    "model_type": "gemma", "vocab_size": 256000, "head_dim": 256, "max_position_embeddings": 8192, "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0, "hidden_act": "gelu", "hidden_activation": None, "attention_bias": False, "tie_word_embeddings": True,
}  # fmt: skip
_GEMMA_2B = _GEMMA | {"num_hidden_layers": 18, "hidden_size": 2048, "num_attention_heads": 8, "num_key_value_heads": 1,
                      "intermediate_size": 16384}  # fmt: skip
_GEMMA_7B = _GEMMA | {"num_hidden_layers": 28, "hidden_size": 3072, "num_attention_heads": 16, "num_key_value_heads": 16,
                      "intermediate_size": 24576}  # fmt: skip
_GPT2 = {
    "model_type": "gpt2", "vocab_size": 50257, "n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 1024,
    "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
}  # fmt: skip
_LLAMA3_8B = {
    "model_type": "llama", "vocab_size": 128256, "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 14336, "max_position_embeddings": 8192, "rope_theta": 500000.0, "rope_scaling": None,
    "rms_norm_eps": 1e-5, "hidden_act": "silu", "attention_bias": False, "tie_word_embeddings": False,
}  # fmt: skip

HF_CONFIGS: dict[str, dict] = {
    "gpt2": _GPT2,
    "openai-community/gpt2": _GPT2,
    "meta-llama/Meta-Llama-3-8B": _LLAMA3_8B,
    "meta-llama/Meta-Llama-3-8B-Instruct": _LLAMA3_8B,
    "google/gemma-2b": _GEMMA_2B,
    "google/gemma-2b-it": _GEMMA_2B,
    "google/gemma-7b": _GEMMA_7B,
    "google/gemma-7b-it": _GEMMA_7B,
}
