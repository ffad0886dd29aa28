"""Posterior samples over OpenAI's interface, with their weights: P(toxic) of what the base model writes.

twistlm demo && twistlm serve runs/demo --name demo    # in another terminal
python examples/integrations/client.py
"""

import math

from openai import OpenAI


def main(address: str = "http://127.0.0.1:8000/v1", model: str = "demo", n: int = 64) -> None:
    """Ask for n samples, and average by weight."""
    client = OpenAI(base_url=address, api_key="none needed here")
    asked = client.completions.create(
        model=model, prompt="Once upon a time, there was a", n=n, seed=0, extra_body={"num_particles": 16}
    )
    ours = [choice.model_extra["twistlm"] for choice in asked.choices]
    for choice, each in sorted(zip(asked.choices, ours, strict=True), key=lambda pair: -pair[1]["log_phi"])[:5]:
        print(f"log φ {each['log_phi']:6.2f}  {choice.text!r}")
    # E[Ẑ] = Z = E_p₀[φ].
    print(f"E[φ] under the base model: {sum(math.exp(each['log_weight']) for each in ours) / n:.4f}")


if __name__ == "__main__":
    main()
