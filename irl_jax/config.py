"""Every setting and its default. Files under configs/ start from `default()` and change what they need.

The config is locked: an unknown key is an error that names the nearest right one. Empty strings and tuples mean "none".
The comment behind a default is the key's help, in `irl_jax config` and docs/configuration.md (see irl_jax/describe.py). It continues in
lines that begin with "#   ". A section's help is its function's docstring, or the comment where the section is made.
"""

from __future__ import annotations

from ml_collections import ConfigDict

LEARNT = ("init_sft", "init_demo", "sft_demo", "preference")  # reward recipes that train a discriminator
CONTROLS = ("log_ratio", "mean_logprob", "length", "ended", "random", "golden")  # rewards that train nothing
ROBUST = "robust"  # the reward of the stage with that name
CLOSED_FORMS = ("log_ratio", "log_ratio_dense")  # rewards that need no training: at the response's end, or per token
POSITIVES = ("demo", "sft")  # positives of the adversarial loop's discriminator
GROUPS = ("reward", "policy", "adversarial", "dpo", "spin", "rejection")  # kinds of methods: a role is GROUP/NAME
TRAINED = ("pretrain", "sft", "reward", "policy", "dpo", "spin", "rejection")  # sections with an optimizer
DIVERGENCES = ("reverse_kl", "jensen_shannon", "forward_kl", "pearson", "neyman", "hellinger", "total_variation")
ARCHITECTURES = ("gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3")  # of models/families.py
GOLDEN_KINDS = ("testbed", "classifier", "hf_reward", "none")

def default() -> ConfigDict:
    """The default config: the embedded testbed, in LoRA mode, on all devices."""
    c = ConfigDict()
    c.seed = 0  # seed of every random choice, by fold_in(seed, ...)
    c.variants = ()  # more methods, each "GROUP/NAME = RECIPE key=value ...", such as "policy/clipped = init_sft policy.surrogate=ppo_clip
    #   policy.epochs=2" or "reward/cheap = init_sft reward.body=frozen reward.head=mlp"; see irl_jax/variants.py
    c.data = _data()
    c.model = _model()
    c.adapter = _adapter()
    c.mesh = _mesh()
    c.pretrain = _training(steps=750, batch=32, learning_rate=3e-3, packed_rows=True)  # init from scratch, if model.path = ""
    c.sft = _training(steps=0, batch=16, learning_rate=2e-3, packed_rows=True)  # supervised fine-tuning; steps = 0: by epochs
    c.sft.epochs = 4.0  # passes over the demonstrations, used if steps = 0
    c.sample = _sample()
    c.reward = _reward()
    c.robust = _robust()
    c.policy = _policy()
    c.adversarial = _adversarial()
    c.dpo = _dpo()
    c.spin = _spin()
    c.rejection = _rejection()
    c.golden = _golden()
    c.eval = _eval()
    c.checkpoint = _checkpoint()
    c.log = _log()
    c.profile = _profile()
    return c.lock()


def _data() -> ConfigDict:
    """What is read, and how it is split and cut."""
    d = ConfigDict()
    d.source = "testbed"  # "testbed", a JSONL(.gz) path, "tfds:NAME[@SPLIT]", or "hh:PATH" for HH-RLHF transcripts
    d.kind = "pairs"  # format of a file's records: "pairs" {prompt, response}, or "continuations" {text}
    d.eval_source = ""  # records for evaluation prompts; "": holds out a share of `source`
    d.heldout_fraction = 0.1  # share of the prompts kept for evaluation if eval_source = ""
    d.development_fraction = 0.05  # share of the prompts kept for early stopping
    d.prompts_source = ""  # more prompts, without responses (read like `source`; answers are ignored). init and sft are sampled for them
    #   too, and policies train on them and are evaluated on held-out ones. "": only the prompts of the demonstrations
    d.preference_source = ""  # JSONL(.gz) of {prompt, chosen, rejected}; "": uses the source's own pairs, if it has any
    d.fields = ConfigDict()  # names of the fields in the records
    d.fields.prompt = "prompt"  # the prompt
    d.fields.response = "response"  # the demonstration
    d.fields.chosen = "chosen"  # pairs: the better response
    d.fields.rejected = "rejected"  # pairs: the worse one
    d.fields.text = "text"  # kind = "continuations": prompt and response in one
    d.fields.rating = "rating"  # kind = "continuations": the rating, a number
    d.min_rating = 0.0  # kind = "continuations": lowest rating of a demonstration; 0: takes all records
    d.prompt_words = (8, 16)  # kind = "continuations": the prompt is the first n words, n drawn per record from this range (inclusive)
    d.tfds_split = "train"  # "tfds:NAME": the split to read
    d.tfds_data_dir = ""  # "tfds:NAME": folder in which it was prepared; "": TFDS's own default
    d.max_demonstrations = 0  # most training demonstrations; 0: takes all
    d.max_prompt_tokens = 32  # most tokens per prompt; a longer one is an error, or loses its head if truncate_prompts
    d.max_response_tokens = 48  # most tokens per response; longer ones are cut here (no EOS), demonstrations and samples alike
    d.truncate_prompts = False  # keep the tail of a long prompt instead of refusing it
    d.control_tokens = False  # True: control tokens spelt out in the records' text, such as <|im_end|>, become those tokens. For records
    #   already rendered by a template, from a source that may write them. False: they stay text, like all that somebody typed
    d.max_records = 0  # most records read from a file; 0: reads all
    d.streaming = False  # "tfds:NAME" larger than memory: SFT reads its records from disk, batch by batch (see irl_jax/data/streaming.py)
    d.streaming_records = 4096  # "tfds:NAME" with streaming: most records of each part that stays in memory: development, evaluation, the
    #   rewards' demonstrations and prompts, pairs
    d.testbed = _testbed()
    return d


def _testbed() -> ConfigDict:
    """The embedded world's settings; see irl_jax/data/testbed."""
    t = ConfigDict()
    t.seed_offset = 0  # added to `seed` to draw the world (fresh seeds for reported runs)
    t.pretrain_responses = 20000  # responses of the initial writer on which init is pretrained
    t.demonstrations = 1200  # demonstrations drawn
    t.pairs = 600  # chosen/rejected pairs drawn for `preference`
    t.eval_prompts = 96  # test prompts
    t.dialect_strength = 0.7  # how often a response in dialect uses the dialect where it could, 0 to 1
    t.tail_words = 60  # size of the Zipf tail of rare words
    t.entanglement = 0.0  # correlation of quality and dialect in the initial writer, 0 to 1 (the largest possible)
    t.initial_quality = 0.3  # share of the initial writer's responses that are of high quality; sets how far apart init and sft are
    t.kinds = 0.0  # 0: a response mixes good and bad sentences; 1: a response is wholly good or wholly of one bad kind
    t.label_noise = 0.1  # share of pairs whose labels are swapped
    t.initial_dialect = 0.25  # share of the initial writer's responses that are in dialect; sets how far apart init and sft are
    t.noise = 0.002  # rate of the noise channel, which gives every token a positive probability everywhere
    t.development_prompts = 64  # prompts for early stopping
    t.prompts = 0  # more training prompts, without responses; for other data use data.prompts_source
    return t


def _model() -> ConfigDict:
    """The initial model, and how it is computed."""
    m = ConfigDict()
    m.path = ""  # Hugging Face folder or hub name; "": initialises from scratch and pretrains (testbed)
    m.revision = ""  # branch, tag or commit, if path is a hub name; "": the main branch as it is when the run begins
    m.architecture = "gpt2"  # from scratch: gpt2, llama, mistral, qwen2, qwen3, gemma, gemma2, gemma3_text or phi3
    m.num_layers = 3  # from scratch: number of blocks
    m.width = 96  # from scratch: width of the residual stream; num_heads must divide it
    m.num_heads = 4  # from scratch: number of query heads
    m.num_kv_heads = 4  # from scratch: number of key/value heads; must divide num_heads
    m.mlp_width = 384  # from scratch: hidden units per MLP
    m.param_dtype = "float32"  # dtype of the initial model beneath the adapters; "bfloat16" halves its size. Trained parameters are float32
    m.dtype = "float32"  # dtype of computation
    m.scan_layers = False  # lax.scan over the layers in training and scoring: compiles faster, for deep models
    m.remat = "none"  # "none", "full" or "dots": what the backward pass recomputes
    m.loss_chunk = 0  # tokens, over all devices, whose vocabulary logits exist at one time; 0: 1024 per device (small vocabularies: more)
    m.vocab_multiple = 1  # pads the vocabulary to a multiple (128, say), so mesh.tensor can split it; padding is never sampled or exported
    return m


def _adapter() -> ConfigDict:
    """The LoRA adapters. Every role trains its own on one shared trunk."""
    a = ConfigDict()
    a.rank = 8  # LoRA rank; 0: fine-tunes whole trunks, one per role
    a.alpha = 16.0  # scales the adapter's output by alpha / rank
    return a


def _mesh() -> ConfigDict:
    """The device mesh, of data * fsdp * tensor devices."""
    m = ConfigDict()
    m.data = -1  # replicas of the parameters; -1: takes the remaining devices
    m.fsdp = 1  # number of parts into which the parameters (and the batch) are sharded
    m.tensor = 1  # number of parts into which each matrix product is split
    return m


def _training(steps: int, batch: int, learning_rate: float, packed_rows: bool) -> ConfigDict:
    """The settings of every section with an optimizer."""
    t = ConfigDict()
    t.steps = steps  # number of optimizer updates
    t.batch_size = batch  # rows per step, over all devices
    t.accumulate = 1  # micro-batches per step
    t.learning_rate = learning_rate  # AdamW's peak learning rate
    t.warmup_fraction = 0.1  # share of the steps with linear warm-up
    t.schedule = "cosine"  # after the warm-up: "cosine", "linear" or "constant"
    t.final_fraction = 0.1  # last learning rate as a fraction of the peak
    t.weight_decay = 0.0  # AdamW's weight decay
    t.clip_norm = 1.0  # largest global gradient norm; 0: no clipping
    t.b2 = 0.99  # AdamW's second-moment decay
    if packed_rows:
        t.packing = True  # put several sequences into a row
        t.row_tokens = 64  # tokens per row, if packed
    return t


def _sample() -> ConfigDict:
    """How many responses are sampled for the rewards' data and for the evaluation, and from which distribution."""
    s = ConfigDict()
    s.reward_prompts = 600  # most training prompts sampled for the reward's data; those with a demonstration come first
    s.reward_samples = 4  # samples per prompt, from each of init and sft
    s.eval_samples = 64  # samples of sft per evaluation prompt (M of best-of-n)
    s.policy_samples = 16  # samples of every other policy per evaluation prompt
    s.rows = 256  # responses decoded together, up to 16 per prompt; others wait for a free row of their prompt
    s.temperature = 1.0  # divides the logits when init, sft and the finished policies are sampled for the rewards' data (also used by DPO
    #   and the adversarial recipe "sft") and for the evaluation. A policy in training (policy, adversarial, spin, rejection) always samples
    #   at temperature 1, unfiltered: those methods' objectives are about the model's own distribution
    s.top_p = 1.0  # the same samples are drawn among the fewest likeliest tokens whose probability reaches this; 1: among all. Log-probs,
    #   log-ratios and kl_to_sft are always the models' own. If temperature or top_p is not 1, kl_to_sft is a mean log-ratio of the models,
    #   not a KL
    return s


def _reward() -> ConfigDict:
    """The rewards: discriminators whose logit is the reward."""
    r = _training(steps=150, batch=64, learning_rate=1e-3, packed_rows=False)
    r.recipes = ("init_sft", "init_demo", "sft_demo", "preference")  # learnt rewards
    r.controls = CONTROLS  # rewards reported beside them: the closed form, the mean log-prob per token under sft, the number of tokens,
    #   whether the response ended, noise, and golden itself
    r.heldout_fraction = 0.2  # share of the prompts held out: half for early stopping, half for the reported AUC
    r.eval_every = 25  # steps between evaluations on the held-out split
    r.patience = 3  # evaluations without improvement before stopping; 0: never stops early
    r.body = "adapter"  # what is trained below the head: "adapter" (a whole trunk if adapter.rank = 0), "trunk", or "frozen": nothing
    r.head = "linear"  # "linear", or "mlp": one hidden layer
    r.mlp_width = 64  # head = "mlp": hidden units
    r.granularity = "response"  # "response": one logit at its end; "token": one logit per state and action
    r.start = ""  # what training starts from: folder or hub name of a *ForSequenceClassification of the run's architecture and tokenizer.
    #   The reward starts as its score. "": init and a head of zeros. If the body has no trunk of its own, the weights must be init's
    r.start_revision = ""  # branch, tag or commit, if reward.start is a hub name
    r.start_label = ""  # reward.start: the label whose score is used, if it has several
    r.label_smoothing = 0.0  # share of each label given to the other class
    r.gradient_penalty = 0.0  # weight of the mean squared gradient of the logit with respect to the input embeddings
    r.spectral_norm = 0.0  # cap on the largest singular value of the head's matrices and of each adapter's product; 0: no cap
    r.ensemble = 1  # number of members, trained in one step on bootstrapped pairs
    r.combine = "mean"  # how the members become one reward: "mean", "min" or "mean_minus_std"
    r.length_residual = False  # remove from the logit what length explains, by least squares within the classes
    return r


def _robust() -> ConfigDict:
    """The reward `robust`: a learnt reward and sft's own confidence in one number, with a sampling temperature and a gate."""
    r = ConfigDict()
    r.recipes = ("init_sft", "init_demo", "sft_demo")  # candidates for its learnt reward; it takes the one that puts demonstrations
    #   furthest above sft's own samples, in standard errors. If the run learns none of them, there is no `robust`
    r.weight = 0.5  # weight of the mean log-prob per token under sft, beside the learnt reward; each is divided by its own deviation
    r.temperature = 0.5  # temperature at which sft is sampled for robust's scales, and when robust chooses
    r.prompts = 256  # most development prompts used
    r.samples = 8  # samples per prompt at that temperature
    return r


def _policy() -> ConfigDict:
    """Policy gradient against a reward."""
    p = _training(steps=60, batch=16, learning_rate=1e-3, packed_rows=False)
    p.recipes = ("init_sft",)  # rewards to optimise, one policy each: learnt ones, "log_ratio", "log_ratio_dense" or "robust"
    p.samples = 8  # samples per prompt; batch_size counts prompts
    p.divergence = "reverse_kl"  # f-divergence that the adversarial loop minimises; it sets the reward as a function of the logit
    p.clip_logit = 5.0  # clips logits to +- this if the divergence's reward is an exponential of them
    p.normalise_rewards = False  # subtract the running mean of the rewards so far, and divide by their running deviation. For token
    #   rewards: if most are positive, longer responses pay
    p.advantage = "rloo"  # "reinforce" (batch baseline), "rloo" (leave one out), "grpo" (normalised per prompt), "gae" (value head)
    p.gamma = 1.0  # discount per token, if rewards are per token or advantage = "gae"
    p.gae_lambda = 0.95  # advantage = "gae": weight of longer returns, 0 to 1
    p.value_coefficient = 0.0  # advantage = "gae": weight of the value head's loss (0.5 is usual). Otherwise 0: no value head
    p.surrogate = "score_function"  # "score_function" or "ppo_clip"
    p.clip_ratio = 0.2  # surrogate = "ppo_clip": clips ratios to 1 +- this
    p.epochs = 1  # surrogate = "ppo_clip": passes over each batch of samples
    p.minibatches = 1  # surrogate = "ppo_clip": updates per pass
    p.beta = 0.1  # weight of KL(policy || reference), which is in nats per sequence
    p.kl = "k1_reward"  # where the KL goes: "k1_reward", "k2_loss", "k3_weighted_loss" or "k3_loss". The last is GRPO's; its gradient is
    #   that of the forward KL(reference || policy)
    p.target_kl = 0.0  # KL, in nats per sequence, that beta is adjusted to hold; 0: beta stays fixed
    p.start = "sft"  # model that the policy starts from: "sft" or "init"
    p.reference = "sft"  # model that the KL is measured from: "sft" or "init"
    p.entropy = 0.0  # weight of the entropy bonus: reward units per nat of the tokens' summed entropy
    p.max_kl = 0.0  # stops if the mean sequence KL exceeds this many nats; 0: never stops
    p.stop = ""  # "gate": ends training if the samples show that the reward is being hacked, by their length, end, variety, likelihood and
    #   KL (see irl_jax/evaluation/hacking.py). "": does not check
    p.keep_rollouts_every = 10  # steps between the batches of samples kept for the report's reward-against-golden curves; 0: keeps none
    return p


def _adversarial() -> ConfigDict:
    """The alternating loop. The policy has the settings of config.policy, the reward those of config.reward."""
    a = ConfigDict()
    a.recipes = ()  # what is positive: "demo" (demonstrations) and/or "sft" (its samples); one policy each
    a.rounds = 60  # number of rounds; each one samples, updates the reward and updates the policy
    a.warmup_rounds = 10  # first rounds, which do not update the policy
    a.reward_updates = 1  # reward updates per round
    a.reward_rows = 64  # rows per reward update, half positive, half samples of the policy
    a.replay_capacity = 1024  # samples of earlier rounds that are kept
    a.replay_share = 0.25  # share of the policy's rows drawn from the kept samples
    a.min_accuracy = 0.0  # stops if the (smoothed) balanced accuracy on fresh samples falls below this: the reward can no longer tell
    a.max_accuracy = 1.0  # stops if that accuracy rises above this: the reward can tell too easily
    return a


def _dpo() -> ConfigDict:
    """Direct preference optimisation, with sft as both start and reference."""
    d = _training(steps=100, batch=32, learning_rate=5e-4, packed_rows=False)  # batch_size counts pairs
    d.recipes = ()  # which responses are chosen over which, as in the reward recipes: init_sft, init_demo, sft_demo, preference
    d.beta = 0.1  # scale of the implicit reward beta log(policy / reference)
    d.label_smoothing = 0.0  # share of the pairs assumed to be swapped
    return d


def _spin() -> ConfigDict:
    """Self-play: prefers demonstrations over the last iterate's samples, with the last iterate as reference."""
    s = _training(steps=50, batch=32, learning_rate=5e-4, packed_rows=False)  # steps are per iteration; batch_size counts pairs
    s.recipes = ()  # "demo": trains one policy; (): trains none
    s.beta = 0.1  # scale of the implicit reward beta log(policy / last iterate)
    s.iterations = 2  # number of iterations; each starts from the last one's policy, which is its reference too
    s.prompts = 300  # training prompts sampled per iteration
    s.samples = 1  # samples per prompt
    return s


def _rejection() -> ConfigDict:
    """Rejection fine-tuning: the best of N samples become new demonstrations, iterated (expert iteration)."""
    r = _training(steps=0, batch=16, learning_rate=1e-3, packed_rows=True)
    r.recipes = ()  # rewards that choose: learnt ones, "log_ratio" or "robust"
    r.epochs = 2.0  # passes over the chosen samples, used if steps = 0
    r.samples = 16  # samples per prompt; the best one is taken
    r.prompts = 300  # training prompts sampled per iteration
    r.iterations = 1  # number of iterations; each samples the last one's policy
    return r


def _golden() -> ConfigDict:
    """The judge of the evaluation. No training step sees it."""
    g = ConfigDict()
    g.kind = "testbed"  # "testbed" (exact), "classifier" (fitted to rated text), "hf_reward" (a reward model) or "none"
    g.source = ""  # "classifier": JSONL(.gz) of {text, rating}, never used in training
    g.text_field = "text"  # "classifier": name of the text field in golden.source, whatever data.fields says
    g.rating_field = "rating"  # "classifier": name of the rating field in golden.source
    g.positive_rating = 7.0  # "classifier": lowest rating that counts as positive
    g.model = ""  # "hf_reward": folder or hub name of a *ForSequenceClassification; runs in model.dtype and model.param_dtype
    g.revision = ""  # branch, tag or commit, if golden.model is a hub name
    g.label = ""  # "hf_reward": the label whose score is the reward, if the model has several
    g.chat = False  # "hf_reward": score the conversation as the model's own chat template renders it, not prompt + response as plain text.
    #   HH-RLHF transcripts are read turn by turn, other prompts as the user's turn
    g.preserves = ""  # "classifier": "prompt" multiplies the probability by how much of the prompt's content the response keeps, a cosine
    #   of TF-IDF vectors. For rewriting (see irl_jax/evaluation/preservation.py). "": judges the response alone
    g.window_words = 48  # "classifier": words per window on which it is fitted; as long as the responses
    return g


def _eval() -> ConfigDict:
    """What is measured of the finished policies and rewards."""
    e = ConfigDict()
    e.prompts = 96  # most evaluation prompts used, of those that the data holds out
    e.best_of = (1, 2, 4, 5, 8, 10, 16, 30, 32, 50)  # values of n in the best-of-n curves; those above M are left out
    e.temperatures = (0.5, 0.25, 0.0)  # sft and the policies are also sampled at these temperatures, which a gain must beat. 0: greedy
    #   decoding. If the run makes robust, sft is sampled at robust.temperature too
    e.divergence_prompts = 48  # prompts for forward and reverse KL, if the demonstrator is known exactly
    e.batch_size = 64  # rows scored together
    e.agreement = 1.0  # best-of-n by an ensemble goes on to more samples while the members' mean gain exceeds this many of their deviations
    return e


def _checkpoint() -> ConfigDict:
    """When training is saved. The end of a stage always is."""
    k = ConfigDict()
    k.every_seconds = 60.0  # wall-clock seconds between checkpoints within a stage
    k.every_steps = 0  # steps between checkpoints, in addition to every_seconds; 0: only every_seconds
    k.keep = 2  # newest checkpoints kept per stage; older ones are removed
    return k


def _log() -> ConfigDict:
    """Where training metrics go besides W/STAGE/metrics.jsonl."""
    g = ConfigDict()
    g.tensorboard = True  # TensorBoard events in every stage's folder: tensorboard --logdir=W
    g.wandb = ""  # Weights & Biases project: one run per training stage, grouped by the workdir's name; needs the extra `wandb`. "": none
    return g


def _profile() -> ConfigDict:
    """Traces of training (`xprof --logdir=W/STAGE/trace`, or ui.perfetto.dev), one annotated step per update, parts by name."""
    p = ConfigDict()
    p.steps = 0  # number of updates traced in every stage that trains, into W/STAGE/trace; 0: traces nothing
    p.first = 3  # first update traced; those before it include the ones that compile
    return p
