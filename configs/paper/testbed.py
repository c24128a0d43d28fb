"""When does Inverse-RLignment work? The embedded testbed with every method, and the cells in which one factor at a time is moved.

  python -m benchmarks.evidence.run testbed                  # all cells, seeds 0, 1 and 2: 5 hours on 2 CPU cores, resumable
  python -m benchmarks.evidence.run testbed --smoke          # their miniatures: the base cell 3 minutes, a factor's 1, with analyses
  python -m irl_jax run --config=configs/paper/testbed.py --workdir=runs/base             # the base cell alone: 26 minutes
  python -m irl_jax run --config=configs/paper/testbed.py:factor --workdir=runs/factor --config.data.testbed.entanglement=0.8
                                                                                          # a factor's cell: 6 minutes

Times with an allocator that keeps its pages (docs/speed.md says what that is worth); those of the first line with the analyses.

World, model, sft and rewards are those of configs/testbed.py:hard, as frozen there. The base cell ("") has the policies of all recipes, an
ensemble, the adversarial loop, DPO, SPIN, rejection fine-tuning, and 256 samples of sft a prompt, so that n goes to 256. A factor's cell
(":factor") has, with the same settings, what is compared over the levels of a factor, and 64 samples. What differs between the methods is
what the lines below say; their settings are those of configs/methods.py, and none was chosen by results of this experiment.
docs/evidence.md has the numbers to expect; those of ":smoke" and ":factor_smoke" mean nothing.
"""

from irl_jax.config import LEARNT, default

CAPACITY = (
    "reward/init_sft_frozen = init_sft reward.body=frozen reward.head=mlp reward.learning_rate=0.003",
    "reward/init_sft_trunk = init_sft reward.body=trunk reward.learning_rate=0.0003",
)
CRITIC = "policy.batch_size=8 reward.body=frozen reward.head=mlp reward.learning_rate=0.003 adversarial.reward_updates=4"
FROM_SFT = f"adversarial/from_sft = demo policy.beta=0.02 {CRITIC}"
FROM_INIT = f"policy.start=init policy.beta=0.0 policy.learning_rate=0.0005 {CRITIC}"
FAR = "policy.beta=0.01 policy.steps=120"  # far enough to see golden fall while the reward rises
BASE = (
    *CAPACITY,
    "reward/init_sft_ensemble = init_sft reward.ensemble=4 reward.combine=mean_minus_std",
    "policy/frozen = init_sft_frozen",
    "policy/trunk = init_sft_trunk",
    "policy/ensemble = init_sft_ensemble",
    f"policy/far = init_sft {FAR}",
    f"policy/ensemble_far = init_sft_ensemble {FAR}",
    FROM_SFT,
    f"adversarial/from_init = demo {FROM_INIT}",  # the loop of init_demo's contrast ...
    f"adversarial/sft_from_init = sft {FROM_INIT}",  # ... and of init_sft's: towards samples of sft
    "adversarial/token = demo policy.batch_size=8 reward.granularity=token policy.gamma=0.9",
)
FACTOR = (*CAPACITY, FROM_SFT)


def get_config(name: str = ""):
    if name not in ("", "factor", "smoke", "factor_smoke"):
        raise ValueError(f"configs/paper/testbed.py: unknown variant '{name}'; one of 'factor', 'smoke', 'factor_smoke'")
    c = default()
    c.reward.recipes = LEARNT
    c.policy.keep_rollouts_every = 5
    c.adversarial.rounds = 50
    c.adversarial.reward_rows = 32
    if name.startswith("factor"):
        c.variants = FACTOR
    else:
        c.variants = BASE
        c.policy.recipes = (*LEARNT, "log_ratio")
        c.dpo.recipes = LEARNT
        c.spin.recipes = ("demo",)
        c.rejection.recipes = LEARNT
        c.sample.eval_samples = 256
        c.eval.best_of = (1, 2, 4, 5, 8, 10, 16, 30, 32, 50, 64, 128, 256)
    if name.endswith("smoke"):
        _smoke(c)
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
    c.sample.eval_samples = 16
    c.sample.policy_samples = 2
    c.sample.rows = 64
    c.reward.steps = 4
    c.reward.batch_size = 16
    c.reward.eval_every = 2
    c.policy.steps = 2
    c.policy.batch_size = 4
    c.policy.samples = 4
    c.policy.keep_rollouts_every = 1
    c.variants = tuple(line.replace("policy.steps=120", "policy.steps=3").replace("policy.batch_size=8", "policy.batch_size=4")
                       for line in c.variants)
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
    c.eval.temperatures = (0.5, 0.0)
    c.eval.divergence_prompts = 4
