"""The limits that the rows are held to: times of `generate` on the same batch, or MB.

Those of issues 3, 5 and 17, with three readings of our own for what they ask in words: "flat in the number of
resamplings" and "linear apart from attention" (`FLAT`), and "flat over 500 updates" (`GROWTH_MB`).
"""

FLAT = 1.2
GROWTH_MB = 20.0

# By task (the longest name that it starts with) and batch: fp32, bf16.
_TIMES: dict[tuple[str, str], tuple[float, float]] = {
    ("base", "short"): (0.55, 0.40),
    ("smc", "short"): (0.80, 0.50),
    ("smc_backbone", "short"): (1.10, 0.75),
    ("smc", "long"): (0.70, 0.55),
    ("smc", "large"): (0.80, 0.50),
    ("certificate", "certificate"): (12.0, 12.0),
    ("ctl", "short"): (1.0, 0.7),
    ("dpg", "short"): (1.8, 1.3),
}
# An update's time over that of sampling its sequences (issue 5): with a head, and with a transformer of its own.
_UPDATES = {"ctl": 1.3, "sixo": 1.3, "fudge": 1.3, "rl": 2.0, "dpg": 2.0}
_UPDATE_OF_A_TRANSFORMER = 4.0
_UNLIMITED = ("ctl_backbone", "dpg_backbone")
# SMC on sets of prompts over `generate` on the padded batch; prompts of different lengths over equal ones (issue 17).
_PROMPTS = {"chats_mlp": 0.5, "system_mlp": 0.35, "different": 1.15}
_MEMORY: dict[tuple[str, str], float] = {
    ("smc", "short"): 600.0,
    ("smc", "large"): 1500.0,
    **{(loss, "short"): 2000.0 for loss in ("ctl", "rl", "sixo", "fudge", "dpg", "ppo")},
}


def of_time(task: str, batch: str, dtype: str) -> float | None:
    """The limit on a task's time over `generate`'s, None if it has none. `batch` is its name in `Sizes`."""
    if task in _UNLIMITED:
        return None
    return next(
        (_TIMES[name, batch][("fp32", "bf16").index(dtype)] for name in _names(task) if (name, batch) in _TIMES), None
    )


def of_update(task: str) -> float | None:
    """The limit on an update's time over that of sampling its sequences, None if it has none."""
    loss, _, twist = task.partition("_")
    return _UPDATE_OF_A_TRANSFORMER if twist == "backbone" and loss in _UPDATES else _UPDATES.get(loss)


def of_prompts(task: str) -> float | None:
    """The limit on a task on a set of prompts, None if it has none."""
    return _PROMPTS.get(task)


def of_memory(task: str, batch: str) -> float | None:
    """The limit in MB above weights, None if it has none."""
    return next((_MEMORY[name, batch] for name in _names(task) if (name, batch) in _MEMORY), None)


def _names(task: str) -> tuple[str, str]:
    return task, task.partition("_")[0]
