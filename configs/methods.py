"""Every method on the embedded testbed, side by side: policy gradients on many rewards, the adversarial loop under the seven
f-divergences, DPO, SPIN, rejection fine-tuning.

  python benchmarks/methods.py --run runs/methods                                       # seeds 0, 1 and 2, then the tables
  python -m irl_jax run --config=configs/methods.py --workdir=runs/methods/seed-0       # one seed
  python -m irl_jax run --config=configs/methods.py:smoke --workdir=runs/methods-smoke  # under 5 minutes on 2 CPU cores

World, model, sft and its samples are the testbed's own (configs/testbed.py:hard). What differs between the methods is what the lines below
say. docs/methods.md has the numbers to expect, docs/divergences.md those of the seven divergences.
"""

from irl_jax.config import DIVERGENCES, default

REWARDS = (
    "reward/init_sft_frozen = init_sft reward.body=frozen reward.head=mlp reward.learning_rate=0.003",
    "reward/init_sft_trunk = init_sft reward.body=trunk reward.learning_rate=0.0003",
    "reward/init_sft_ensemble = init_sft reward.ensemble=2 reward.combine=mean_minus_std",
    "reward/init_sft_residual = init_sft reward.length_residual=true",
    "reward/init_sft_token = init_sft reward.granularity=token",
)
POLICIES = (
    "policy/init_sft_reinforce = init_sft policy.advantage=reinforce policy.normalise_rewards=true",
    "policy/init_sft_grpo = init_sft policy.advantage=grpo policy.kl=k3_loss",
    "policy/init_sft_ppo = init_sft policy.advantage=gae policy.value_coefficient=0.5 policy.surrogate=ppo_clip policy.epochs=2"
    " policy.minibatches=2 policy.normalise_rewards=true",
    "policy/frozen = init_sft_frozen",
    "policy/trunk = init_sft_trunk",
    "policy/ensemble = init_sft_ensemble",
    "policy/residual = init_sft_residual",
    "policy/token = init_sft_token policy.gamma=0.9",
)
# The seven divergences start from init, where the discriminator has something to tell: nothing but the loop takes them to the demonstrator.
# Its head on frozen features learns faster than the policy moves; with an adapter and a faster policy the loop chases its own tail.
CRITIC = "reward.body=frozen reward.head=mlp reward.learning_rate=0.003 adversarial.reward_updates=4"
FROM_INIT = f"policy.start=init policy.beta=0.0 policy.learning_rate=0.0005 {CRITIC}"
ADVERSARIAL = (
    *(f"adversarial/{name} = demo policy.divergence={name} {FROM_INIT}" for name in DIVERGENCES),
    f"adversarial/from_sft = demo policy.beta=0.02 {CRITIC}",
    "adversarial/token = demo reward.granularity=token policy.gamma=0.9",
)


def get_config(name: str = ""):
    c = default()
    c.reward.recipes = ("init_sft",)
    c.policy.recipes = ("init_sft", "log_ratio", "log_ratio_dense")
    c.dpo.recipes = ("init_sft", "init_demo", "preference")
    c.spin.recipes = ("demo",)
    c.rejection.recipes = ("init_sft",)
    c.variants = (*REWARDS, *POLICIES, *ADVERSARIAL)
    c.reward.steps = 100
    c.policy.steps = 30
    c.policy.batch_size = 8
    c.adversarial.rounds = 50
    c.adversarial.reward_rows = 32
    c.sample.policy_samples = 8
    if name == "smoke":
        _smoke(c)
    elif name:
        raise ValueError(f"configs/methods.py: unknown variant '{name}'; only 'smoke'")
    return c


def _smoke(c):
    c.data.testbed.pretrain_responses = 1000
    c.data.testbed.demonstrations = 64
    c.data.testbed.pairs = 64
    c.data.testbed.eval_prompts = 8
    c.model.num_layers = 1
    c.model.width = 32
    c.model.mlp_width = 64
    c.pretrain.steps = 40
    c.sft.epochs = 1.0
    c.sample.reward_prompts = 32
    c.sample.reward_samples = 1
    c.sample.eval_samples = 8
    c.sample.policy_samples = 2
    c.sample.rows = 64
    c.reward.steps = 4
    c.reward.batch_size = 16
    c.reward.eval_every = 2
    c.policy.steps = 2
    c.policy.batch_size = 4
    c.policy.samples = 4
    c.policy.keep_rollouts_every = 1
    c.adversarial.rounds = 3
    c.adversarial.warmup_rounds = 1
    c.adversarial.reward_rows = 16
    c.adversarial.replay_capacity = 32
    c.dpo.steps = 2
    c.dpo.batch_size = 8
    c.spin.steps = 2
    c.spin.batch_size = 8
    c.spin.prompts = 16
    c.rejection.samples = 4
    c.rejection.prompts = 16
    c.eval.prompts = 8
    c.eval.divergence_prompts = 4
