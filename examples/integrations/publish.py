"""A run as a repository of the hub: saved, described by a card, opened again by name.

python examples/integrations/publish.py
"""

from pathlib import Path
from typing import Any

import twistlm
from twistlm.potentials import Classifier


def main(folder: Path = Path("runs/published"), **settings: Any) -> None:
    """Train, certify, save, open."""
    target = twistlm.Target("stories", Classifier("toxicity", "toxic"), "Once upon a time, there was a", num_tokens=10)
    run = twistlm.train(target, seed=0, **settings)
    run.evaluate()
    run.save_pretrained(folder, overwrite=True)
    # run.push_to_hub("your-name/toxic-stories") does the same on the hub.
    print((folder / "README.md").read_text())
    again = twistlm.Run.from_pretrained(folder)
    print(again.sample(4).texts)


if __name__ == "__main__":
    main()
