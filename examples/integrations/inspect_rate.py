"""Inspect counts sad stories among a run's samples; how likely the base model is to write one is another number.

python examples/integrations/inspect_rate.py
"""

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


def main(folder: Path = Path("runs/inspect"), num_choices: int = 256, draws: int = 512, threshold: float = 0.5,
         potential: str = SAD, **settings: Any) -> dict[str, float]:  # fmt: skip
    """Train, let Inspect ask and count, and look for the event under the base model."""
    target = twistlm.Target("stories", named(potential), PROMPT, num_tokens=10)
    twistlm.train(target, out=folder / "sad", exists="overwrite", seed=0, **settings)
    task = event_rate(PROMPT, potential, threshold, num_choices)
    (log,) = evaluate(task, model=f"twistlm/{folder / 'sad'}", log_dir=str(folder / "logs"), display="none")
    rate = {name: float(each.value) for name, each in log.results.scores[0].metrics.items()}
    print("among posterior samples: {rate:.3f} [{low:.3f}, {high:.3f}]".format(**rate))
    (found,) = twistlm.probability(target, [threshold], search=Search(num_draws=draws))
    print(f"under the base model: {found.headline}")
    return rate


if __name__ == "__main__":
    main()
