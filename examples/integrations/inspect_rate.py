"""Inspect counts sad stories among a run's samples; how likely the base model is to write one is another number.

python examples/integrations/inspect_rate.py trains; then, with `twistlm serve runs/inspect/sad` running,
python examples/integrations/inspect_rate.py http://127.0.0.1:8000/v1
"""

import sys
from pathlib import Path
from typing import Any

from inspect_ai import eval as evaluate

import twistlm
from twistlm.certificates.effort import Search
from twistlm.integrations.inspect import event_rate
from twistlm.potentials import named

PROMPT = "Once upon a time, there was a"
# Without `of` the task reads answers alone and the run's φ the prompt too: both are to speak of one event.
SAD = "classifier:model=sentiment,label=negative,of=continuation"
TARGET = twistlm.Target("stories", named(SAD), PROMPT, num_tokens=10)


def train(out: Path = Path("runs/inspect/sad"), **settings: Any) -> twistlm.Run:
    """The run to serve."""
    return twistlm.train(TARGET, out=out, exists="overwrite", seed=0, **settings)


def main(address: str, num_choices: int = 128, draws: int = 512, logs: str = "runs/inspect/logs") -> dict[str, float]:
    """Let Inspect ask the served run and count, and look for the event under the base model."""
    task = event_rate(PROMPT, SAD, 0.5, num_choices)
    args = {"api_key": "none"}
    (log,) = evaluate(task, "openai-api/twistlm/sad", address, args, epochs=2, log_dir=logs, display="none")
    rate = {name: float(each.value) for name, each in log.results.scores[0].metrics.items()}
    print("among posterior samples: {rate:.3f} [{low:.3f}, {high:.3f}]".format(**rate))
    (found,) = twistlm.probability(TARGET, [0.5], search=Search(num_draws=draws))
    print(f"under the base model: {found.headline}")
    return rate


if __name__ == "__main__":
    main(sys.argv[1]) if sys.argv[1:] else train()
