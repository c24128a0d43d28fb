"""Tunix: its sampler and its trainer on its Llama, whose weights it reads from the same folder."""

from __future__ import annotations

import json
import logging
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

logging.getLogger("absl").setLevel(logging.ERROR)

from flax import nnx  # noqa: E402
from tunix.generate.sampler import CacheConfig, Sampler  # noqa: E402
from tunix.models.llama3 import model as llama  # noqa: E402
from tunix.models.llama3 import params  # noqa: E402
from tunix.sft import peft_trainer, utils  # noqa: E402

from benchmarks.speed import ours, sizes  # noqa: E402


class _Words:
    """A tokenizer of numbers, the least that its sampler accepts."""

    def encode(self, text: str, **_) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids, **_) -> str:
        return " ".join(map(str, ids))

    def bos_id(self):
        return None

    def eos_id(self) -> int:
        return sizes.EOS

    def pad_id(self) -> int:
        return sizes.PAD


def load(folder):
    """Tunix's Llama with the folder's weights, float32."""
    hf = json.loads((pathlib.Path(folder) / "config.json").read_text())
    config = llama.ModelConfig(
        num_layers=hf["num_hidden_layers"], vocab_size=hf["vocab_size"], embed_dim=hf["hidden_size"], hidden_dim=hf["intermediate_size"],
        num_heads=hf["num_attention_heads"], head_dim=hf["head_dim"], num_kv_heads=hf["num_key_value_heads"], rope_theta=1_000_000,
        norm_eps=hf["rms_norm_eps"], weight_tying=True)
    return params.create_model_from_safe_tensors(str(folder), config, None, dtype=jnp.float32)


def sampling(model, prompts, samples: int, tokens: int, eos_ids, with_logprobs: bool = False):
    """draw(seed) -> SamplerOutput for every prompt `samples` times (it has no sharing of prompts), at temperature 1, unfiltered."""
    config, longest = model.config, max(map(len, prompts))
    cache = CacheConfig(longest + tokens, config.num_layers, config.num_kv_heads, config.head_dim)
    sampler = Sampler(model, _Words(), cache)
    texts = [" ".join(map(str, prompt)) for prompt in prompts for _ in range(samples)]

    def draw(seed: int):
        return sampler(texts, tokens, max_prompt_length=longest, temperature=1.0, top_p=1.0, eos_tokens=list(eos_ids), seed=seed,
                       return_logprobs=with_logprobs)

    return draw


def _inputs(batch) -> dict:
    """What its loss is called with."""
    seen = jnp.ones(batch.input_tokens.shape, bool)  # rows are full
    return {"input_tokens": batch.input_tokens, "input_mask": batch.input_mask, "positions": utils.build_positions_from_mask(seen),
            "attention_mask": utils.make_causal_attn_mask(seen)}


def sft(folder, rows: np.ndarray):
    """update() -> loss: the trainer's own compiled step of the whole model, with our optimizer."""
    mask = np.zeros(rows.shape, np.int32)
    mask[:, sizes.PROMPT_TOKENS :] = 1
    with tempfile.TemporaryDirectory() as logs:
        options = peft_trainer.MetricsLoggerOptions(log_dir=logs)
        trainer = peft_trainer.PeftTrainer(load(folder), ours.optimizer(), peft_trainer.TrainingConfig(
            eval_every_n_steps=10**9, metrics_logging_options=options)).with_gen_model_input_fn(_inputs)
    step, _ = trainer.jit_train_and_eval_step(cache_nnx_graph=True)
    batch = peft_trainer.TrainingInput(jnp.asarray(rows), jnp.asarray(mask))

    def update() -> float:
        loss, _, norm = step(batch)
        jax.block_until_ready((loss, norm, nnx.state(trainer.model)))
        return float(loss)

    return update
