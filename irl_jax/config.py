"""Every setting and its default. Files under configs/ start from `default()` and change what they need.

The config is locked: an unknown key is an error that names the nearest right one. Empty strings and tuples mean "none".
"""

from __future__ import annotations

import os

from ml_collections import ConfigDict

from irl_jax.errors import UserError

LEARNT = ("init_sft", "init_demo", "sft_demo", "preference")  # reward recipes that train a discriminator
CONTROLS = ("log_ratio", "length", "random", "golden")  # rewards that train nothing
OPTIMISABLE = (*LEARNT, "log_ratio")  # rewards a policy may be trained on: golden is for evaluation only
GOLDEN_KINDS = ("testbed", "classifier", "none")

_CHOICES = {
    "data.kind": ("pairs", "continuations"),
    "model.architecture": ("gpt2", "llama"),
    "model.dtype": ("float32", "bfloat16"),
    "model.remat": ("none", "full", "dots"),
    "policy.kl": ("reward", "loss"),
    "policy.reference": ("sft", "init"),
    "golden.kind": GOLDEN_KINDS,
    **{f"{stage}.schedule": ("cosine", "linear", "constant") for stage in ("pretrain", "sft", "reward", "policy")},
}
_SETS = {"reward.recipes": LEARNT, "reward.controls": CONTROLS, "policy.recipes": OPTIMISABLE}
_POSITIVE = (
    "pretrain.steps", "reward.steps", "policy.steps", "model.num_layers", "model.width", "model.num_heads", "model.num_kv_heads",
    "model.mlp_width", "data.max_prompt_tokens", "data.max_response_tokens", "sample.reward_prompts", "sample.reward_samples",
    "sample.policy_samples", "sample.rows", "reward.eval_every", "eval.prompts", "eval.batch_size", "eval.divergence_prompts",
    "checkpoint.keep", "adapter.alpha",
    *(f"{stage}.{key}" for stage in ("pretrain", "sft", "reward", "policy") for key in ("batch_size", "accumulate", "learning_rate")),
)
_SHARES = (
    "data.heldout_fraction", "data.development_fraction", "reward.heldout_fraction",
    *(f"{stage}.{key}" for stage in ("pretrain", "sft", "reward", "policy") for key in ("warmup_fraction", "final_fraction")),
)
_NOT_NEGATIVE = ("seed", "sft.steps")


def check(config: ConfigDict) -> None:
    """Refuses values that no stage could use, before anything is written.

    Raises:
        UserError: a value outside its choices or its range, or settings that contradict each other.
    """
    flat = _flat(config)
    for key, allowed in _CHOICES.items():
        if flat[key] not in allowed:
            raise UserError(f"config.{key} = {flat[key]!r}: must be one of {', '.join(allowed)}")
    for key, allowed in _SETS.items():
        for name in flat[key]:
            if name not in allowed:
                raise UserError(f"config.{key}: unknown '{name}'; choose from {', '.join(allowed)}")
    for key in _POSITIVE:
        if not flat[key] > 0:
            raise UserError(f"config.{key} = {flat[key]}: must be positive")
    for key in _NOT_NEGATIVE:
        if flat[key] < 0:
            raise UserError(f"config.{key} = {flat[key]}: must not be negative")
    for key in _SHARES:
        if not 0 <= flat[key] < 1:
            raise UserError(f"config.{key} = {flat[key]}: must be at least 0 and below 1")
    if any(n < 1 for n in flat["eval.best_of"]):
        raise UserError(f"config.eval.best_of = {flat['eval.best_of']}: every n must be at least 1")
    if flat["sft.steps"] <= 0 and flat["sft.epochs"] <= 0:
        raise UserError("config.sft: give a positive number of steps or of epochs")
    if flat["sample.eval_samples"] < 2 or flat["policy.samples"] < 2:
        raise UserError("config.sample.eval_samples and config.policy.samples must be at least 2: best-of-n and leave-one-out "
                        "compare samples of one prompt")
    if flat["model.width"] % flat["model.num_heads"] or flat["model.num_heads"] % flat["model.num_kv_heads"]:
        raise UserError("config.model: num_heads must divide width, and num_kv_heads must divide num_heads")
    if flat["policy.beta"] < 0:
        raise UserError(f"config.policy.beta = {flat['policy.beta']}: must be positive, or 0 for no KL term")
    if flat["adapter.rank"] < 0:
        raise UserError(f"config.adapter.rank = {flat['adapter.rank']}: must be positive, or 0 for whole trunks")
    for name in flat["policy.recipes"]:
        if name in LEARNT and name not in flat["reward.recipes"]:
            raise UserError(f"config.policy.recipes: '{name}' has no reward to optimise; add it to reward.recipes")
    _check_sources(config)


def _check_sources(config: ConfigDict) -> None:
    """Refuses data, model and golden reward that do not go together."""
    if config.data.source == "testbed":
        if config.model.path:
            raise UserError(f"config.model.path = {config.model.path!r}: the testbed brings its own vocabulary; set data.source to "
                            "your records, or leave model.path empty")
        if config.golden.kind == "classifier":
            raise UserError("config.golden.kind = 'classifier': the testbed has a golden reward of its own; use 'testbed' or 'none'")
        return
    if not config.model.path:
        raise UserError(f"config.model.path: name a Hugging Face folder or hub model for data.source = {config.data.source!r} "
                        "(only the testbed initialises from scratch)")
    if config.golden.kind == "testbed":
        raise UserError("config.golden.kind: 'testbed' needs data.source = 'testbed'; use 'classifier' or 'none' with other data")
    if config.golden.kind == "classifier":
        check_golden_source(config)
        if not os.path.isfile(os.path.expanduser(config.golden.source)):
            raise UserError(f"config.golden.source: {config.golden.source}: no such file")


def check_golden_source(config: ConfigDict) -> None:
    """Refuses a classifier without text of its own: the judge must not have seen what the run trains or evaluates on.

    Raises:
        UserError: no golden.source, or one that is a data source too.
    """
    path = config.golden.source
    if not path:
        raise UserError("config.golden.source: 'classifier' needs a JSONL(.gz) file of rated text")
    for key in ("source", "eval_source", "preference_source"):
        used = config.data[key].removeprefix("hh:")
        if used and os.path.realpath(os.path.expanduser(used)) == os.path.realpath(os.path.expanduser(path)):
            raise UserError(f"config.golden.source: {path} is data.{key} too; the golden reward needs text that the run never sees")


def _flat(config, prefix: str = "") -> dict:
    """{dotted key: value}."""
    out = {}
    for key, value in config.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else {prefix + key: value}
    return out


def default() -> ConfigDict:
    """The default config: the embedded testbed, in LoRA mode, on whatever devices are there."""
    c = ConfigDict()
    c.seed = 0  # every random choice is fold_in(seed, ...)
    c.data = _data()
    c.model = _model()
    c.adapter = _adapter()
    c.mesh = _mesh()
    c.pretrain = _training(steps=750, batch=32, learning_rate=3e-3, packed_rows=True)
    c.sft = _training(steps=0, batch=16, learning_rate=2e-3, packed_rows=True)
    c.sft.epochs = 4.0  # passes over the demonstrations, used where steps = 0
    c.sample = _sample()
    c.reward = _reward()
    c.policy = _policy()
    c.golden = _golden()
    c.eval = _eval()
    c.checkpoint = _checkpoint()
    return c.lock()


def _data() -> ConfigDict:
    d = ConfigDict()
    d.source = "testbed"  # "testbed", a JSONL(.gz) path, "tfds:NAME", or "hh:PATH" for HH-RLHF transcripts
    d.kind = "pairs"  # how a file's records are read: "pairs" {prompt, response}, or "continuations" {text}
    d.eval_source = ""  # records for evaluation prompts; "" holds out a share of `source`
    d.heldout_fraction = 0.1  # share of the prompts kept for evaluation where eval_source = ""
    d.development_fraction = 0.05  # share of the prompts kept for early stopping
    d.preference_source = ""  # JSONL(.gz) of {prompt, chosen, rejected}; "" uses the source's own pairs, if it has any
    d.fields = ConfigDict()  # names of the fields in the records
    d.fields.prompt = "prompt"
    d.fields.response = "response"
    d.fields.chosen = "chosen"
    d.fields.rejected = "rejected"
    d.fields.text = "text"  # kind = "continuations"
    d.fields.rating = "rating"  # kind = "continuations"
    d.min_rating = 0.0  # kind = "continuations": demonstrations are records rated at least this; 0 takes all
    d.prompt_words = (8, 16)  # kind = "continuations": the prompt is the first so-many words, drawn per record
    d.tfds_split = "train"  # "tfds:NAME": the split to read
    d.tfds_data_dir = ""  # "tfds:NAME": where it was prepared; "" is TFDS's own default
    d.max_demonstrations = 0  # cap on training demonstrations; 0 takes all
    d.max_prompt_tokens = 32  # a longer prompt is an error, or loses its head where truncate_prompts
    d.max_response_tokens = 48  # longer responses are cut here (no EOS), demonstrations and samples alike
    d.truncate_prompts = False  # keep a long prompt's tail instead of refusing it
    d.max_records = 0  # read at most this many records of a file; 0 reads all
    d.testbed = _testbed()
    return d


def _testbed() -> ConfigDict:
    """The embedded world's settings; see irl_jax/data/testbed."""
    t = ConfigDict()
    t.seed_offset = 0  # added to `seed`: which world's draws (fresh seeds for reported runs)
    t.pretrain_responses = 20000  # responses of the initial writer that init is pretrained on
    t.demonstrations = 1200  # demonstrations
    t.pairs = 600  # chosen/rejected pairs for `preference`
    t.eval_prompts = 96  # test prompts
    t.dialect_strength = 0.7  # how often the demonstrator uses its dialect where it could
    t.tail_words = 60  # size of the Zipf tail of rare words
    t.entanglement = 0.0  # correlation of quality and dialect in the initial writer, 0 to 1
    t.initial_quality = 0.3  # share of high-quality responses of the initial writer: separation of init and sft
    t.label_noise = 0.1  # share of pairs whose labels are swapped
    t.initial_dialect = 0.25  # share of responses in dialect of the initial writer: separation of init and sft
    t.noise = 0.002  # rate of the noise channel, which gives every token a positive probability everywhere
    t.development_prompts = 64  # prompts for early stopping
    return t


def _model() -> ConfigDict:
    m = ConfigDict()
    m.path = ""  # a Hugging Face folder or hub name; "" initialises from scratch and pretrains (testbed)
    m.architecture = "gpt2"  # from scratch: "gpt2" or "llama"
    m.num_layers = 3
    m.width = 96
    m.num_heads = 4
    m.num_kv_heads = 4
    m.mlp_width = 384
    m.dtype = "float32"  # of computation; parameters stay float32
    m.scan_layers = False  # lax.scan over the layers in training and scoring: compiles faster, for deep models
    m.remat = "none"  # "none", "full" or "dots": what the backward pass recomputes
    m.loss_chunk = 0  # tokens a chunk of the vocabulary loss, so that [B, T, V] never exists; 0 is one chunk
    return m


def _adapter() -> ConfigDict:
    a = ConfigDict()
    a.rank = 8  # LoRA rank; 0 fine-tunes whole trunks, one a role
    a.alpha = 16.0  # the adapter's output is scaled by alpha / rank
    return a


def _mesh() -> ConfigDict:
    m = ConfigDict()
    m.data = -1  # replicas of the parameters; -1 takes the devices that are left
    m.fsdp = 1  # ways the parameters are sharded (and the batch with them)
    m.tensor = 1  # ways each matrix product is split
    return m


def _training(steps: int, batch: int, learning_rate: float, packed_rows: bool) -> ConfigDict:
    t = ConfigDict()
    t.steps = steps  # optimizer updates
    t.batch_size = batch  # rows a step, over all devices
    t.accumulate = 1  # micro-batches a step
    t.learning_rate = learning_rate  # peak
    t.warmup_fraction = 0.1  # share of the steps with linear warm-up
    t.schedule = "cosine"  # "cosine", "linear" or "constant" after the warm-up
    t.final_fraction = 0.1  # last learning rate over peak
    t.weight_decay = 0.0
    t.clip_norm = 1.0  # global gradient norm; 0 does not clip
    t.b2 = 0.99  # AdamW's second-moment decay
    if packed_rows:
        t.packing = True  # several sequences a row
        t.row_tokens = 64  # tokens a row, where packed
    return t


def _sample() -> ConfigDict:
    s = ConfigDict()
    s.reward_prompts = 600  # training prompts sampled for the reward's data
    s.reward_samples = 4  # samples each, from init and from sft
    s.eval_samples = 64  # samples of sft an evaluation prompt (M of best-of-n)
    s.policy_samples = 16  # samples of every other policy an evaluation prompt
    s.rows = 256  # rows decoded together
    return s


def _reward() -> ConfigDict:
    r = _training(steps=150, batch=64, learning_rate=1e-3, packed_rows=False)
    r.recipes = ("init_sft", "init_demo", "sft_demo", "preference")  # learnt rewards
    r.controls = ("log_ratio", "length", "random", "golden")  # reported beside them
    r.heldout_fraction = 0.2  # share of the prompts kept: half for early stopping, half for the reported AUC
    r.eval_every = 25  # steps between looks at the held-out split
    r.patience = 3  # looks without improvement before stopping
    return r


def _policy() -> ConfigDict:
    p = _training(steps=60, batch=16, learning_rate=1e-3, packed_rows=False)
    p.recipes = ("init_sft",)  # rewards to optimise, one policy each
    p.samples = 8  # samples a prompt; batch_size counts prompts
    p.beta = 0.1  # weight of KL(policy || reference), nats a sequence
    p.kl = "reward"  # where the KL stands: "reward" (k1 in the reward) or "loss" (k2 in the loss)
    p.reference = "sft"  # "sft" or "init"
    p.max_kl = 0.0  # stop when the mean sequence KL passes this many nats; 0 never stops
    return p


def _golden() -> ConfigDict:
    g = ConfigDict()
    g.kind = "testbed"  # "testbed" (exact), "classifier" (fitted to rated text) or "none"
    g.source = ""  # "classifier": JSONL(.gz) of {text, rating}, never used in training
    g.text_field = "text"  # "classifier": names of the fields in golden.source, whatever data.fields says of the others
    g.rating_field = "rating"
    g.positive_rating = 7.0  # "classifier": ratings from here on count as positive
    g.window_words = 48  # "classifier": words in the windows it is fitted on, as long as the responses
    return g


def _eval() -> ConfigDict:
    e = ConfigDict()
    e.prompts = 96  # evaluation prompts (at most what the data hold out)
    e.best_of = (1, 2, 4, 5, 8, 10, 16, 30, 32, 50)  # n of the best-of-n curves; those above M are left out
    e.divergence_prompts = 48  # prompts for forward and reverse KL where the demonstrator is known exactly
    e.batch_size = 64  # rows scored together
    return e


def _checkpoint() -> ConfigDict:
    k = ConfigDict()
    k.every_seconds = 60.0  # wall-clock time between checkpoints within a stage
    k.every_steps = 0  # ... or steps, where positive
    k.keep = 2
    return k
