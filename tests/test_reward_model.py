"""Reward models as golden rewards: the numbers of transformers, whichever side is padded; labels, truncation, refusals."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_export import GPT2, LLAMA, base_folder, make_tokenizer
from test_runs import _file_config
from test_tokenize import BOS, build, ids

from irl_jax import checks, cli, hf, hf_export, roles, sharding, stages, workdir
from irl_jax.config import default
from irl_jax.data import chat, controls
from irl_jax.errors import UserError
from irl_jax.models import families, tensors, transformer
from irl_jax.stages import generate, reward_model
from irl_jax.stages.context import Context
from irl_jax.types import Example

LABELS = ("harmless", "helpful", "short")
PROMPTS, RESPONSES = ["w1 w2", "", "w5 w6 w7", "w1"], [" w3 w4 w5", "w7", " w8 w1", " w2 w3 w4 w5 w6 w7 w8 w9"]


def judge_of(folder, label="", **settings):
    config = default()
    config.golden.kind, config.golden.model, config.golden.label = "hf_reward", str(folder), label
    config.eval.batch_size = 3  # so that the last batch is filled up
    config.update_from_flattened_dict(settings)
    checks.check(config)
    return reward_model.make_judge(config, sharding.make_mesh(config.mesh))


def random_trunk(model, seed=3):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) * 0.5,
                        jax.eval_shape(lambda: transformer.init_trunk(jax.random.key(0), model)))


def classifier(path, labels=LABELS, pad="<pad>", model=GPT2, trunk=None, tokenizer=None, **changes):
    """A classifier's folder without torch; (trunk, head) of it."""
    trunk = trunk or random_trunk(model)
    head = np.random.default_rng(4).normal(size=(len(labels), model.width)).astype(np.float32)
    tokenizer = tokenizer or make_tokenizer(pad)
    hf_config = families.to_hf_config(model)
    config = hf_config | {
        "architectures": [hf_config["architectures"][0].replace("LMHeadModel", "ForCausalLM").replace(
            "ForCausalLM", "ForSequenceClassification")],
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "pad_token_id": tokenizer.pad_token_id, "eos_token_id": 2} | changes
    held = [tensor for tensor in tensors.stored_tensors(model, {"params": trunk}) if tensor.name != "lm_head.weight"]
    held.append(tensors.Stored("score.weight", (), head.shape, lambda: head))
    hf_export.write_folder(path, {key: value for key, value in config.items() if value != "left out"}, held, tokenizer=tokenizer)
    return trunk, head


def by_hand(trunk, head, ids):
    """One row's logits, at its last token."""
    row = np.asarray(ids)[None]
    hidden = transformer.hidden_states(GPT2, {"params": trunk}, row, np.arange(len(ids))[None], np.ones_like(row))
    return np.asarray(hidden[0, -1], np.float64) @ head.T.astype(np.float64)


def ids_of(text):
    return make_tokenizer()(text)["input_ids"]


@pytest.mark.parametrize("pad", [1, 2, None])
def test_a_final_token_that_is_padding_is_passed_over(pad):
    tokenizer = make_tokenizer()
    (row,) = reward_model.rows_of(tokenizer, [controls.mark(tokenizer, "w5 <eos>")], pad, 9, special=True)
    assert row.prompt.tolist() == ([8] if pad == 2 else [8, 2])


@pytest.mark.parametrize("pad", ["<pad>", "<eos>", None])
def test_the_named_labels_logit_at_the_last_token(tmp_path, pad):
    trunk, head = classifier(tmp_path / "m", pad=pad)
    judge = judge_of(tmp_path / "m", "helpful")
    rows = [ids_of(prompt + response) for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
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


@pytest.mark.parametrize("pad, read", [("<pad>", 2), ("<eos>", 2), (None, 2)])
def test_an_empty_answer_to_an_empty_prompt_has_a_reward(tmp_path, pad, read):
    """Models draw such; this tokenizer makes no token of it, and has no BOS."""
    trunk, head = classifier(tmp_path / "m", labels=("reward",), pad=pad)
    judge = judge_of(tmp_path / "m")
    np.testing.assert_allclose(judge.score(["", "w1"], ["", ""]), [*by_hand(trunk, head, [read]), *by_hand(trunk, head, ids_of("w1"))],
                               atol=1e-5)


@pytest.mark.parametrize("name", ["score.weight", "transformer.h.1.mlp.c_fc.bias"])
def test_a_classifier_with_a_weight_that_is_nan_is_refused_before_anything_trains(tmp_path, name):
    classifier(tmp_path / "m", labels=("reward",))
    held = load_file(tmp_path / "m" / hf_export.WEIGHTS)
    held[name].flat[-1] = np.nan
    save_file(held, tmp_path / "m" / hf_export.WEIGHTS)
    config = default()
    config.golden.kind, config.golden.model = "hf_reward", str(tmp_path / "m")
    with pytest.raises(UserError, match=f"config.golden.model: .*model.safetensors: tensor {name} holds NaN or infinities"):
        reward_model.check(config)


# ---------------------------------------------------------------- by its own chat template

TEMPLATE = ("{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
            "{{ {'user': 'w9 ', 'assistant': 'w10 '}[m.role] + m.content | trim }} <eos> {% endfor %}")
HH = "\n\nHuman: w1 w2\n\nAssistant: w3\n\nHuman: w4\n\nHuman: w8\n\nAssistant:"


def talking():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def test_a_conversation_is_scored_as_the_judges_own_template_renders_it(tmp_path, monkeypatch):
    seen, render = [], chat.Chat.render
    monkeypatch.setattr(chat.Chat, "render", lambda self, messages, **how: seen.append(messages) or render(self, messages, **how))
    trunk, head = classifier(tmp_path / "m", tokenizer=talking())
    judge = judge_of(tmp_path / "m", "helpful", **{"golden.chat": True})
    rendered = ["w9 w1 w2 <eos> w10 w3 <eos> w9 w4 w8 <eos> w10 w5 <eos>", "w9 w6 <eos> w10 w5 <eos>"]
    expected = [by_hand(trunk, head, ids_of(text))[1] for text in rendered]
    np.testing.assert_allclose(judge.score([HH, "w6"], [" w5", "w5 "]), expected, atol=1e-5)
    assert [turn["content"] for turn in [*seen[-2], *seen[-1]]] == ["w1 w2", "w3", "w4\n\nw8", "w5", "w6", "w5"]
    assert abs(judge_of(tmp_path / "m", "helpful").score(["w6"], [" w5"])[0] - expected[1]) > 1e-2


def test_messages_are_scored_as_the_record_has_them(tmp_path):
    """Through a run's own context: the policy's template is another, and the judge's knows no system turn."""
    trunk, head = classifier(tmp_path / "m", tokenizer=talking())
    own = make_tokenizer()
    own.chat_template = "{% for m in messages %}{{ 'w0 ' + m.content }} <eos> {% endfor %}{% if add_generation_prompt %}w0{% endif %}"
    turns = [{"role": "system", "content": "w7"}, {"role": "user", "content": "w1 w2"}]
    records = [{"messages": [*turns, {"role": "assistant", "content": f"w{index}"}]} for index in (3, 4)]
    records += [{"prompt": f"w{index}", "response": " w5"} for index in range(6)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    config = default()
    config.data.source, config.model.path = str(tmp_path / "d.jsonl"), str(hf.save_folder(tmp_path / "base", GPT2, random_trunk(GPT2), own))
    config.data.max_prompt_tokens, config.data.max_response_tokens = 12, 12
    config.golden.kind, config.golden.model, config.golden.label, config.golden.chat = "hf_reward", str(tmp_path / "m"), "short", True
    context = Context(config, None)
    (prompt,) = context.corpus.turns
    shown = context.text(controls.encode(context.tokenizer, [prompt])[0])
    assert context.turns(shown) == turns and context.turns("w6") == [{"role": "user", "content": "w6"}]
    judge = reward_model.make_judge(config, context.mesh, context.turns)
    expected = by_hand(trunk, head, ids_of("w9 w7 w1 w2 <eos> w10 w5 <eos>"))[2]
    np.testing.assert_allclose(judge.score([shown], [" w5"]), [expected], atol=1e-5)


STRICT = TEMPLATE.replace("{{ {'user'", "{% if m.content in ('', 'w3') %}{{ raise_exception('never') }}{% endif %}{{ {'user'")


def test_an_answer_that_the_judges_template_refuses_is_scored_as_it_is(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = STRICT
    trunk, head = classifier(tmp_path / "m", tokenizer=tokenizer)
    judge = judge_of(tmp_path / "m", "helpful", **{"golden.chat": True})
    expected = [by_hand(trunk, head, ids_of(text))[1] for text in ("w9 w6 <eos> w10 w3 <eos>", "w9 w6 <eos> w10 <eos>", "w9 w6 <eos> w10 w5 <eos>")]
    np.testing.assert_allclose(judge.score(["w6"] * 3, [" w3", "", "w5"]), expected, atol=1e-5)


def test_a_prompt_that_the_judges_template_refuses_is_said_before_anything_trains(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = STRICT
    classifier(tmp_path / "m", tokenizer=tokenizer)
    (tmp_path / "d.jsonl").write_text("".join(json.dumps({"prompt": f"w{i}", "response": "w5"}) + "\n" for i in range(9)))
    (tmp_path / "e.jsonl").write_text(json.dumps({"prompt": "w3", "response": "w5"}) + "\n")
    base = hf.save_folder(tmp_path / "base", GPT2, random_trunk(GPT2), make_tokenizer())
    said = ["run", f"--workdir={tmp_path / 'w'}", f"--config.model.path={base}", f"--config.data.source={tmp_path / 'd.jsonl'}",
            f"--config.data.eval_source={tmp_path / 'e.jsonl'}", "--config.golden.kind=hf_reward", f"--config.golden.model={tmp_path / 'm'}",
            "--config.golden.label=short", "--config.golden.chat=True", "--config.data.max_prompt_tokens=12", "--config.data.max_response_tokens=12",
            "--config.reward.recipes=init_sft"]
    assert cli.main(said) == 2 and not (tmp_path / "w").exists()


def test_a_long_conversation_keeps_bos_and_tail(tmp_path):
    tokenizer, long, last = build(), "abcdefghij", ids("ghij")
    for text, special, kept in ((long, True, [BOS, *last]), (long, False, ids("fghij")), (controls.mark(tokenizer, f"<s>{long}"), False,
                                                                                          [BOS, *last])):  # fmt: skip
        (row,) = reward_model.rows_of(tokenizer, [text], None, 5, special)
        assert row.prompt.tolist() == kept


def test_a_judge_without_a_template_is_refused_before_anything_trains(tmp_path):
    classifier(tmp_path / "m", labels=("reward",))
    config = default()
    config.golden.kind, config.golden.model, config.golden.chat = "hf_reward", str(tmp_path / "m"), True
    with pytest.raises(UserError, match="golden.chat: the tokenizer of .* has no chat template"):
        reward_model.check(config)
    config.golden.kind = "testbed"
    with pytest.raises(UserError, match="golden.chat: only golden.kind = 'hf_reward'"):
        checks.check(config)


# ---------------------------------------------------------------- as what a reward starts from


def run_of(path, model, start, **settings):
    """(Context without a workdir, fresh or started leaves) of a run on the model's random trunk."""
    trunk = random_trunk(model)
    config = default()
    config.data.source, config.model.path = "file", str(hf.save_folder(path / "base", model, trunk, make_tokenizer()))
    config.update_from_flattened_dict({"golden.kind": "none", "reward.start": str(start), "reward.start_label": "helpful",
                                       "adapter.rank": 2, "eval.batch_size": 4,
                                       "data.max_prompt_tokens": 12, "data.max_response_tokens": 12} | settings)
    checks.check(config)
    context = Context(config, None)
    return context, lambda: reward_model.start_leaves(context, "reward/x", roles.RewardSpec.of(config.reward))


@pytest.mark.parametrize("model, settings, own", [
    (GPT2, {"reward.body": "trunk"}, True),
    (LLAMA, {"adapter.rank": 0, "model.param_dtype": "bfloat16"}, True),  # an untied head of the run's own beside it
    (LLAMA, {}, False),
    (GPT2, {"reward.body": "frozen"}, False),
    (GPT2, {"reward.ensemble": 2}, False),
])  # fmt: skip
def test_a_started_reward_is_the_classifiers_score(tmp_path, torch, model, settings, own):
    """transformers' score of prompt, response and EOS; the classifier has two embeddings more than the run's model."""
    from transformers import AutoModelForSequenceClassification

    trunk = random_trunk(model, seed=7 if own else 3)
    extra = dataclasses.replace(model, vocab_size=model.vocab_size + 2)
    rows = {**trunk["embed"], "tokens": np.pad(trunk["embed"]["tokens"], ((0, 2), (0, 0)))}
    classifier(tmp_path / "m", model=extra, trunk={**trunk, "embed": rows})
    context, start = run_of(tmp_path, model, tmp_path / "m", **settings)
    leaves, tokenizer = start(), make_tokenizer()
    examples = [Example(np.asarray(tokenizer(prompt)["input_ids"] or [1], np.int32), np.asarray([*tokenizer(response)["input_ids"], 2]),
                        True, 0) for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "m").eval()
    with torch.no_grad():
        expected = [loaded(torch.tensor([[*example.prompt, *example.response]])).logits[0, 1].item() for example in examples]
    assert np.ptp(expected) > 0.1
    for member in context.scorer.member_rewards(leaves, examples):
        np.testing.assert_allclose(member, expected, atol=1e-5)
    assert ("trunk" in leaves) == own and {leaf.dtype.name for leaf in jax.tree.leaves(leaves)} == {"float32"}


def test_what_a_reward_cannot_start_from(tmp_path):
    classifier(tmp_path / "m", trunk=random_trunk(GPT2, seed=7))
    where = f"config.reward.start = '{tmp_path / 'm'}'"
    with pytest.raises(UserError) as caught:
        run_of(tmp_path, GPT2, tmp_path / "m")[1]()
    assert str(caught.value).startswith(f"{where}: its weights differ from the run's model (")
    assert "reward.body to 'trunk'" in str(caught.value)
    classifier(tmp_path / "deep", model=dataclasses.replace(GPT2, num_layers=3))
    with pytest.raises(UserError, match="another architecture than the run's model .n_layer: 3, here 2"):
        run_of(tmp_path, GPT2, tmp_path / "deep", **{"reward.body": "trunk"})[1]()
    file = tmp_path / "m" / "tokenizer.json"
    file.write_text(file.read_text().replace('"w3"', '"x3"'))
    with pytest.raises(UserError, match="another id for 'w3' than the run's"):
        run_of(tmp_path, GPT2, tmp_path / "m", **{"reward.body": "trunk"})[1]()
    with pytest.raises(UserError, match="reward.head to 'linear'"):
        run_of(tmp_path, GPT2, tmp_path / "m", **{"reward.head": "mlp"})
    with pytest.raises(UserError, match="start_label: needs reward.start"):
        run_of(tmp_path, GPT2, "")


@pytest.mark.parametrize("key, value, message", [
    ("golden.model", "none", "config.golden.model: "), ("golden.label", "kind", "has no label 'kind'"), ("reward.start", "none", "none"),
    ("variants", ("reward/x = init_sft reward.start=/none",), "config.reward.start: /none: no such model folder"),
    ("reward.start_label", "", "reward.start_label"),
])
def test_reward_models_are_refused_before_anything_trains(tmp_path, key, value, message):
    classifier(tmp_path / "m")
    config = _file_config(tmp_path)
    value = str(tmp_path / value) if value == "none" else value
    config.update_from_flattened_dict({"golden.kind": "hf_reward", "golden.model": str(tmp_path / "m"), "golden.label": "short",
                                       "reward.start": str(tmp_path / "m"), "reward.start_label": "short"} | {key: value})
    with pytest.raises(UserError) as caught:
        stages.run_pipeline(config, tmp_path / "w")
    assert message in str(caught.value) and "\n" not in str(caught.value) and not (tmp_path / "w").exists()


@pytest.mark.slow
def test_a_run_in_bfloat16_judged_by_a_reward_model_and_started_from_one(tmp_path):
    """Rewards that start from a classifier and hardly move are still it, in the reward stage and in the adversarial loop."""
    classifier(tmp_path / "judge")
    config = _file_config(tmp_path, model__param_dtype="bfloat16")
    model, _ = hf.load_folder(config.model.path)
    trunk, head = classifier(tmp_path / "start", ("reward",), model=model, tokenizer=hf.load_tokenizer(config.model.path))
    started = f"reward.start={tmp_path / 'start'} reward.body=trunk reward.learning_rate=1e-9"
    config.variants = (f"reward/started = init_sft {started}", f"adversarial/started = demo {started} adversarial.rounds=2 "
                       "adversarial.warmup_rounds=1")
    config.golden.kind, config.golden.model, config.golden.label = "hf_reward", str(tmp_path / "judge"), "short"
    stages.run_pipeline(config, tmp_path / "w")
    results = json.loads((tmp_path / "w" / "results.json").read_text())
    assert results["golden"]["name"] == "hf_reward" and all(np.isfinite(row["golden_mean"]) for row in results["policies"].values())
    context = generate.open_run(workdir.read_config(tmp_path / "w"), tmp_path / "w")
    for tree, kind in ((context.trunk, "bfloat16"), *((context.leaves(role), "float32") for role in ("sft", "reward/init_sft"))):
        assert {leaf.dtype.name for leaf in jax.tree.leaves(tree)} == {kind}
    for role, leaves in (("reward/started", context.leaves("reward/started")), ("adversarial/started/reward", context.load(
            "adversarial/started/reward", context.like(lambda: context.leaves("reward/started"))))):
        np.testing.assert_allclose(leaves["head"]["kernel"], head.T, atol=1e-6, err_msg=role)
        np.testing.assert_allclose(leaves["trunk"]["embed"]["tokens"], trunk["embed"]["tokens"], atol=1e-6, err_msg=role)
    assert "by a reward model" in (tmp_path / "w" / "report" / "index.html").read_text()
