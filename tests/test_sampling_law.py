"""sample.temperature and sample.top_p: who draws by them, and whose log-probs the evaluation then uses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

from irl_jax import artifacts, sampler, stages
from irl_jax.checks import check
from irl_jax.data.batching import prompt_batch
from irl_jax.errors import UserError
from irl_jax.models import transformer
from irl_jax.stages import context as contexts
from irl_jax.stages import iterations, model_card, report_run, sampling
from irl_jax.types import Example

TOP_P = 0.6
TRAINED = ("policy/init_sft", "rejection/init_sft")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(config, a finished run under top-p)."""
    config = tiny_config(sample__top_p=TOP_P, reward__recipes=("init_sft",), rejection__recipes=("init_sft",), rejection__steps=2,
                         rejection__samples=4, rejection__prompts=8, policy__keep_rollouts_every=1)
    path = tmp_path_factory.mktemp("runs") / "top_p"
    stages.run_pipeline(config, path)
    return config, path


@pytest.fixture(scope="module")
def context(finished):
    return contexts.Context(finished[0], contexts.Reader(finished[1]))


def own_logprobs(context, role, examples):
    """(log-prob of each token [n][T], its rank mass: the probability of all tokens likelier than it), from the model's whole logits."""
    variables = transformer.unstack(context.model, context.variables(role))
    forward = jax.jit(lambda tokens: _logits(context.model, variables, tokens))
    logprobs, before = [], []
    longest = max(len(e.prompt) + len(e.response) for e in examples)
    for example in examples:
        ids = np.concatenate([example.prompt, example.response])
        logits = np.asarray(forward(np.pad(ids, (0, longest - len(ids)))), np.float64)[len(example.prompt) - 1 : len(ids) - 1]
        law = np.exp(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))
        chosen = law[np.arange(len(example.response)), example.response]
        logprobs.append(np.log(chosen))
        before.append(np.where(law > chosen[:, None] * (1 + 1e-5), law, 0).sum(-1))
    return logprobs, before


def _logits(model, variables, tokens):
    """Next-token logits [T, V] of one row, by prefilling every prefix of it: another way than training and scoring go."""
    lengths = jnp.arange(1, len(tokens) + 1)
    return transformer.prefill(model, variables, jnp.tile(tokens, (len(tokens), 1)), lengths)[0]


@pytest.mark.parametrize("role", ["init", "sft", *TRAINED])
def test_samples_lie_in_the_nucleus_and_keep_the_models_own_logprobs(context, role):
    loaded = sampling.load(context, role, "eval")
    some = loaded["examples"][::7][:12]
    logprobs, before = own_logprobs(context, role, some)
    assert max(map(np.max, before)) < TOP_P + 1e-4
    kept = loaded["logprobs"].sum(-1).reshape(-1)[::7][:12]
    np.testing.assert_allclose(kept, [values.sum() for values in logprobs], rtol=1e-4, atol=1e-3)


def test_training_samples_unfiltered(context, finished):
    """Rollouts of the policy gradient and the samples of rejection leave the nucleus, as the model's own distribution does."""
    samples = iterations.draw(context, "rejection/init_sft/iteration-0", context.leaves("sft"),
                              context.training_prompts[:8], 4)["examples"]
    assert max(map(np.max, own_logprobs(context, "sft", samples)[1])) > TOP_P + 0.1
    rollout = artifacts.load_arrays(finished[1] / "policy" / "init_sft" / "rollouts" / "0.npz")
    rows = zip(rollout["tokens"], rollout["prompt_lengths"], rollout["lengths"], strict=True)
    drawn = [Example(row[:middle], row[middle:end], True, 0) for row, middle, end in rows]
    assert max(map(np.max, own_logprobs(context, "sft", drawn)[1])) > TOP_P + 0.1


def test_kl_to_sft_is_of_the_models(context, finished):
    results = artifacts.read_json(finished[1] / "results.json")
    for role in ("init", "policy/init_sft"):
        examples = sampling.load(context, role, "eval")["examples"]
        ratio = [a.sum() - b.sum() for a, b in zip(own_logprobs(context, role, examples)[0], own_logprobs(context, "sft", examples)[0],
                                                   strict=True)]
        assert results["policies"][role]["kl_to_sft"] == pytest.approx(np.mean(ratio), abs=2e-3)


def test_what_needs_the_models_own_samples_is_left_out(finished):
    results = artifacts.read_json(finished[1] / "results.json")
    assert "auc_minus_log_ratio" not in results["rewards"]["init_sft"]
    assert all("at_same_kl" not in row for row in results["policies"].values())
    row = results["divergences"]["sft"]
    assert row["forward_kl"] > 0 and row["reverse_kl"] is row["jensen_shannon"] is row["jensen_shannon_stderr"] is None
    page = (finished[1] / "report" / "index.html").read_text()
    assert "drawn at temperature 1 and top-p 0.6" in page


def test_the_same_words_at_the_defaults():
    assert "top-p" not in report_run._evaluation({"policies": {"sft": {"n": 3}}}, {"sample": dict(tiny_config().sample)})
    assert sampling.law_of(tiny_config().sample) == sampling.MODEL


def test_the_card_says_the_law():
    facts = model_card.Facts("sft", "sft", None, "", "", "testbed", {}, {"sample.temperature": 0.7, "sample.top_p": 0.9}, {}, None, {})
    assert model_card._law(facts) == "temperature 0.7, top-p 0.9" and model_card._law_given(facts) == "temperature=0.7, top_p=0.9, "
    plain = facts._replace(changed={})
    assert model_card._law(plain) == "temperature 1, unfiltered" and model_card._law_given(plain) == ""


def test_one_program_serves_every_temperature():
    """A sampler that is told the temperature draws, bit for bit at 1, what one made for it draws; near enough at others, greedy at 0."""
    model = transformer.ModelConfig(vocab_size=40, num_layers=1, width=8, num_heads=2, num_kv_heads=2, head_dim=4, mlp_width=8,
                                    max_positions=16)
    trunk = transformer.init_trunk(jax.random.key(0), model)
    variables = {"params": trunk | {"embed": {**trunk["embed"], "tokens": 40 * trunk["embed"]["tokens"]}}}  # far from uniform
    prompts = prompt_batch([np.array([3, 4, 5], np.int32), np.array([6, 7], np.int32)], [0, 1], 4, 2)
    shape = dict(samples=4, rows=2, max_tokens=6, eos_ids=(1,), pad_id=0)
    told = jax.jit(sampler.make_sampler(model, **shape, **sampling.how(sampling.MODEL)))
    for temperature in (1.0, 0.5, 0.0):
        found = told(variables, prompts, jax.random.key(0), 4, np.float32(temperature))
        made = jax.jit(sampler.make_sampler(model, **shape, temperature=temperature, with_logprobs=True))(
            variables, prompts, jax.random.key(0))
        np.testing.assert_array_equal(found.tokens, made.tokens)
        if temperature == 1:
            np.testing.assert_array_equal(found.logprobs, made.logprobs)
        np.testing.assert_allclose(found.logprobs, made.logprobs, atol=1e-5)
        np.testing.assert_allclose(found.behaviour_logprobs, made.behaviour_logprobs, atol=1e-4)
    assert told._cache_size() == 1


@pytest.mark.parametrize("key, value", [("temperature", 0.0), ("temperature", -1.0), ("temperature", 1e-40), ("temperature", 2000.0),
                                        ("top_p", 0.0), ("top_p", 1.01), ("top_p", -0.5)])
def test_bad_laws_are_one_line(key, value):
    config = tiny_config()
    config.sample[key] = value
    with pytest.raises(UserError, match=rf"config.sample.{key} = {value}: must be") as caught:
        check(config)
    assert "\n" not in str(caught.value)
