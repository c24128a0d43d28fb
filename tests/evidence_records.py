"""Made-up records of benchmarks/evidence, whose figures are known."""

import math

from irl_jax.evaluation.best_of_n import kl_bound

NS = (1, 2, 4, 5, 8, 10, 16, 30, 32, 50, 64)
WINS = {"init_sft": 0.08, "init_demo": -0.05, "sft_demo": -0.07, "preference": 0.04, "log_ratio": 0.02, "length": 0.01, "random": 0.0,
        "golden": 0.4, "init_sft_frozen": 0.03, "init_sft_trunk": 0.07}
ROLES = {"init": (0.42, 4.0, 0.0), "demo": (0.92, None, 3.0), "sft": (0.64, 0.0, 2.0), "policy/init_sft": (0.66, 1.2, 3.5),
         "policy/far": (0.5, 6.0, 6.0), "policy/ensemble_far": (0.6, 5.0, 5.0), "adversarial/from_sft": (0.68, 0.7, 2.5),
         "dpo/init_sft": (0.4, 9.0, 7.0), "spin/demo": (0.64, 0.6, 2.2), "rejection/init_sft": (0.66, 0.5, 2.8)}


def reward(gain: float) -> dict:
    """Win rate 1/2 + gain log n / log 30."""
    rows = [dict(n=n, golden=0.64 + gain * math.log(n), stderr=0.01, win_rate=0.5 + gain * math.log(n) / math.log(30),
                 win_rate_stderr=0.01 if n > 1 else 0.0, kl_bound=kl_bound(n)) for n in NS]
    return dict(heldout_auc=0.8 + gain, heldout_auc_stderr=0.02, spearman_golden=0.1, spearman_golden_stderr=0.01, spearman_length=-0.2,
                spearman_length_stderr=0.01, pair_accuracy=0.6, pair_accuracy_stderr=0.03, best_of_n=rows)


def shift(slope: float) -> dict:
    return dict(position=[0, 1, 2, 3, 4, 5], demo_log_prob=[-1.0 - slope * t for t in range(6)], demo_log_prob_stderr=[0.1] * 6,
                golden_all=[0.1 * t for t in range(6)], golden_all_stderr=[0.01] * 6, alive=[1, 1, 1, 1, 0.5, 0.1])


def record(experiment="testbed", cell="base", seed=0, move=0.0, wins=None) -> dict:
    """One record; `move` is added to what init_sft gains, and to every policy's golden less sft's."""
    gains = {**WINS, **(wins or {})}
    gains["init_sft"] += move
    golden = ROLES["sft"][0]
    paired = [dict(name=f"best-of-16 by {name} - sft", difference=gain * math.log(16), stderr=0.01, z=1.0, n=9)
              for name, gain in gains.items()]
    paired += [dict(name=f"{role} - sft", difference=value - golden + move, stderr=0.01, z=1.0, n=9)
               for role, (value, _, _) in ROLES.items() if "/" in role]
    paired += [dict(name="adversarial/from_sft - policy/init_sft", difference=0.02 + move, stderr=0.01, z=1.0, n=9)]
    policies = {role: dict(golden_mean=value, golden_stderr=0.01, length_mean=20.0, kl_to_sft=kl, distinct_2=0.3, init_logprob=-1.0,
                           kl_to_sft_stderr=None if kl is None else 0.1, rewards=dict(log_ratio=ratio - 2.0))
                for role, (value, kl, ratio) in ROLES.items()}
    curve = dict(step=[5, 10, 15, 20, 25, 30], kl=[0.2, 0.5, 1.0, 2.0, 4.0, 6.0], golden=[0.64, 0.66, 0.68, 0.66, 0.6, 0.5],
                 golden_stderr=[0.02] * 6, reward=[0, 1, 2, 3, 4, 5], reward_stderr=[0.1] * 6)
    probe = dict(auc=0.9, auc_stderr=0.01, features_auc=0.8, residual_auc=0.7, explained=0.5, explained_stderr=0.01,
                 on_sft=dict(r2=0.4, r2_stderr=0.01, coefficients={"tokens": 0.5, "tail_words": -1.5, "never": None}))
    analyses = dict(
        probes={"init_sft": probe, "init_demo": probe | {"explained": 0.7 + seed / 100}},
        golden_probe=dict(r2=0.1, r2_stderr=0.01, coefficients={"tokens": 0.2}),
        matched_pairs={"init_sft": {"tokens": dict(difference=0.3, stderr=0.1), "golden": dict(difference=0.1, stderr=0.1)}},
        shift={"init": shift(0.0), "sft": shift(0.3), "demo": shift(0.1 + seed / 1000), "policy/init_sft": shift(0.2)},
        judged_by={role: {"init_sft": 0.5} for role in ROLES},
        disagreement={"policy/ensemble_far": {**curve, "std": [0.1, 0.1, 0.2, 0.4, 0.8, 1.0], "std_stderr": [0.01] * 6,
                                              "foresees": {"spearman": 0.9 + seed / 100, "by_kl": 0.9}}})
    return dict(experiment=experiment, cell=cell, seed=seed, commit="0123456789abcdef", settings={}, seconds={"sft": 30.0, "analyses": 6.0},
                results=dict(policies=policies, rewards={name: reward(gain) for name, gain in gains.items()}, paired=paired),
                over_training={"policy/init_sft": curve, "policy/far": curve}, analyses=analyses)
