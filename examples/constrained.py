"""Ten JSON records by a schema, with the sentiment that was asked for, and what is known of their distribution.

    python examples/constrained.py                                        # SmolLM2, ten product reviews; some minutes
    python examples/constrained.py --model stories --num-tokens 40 --particles 8
    python examples/constrained.py --label negative --schema mine.json --prompt "A review, as JSON:"

Every record is valid, whatever was drawn: the schema is an automaton that the sampler never leaves. That they are
distributed as the model's own answers would be, were they all valid and of that sentiment, is what SMC is for; how
likely such an answer is, and how far plain constrained sampling is from it, says the certificate.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from rich.console import Console

import twistlm
from twistlm.core.rng import Rng
from twistlm.potentials import Classifier, JsonSchema
from twistlm.report.tables import certificate_table
from twistlm.sampling.smc import choose

SCHEMA = {
    "type": "object",
    "properties": {
        "product": {"type": "string", "pattern": "^[A-Za-z ]{3,20}$"},
        "stars": {"type": "integer", "enum": [1, 2, 3, 4, 5]},
        "review": {"type": "string", "pattern": "^[A-Za-z ,']{10,60}[.!]$"},
    },
    "required": ["product", "stars", "review"],
}


@dataclass(frozen=True)
class Options:
    """What is written, and how.

    Attributes:
        model: a registered name, folder or hub name.
        prompt: what the records follow.
        schema: a file with a JSON schema; by default that of a product review.
        classifier: of the whole answer.
        label: the class that is asked for.
        num_records: how many.
        num_tokens: of a record, at most.
        particles: of SMC, for each record.
        seed: of all of it.
        out: file of the records, one a line.
    """

    model: str = "smollm2"
    prompt: str = "A customer's product review as JSON:\n"
    schema: Path | None = None
    classifier: str = "sentiment"
    label: str = "positive"
    num_records: int = 10
    num_tokens: int = 48
    particles: int = 16
    seed: int = 0
    out: Path = Path("runs/records.jsonl")


def main(options: Options) -> None:
    """Sample, show, certify."""
    schema = json.dumps(SCHEMA) if options.schema is None else options.schema.read_text(encoding="utf-8")
    potential = JsonSchema(schema) * Classifier(options.classifier, options.label)
    target = twistlm.Target(options.model, potential, options.prompt, options.num_tokens)
    sampler = target.sampler()
    result = sampler.smc(Rng(options.seed), list(target.cases) * options.num_records, options.particles)
    chosen = choose(Rng(options.seed).fork("choice"), result)
    tokens = result.particles.tokens[torch.arange(options.num_records), chosen]
    records = [json.loads(text) for text in target.lm.decode(list(tokens))]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    console = Console()
    for record in records:
        console.print_json(data=record, indent=None)
    certificate = twistlm.certify(
        target, num_draws=512, num_particles=(4, options.particles), num_samples=128, budget=128
    )
    console.print(certificate_table({"constrained": certificate}))
    print(f"{len(records)} records in {options.out}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
