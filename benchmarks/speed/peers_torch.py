"""transformers and torch: the same cases in the way their users write them, eager, with SDPA attention and the fused optimizer."""

from __future__ import annotations

import contextlib

import numpy as np
import torch
import transformers

from benchmarks.speed import ours, sizes

torch.set_num_interop_threads(1)
transformers.utils.logging.disable_progress_bar()
_QUIET = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}  # the folders have none, GPT-2's defaults do


def _how(folder) -> dict:
    kind = transformers.AutoConfig.from_pretrained(folder).model_type
    return (_QUIET if kind == "gpt2" else {}) | {"attn_implementation": "sdpa"}


def load(folder, dtype: str = "float32", device: str = "cpu"):
    """The folder's causal model; in bfloat16 with its parameters, as one samples and scores."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), **_how(folder))
    return model.to(device).eval()


def load_reward(folder, head: np.ndarray):
    """The folder's body with the linear head [D]."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, dtype=torch.float32, pad_token_id=sizes.PAD, **_how(folder))
    with torch.no_grad():
        model.score.weight.copy_(torch.tensor(head)[None])
    return model.eval()


def sampling(model, prompts, samples: int, tokens: int, eos_ids):
    """draw(seed) -> (tokens [prompts, samples, T], mask): generate at temperature 1, unfiltered; prompts padded on the left."""
    longest, device = max(map(len, prompts)), model.device
    ids = torch.full((len(prompts), longest), sizes.PAD)
    seen = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        seen[row, longest - len(prompt) :] = 1
    ids, seen = ids.to(device), seen.to(device)
    ends = [i for i in eos_ids if i < model.config.vocab_size] or None
    config = transformers.GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, num_return_sequences=samples, max_new_tokens=tokens, eos_token_id=ends,
        pad_token_id=sizes.PAD)

    def draw(seed: int):
        torch.manual_seed(seed)
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=seen, generation_config=config)[:, longest:].cpu().numpy()
        out = out.reshape(len(prompts), samples, -1)
        ended = np.isin(out, eos_ids)
        mask = np.cumsum(ended, -1) - ended == 0  # up to the first end, itself included
        return out, mask

    return draw


def token_scores(model, rows: np.ndarray) -> np.ndarray:
    """Log-probs of the tokens from PROMPT_TOKENS on, float32 [rows, tokens], 0 before."""
    picked = sequence_logprobs(model, rows)
    out = np.zeros(rows.shape, np.float32)
    out[:, sizes.PROMPT_TOKENS :] = picked[:, sizes.PROMPT_TOKENS - 1 :]
    return out


def sequence_logprobs(model, rows: np.ndarray) -> np.ndarray:
    """Log-probs of all tokens but the first, float32 [rows, tokens - 1]."""
    with torch.inference_mode():
        return _logprobs(model, torch.tensor(rows).long().to(model.device)).cpu().numpy()


def _logprobs(model, ids):
    """[rows, tokens - 1]: of each token after the first."""
    logits = model(ids).logits[:, :-1].float()
    return torch.gather(logits, -1, ids[:, 1:, None])[..., 0] - torch.logsumexp(logits, -1)


def _stepper(model, loss, dtype: str):
    """update() -> loss, on one batch over and over."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=ours.LEARNING_RATE, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0, fused=True)
    device = next(model.parameters()).device.type
    cast = torch.autocast(device, torch.bfloat16) if dtype == "bfloat16" else contextlib.nullcontext()

    def update() -> float:
        optimizer.zero_grad(set_to_none=True)
        with cast:
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(value.detach())

    return update


def sft(folder, rows: np.ndarray, dtype: str, device: str = "cpu"):
    """The step on transformers' own loss."""
    model = load(folder, device=device)
    ids = torch.tensor(rows).long().to(device)
    labels = ids.clone()
    labels[:, : sizes.PROMPT_TOKENS] = -100
    return _stepper(model, lambda: model(ids, labels=labels).loss, dtype)


def reward(folder, rows: np.ndarray, head: np.ndarray, dtype: str):
    """The Bradley-Terry step."""
    model, ids = load_reward(folder, head), torch.tensor(rows).long()
    seen = torch.ones_like(ids)

    def loss():
        chosen, rejected = model(ids, attention_mask=seen).logits[:, 0].float().chunk(2)
        return -torch.nn.functional.logsigmoid(chosen - rejected).mean()

    return _stepper(model, loss, dtype)


def policy(folder, rows: np.ndarray, advantages: np.ndarray, dtype: str):
    """The score-function step."""
    model, ids = load(folder), torch.tensor(rows).long()
    weights = torch.tensor(advantages).float()[:, None]

    def loss():
        picked = _logprobs(model, ids)[:, sizes.PROMPT_TOKENS - 1 :]
        return -(weights * picked).sum(-1).mean()

    return _stepper(model, loss, dtype)
