"""The golden reward by somebody's reward model: a `*ForSequenceClassification` folder with a tokenizer of its own."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from irl_jax import hf, sharding
from irl_jax.errors import UserError
from irl_jax.evaluation.golden import Judge
from irl_jax.stages import scoring
from irl_jax.stages.context import as_configured
from irl_jax.types import Example


def make_judge(config, mesh) -> Judge:
    """The judge of golden.kind = "hf_reward": the logit of golden.label for prompt + response.

    The text is tokenised by the model's own tokenizer and rules; a text beyond its context keeps its tail, and the tokenizer's BOS.
    The logit stands, as in transformers, at the last token that is not padding: where pad = EOS, a final EOS is passed over.

    Args:
        config: the whole config; reads golden.model, golden.label, how models are computed (model.*) and eval.batch_size.
        mesh: where the model is put.

    Raises:
        UserError: no such model or label, or no tokenizer that belongs to it.
    """
    loaded = hf.load_reward_model(config.golden.model, config.golden.label, mesh, vocab_multiple=config.model.vocab_multiple)
    tokenizer = hf.load_tokenizer(config.golden.model)
    model = as_configured(loaded.model, config)
    scorer = scoring.Scorer(model, mesh, loaded.trunk, longest=model.max_positions, rows=config.eval.batch_size)
    head = {"head": {"kernel": jnp.asarray(loaded.weight[:, None]), "bias": jnp.zeros(1, jnp.float32)}}
    leaves = sharding.place(head, mesh)

    def score(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        texts = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
        return scorer.rewards(leaves, rows_of(tokenizer, texts, loaded.pad_id, model.max_positions)) if texts else np.zeros(0)

    return Judge("hf_reward", None, f"{loaded.label}, by {config.golden.model}", score)


def rows_of(tokenizer, texts: Sequence[str], pad_id: int | None, longest: int) -> list[Example]:
    """Texts as Examples, all prompt, whose last token is the one that the logit is read at.

    Raises: UserError for a text without a token.
    """
    rows = []
    tokenizer.truncation_side = "left"
    for index, ids in enumerate(tokenizer(list(texts), truncation=True, max_length=longest, return_attention_mask=False)["input_ids"]):
        if not ids:
            raise UserError(f"golden.model: its tokenizer makes no token of text {index}, which is empty; such a text has no reward")
        # One token at least stays, as in transformers: of a text that is all padding, the first is read.
        last = max((place for place, token in enumerate(ids) if token != pad_id), default=0)
        kept = np.asarray(ids[: last + 1], np.int32)
        rows.append(Example(kept, kept[:0], False, index))
    return rows
