"""Training steps and scoring: 16 rows of 256 tokens, beside transformers with torch, and Tunix's trainer."""

from __future__ import annotations

import gc

import numpy as np

from benchmarks.speed import ours, sizes
from benchmarks.speed.table import Target, row
from benchmarks.speed.timing import agree, alternate

SFT = {"gpt2": Target(">= 1.5x", 1.5)}
SFT_ELSE, SFT_TUNIX = Target(">= 1.0x", 1.0), Target(">= 1.3x", 1.3)
LORA = {"gpt2": Target("LoRA / whole trunk <= 0.8", 1 / 0.8), "6m": Target("LoRA / whole trunk <= 0.9", 1 / 0.9)}
RANK = 8
WORK = f"{sizes.ROWS} rows x {sizes.ROW_TOKENS} tokens"


def cases(setting, wanted: str):
    """Yields the rows of one of "sft", "lora", "reward", "policy", "scoring"."""
    for size in setting.sizes:
        if wanted in ("sft", "reward", "policy", "scoring"):
            for dtype in setting.dtypes:
                yield {"sft": _sft, "reward": _reward, "policy": _policy, "scoring": _scoring}[wanted](setting, size, dtype)
                gc.collect()
        if wanted == "sft" and not setting.without("tunix"):
            yield _sft_tunix(setting, size)
            gc.collect()
        if wanted == "lora":
            yield _lora(setting, size)
            gc.collect()


def _same_losses(own, peer, dtype: str) -> str:
    """Two updates on each side from the same weights: the loss before and after the first must agree. Also the warm-up."""
    tolerance = 1e-4 if dtype == "float32" else 5e-2
    mine = [own()["loss"] for _ in range(2)]
    gap = agree("the losses of the first two updates", mine, [peer() for _ in range(2)], tolerance * max(1.0, abs(mine[0])))
    return f"losses of two updates from the same weights, within {gap:.1e}"


def _silent(update):
    """A side of one unit: what it computes is not looked at."""

    def side() -> None:
        update()

    return side


def _timed(setting, size, own, peer):
    return alternate(_silent(own), _silent(peer), setting.budget(size), warm=False)


def _sft(setting, size, dtype):
    from benchmarks.speed import peers_torch

    folder, rows = setting.folder(size), sizes.rows(size)
    own, peer = ours.sft(ours.load(folder, dtype), rows), peers_torch.sft(folder, rows, dtype)
    checked = _same_losses(own, peer, dtype)
    target = SFT.get(size.name, SFT_ELSE) if dtype == "float32" else None
    return row("SFT step", setting.label(size), "transformers + torch", _timed(setting, size, own, peer), WORK, dtype=dtype, target=target,
               checked=checked, note="whole trunk, AdamW, clipped at norm 1, no dropout" + _bfloat16(dtype))


def _bfloat16(dtype: str) -> str:
    return "; parameters float32, computed in bfloat16 (torch: autocast)" if dtype == "bfloat16" else ""


def _sft_tunix(setting, size):
    from benchmarks.speed import peers_tunix

    folder, rows = setting.folder(size, "llama"), sizes.rows(size)
    own, peer = ours.sft(ours.load(folder), rows), peers_tunix.sft(folder, rows)
    checked = _same_losses(own, peer, "float32")
    return row("SFT step", setting.llama_label(size), "Tunix PeftTrainer", _timed(setting, size, own, peer), WORK, target=SFT_TUNIX,
               checked=checked, note="whole trunk, the same optax optimizer; a Llama of the size's layers, width and heads on both sides")


def _lora(setting, size):
    folder, rows = setting.folder(size), sizes.rows(size)
    mine = ours.load(folder)
    lora, whole = ours.sft(mine, rows, RANK), ours.sft(mine, rows)
    gap = agree("the first loss of both", lora()["loss"], whole()["loss"], 1e-4)
    timed = _timed(setting, size, lora, whole)
    return row("LoRA step", setting.label(size), "irl_jax, whole trunk", timed, f"{WORK}, rank {RANK}, no remat",
               target=LORA.get(size.name), checked=f"the first loss, within {gap:.1e}", note="the ratio is whole trunk / LoRA")


def _reward(setting, size, dtype):
    from benchmarks.speed import peers_torch

    folder, rows = setting.folder(size), sizes.rows(size)
    head = np.random.default_rng(4).normal(0, 0.02, size.width).astype(np.float32)
    own, peer = ours.reward(ours.load(folder, dtype), rows, head), peers_torch.reward(folder, rows, head, dtype)
    checked = _same_losses(own, peer, dtype)
    return row("reward step", setting.label(size), "transformers + torch", _timed(setting, size, own, peer), f"{WORK}: 8 pairs",
               dtype=dtype, checked=checked, note="Bradley-Terry, whole trunk and a linear head" + _bfloat16(dtype))


def _policy(setting, size, dtype):
    from benchmarks.speed import peers_torch

    folder, rows = setting.folder(size), sizes.rows(size)
    advantages = np.random.default_rng(5).normal(size=len(rows)).astype(np.float32)
    mine = ours.load(folder, dtype)
    own, peer = ours.policy(mine, rows, advantages, ours.token_scores(mine, rows)), peers_torch.policy(folder, rows, advantages, dtype)
    checked = _same_losses(own, peer, dtype)
    return row("policy-gradient step", setting.label(size), "transformers + torch", _timed(setting, size, own, peer), WORK, dtype=dtype,
               checked=checked, note="the update on finished samples; ours reports KL and entropy besides" + _bfloat16(dtype))


def _scoring(setting, size, dtype):
    from benchmarks.speed import peers_torch

    folder, rows = setting.folder(size), sizes.rows(size)
    mine, model = ours.load(folder, dtype), peers_torch.load(folder, dtype)
    tolerance = 1e-3 if dtype == "float32" else 0.25
    gap = agree("log-probs", ours.token_scores(mine, rows), peers_torch.token_scores(model, rows), tolerance)
    own = ours.scores(mine, rows)
    timed = alternate(_silent(own), _silent(lambda: peers_torch.token_scores(model, rows)), setting.budget(size))
    return row("scoring", setting.label(size), "transformers + torch", timed, WORK, dtype=dtype, checked=f"log-probs token by token, "
               f"within {gap:.1e}")
