"""Every family against torch transformers on tiny random models: logits, gradients, greedy text, and the way back.

Without torch against what it gave (tests/fixtures/families, see family_cases.py); with it, live, and those files too.
"""

import dataclasses
import functools
import json

import family_cases as cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from irl_jax import hf, hf_export, sampler
from irl_jax.models import families, tensors, transformer
from irl_jax.models.logprobs import token_logprobs
from irl_jax.objectives import sequence
from irl_jax.types import PromptBatch

TOKENS, MASK, POSITIONS = cases.rows()
SEGMENTS = MASK.astype(np.int32)


class Case:
    """One case: what is expected of it, the folder of its model, and what we make of that."""

    def __init__(self, name, folder):
        self.name, self.folder, self.expected = name, folder, cases.read(name)
        hf_export.save_tensors(folder / hf_export.WEIGHTS, self.expected.tensors)
        hf_export.write_json(folder / "config.json", self.expected.config)
        self.config, self.trunk = hf.load_folder(folder)

    @functools.cached_property
    def logits(self):
        """[6, T, V], layer by layer."""

        @jax.jit
        def compute(trunk):
            hidden = transformer.hidden_states(self.config, {"params": trunk}, TOKENS, POSITIONS, SEGMENTS)
            return transformer.vocab_logits(self.config, {"params": trunk}, hidden)

        return np.asarray(compute(self.trunk))

    @functools.cached_property
    def logprobs_and_gradients(self):
        """The tokens' log-probs [6, T], and the SFT loss's gradient by the checkpoint's names and in parts.

        Both by lax.scan over the layers, which is the other path and compiles faster.
        """
        config = dataclasses.replace(self.config, scan_layers=True)

        def loss(trunk):
            logprobs = token_logprobs(config, {"params": trunk}, TOKENS, POSITIONS, SEGMENTS)
            total, weight = sequence.negative_logprob(logprobs, cases.responses())
            return total / weight, logprobs

        gradient, logprobs = jax.jit(jax.grad(loss, has_aux=True))(self.trunk)
        exported = tensors.export_tensors(config, gradient)
        return np.asarray(logprobs), {name: cases.parts(self.expected.config, name, value) for name, value in exported.items()}

    @functools.cached_property
    def greedy(self):
        """What the sampler writes at temperature 0, [3, LIMIT]."""
        draw = jax.jit(sampler.make_sampler(self.config, samples=1, max_tokens=cases.LIMIT, eos_ids=(2,), pad_id=0, temperature=0.0))
        prompts = PromptBatch(cases.prompts(left=False)[0], jnp.asarray(cases.LENGTHS), jnp.arange(3))
        drawn = draw({"params": self.trunk}, prompts, jax.random.key(0))
        return np.where(np.asarray(drawn.mask)[:, 0] > 0, np.asarray(drawn.tokens)[:, 0], 0)


class Live:
    """A case's torch model, saved to a folder, and what it gives."""

    def __init__(self, case, folder):
        self.folder, self.model = folder, cases.torch_model(case.name, case.expected.seed)
        self.expected = cases.live(self.model, case.expected.seed, folder)


@pytest.fixture(scope="module", params=cases.CASES)
def case(request, tmp_path_factory):
    return Case(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def live(case, torch, tmp_path_factory):
    return Live(case, tmp_path_factory.mktemp(f"{case.name}-live"))


def assert_logits(case, expected, tolerance):
    np.testing.assert_allclose(case.logits[MASK], expected.logits[MASK], atol=tolerance, rtol=0)
    follows = MASK[:, 1:] & MASK[:, :-1]
    picked = np.take_along_axis(np.asarray(jax.nn.log_softmax(expected.logits[:, :-1])), TOKENS[:, 1:, None], axis=-1)[..., 0]
    np.testing.assert_allclose(case.logprobs_and_gradients[0][:, 1:][follows], picked[follows], atol=2 * tolerance, rtol=0)


def assert_gradients(got, want, tolerance):
    assert set(got) == set(want)
    distances = {name: [cases.distance(*part) for part in zip(got[name], want[name], strict=True)] for name in want}
    assert not (far := {name: worst for name, parts in distances.items() if not (worst := max(parts)) <= tolerance}), far


# ---------------------------------------------------------------- against the files; what they lost in rounding is off the tolerance


def test_logits_at_every_position_of_padded_rows(case):
    assert_logits(case, case.expected, 1e-4 - cases.LOGIT_STEP / 2)


def test_gradients_of_the_sft_loss(case):
    assert_gradients(case.logprobs_and_gradients[1], case.expected.gradients, 1e-4 - 3e-5)


def test_greedy_text_is_that_of_generate(case):
    np.testing.assert_array_equal(case.greedy, case.expected.greedy)


def test_what_we_write_is_what_was_read(case, tmp_path):
    """Tensors bitwise, and a config.json that says the same to us and to transformers."""
    from safetensors.numpy import load_file
    from transformers import AutoConfig

    hf.save_folder(tmp_path, case.config, case.trunk)
    written = load_file(tmp_path / hf_export.WEIGHTS)
    assert set(written) == set(case.expected.tensors)
    for name, tensor in case.expected.tensors.items():
        assert written[name].dtype == np.float32
        np.testing.assert_array_equal(written[name], tensor, strict=True, err_msg=name)
    assert hf.read_config(tmp_path) == hf.read_config(case.folder) == case.config
    assert case.config.family == cases.CASES[case.name][0]
    ours, theirs = (AutoConfig.from_pretrained(folder).to_dict() for folder in (tmp_path, case.folder))
    others = {key: (ours.get(key, ...), value) for key, value in theirs.items() if ours.get(key, ...) != value}
    # The ids are the tokenizer's, and there is none.
    assert set(others) <= {"_name_or_path", "bos_token_id", "eos_token_id", "pad_token_id"}, others


def test_cases_cover_every_family():
    """Each family has two settings or more, of different head ratios, tied and untied, a window within the rows where it has windows."""
    assert {file.stem for file in cases.FOLDER.iterdir()} == set(cases.CASES)
    for family in families.FAMILIES:
        configs = [families.from_hf_config(cases.read(name).config) for name, (kind, _) in cases.CASES.items() if kind == family]
        heads = {c.num_heads if family == "gpt2" else c.num_heads / c.num_kv_heads for c in configs}
        assert len(heads) > 1, family
        assert {config.tie_embeddings for config in configs} == {True, False}, family
        if family not in ("gpt2", "llama", "gemma"):
            assert any(config.windowed and config.window < min(cases.T, cases.LENGTHS[1]) for config in configs), family


# ---------------------------------------------------------------- live


def test_live_the_files_are_what_torch_gives(case, live):
    from safetensors.numpy import load_file

    got, want = live.expected, case.expected
    assert (got.config, got.shapes) == (want.config, want.shapes)
    saved = load_file(live.folder / "model.safetensors")
    assert set(saved) == set(want.tensors)
    for name, tensor in want.tensors.items():
        np.testing.assert_array_equal(saved[name], tensor, err_msg=name)
    np.testing.assert_allclose(want.logits, got.logits, atol=cases.LOGIT_STEP, rtol=0)
    np.testing.assert_array_equal(want.greedy, got.greedy)
    assert_gradients(want.gradients, got.gradients, 3e-5)


def test_live_logits_gradients_and_greedy_text(case, live):
    assert_logits(case, live.expected, 1e-4)
    assert_gradients(case.logprobs_and_gradients[1], live.expected.gradients, 1e-4)
    np.testing.assert_array_equal(case.greedy, live.expected.greedy)


def test_live_what_we_write_gives_transformers_the_same_logits(case, live, tmp_path):
    from transformers import AutoModelForCausalLM

    hf.save_folder(tmp_path, case.config, case.trunk)
    back = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert type(back) is type(live.model)
    got = cases.torch_logits(back).detach().numpy()
    np.testing.assert_allclose(got[MASK], live.expected.logits[MASK], atol=1e-6, rtol=0)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == case.expected.config["architectures"]
