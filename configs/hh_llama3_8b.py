"""Llama 3 8B on Anthropic's HH-RLHF (harmless split), on a TPU v5e-16 unless a variant says otherwise.

  python -m irl_jax run --config=configs/hh_llama3_8b.py:v5p_64 --workdir=runs/llama-8b --config.data.source=hh:harmless-base/train.jsonl.gz

  variant   hardware                        mesh         command's --config
  (none)    v5e-16: 16 chips, 4x4           fsdp 16      configs/hh_llama3_8b.py
  v6e_64    v6e-64: 64 chips, 8x8           fsdp 64      configs/hh_llama3_8b.py:v6e_64
  v5p_64    v5p-64: 32 chips, 2x4x4         fsdp 32      configs/hh_llama3_8b.py:v5p_64
  smoke     any computer, 2 to 7 minutes    one device   configs/hh_llama3_8b.py:smoke   (any small model folder)

Whole trunks in place of adapters: --config.adapter.rank=0, on v6e_64 and v5p_64. What each step needs of a chip, without a chip:

  python -m irl_jax aot --config=configs/hh_llama3_8b.py:v5p_64 --topology=v5p:2x4x4

Time: no TPU has run this; docs/tpu.md has what the compiled programs would take at the chips' published speeds. The weights are gated
on the hub (accept their licence, then `hf auth login`), or give a folder by --config.model.path. The data are those of
configs/hh_harmless.py, whose notes hold here.
"""

import os

import hh_gemma_2b  # the file beside this one


def get_config(name: str = ""):
    c = hh_gemma_2b.get_config(name)
    shared = os.environ.get("IRL_JAX_SHARED", os.path.join("..", "shared"))
    c.model.path = os.path.join(shared, "models", "stories260k") if name == "smoke" else "meta-llama/Meta-Llama-3-8B"
    c.sft.learning_rate = 1e-4
    c.reward.learning_rate = 1e-4
    c.policy.learning_rate = 5e-5
    return c
