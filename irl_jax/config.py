"""Every setting and its default. Files under configs/ start from `default()` and change what they need.

The config is locked: an unknown key is an error that names the nearest right one. Empty strings and tuples mean "none".
The comment behind a default is the key's help, in `irl_jax config` and docs/configuration.md (see irl_jax/describe.py): it goes on in
lines that begin with "#   ". A section's is its function's docstring, or the comment where the section is made.
"""

from __future__ import annotations

from ml_collections import ConfigDict

LEARNT = ("init_sft", "init_demo", "sft_demo", "preference")  # reward recipes that train a discriminator
CONTROLS = ("log_ratio", "mean_logprob", "length", "ended", "random", "golden")  # rewards that train nothing
ROBUST = "robust"  # the reward of the stage of that name
CLOSED_FORMS = ("log_ratio", "log_ratio_dense")  # rewards of a policy without training: at the response's end, or token by token
POSITIVES = ("demo", "sft")  # what the adversarial loop's discriminator is shown as positive
GROUPS = ("reward", "policy", "adversarial", "dpo", "spin", "rejection")  # kinds of methods: a role is GROUP/NAME
TRAINED = ("pretrain", "sft", "reward", "policy", "dpo", "spin", "rejection")  # sections with an optimizer
DIVERGENCES = ("reverse_kl", "jensen_shannon", "forward_kl", "pearson", "neyman", "hellinger", "total_variation")
ARCHITECTURES = ("gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3")  # of models/families.py
GOLDEN_KINDS = ("testbed", "classifier", "hf_reward", "none")

def default() -> ConfigDict:
    """The default config: the embedded testbed, in LoRA mode, on whatever devices are there."""
    c = ConfigDict()
    c.seed = 0  # every random choice is fold_in(seed, ...)
    c.variants = ()  # more methods: "GROUP/NAME = RECIPE key=value ...", such as
    #   "policy/clipped = init_sft policy.surrogate=ppo_clip policy.epochs=2" or "reward/cheap = init_sft reward.body=frozen
    #   reward.head=mlp"; see irl_jax/variants.py
    c.data = _data()
    c.model = _model()
    c.adapter = _adapter()
    c.mesh = _mesh()
    c.pretrain = _training(steps=750, batch=32, learning_rate=3e-3, packed_rows=True)  # init from scratch, where model.path = ""
    c.sft = _training(steps=0, batch=16, learning_rate=2e-3, packed_rows=True)  # supervised fine-tuning; steps = 0: by epochs
    c.sft.epochs = 4.0  # passes over the demonstrations, used where steps = 0
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
    d.kind = "pairs"  # how a file's records are read: "pairs" {prompt, response}, or "continuations" {text}
    d.eval_source = ""  # records for evaluation prompts; "" holds out a share of `source`
    d.heldout_fraction = 0.1  # share of the prompts kept for evaluation where eval_source = ""
    d.development_fraction = 0.05  # share of the prompts kept for early stopping
    d.prompts_source = ""  # more prompts, without responses (read as `source` is; answers are passed over): init and sft are sampled for
    #   them too, and policies train on them and are evaluated on held-out ones; "" has those of the demonstrations alone
    d.preference_source = ""  # JSONL(.gz) of {prompt, chosen, rejected}; "" uses the source's own pairs, if it has any
    d.fields = ConfigDict()  # names of the fields in the records
    d.fields.prompt = "prompt"  # the prompt
    d.fields.response = "response"  # the demonstration
    d.fields.chosen = "chosen"  # pairs: the better response
    d.fields.rejected = "rejected"  # pairs: the worse one
    d.fields.text = "text"  # kind = "continuations": prompt and response in one
    d.fields.rating = "rating"  # kind = "continuations": a number
    d.min_rating = 0.0  # kind = "continuations": demonstrations are records rated at least this; 0 takes all
    d.prompt_words = (8, 16)  # kind = "continuations": the prompt is the first so-many words, drawn per record
    d.tfds_split = "train"  # "tfds:NAME": the split to read
    d.tfds_data_dir = ""  # "tfds:NAME": where it was prepared; "" is TFDS's own default
    d.max_demonstrations = 0  # cap on training demonstrations; 0 takes all
    d.max_prompt_tokens = 32  # a longer prompt is an error, or loses its head where truncate_prompts
    d.max_response_tokens = 48  # longer responses are cut here (no EOS), demonstrations and samples alike
    d.truncate_prompts = False  # keep a long prompt's tail instead of refusing it
    d.control_tokens = False  # special tokens that the records' text spells out, such as <|im_end|>, are those tokens: for records that a
    #   template has rendered already, from a source that may write them. False: they are text, as everything is that somebody typed
    d.max_records = 0  # read at most this many records of a file; 0 reads all
    d.streaming = False  # "tfds:NAME" larger than memory: SFT reads its records from disk, batch by batch (see irl_jax/data/streaming.py)
    d.streaming_records = 4096  # ... and whatever else needs records holds at most so many: development, evaluation, the rewards'
    #   demonstrations and prompts, pairs
    d.testbed = _testbed()
    return d


def _testbed() -> ConfigDict:
    """The embedded world's settings; see irl_jax/data/testbed."""
    t = ConfigDict()
    t.seed_offset = 0  # added to `seed`: which world's draws (fresh seeds for reported runs)
    t.pretrain_responses = 20000  # responses of the initial writer that init is pretrained on
    t.demonstrations = 1200  # demonstrations drawn
    t.pairs = 600  # chosen/rejected pairs for `preference`
    t.eval_prompts = 96  # test prompts
    t.dialect_strength = 0.7  # how often the demonstrator uses its dialect where it could
    t.tail_words = 60  # size of the Zipf tail of rare words
    t.entanglement = 0.0  # correlation of quality and dialect in the initial writer, 0 to 1
    t.initial_quality = 0.3  # share of high-quality responses of the initial writer: separation of init and sft
    t.kinds = 0.0  # 0: good and bad sentences stand in one response; 1: a response is wholly good or wholly of one bad kind
    t.label_noise = 0.1  # share of pairs whose labels are swapped
    t.initial_dialect = 0.25  # share of responses in dialect of the initial writer: separation of init and sft
    t.noise = 0.002  # rate of the noise channel, which gives every token a positive probability everywhere
    t.development_prompts = 64  # prompts for early stopping
    t.prompts = 0  # more training prompts, without responses, as data.prompts_source has them of other data
    return t


def _model() -> ConfigDict:
    """The initial model, and how it is computed."""
    m = ConfigDict()
    m.path = ""  # a Hugging Face folder or hub name; "" initialises from scratch and pretrains (testbed)
    m.revision = ""  # path is a hub name: the branch, tag or commit to take; "" is the main branch as it is when the run begins
    m.architecture = "gpt2"  # from scratch: gpt2, llama, mistral, qwen2, qwen3, gemma, gemma2, gemma3_text or phi3
    m.num_layers = 3  # from scratch: blocks
    m.width = 96  # from scratch: of the residual stream; num_heads divides it
    m.num_heads = 4  # from scratch: of the queries
    m.num_kv_heads = 4  # from scratch: of keys and values; divides num_heads
    m.mlp_width = 384  # from scratch: hidden units of a block's MLP
    m.param_dtype = "float32"  # of the initial model beneath the adapters; "bfloat16" halves it. What trains is float32
    m.dtype = "float32"  # of computation
    m.scan_layers = False  # lax.scan over the layers in training and scoring: compiles faster, for deep models
    m.remat = "none"  # "none", "full" or "dots": what the backward pass recomputes
    m.loss_chunk = 0  # tokens, over all devices, whose vocabulary logits exist at one time; 0: 1024 a device (small vocabularies: more)
    m.vocab_multiple = 1  # the vocabulary is padded to a multiple (128, say), so that mesh.tensor can split it; never drawn nor exported
    return m


def _adapter() -> ConfigDict:
    """The LoRA adapters that every role trains on one trunk."""
    a = ConfigDict()
    a.rank = 8  # LoRA rank; 0 fine-tunes whole trunks, one a role
    a.alpha = 16.0  # the adapter's output is scaled by alpha / rank
    return a


def _mesh() -> ConfigDict:
    """How the devices are used: data * fsdp * tensor of them."""
    m = ConfigDict()
    m.data = -1  # replicas of the parameters; -1 takes the devices that are left
    m.fsdp = 1  # ways the parameters are sharded (and the batch with them)
    m.tensor = 1  # ways each matrix product is split
    return m


def _training(steps: int, batch: int, learning_rate: float, packed_rows: bool) -> ConfigDict:
    """What every section with an optimizer has."""
    t = ConfigDict()
    t.steps = steps  # optimizer updates
    t.batch_size = batch  # rows a step, over all devices
    t.accumulate = 1  # micro-batches a step
    t.learning_rate = learning_rate  # AdamW's, at its peak
    t.warmup_fraction = 0.1  # share of the steps with linear warm-up
    t.schedule = "cosine"  # "cosine", "linear" or "constant" after the warm-up
    t.final_fraction = 0.1  # last learning rate over peak
    t.weight_decay = 0.0  # AdamW's
    t.clip_norm = 1.0  # global gradient norm; 0 does not clip
    t.b2 = 0.99  # AdamW's second-moment decay
    if packed_rows:
        t.packing = True  # several sequences a row
        t.row_tokens = 64  # tokens a row, where packed
    return t


def _sample() -> ConfigDict:
    """How many responses are sampled, for the rewards' data and for the evaluation, and by which law."""
    s = ConfigDict()
    s.reward_prompts = 600  # training prompts sampled for the reward's data, at most; those with a demonstration come first
    s.reward_samples = 4  # samples each, from init and from sft
    s.eval_samples = 64  # samples of sft an evaluation prompt (M of best-of-n)
    s.policy_samples = 16  # samples of every other policy an evaluation prompt
    s.rows = 256  # responses decoded together, up to 16 of a prompt; others wait for a row of their prompt to be free
    s.temperature = 1.0  # logits are divided by it where init, sft and the finished policies are sampled for the rewards' data (DPO's and
    #   the adversarial recipe "sft"'s with it) and for the evaluation. What a policy in training samples (policy, adversarial, spin,
    #   rejection) is always drawn at temperature 1, unfiltered: those methods' objectives are about the model's own distribution
    s.top_p = 1.0  # ... and drawn among the fewest likeliest tokens whose probability reaches this; 1 among all. Log-probs, log-ratios and
    #   kl_to_sft are the models' own whatever the two keys say: of other samples kl_to_sft is a mean log-ratio of the models, no KL
    return s


def _reward() -> ConfigDict:
    """The rewards: discriminators whose logit is the reward."""
    r = _training(steps=150, batch=64, learning_rate=1e-3, packed_rows=False)
    r.recipes = ("init_sft", "init_demo", "sft_demo", "preference")  # learnt rewards
    r.controls = CONTROLS  # reported beside them: the closed form, the mean log-prob a token under sft, tokens, whether it ended, noise,
    #   and golden itself
    r.heldout_fraction = 0.2  # share of the prompts kept: half for early stopping, half for the reported AUC
    r.eval_every = 25  # steps between looks at the held-out split
    r.patience = 3  # looks without improvement before stopping
    r.body = "adapter"  # trained below the head: "adapter" (a whole trunk where adapter.rank = 0), "trunk", or "frozen": nothing
    r.head = "linear"  # "linear", or "mlp": one hidden layer
    r.mlp_width = 64  # head = "mlp": hidden units
    r.granularity = "response"  # "response": one logit at its end; "token": one logit for each state and action
    r.start = ""  # what training starts from: a folder or hub name of a *ForSequenceClassification of the run's architecture and
    #   tokenizer, whose score it then is. "" starts from init and a head of zeros. Bodies that do not own a trunk need init's own weights
    r.start_revision = ""  # reward.start is a hub name: the branch, tag or commit to take
    r.start_label = ""  # reward.start: whose score, where it has several labels
    r.label_smoothing = 0.0  # share of each label given to the other class
    r.gradient_penalty = 0.0  # weight of the mean squared gradient of the logit with respect to the input embeddings
    r.spectral_norm = 0.0  # cap on the largest singular value of the head's matrices and of each adapter's product; 0 caps nothing
    r.ensemble = 1  # members, trained in one step on bootstrapped pairs
    r.combine = "mean"  # one reward of many: "mean", "min" or "mean_minus_std"
    r.length_residual = False  # take out of the logit what length explains, by least squares within the classes
    return r


def _robust() -> ConfigDict:
    """The reward `robust`: a learnt reward and sft's own confidence in one number, with a temperature to sample at and a gate."""
    r = ConfigDict()
    r.recipes = ("init_sft", "init_demo", "sft_demo")  # the learnt reward in it is one of these, that which puts demonstrations furthest
    #   above sft's own samples, in standard errors; none is made where the run learns none of them
    r.weight = 0.5  # of the mean log-prob a token under sft, beside the learnt reward; each is divided by its own deviation
    r.temperature = 0.5  # sft is sampled at it, for robust's scales and where robust chooses
    r.prompts = 256  # development prompts looked at, at most
    r.samples = 8  # samples each at that temperature
    return r


def _policy() -> ConfigDict:
    """The policy gradient against a reward."""
    p = _training(steps=60, batch=16, learning_rate=1e-3, packed_rows=False)
    p.recipes = ("init_sft",)  # rewards to optimise, one policy each: learnt ones, "log_ratio", "log_ratio_dense"
    p.samples = 8  # samples a prompt; batch_size counts prompts
    p.divergence = "reverse_kl"  # the reward as a function of the logit: the f-divergence that the adversarial loop minimises
    p.clip_logit = 5.0  # logits are cut to +- this where the divergence's reward is an exponential of them
    p.normalise_rewards = False  # subtract the running mean of the rewards so far and divide by their running deviation; for token
    #   rewards, which make longer responses pay where most of them are positive
    p.advantage = "rloo"  # "reinforce" (batch baseline), "rloo" (leave one out), "grpo" (normalised in the prompt), "gae" (value head)
    p.gamma = 1.0  # discount a token, where rewards come token by token or advantage = "gae"
    p.gae_lambda = 0.95  # advantage = "gae": the weight of longer returns, 0 to 1
    p.value_coefficient = 0.0  # advantage = "gae": weight of the value head's loss (0.5 is usual); 0 elsewhere: no value head
    p.surrogate = "score_function"  # "score_function" or "ppo_clip"
    p.clip_ratio = 0.2  # surrogate = "ppo_clip": ratios are cut to 1 +- this
    p.epochs = 1  # surrogate = "ppo_clip": passes over one batch of samples
    p.minibatches = 1  # surrogate = "ppo_clip": updates a pass
    p.beta = 0.1  # weight of KL(policy || reference), nats a sequence
    p.kl = "k1_reward"  # where the KL stands: "k1_reward", "k2_loss", "k3_weighted_loss", or "k3_loss", which is GRPO's and whose
    #   gradient is that of the forward KL(reference || policy)
    p.target_kl = 0.0  # nats a sequence that beta is steered to hold; 0 keeps beta as it is
    p.start = "sft"  # what the policy starts from: "sft" or "init"
    p.reference = "sft"  # what the KL is measured from: "sft" or "init"
    p.entropy = 0.0  # weight of the entropy bonus: reward units per nat of the tokens' summed entropy
    p.max_kl = 0.0  # stop when the mean sequence KL passes this many nats; 0 never stops
    p.stop = ""  # "gate" ends the training when the samples say that the reward is being hacked: length, end, variety, likelihood and
    #   KL (see irl_jax/evaluation/hacking.py); "" does not look
    p.keep_rollouts_every = 10  # steps between the batches of samples kept for the report's reward-against-golden curves; 0 keeps none
    return p


def _adversarial() -> ConfigDict:
    """The alternating loop; the policy's settings are config.policy's, the reward's config.reward's."""
    a = ConfigDict()
    a.recipes = ()  # what is positive: "demo" (demonstrations) and/or "sft" (its samples); one policy each
    a.rounds = 60  # each: sample, update the reward, update the policy
    a.warmup_rounds = 10  # rounds at the start that leave the policy as it is
    a.reward_updates = 1  # updates of the reward a round
    a.reward_rows = 64  # rows an update, half positive, half samples of the policy
    a.replay_capacity = 1024  # samples of earlier rounds that are remembered
    a.replay_share = 0.25  # share of the policy's rows drawn from them
    a.min_accuracy = 0.0  # stop where the balanced accuracy on fresh samples (smoothed) falls below: it can no longer tell
    a.max_accuracy = 1.0  # stop where it rises above: the reward can too easily tell
    return a


def _dpo() -> ConfigDict:
    """Direct preference optimisation, from sft against sft."""
    d = _training(steps=100, batch=32, learning_rate=5e-4, packed_rows=False)  # batch_size counts pairs
    d.recipes = ()  # who is chosen over whom, as the reward recipes say: init_sft, init_demo, sft_demo, preference
    d.beta = 0.1  # of the implicit reward beta log(policy / reference)
    d.label_smoothing = 0.0  # share of the pairs taken to be swapped
    return d


def _spin() -> ConfigDict:
    """Self-play: demonstrations over the last iterate's samples, against the last iterate."""
    s = _training(steps=50, batch=32, learning_rate=5e-4, packed_rows=False)  # steps an iteration; batch_size counts pairs
    s.recipes = ()  # "demo": one policy; () trains none
    s.beta = 0.1  # of the implicit reward beta log(policy / last iterate)
    s.iterations = 2  # each from the last one's policy and against it
    s.prompts = 300  # training prompts sampled an iteration
    s.samples = 1  # samples a prompt
    return s


def _rejection() -> ConfigDict:
    """Rejection fine-tuning: the best of N samples as new demonstrations, iterated (expert iteration)."""
    r = _training(steps=0, batch=16, learning_rate=1e-3, packed_rows=True)
    r.recipes = ()  # rewards that choose: learnt ones or "log_ratio"
    r.epochs = 2.0  # passes over the chosen samples, used where steps = 0
    r.samples = 16  # samples a prompt, of which the best is taken
    r.prompts = 300  # training prompts sampled an iteration
    r.iterations = 1  # each samples the last one's policy
    return r


def _golden() -> ConfigDict:
    """The judge of the evaluation, which no training step sees."""
    g = ConfigDict()
    g.kind = "testbed"  # "testbed" (exact), "classifier" (fitted to rated text), "hf_reward" (a reward model) or "none"
    g.source = ""  # "classifier": JSONL(.gz) of {text, rating}, never used in training
    g.text_field = "text"  # "classifier": names of the fields in golden.source, whatever data.fields says of the others
    g.rating_field = "rating"  # "classifier": ... and of the ratings
    g.positive_rating = 7.0  # "classifier": ratings from here on count as positive
    g.model = ""  # "hf_reward": folder or hub name of a *ForSequenceClassification, in model.dtype and model.param_dtype
    g.revision = ""  # golden.model is a hub name: the branch, tag or commit to take
    g.label = ""  # "hf_reward": whose score is the reward, where the model has several labels
    g.chat = False  # "hf_reward": score the conversation as its own chat template renders it (HH-RLHF transcripts turn by turn, other
    #   prompts as the user's turn), not prompt + response as plain text
    g.preserves = ""  # "classifier": "prompt" multiplies the probability by how much of the prompt's content the response keeps, for
    #   rewriting: a cosine of TF-IDF vectors (see irl_jax/evaluation/preservation.py); "" judges the response alone
    g.window_words = 48  # "classifier": words in the windows it is fitted on, as long as the responses
    return g


def _eval() -> ConfigDict:
    """What is measured of the finished policies and rewards."""
    e = ConfigDict()
    e.prompts = 96  # evaluation prompts (at most what the data hold out)
    e.best_of = (1, 2, 4, 5, 8, 10, 16, 30, 32, 50)  # n of the best-of-n curves; those above M are left out
    e.temperatures = (0.5, 0.25, 0.0)  # sft and the policies are also sampled at these (sft at robust.temperature too, where the
    #   run makes robust), 0 being greedy decoding: what a gain must beat
    e.divergence_prompts = 48  # prompts for forward and reverse KL where the demonstrator is known exactly
    e.batch_size = 64  # rows scored together
    e.agreement = 1.0  # best-of-n by an ensemble goes on to more samples while the members' mean gain is above so many of their deviations
    return e


def _checkpoint() -> ConfigDict:
    """When training is saved; the end of a stage always is."""
    k = ConfigDict()
    k.every_seconds = 60.0  # wall-clock time between checkpoints within a stage
    k.every_steps = 0  # steps between checkpoints, where positive, beside every_seconds
    k.keep = 2  # newest checkpoints kept of each stage; older ones are removed
    return k


def _log() -> ConfigDict:
    """Where training metrics go beside W/STAGE/metrics.jsonl."""
    g = ConfigDict()
    g.tensorboard = True  # TensorBoard events in every stage's folder: tensorboard --logdir=W
    g.wandb = ""  # a Weights & Biases project: one run a training stage, grouped by the workdir's name; needs the extra `wandb`
    return g


def _profile() -> ConfigDict:
    """Traces of training (`xprof --logdir=W/STAGE/trace`, or ui.perfetto.dev), one annotated step an update, parts by name."""
    p = ConfigDict()
    p.steps = 0  # updates traced in every stage that trains, into W/STAGE/trace; 0 traces nothing
    p.first = 3  # the first update traced; before it are those that compile
    return p
