"""A given reward model, a `*ForSequenceClassification` folder: as the golden reward, or as a reward's start."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from irl_jax import hf, roles, sharding, variants
from irl_jax.data import chat, controls
from irl_jax.errors import UserError
from irl_jax.evaluation.golden import Judge
from irl_jax.models import families
from irl_jax.stages import scoring
from irl_jax.stages.context import as_configured
from irl_jax.types import Example, PyTree


def check(config) -> None:
    """Refuses a config's reward models that aren't any, before anything trains.

    Raises: UserError that names the setting.
    """
    golden = config.golden
    named = [("golden.model", golden.model, golden.revision, "golden.label", golden.label)] if golden.kind == "hf_reward" else []
    for method in [*variants.methods(config, "reward"), *variants.methods(config, "adversarial")]:
        reward = method.config.reward
        if reward.start:
            named.append(("reward.start", reward.start, reward.start_revision, "reward.start_label", reward.start_label))
    for key, path, revision, label_key, label in dict.fromkeys(named):
        try:
            tokenizer = hf.check_reward_model(hf.resolve(path, revision), label, key=label_key)
        except UserError as error:
            raise UserError(f"config.{key}: {error}") from None
        if key == "golden.model" and config.golden.chat and chat.of(tokenizer) is None:
            raise UserError(f"config.golden.chat: the tokenizer of {path} has no chat template; leave golden.chat off")


def start_leaves(context, purpose: str, spec: roles.RewardSpec) -> PyTree:
    """A reward's initial leaves on the mesh: h = 0 everywhere, or the score of config.reward.start.

    A body with its own trunk takes the classifier's. An adapter, or no body, stands on the run's trunk, which must then equal the
    classifier's. As for every reward, the logit is read at the response's last token, EOS included.

    Args:
        context, purpose, spec: as for `Context.init_leaves`.

    Raises:
        UserError: the classifier has another architecture, tokenizer or (if it must be the same) trunk.
    """
    leaves = context.init_leaves("reward", purpose, reward=spec)
    reward = context.config.reward
    if not reward.start:
        return leaves
    own = leaves.get("members", leaves)
    kind = "float32" if "trunk" in own else context.config.model.param_dtype
    folder = hf.resolve(reward.start, reward.start_revision)
    loaded = hf.load_reward_model(folder, reward.start_label, context.mesh, key="reward.start_label", param_dtype=kind)
    _same_kind(context, loaded.model, hf.load_tokenizer(folder))
    given: dict[str, PyTree] = {"head": {"kernel": loaded.weight[:, None], "bias": np.zeros(1, np.float32)}}
    shared = min(context.model.vocab_size, loaded.model.vocab_size)  # other rows are of tokens that the run's tokenizer never gives
    trunk = {**loaded.trunk, "embed": {**loaded.trunk["embed"], "tokens": loaded.trunk["embed"]["tokens"][:shared]}}
    if "trunk" in own:
        unused = context.model.padded_vocab - shared
        given["trunk"] = {**trunk, "embed": {**trunk["embed"], "tokens": jnp.pad(trunk["embed"]["tokens"], ((0, unused), (0, 0)))}}
    else:
        _same_weights(context, trunk)
    started = _replaced(own, given)
    return context.place({"members": started} if "members" in leaves else started)


def _replaced(fresh: PyTree, given: PyTree) -> PyTree:
    """`fresh` with the given leaves in place, for each member if there are several."""
    if not isinstance(fresh, Mapping):
        return jnp.broadcast_to(jnp.asarray(given, jnp.float32), fresh.shape)
    return {key: _replaced(value, given[key]) if key in given else value for key, value in fresh.items()}


def _same_kind(context, model, tokenizer) -> None:
    where = f"config.reward.start = {context.config.reward.start!r}"
    ours = dataclasses.replace(context.model, vocab_size=model.vocab_size, tie_embeddings=model.tie_embeddings)
    theirs, ours = families.to_hf_config(model), families.to_hf_config(ours)
    if theirs != ours:
        key = next(key for key in ours | theirs if ours.get(key) != theirs.get(key))
        raise UserError(f"{where}: another architecture than the run's model ({key}: {theirs.get(key)!r}, here {ours.get(key)!r}); rewards "
                        "share their shape with it. golden.kind = 'hf_reward' takes any")
    vocabulary = tokenizer.get_vocab()
    other = next((token for token, number in context.tokenizer.get_vocab().items() if vocabulary.get(token) != number), None)
    if other is not None:
        raise UserError(f"{where}: its tokenizer has another id for {other!r} than the run's, or none; the two must be the same")


def _same_weights(context, trunk: PyTree) -> None:
    """Raises UserError if a classifier's trunk, cut to the shared embeddings, is not the run's."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(trunk):
        theirs, ours = sharding.fetch(leaf), context.trunk
        for key in path:
            ours = ours[key.key]
        if not np.array_equal(sharding.fetch(ours)[: len(theirs)], theirs):
            reward, name = context.config.reward, jax.tree_util.keystr(path, simple=True, separator="/")
            raise UserError(f"config.reward.start = {reward.start!r}: its weights differ from the run's model ({name}), on which "
                            f"reward.body = {reward.body!r} stands; set reward.body to 'trunk': the reward then has a whole one of its own")


def make_judge(config, mesh, turns: Callable[[str], list[dict]] = chat.turns_of, now: datetime.datetime | None = None) -> Judge:
    """The judge of golden.kind = "hf_reward": the logit of golden.label for prompt + response.

    The model's own tokenizer encodes the text by its own rules. With golden.chat, the tokenizer's chat template renders the prompt's
    turns and the response, and no special tokens are added. A text beyond the model's context keeps its tail and its BOS. As in
    transformers, the logit is read at the last non-padding token: if pad = EOS, a final EOS is skipped.

    Args:
        config: the whole config; reads golden, how models are computed (model.*) and eval.batch_size.
        mesh: where to put the model.
        turns: turns a prompt into its conversation. now: the time that a chat template writes; None: the current time.

    Raises:
        UserError: the model, its label or its tokenizer is missing.
    """
    folder = hf.resolve(config.golden.model, config.golden.revision)
    loaded = hf.load_reward_model(folder, config.golden.label, mesh, param_dtype=config.model.param_dtype,
                                  vocab_multiple=config.model.vocab_multiple)
    tokenizer = hf.load_tokenizer(folder)
    model = as_configured(loaded.model, config)
    scorer = scoring.Scorer(model, mesh, loaded.trunk, longest=model.max_positions, rows=config.eval.batch_size)
    head = {"head": {"kernel": jnp.asarray(loaded.weight[:, None]), "bias": jnp.zeros(1, jnp.float32)}}
    leaves, template = sharding.place(head, mesh), chat.of(tokenizer, now) if config.golden.chat else None

    def text(prompt: str, response: str) -> str:
        if template is None:
            return controls.as_text(prompt + response)
        return _answered(template, turns(prompt), response.strip())

    def score(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        texts = [text(*pair) for pair in zip(prompts, responses, strict=True)]
        rows = rows_of(tokenizer, texts, loaded.pad_id, model.max_positions, special=template is None) if texts else []
        return scorer.rewards(leaves, rows) if rows else np.zeros(0)

    return Judge("hf_reward", None, f"{loaded.label}, by {config.golden.model}", score)


def check_prompts(context) -> None:
    """Refuses evaluation prompts that the judge's chat template can't render, before anything trains.

    Raises: UserError that names the prompt.
    """
    golden = context.config.golden
    if golden.kind != "hf_reward" or not golden.chat:
        return
    template = chat.of(hf.load_tokenizer(hf.resolve(golden.model, golden.revision)), context.began)
    assert template is not None  # `check` has refused None
    for prompt in dict.fromkeys(context.text(example.prompt) for example in context.evaluation):
        try:
            _answered(template, context.turns(prompt), "-")
        except UserError as error:
            raise UserError(f"config.golden.chat: the evaluation prompt {prompt[:40]!r} cannot be judged: {error}") from None


def _answered(template: chat.Chat, turns: list[dict], response: str) -> str:
    """Renders a conversation with its answer. If the template refuses this answer, renders another and puts the answer in its place."""
    def text(content: str) -> str:
        return _rendered(template, [*turns, {"role": "assistant", "content": content}])

    try:
        return text(response)
    except UserError:
        return text(controls.SENTINEL).replace(controls.SENTINEL, controls.as_text(response))


def _rendered(template: chat.Chat, messages: list[dict]) -> str:
    """A conversation's text. If the template (such as Gemma's) has no system turn, that one goes at the start of the next turn."""
    try:
        return template.render(messages)
    except UserError:
        if messages[0]["role"] != "system" or len(messages) < 3:
            raise
        first, second, *rest = messages
        return template.render([{**second, "content": f"{first['content']}\n\n{second['content']}"}, *rest])


def rows_of(tokenizer, texts: Sequence[str], pad_id: int | None, longest: int, special: bool) -> list[Example]:
    """Texts as Examples, all prompt, ending with the token to read the logit at. special: add the tokenizer's special tokens.

    Many tokenizers give no token for an empty text. It becomes the tokenizer's BOS, or else its EOS or padding.
    """
    named = (tokenizer.bos_token_id, tokenizer.eos_token_id, pad_id, tokenizer.pad_token_id)
    empty = [next((number for number in named if number is not None), 0)]
    rows = []
    for index, ids in enumerate(controls.encode(tokenizer, texts, special)):
        ids = ids or empty
        if len(ids) > longest:
            bos = ids[:1] if ids[0] == tokenizer.bos_token_id else []
            ids = bos + ids[len(ids) - longest + len(bos) :]
        # At least one token stays, as in transformers: a text that is all padding is read at its first.
        last = max((place for place, token in enumerate(ids) if token != pad_id), default=0)
        kept = np.asarray(ids[: last + 1], np.int32)
        rows.append(Example(kept, kept[:0], False, index))
    return rows
