"""`generate` of transformers, drawing from the posterior: ten sad stories, and one that is valid JSON.

python examples/integrations/generate.py
"""

from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

import twistlm
from twistlm.integrations import generate
from twistlm.models.bundled import folder
from twistlm.potentials import Classifier, JsonSchema

PROMPT = "Once upon a time, there was a"


def main(**settings: Any) -> None:
    """Train a twist, then ask `generate` for its target's samples."""
    model = AutoModelForCausalLM.from_pretrained(folder("stories"))
    tokenizer = AutoTokenizer.from_pretrained(folder("stories"))
    inputs = tokenizer(PROMPT, return_tensors="pt")

    sad = twistlm.Target("stories", Classifier("sentiment", "negative"), PROMPT, num_tokens=20)
    run = twistlm.train(sad, seed=0, **settings)
    several = {"do_sample": True, "top_k": 0, "num_return_sequences": 10, "return_dict_in_generate": True}
    out = model.generate(**inputs, **several, custom_generate=generate, run=run, num_particles=16)
    texts = tokenizer.batch_decode(out.sequences, skip_special_tokens=True)
    for text, log_phi in sorted(zip(texts, out.log_phi.tolist(), strict=True), key=lambda each: -each[1]):
        print(f"{log_phi:6.2f}  {text!r}")

    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    record = twistlm.Target("stories", JsonSchema(schema), PROMPT, num_tokens=16)
    print(tokenizer.decode(model.generate(**inputs, custom_generate=generate, run=record)[0], skip_special_tokens=True))


if __name__ == "__main__":
    main()
