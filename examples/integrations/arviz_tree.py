"""SMC as ArviZ reads it: runs are chains, particles draws; effective sizes and genealogy are beside them.

python examples/integrations/arviz_tree.py
"""

from typing import Any

import arviz_stats

import twistlm
from twistlm.potentials import Classifier


def main(**settings: Any) -> None:
    """Four runs of SMC with 64 particles, summed up by ArviZ; and a certificate as a data frame."""
    target = twistlm.Target("stories", Classifier("toxicity", "toxic"), "Once upon a time, there was a", num_tokens=10)
    run = twistlm.train(target, seed=0, **settings)
    tree = run.to_datatree(64, num_runs=4)
    print(tree)
    print(arviz_stats.summary(tree, group="log_likelihood", kind="stats"))
    print("ESS after each token:", tree["steps"]["ess"].mean("chain").round(1).values)
    print(run.evaluate().to_pandas().query("bound == ''")[["quantity", "value", "low", "high"]].to_string(index=False))


if __name__ == "__main__":
    main()
