"""The paper's comparison on movie reviews: every recipe's reward and policy, the adversarial loop, DPO and rejection.

  python -m irl_jax run --config=configs/paper/imdb.py --workdir=runs/paper/imdb --config.seed=0
  python -m irl_jax run --config=configs/paper/imdb.py:top_p --workdir=runs/paper/imdb_top_p --config.seed=0   # another sampling law
  python -m irl_jax run --config=configs/paper/imdb.py:smoke --workdir=runs/paper/imdb-smoke                    # and :top_p_smoke

A seed takes 74 minutes on 2 CPU cores, 9 of them the analyses that `python -m benchmarks.evidence.run imdb` adds; one of ":top_p" takes
32 on one core (with an allocator that keeps its pages: docs/speed.md).

Data, models, golden and paths are those of configs/imdb.py. The seed draws everything but the judge: the split into training, development
and evaluation prompts, which words of a review are its prompt, which reviews are demonstrations, all training and all samples.
":top_p" asks whether the order of the recipes turns on the sampling law: every sample is drawn at top-p 0.95; the recipes' rewards and
what best-of-N by them is worth are all it has.
"""

import pathlib

from irl_jax.cli import load_config

CRITIC = "reward.body=frozen reward.head=mlp reward.learning_rate=0.003 adversarial.reward_updates=4"  # as in configs/methods.py
VARIANTS = (f"adversarial/from_sft = demo policy.beta=0.02 {CRITIC}",)


def get_config(name: str = ""):
    if name not in ("", "top_p", "smoke", "top_p_smoke"):
        raise ValueError(f"configs/paper/imdb.py: unknown variant '{name}'; one of 'top_p', 'smoke', 'top_p_smoke'")
    smoke = name.endswith("smoke")
    c = load_config(f"{pathlib.Path(__file__).resolve().parent.parent / 'imdb.py'}{':smoke' * smoke}")
    c.policy.keep_rollouts_every = 5
    c.eval.best_of = (1, 2, 4, 5, 8, 10, 16, 30, 32, 50, 64)
    if name.startswith("top_p"):
        c.sample.top_p = 0.95
        c.policy.recipes = ()
    else:
        c.variants = VARIANTS
        c.policy.recipes = ("init_sft", "init_demo", "sft_demo")
        c.dpo.recipes = ("init_sft",)
        c.rejection.recipes = ("init_sft",)
        c.adversarial.rounds = 50
        c.adversarial.reward_rows = 32
    if smoke:
        _smoke(c)
    return c


def _smoke(c):
    """What configs/imdb.py:smoke leaves large, or lacks."""
    c.policy.recipes = c.policy.recipes[:1]
    c.policy.keep_rollouts_every = 1
    c.adversarial.rounds = 3
    c.adversarial.warmup_rounds = 1
    c.adversarial.reward_rows = 16
    c.adversarial.replay_capacity = 32
    c.dpo.steps = 2
    c.dpo.batch_size = 8
    c.rejection.samples = 4
    c.rejection.prompts = 16
