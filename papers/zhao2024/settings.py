"""The settings that are compared, each a sweep by its name, and where the scripts keep what they find."""

from dataclasses import replace
from pathlib import Path

from twistlm.runs.sweeps.sweep import Request

HERE = Path("papers/zhao2024")
CURVES = Path("docs/recorded/results-curves.json")

SMALL = "small"
MAIN = {
    "toxicity": Request("toxicity", SMALL),
    "sentiment": Request("sentiment", SMALL),
    "infilling-15-10": Request("infilling", SMALL, {"num_tokens": 15, "num_condition": 10}),
    "infilling-2-1": Request("infilling", SMALL, {"num_tokens": 2, "num_condition": 1}),
}
POWERS = (1, 2, 5)
POSITIVES = ("ctl", "rl", "sixo", "dpg")
# The presets' rates are for fresh draws of φ itself. At DPG's and RL's of 1e-3, a few hundred exact samples are fitted
# by heart, and the rare good draws of a power of φ.
RATE = 1e-4
ABLATIONS = {
    **{
        f"{name}-exact": Request(name, SMALL, methods=POSITIVES, source="exact", learning_rate=RATE, num_seeds=2)
        for name in ("toxicity", "sentiment")
    },
    **{
        f"toxicity-beta-{beta}": Request(
            "toxicity", SMALL, {"beta": float(beta)}, methods=("ctl", "dpg", "ppo"), learning_rate=RATE, num_seeds=2
        )
        for beta in POWERS
    },
    "toxicity-threshold": Request("toxicity-threshold", SMALL, methods=("ctl",), num_seeds=2),
    # DPG with a lexical twist: on fresh draws, and on the pool (docs/fresh.md).
    **{
        f"{name}-{method}": Request(name, SMALL, methods=(method,))
        for method in ("fresh", "pooled")
        for name in ("toxicity", "sentiment")
    },
    **{
        f"toxicity-threshold-{method}": Request("toxicity-threshold", SMALL, methods=(method,))
        for method in ("fresh", "pooled")
    },
    **{
        f"toxicity-beta-5-{method}": Request("toxicity", SMALL, {"beta": 5.0}, methods=(method,))
        for method in ("fresh", "pooled")
    },
    # A network that reads the condition first (docs/conditions.md).
    **{f"{name}-prompted": replace(MAIN[name], methods=("prompted",)) for name in ("infilling-15-10", "infilling-2-1")},
}
# Four times as many sequences as in the main tables, 25,600; the curves have 1,600 of them, too.
BUDGETS = {
    **{f"{name}-budgets": replace(MAIN[name], num_updates=256) for name in ("sentiment", "toxicity", "infilling-2-1")},
    "infilling-2-1-prompted-budgets": replace(MAIN["infilling-2-1"], methods=("prompted",), num_updates=256),
    # 15/10 draws 50 sequences an update. RL, FUDGE and PPO do not leave the base model there at any rate.
    **{
        f"infilling-15-10-{name}": replace(MAIN["infilling-15-10"], methods=methods, num_updates=512)
        for name, methods in (("budgets", ("dpg", "sixo")), ("prompted-budgets", ("prompted",)))
    },
    "toxicity-threshold-budgets": Request(
        "toxicity-threshold", SMALL, methods=("ctl", "dpg", "ppo"), num_seeds=2, num_updates=256
    ),
    **{
        f"toxicity-threshold-{method}-budgets": Request(
            "toxicity-threshold", SMALL, methods=(method,), num_updates=count
        )
        for method, count in (("fresh", 64), ("pooled", 512))
    },
}
# How low each gets, as draws go on: certificates after 1, 2, 4, … updates of 100 sequences.
LONG = {
    **BUDGETS,
    "sentiment-long": Request("sentiment", SMALL, methods=("ctl", "dpg"), num_seeds=2, num_updates=2048),
    # What is taken where nothing is said, in batches of 400: up to 102,400 sequences.
    **{
        f"{name}-fresh-long": Request(name, SMALL, methods=("fresh",), num_seeds=2, num_updates=256)
        for name in ("sentiment", "toxicity")
    },
    # Twists with a network of their own, each at the better of two rates by 32 updates.
    **{
        f"sentiment-long-{twist}": Request(
            "sentiment", SMALL, methods=("dpg",), num_seeds=2, twist=twist, num_updates=2048, learning_rate=rate
        )
        for twist, rate in (("lora", 3e-4), ("backbone", 1e-4))
    },
    "infilling-2-1-long": replace(MAIN["infilling-2-1"], methods=("dpg", "prompted"), num_seeds=2, num_updates=1024),
    "toxicity-long": Request("toxicity", SMALL, methods=("ctl",), num_seeds=2, num_updates=256),
}
