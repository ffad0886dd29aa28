"""log Z at T = 2, by passing over the first token:  Z = Σ_v p₀(v) f(v) Σ_u p₀(u | v) f(u).

    python exact.py --model FOLDER --dtype float32 --json out.json

First tokens are taken in the order of p₀ f until what is left cannot change log Z by more than a tolerance, so that
the value lies between two bounds.
"""

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import torch
from problem import DTYPES, make_problem
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

BATCH = 256


@torch.no_grad()
def log_Z(model: Any, prompt: list[int], log_f: Tensor, tolerance: float) -> tuple[float, float, int]:
    """Lower and upper bound, as close as `tolerance`, and how many first tokens were expanded."""
    read = model(input_ids=torch.tensor([prompt]), use_cache=True)
    first = read.logits[0, -1].double().log_softmax(-1) + log_f.double()
    # Each first token contributes at most p₀ f, since f ≤ 1.
    order = first.argsort(descending=True)
    left = float(first.logsumexp(-1).exp())
    found, count = 0.0, 0
    while left > tolerance * found:
        tokens = order[count : count + BATCH]
        cache = copy.deepcopy(read.past_key_values)
        cache.batch_repeat_interleave(len(tokens))
        second = model(input_ids=tokens.unsqueeze(-1), past_key_values=cache).logits[:, 0].float().log_softmax(-1)
        found += float((first[tokens] + (second + log_f).logsumexp(-1)).exp().sum())
        left -= float(first[tokens].exp().sum())
        count += len(tokens)
    bounds = torch.tensor([found, found + max(left, 0.0)], dtype=torch.float64).log().tolist()
    return bounds[0], bounds[1], count


def main() -> None:
    """Compute, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--dtype", choices=sorted(DTYPES), required=True)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(2)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=DTYPES[options.dtype]).eval()
    problem = make_problem(tokenizer)
    lower, upper, count = log_Z(model, problem.prompt, problem.log_f, options.tolerance)
    record = {"dtype": options.dtype, "lower": lower, "upper": upper, "first_tokens": count}
    options.json.write_text(json.dumps(record) + "\n")
    print(record)


if __name__ == "__main__":
    main()
