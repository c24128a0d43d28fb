"""The whole job as one writes it with TRL: SFTTrainer, transformers' generate, RewardTrainer, best-of-n by hand, RLOOTrainer."""

from __future__ import annotations

import pathlib

import datasets
import torch
import transformers
import trl

from benchmarks.speed.job import read

torch.set_num_interop_threads(1)
ROWS = 128  # responses generated together, and scored together

_COMMON = dict(use_cpu=not torch.cuda.is_available(), bf16=False, gradient_checkpointing=False, report_to="none", save_strategy="no",
               logging_steps=10, disable_tqdm=True, seed=0, adam_beta2=0.99, optim="adamw_torch_fused")  # fmt: skip


def job(spec: dict, timed) -> dict:
    """Runs it; returns {stage: seconds}. timed(name, function, *arguments) times a call."""
    folder = pathlib.Path(spec["folder"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(spec["model"])
    demonstrations = read(folder / "demonstrations.jsonl")
    prompts = [record["prompt"] + " " for record in demonstrations]  # the tokenizer's words are apart by spaces
    sft = timed("sft", _sft, spec, folder, tokenizer, demonstrations)
    pairs = timed("sample", _pairs, spec, tokenizer, sft, prompts[: spec["sample_prompts"]])
    reward = timed("reward", _reward, spec, folder, tokenizer, pairs)
    policy = timed("policy", _policy, spec, folder, tokenizer, reward, prompts)
    best = [record["prompt"] + " " for record in read(folder / "prompts.jsonl")]
    timed("best-of-16", _best_of, spec, tokenizer, policy, reward, best)
    return timed.seconds


def _sft(spec, folder, tokenizer, demonstrations):
    data = datasets.Dataset.from_list([{"prompt": d["prompt"], "completion": d["response"]} for d in demonstrations])
    arguments = trl.SFTConfig(output_dir=str(folder / "trl-sft"), max_steps=spec["sft_steps"], per_device_train_batch_size=spec["sft_rows"],
                              learning_rate=1e-4, max_length=spec["prompt"] + spec["response"], **_COMMON)
    trainer = trl.SFTTrainer(model=spec["model"], args=arguments, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    trainer.save_model(folder / "trl-sft")
    return trainer.model


@torch.inference_mode()
def _generate(spec, tokenizer, model, prompts, samples: int) -> list[list[list[int]]]:
    """[prompt][sample] -> ids of prompt and response."""
    out = []
    model.eval()
    each = max(1, ROWS // samples)
    for start in range(0, len(prompts), each):
        batch = tokenizer(prompts[start : start + each], return_tensors="pt", padding=True, padding_side="left").to(model.device)
        drawn = model.generate(**batch, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=spec["response"],
                               num_return_sequences=samples, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
        ids = [[i for i in row if i != tokenizer.pad_token_id] for row in drawn.tolist()]
        out += [ids[i : i + samples] for i in range(0, len(ids), samples)]
    return out


def _pairs(spec, tokenizer, sft, prompts):
    """Samples of sft chosen over samples of the initial model."""
    initial = transformers.AutoModelForCausalLM.from_pretrained(spec["model"]).to(sft.device)
    both = [_generate(spec, tokenizer, model, prompts, spec["samples"]) for model in (sft, initial)]
    return [{"chosen_ids": chosen, "rejected_ids": rejected} for mine, others in zip(*both, strict=True)
            for chosen, rejected in zip(mine, others, strict=True)]


def _reward(spec, folder, tokenizer, pairs):
    arguments = trl.RewardConfig(output_dir=str(folder / "trl-reward"), max_steps=spec["reward_steps"], max_length=None, learning_rate=1e-5,
                                 per_device_train_batch_size=spec["reward_pairs"], **_COMMON)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(spec["model"], num_labels=1, dtype=torch.float32)
    trainer = trl.RewardTrainer(model=model, args=arguments, train_dataset=datasets.Dataset.from_list(pairs), processing_class=tokenizer)
    trainer.train()
    return trainer.model.eval()


def _policy(spec, folder, tokenizer, reward, prompts):
    rows = spec["policy_prompts"] * spec["policy_samples"]
    arguments = trl.RLOOConfig(output_dir=str(folder / "trl-policy"), max_steps=spec["policy_steps"], per_device_train_batch_size=rows,
                               num_generations=spec["policy_samples"], max_completion_length=spec["response"], beta=spec["beta"],
                               temperature=1.0, top_k=0, learning_rate=1e-6, **_COMMON)
    data = datasets.Dataset.from_list([{"prompt": prompt} for prompt in prompts])
    trainer = trl.RLOOTrainer(model=str(folder / "trl-sft"), reward_funcs=reward, args=arguments, processing_class=tokenizer,
                              reward_processing_classes=tokenizer, train_dataset=data)
    trainer.train()
    return trainer.model


@torch.inference_mode()
def _best_of(spec, tokenizer, policy, reward, prompts) -> list[list[int]]:
    """The best of 16 by the reward, a prompt."""
    groups = _generate(spec, tokenizer, policy, prompts, spec["best_of"])
    rows = [row for group in groups for row in group]
    scores = []
    for start in range(0, len(rows), ROWS):
        batch = tokenizer.pad({"input_ids": rows[start : start + ROWS]}, padding=True, padding_side="right", return_tensors="pt")
        scores += reward(**batch.to(reward.device)).logits[:, 0].tolist()
    n = spec["best_of"]
    return [group[max(range(n), key=lambda k, first=i * n: scores[first + k])] for i, group in enumerate(groups)]
