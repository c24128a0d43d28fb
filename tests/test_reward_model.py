"""Reward models as golden rewards: the numbers of transformers, whichever side is padded; labels, truncation, refusals."""

import json

import jax
import numpy as np
import pytest
from test_export import GPT2, base_folder, make_tokenizer
from test_runs import _file_config

from irl_jax import checks, hf, hf_export, sharding, stages, workdir
from irl_jax.config import default
from irl_jax.errors import UserError
from irl_jax.models import families, tensors, transformer
from irl_jax.stages import generate, reward_model

LABELS = ("harmless", "helpful", "short")
PROMPTS, RESPONSES = ["w1 w2", "", "w5 w6 w7", "w1"], [" w3 w4 w5", "w7", " w8 <eos>", " w2 w3 w4 w5 w6 w7 w8 w9"]


def judge_of(folder, label="", **settings):
    config = default()
    config.golden.kind, config.golden.model, config.golden.label = "hf_reward", str(folder), label
    config.eval.batch_size = 3  # so that the last batch is filled up
    config.update_from_flattened_dict(settings)
    checks.check(config)
    return reward_model.make_judge(config, sharding.make_mesh(config.mesh))


def classifier(path, labels=LABELS, pad="<pad>", **changes):
    """A GPT-2 classifier's folder without torch; (trunk, head) of it."""
    rng = np.random.default_rng(3)
    trunk = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) * 0.5,
                         jax.eval_shape(lambda: transformer.init_trunk(jax.random.key(0), GPT2)))
    head = rng.normal(size=(len(labels), GPT2.width)).astype(np.float32)
    tokenizer = make_tokenizer(pad)
    config = families.to_hf_config(GPT2) | {
        "architectures": ["GPT2ForSequenceClassification"], "id2label": {str(index): label for index, label in enumerate(labels)},
        "pad_token_id": tokenizer.pad_token_id, "eos_token_id": 2} | changes
    held = [*tensors.stored_tensors(GPT2, {"params": trunk}), tensors.Stored("score.weight", (), head.shape, lambda: head)]
    hf_export.write_folder(path, {key: value for key, value in config.items() if value != "left out"}, held, tokenizer=tokenizer)
    return trunk, head


def by_hand(trunk, head, ids):
    """One row's logits, at its last token."""
    row = np.asarray(ids)[None]
    hidden = transformer.hidden_states(GPT2, {"params": trunk}, row, np.arange(len(ids))[None], np.ones_like(row))
    return np.asarray(hidden[0, -1], np.float64) @ head.T.astype(np.float64)


def ids_of(text):
    return make_tokenizer()(text)["input_ids"]


@pytest.mark.parametrize("pad", ["<pad>", "<eos>", None])
def test_the_named_labels_logit_at_the_last_token_that_is_not_padding(tmp_path, pad):
    trunk, head = classifier(tmp_path / "m", pad=pad)
    judge = judge_of(tmp_path / "m", "helpful")
    rows = [ids_of(prompt + response) for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
    assert rows[2][-1] == 2
    if pad == "<eos>":
        rows[2] = rows[2][:-1]
    expected = [by_hand(trunk, head, row)[1] for row in rows]
    np.testing.assert_allclose(judge.score(PROMPTS, RESPONSES), expected, atol=1e-5)
    assert np.ptp(expected) > 0.1 and judge.heldout_accuracy is None and judge.unit.startswith("helpful")


def test_a_long_text_keeps_its_tail(tmp_path):
    trunk, head = classifier(tmp_path / "m")
    text = " ".join(f"w{index % 11}" for index in range(40))
    expected = by_hand(trunk, head, ids_of(text)[-GPT2.max_positions:])[0]
    np.testing.assert_allclose(judge_of(tmp_path / "m", "harmless").score([""], [text]), [expected], atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3_text", "qwen3"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_scores_of_transformers(tmp_path, torch, family, side):
    """A padded batch of transformers' own classifier; Llama with an untied head in its config, which a classifier lacks."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    sizes = ({"n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 32} if family == "gpt2" else
             {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
              "intermediate_size": 24, "max_position_embeddings": 32, "tie_word_embeddings": family == "gemma3_text"})  # fmt: skip
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family, vocab_size=16, pad_token_id=1, eos_token_id=2, bos_token_id=None, id2label=dict(enumerate(LABELS)),
        label2id={name: index for index, name in enumerate(LABELS)}, initializer_range=0.3, **sizes)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(tmp_path / "m")
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path / "m")
    texts = [prompt + response for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
    rows = tokenizer(texts, return_tensors="pt", padding=True, padding_side=side, return_token_type_ids=False)
    if side == "left":  # what transformers' classes do not do by themselves
        rows["position_ids"] = (rows["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = model(**rows).logits.numpy()
    assert np.ptp(expected) > 0.1
    for index, label in enumerate(LABELS[1:], 1):
        np.testing.assert_allclose(judge_of(tmp_path / "m", label).score(PROMPTS, RESPONSES), expected[:, index], atol=1e-5)


@pytest.mark.parametrize("changes, label, message", [
    ({}, "", "has the labels harmless, helpful, short; name the one whose score is the reward (golden.label)"),
    ({}, "kind", "has no label 'kind', only harmless, helpful, short (golden.label)"),
    ({"architectures": ["GPT2LMHeadModel"]}, "short", "architectures says GPT2LMHeadModel, a reward model is a *ForSequenceClassification"),
    ({"architectures": "left out"}, "short", "architectures says none, a reward model is"),
    ({"id2label": {"0": "a", "2": "b"}}, "a", "id2label must name the labels 0 to 1"),
    ({"id2label": {"0": "a"}}, "", "tensor score.weight has shape (3, 8), the config asks for (1, 8)"),
    ({"id2label": "left out"}, "short", "has no label 'short', only LABEL_0, LABEL_1, LABEL_2"),
    ({"n_embd": 10}, "short", "tensor score.weight has shape (3, 8), the config asks for (3, 10)"),
])  # fmt: skip
def test_folders_that_are_no_reward_model(tmp_path, changes, label, message):
    classifier(tmp_path / "m", **changes)
    with pytest.raises(UserError) as caught:
        judge_of(tmp_path / "m", label)
    assert message in str(caught.value) and str(tmp_path / "m") in str(caught.value) and "\n" not in str(caught.value)


def test_a_causal_model_under_the_name_of_a_classifier(tmp_path):
    folder = base_folder(tmp_path / "m", GPT2)
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["GPT2ForSequenceClassification"]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="has no tensor score.weight"):
        hf.load_reward_model(folder)


def test_one_label_needs_no_name_and_none_is_refused_early(tmp_path):
    trunk, head = classifier(tmp_path / "m", labels=("reward",))
    np.testing.assert_allclose(judge_of(tmp_path / "m").score(["w1"], [" w2"]), by_hand(trunk, head, ids_of("w1 w2")), atol=1e-5)
    with pytest.raises(UserError, match="golden.model: 'hf_reward' needs"):
        judge_of("")
    with pytest.raises(UserError, match="no token of text 0"):
        judge_of(tmp_path / "m").score([""], [""])


@pytest.mark.slow
def test_a_run_in_bfloat16_judged_by_a_reward_model(tmp_path):
    classifier(tmp_path / "judge")
    config = _file_config(tmp_path, model__param_dtype="bfloat16")
    config.golden.kind, config.golden.model, config.golden.label = "hf_reward", str(tmp_path / "judge"), "short"
    stages.run_pipeline(config, tmp_path / "w")
    results = json.loads((tmp_path / "w" / "results.json").read_text())
    assert results["golden"]["name"] == "hf_reward" and all(np.isfinite(row["golden_mean"]) for row in results["policies"].values())
    context = generate.open_run(workdir.read_config(tmp_path / "w"), tmp_path / "w")
    for tree, kind in ((context.trunk, "bfloat16"), *((context.leaves(role), "float32") for role in ("sft", "reward/init_sft"))):
        assert {leaf.dtype.name for leaf in jax.tree.leaves(tree)} == {kind}
    assert "by a reward model" in (tmp_path / "w" / "report" / "index.html").read_text()
