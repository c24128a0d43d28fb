"""Every family against torch transformers on tiny random models: logits, gradients, greedy text, and the way back."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from irl_jax import hf, sampler
from irl_jax.models import tensors, transformer
from irl_jax.models.logprobs import token_logprobs
from irl_jax.types import PromptBatch

LLAMA3_ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 16}  # fmt: skip
SMALL = dict(vocab_size=29, hidden_size=24, intermediate_size=20, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
             max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0)  # fmt: skip
GEMMA2 = SMALL | dict(head_dim=10, query_pre_attn_scalar=7, sliding_window=5)
CASES = {  # name: (model_type, settings)
    "gpt2": ("gpt2", dict(vocab_size=29, n_embd=24, n_layer=3, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2)),
    "gpt2-untied": ("gpt2", dict(vocab_size=29, n_embd=24, n_layer=2, n_head=2, n_inner=36, n_positions=64, activation_function="gelu",
                                 tie_word_embeddings=False, bos_token_id=1, eos_token_id=2)),
    "llama": ("llama", SMALL),
    "llama-scaled": ("llama", SMALL | dict(rope_parameters=LLAMA3_ROPE | {"rope_theta": 500.0}, num_key_value_heads=1, head_dim=8)),
    "llama-linear": ("llama", SMALL | dict(rope_parameters={"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4},
                                           tie_word_embeddings=True, attention_bias=True, num_key_value_heads=4)),
    "mistral": ("mistral", SMALL | dict(sliding_window=5)),
    "mistral-whole": ("mistral", SMALL | dict(sliding_window=None, head_dim=10, num_key_value_heads=1)),
    "qwen2": ("qwen2", SMALL | dict(tie_word_embeddings=True)),
    "qwen2-window": ("qwen2", SMALL | dict(use_sliding_window=True, sliding_window=4, max_window_layers=1, num_key_value_heads=1)),
    "qwen3": ("qwen3", SMALL | dict(head_dim=8)),
    "qwen3-tied": ("qwen3", SMALL | dict(head_dim=12, tie_word_embeddings=True, num_key_value_heads=4, attention_bias=True)),
    "gemma": ("gemma", SMALL | dict(head_dim=10, num_key_value_heads=1)),
    "gemma2": ("gemma2", GEMMA2),
    "gemma2-caps": ("gemma2", GEMMA2 | dict(attn_logit_softcapping=1.0, final_logit_softcapping=2.0, sliding_window=3,
                                           num_key_value_heads=1)),
    "gemma3": ("gemma3_text", GEMMA2 | dict(num_hidden_layers=7)),
    "gemma3-scaled": ("gemma3_text", GEMMA2 | dict(sliding_window=4,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={"full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 900.0},
                         "sliding_attention": {"rope_type": "default", "rope_theta": 50.0}})),
    "phi3": ("phi3", SMALL | dict(sliding_window=6)),
    "phi3-partial": ("phi3", SMALL | dict(num_attention_heads=2, num_key_value_heads=1,
                                          rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5})),
}  # fmt: skip
T, LENGTHS = 14, np.array([14, 9, 5])


@pytest.fixture(scope="module", params=CASES)
def pair(request, torch, tmp_path_factory):
    """(torch model, folder, our config, our trunk) of one case, every parameter far from its initial value."""
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, settings = CASES[request.param]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings), attn_implementation="eager").eval().float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if "norm" in name or "bias" in name or "ln_" in name else 0.15))
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    config, trunk = hf.load_folder(folder)
    assert config.family == kind
    return model, folder, config, trunk


def batch(left):
    """Tokens, mask and positions of rows padded on one side."""
    tokens = np.random.default_rng(3).integers(3, 29, (len(LENGTHS), T))
    index = np.arange(T) - (T - LENGTHS[:, None] if left else 0)
    mask = (index >= 0) & (index < LENGTHS[:, None])
    return np.where(mask, tokens, 0), mask, np.where(mask, index, 0)


def theirs(torch, model, tokens, mask, positions):
    as_tensor = lambda x: torch.tensor(np.asarray(x, np.int64))
    return model(input_ids=as_tensor(tokens), attention_mask=as_tensor(mask), position_ids=as_tensor(positions), use_cache=False).logits


@functools.partial(jax.jit, static_argnums=0)
def ours(config, trunk, tokens, mask, positions):
    hidden = transformer.hidden_states(config, {"params": trunk}, tokens, positions, mask.astype(jnp.int32))
    return transformer.vocab_logits(config, {"params": trunk}, hidden)


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_logits_at_every_position_of_padded_rows(pair, left, torch):
    model, _, config, trunk = pair
    tokens, mask, positions = batch(left)
    with torch.no_grad():
        expected = theirs(torch, model, tokens, mask, positions).numpy()
    assert np.abs(expected[mask]).max() > 0.5
    for scan in (False, True):
        got = ours(dataclasses.replace(config, scan_layers=scan), trunk, tokens, mask, positions)
        np.testing.assert_allclose(np.asarray(got)[mask], expected[mask], atol=1e-4, rtol=0)


def test_gradients_of_the_sft_loss(pair, torch):
    model, _, config, trunk = pair
    tokens, mask, positions = batch(left=False)
    logits = theirs(torch, model, tokens, mask, positions)
    logprobs = torch.log_softmax(logits[:, :-1], -1).gather(-1, torch.tensor(tokens[:, 1:, None]).long())[..., 0]
    model.zero_grad()
    (-(logprobs * torch.tensor(mask[:, 1:])).sum()).backward()
    expected = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}

    @jax.jit
    def gradient(trunk):
        return jax.grad(lambda t: -token_logprobs(config, {"params": t}, tokens, positions, mask.astype(np.int32)).sum())(trunk)

    got = tensors.export_tensors(config, gradient(trunk))
    assert set(got) == set(expected)
    for name, want in expected.items():
        norm = np.linalg.norm(want)
        assert np.linalg.norm(got[name] - want) <= max(1e-4 * norm, 1e-6 * np.sqrt(want.size)), (name, norm)


def test_greedy_text_is_that_of_generate(pair, torch):
    model, _, config, trunk = pair
    tokens, mask, _ = batch(left=True)
    limit = 10
    with torch.no_grad():
        want = model.generate(torch.tensor(tokens), attention_mask=torch.tensor(mask.astype(np.int64)), max_new_tokens=limit,
                              do_sample=False, eos_token_id=2, pad_token_id=0)[:, T:].numpy()
    draw = jax.jit(sampler.make_sampler(config, samples=1, max_tokens=limit, eos_ids=(2,), pad_id=0, temperature=0.0))
    drawn = draw({"params": trunk}, PromptBatch(right(tokens, mask), jnp.asarray(LENGTHS), jnp.arange(3)), jax.random.key(0))
    got = np.asarray(drawn.tokens)[:, 0]
    np.testing.assert_array_equal(np.where(np.asarray(drawn.mask)[:, 0] > 0, got, 0)[:, : want.shape[1]], want)


def right(tokens, mask):
    """The same rows, padded on the right."""
    out = np.zeros_like(tokens)
    for row, length in enumerate(LENGTHS):
        out[row, :length] = tokens[row][mask[row]]
    return out


def test_what_we_write_gives_transformers_the_same_logits(pair, tmp_path, torch):
    from transformers import AutoModelForCausalLM

    model, folder, config, trunk = pair
    hf.save_folder(tmp_path, config, trunk)
    back = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert type(back) is type(model)
    assert hf.load_folder(tmp_path)[0] == config
    rows = batch(left=False)
    with torch.no_grad():
        expected, got = theirs(torch, model, *rows), theirs(torch, back, *rows)
    np.testing.assert_allclose(got.numpy()[rows[1]], expected.numpy()[rows[1]], atol=1e-6)
    architectures = [json.loads((where / "config.json").read_text())["architectures"] for where in (tmp_path, folder)]
    assert architectures[0] == architectures[1]
