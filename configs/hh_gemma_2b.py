"""Gemma 2B on Anthropic's HH-RLHF (harmless split), on a TPU v5e-16 unless a variant says otherwise.

  python -m irl_jax run --config=configs/hh_gemma_2b.py --workdir=runs/gemma-2b --config.data.source=hh:harmless-base/train.jsonl.gz

  variant   hardware                        mesh         command's --config
  (none)    v5e-16: 16 chips, 4x4           fsdp 16      configs/hh_gemma_2b.py
  v6e_64    v6e-64: 64 chips, 8x8           fsdp 64      configs/hh_gemma_2b.py:v6e_64
  v5p_64    v5p-64: 32 chips, 2x4x4         fsdp 32      configs/hh_gemma_2b.py:v5p_64
  smoke     any computer, 2 to 7 minutes    one device   configs/hh_gemma_2b.py:smoke   (any small model folder)

Whole trunks in place of adapters: --config.adapter.rank=0, on any of them. What each step needs of a chip, without a chip:

  python -m irl_jax aot --config=configs/hh_gemma_2b.py --topology=v5e:4x4

Time: no TPU has run this; docs/tpu.md has what the compiled programs would take at the chips' published speeds. The weights are gated
on the hub (accept their licence, then `hf auth login`), or give a folder by --config.model.path. The data are those of
configs/hh_harmless.py, whose notes hold here.
"""

import hh_harmless  # the file beside this one

CHIPS = {"": 16, "v6e_64": 64, "v5p_64": 32}


def get_config(name: str = ""):
    if name not in (*CHIPS, "smoke"):
        raise ValueError(f"--config: unknown variant '{name}'; one of {', '.join(v for v in CHIPS if v)}, smoke")
    c = hh_harmless.get_config()
    c.model.path = "google/gemma-2b"
    c.model.dtype = "bfloat16"
    c.model.scan_layers = True
    c.model.remat = "full"
    c.sft.row_tokens = 768
    c.sft.learning_rate = 2e-4
    c.reward.learning_rate = 2e-4
    c.policy.steps = 200
    c.policy.learning_rate = 1e-4
    c.policy.advantage = "gae"
    c.policy.value_coefficient = 0.5
    c.sample.reward_prompts = 4000
    c.eval.prompts = 128
    _sized(c, CHIPS.get(name, 16))
    if name == "smoke":
        hh_harmless.smoke(c)
        c.mesh.fsdp = 1
        c.model.dtype = "float32"
        c.model.loss_chunk = 256
        c.sample.rows = 64
        c.eval.batch_size = 16
    return c


def _sized(c, chips: int):
    """Batches in proportion to the chips: 3072 tokens a chip in every training step, packed or not."""
    c.mesh.fsdp = chips
    c.model.loss_chunk = 512 * chips
    c.sft.batch_size = 4 * chips
    c.reward.batch_size = 8 * chips
    c.policy.batch_size = chips  # prompts, of `samples` rows each
    c.sample.rows = 32 * chips
    c.eval.batch_size = 8 * chips
