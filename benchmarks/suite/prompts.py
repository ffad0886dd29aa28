"""Sets of prompts: chats of different lengths, a long system prompt that all share, different lengths against equal.

| task | what it does |
|---|---|
| `generate_chats` | transformers' own sampling of the left-padded batch, `num_return_sequences` of each chat |
| `chats_mlp` | SMC with the MLP twist on the same chats, all in one batch, resampling at every step |
| `generate_system`, `system_mlp` | the same with a system prompt of 600 tokens in each chat |
| `different`, `equal` | base sampling on prompts of different lengths, and on as many of their mean length |

Nothing is remembered: every run reads its prompts. `generate` would hold 512 copies of the keys and values of 650
tokens, 16 GB: it works on a part of the chats, and its time counts as often as that part goes into all.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from benchmarks.suite import limits
from benchmarks.suite.models import build, spread_twist
from benchmarks.suite.options import Batch, Options
from benchmarks.suite.record import Record, Row
from benchmarks.suite.tasks import WARM_STEPS, Halves, Task
from benchmarks.suite.timing import Timing, alternate
from twistlm.core.rng import Rng
from twistlm.models.chats import Chat
from twistlm.models.fast import FastDecoder
from twistlm.models.huggingface import HuggingFaceLM
from twistlm.models.packaged import packaged_model
from twistlm.runs.prompts import requests_file
from twistlm.sampling.cases import Case
from twistlm.sampling.proposals import base
from twistlm.sampling.sampler import Sampler
from twistlm.sampling.twisted import TwistedLM

MODEL = "chats"
RULE = "Rule {}: answer in short sentences, be polite to everybody, and say what you do not know. "
SYSTEM_TOKENS = 600
# Of so many parts of the chats `generate` does one.
PARTS = {"chats": 4, "system": 8}
# Lengths of prompts, around their mean.
LENGTHS = (10, 70)


class Prompts:
    """SmolLM2 with `count` chats."""

    def __init__(self, dtype: str, batch: Batch, count: int, quick: bool) -> None:
        self.batch, self.count = batch, count
        self.model: Any = build("smollm2", dtype, quick=quick)
        tokenizer = None if quick else AutoTokenizer.from_pretrained(packaged_model("smollm2"))
        self.lm = HuggingFaceLM(self.model, tokenizer, MODEL)
        generator = torch.Generator().manual_seed(0)

        def random(length: int) -> Tensor:
            return torch.randint(3, self.lm.vocab_size, (length,), generator=generator)

        if quick:
            template, system = random(4), random(12)
            rests = [random(length) for length in range(1, count + 1)]
            self.sets = {
                "chats": [torch.cat([template, rest]) for rest in rests],
                "system": [torch.cat([template, system, rest]) for rest in rests],
            }
        else:
            requests = requests_file().read_text(encoding="utf-8").splitlines()[:count]
            rules = accumulate(RULE.format(number) for number in range(1, SYSTEM_TOKENS))
            long = next(text for text in rules if len(self.lm.encode(text)) >= SYSTEM_TOKENS)
            self.sets = {
                name: [
                    self.lm.encode_chat(Chat((*system, {"role": "user", "content": each})))  # type: ignore[arg-type]
                    for each in requests
                ]
                for name, system in (("chats", ()), ("system", ({"role": "system", "content": long},)))
            }
        lengths = torch.linspace(*LENGTHS, count).round().long().tolist()
        self.sets["different"] = [random(length) for length in lengths]
        self.sets["equal"] = [random(sum(lengths) // count) for _ in lengths]
        self.twist = spread_twist(self.lm, "mlp", self.sets["chats"][0])

    def task(self, name: str) -> Task:
        """The task called `name`."""
        kind, _, rest = name.partition("_")
        if kind == "generate":
            part = self.sets[rest][:: PARTS[rest]]
            return Task(lambda: self._generate(part, self.batch.steps), lambda: self._generate(part[:1], WARM_STEPS))
        prompts = self.sets[kind]
        return Task(
            lambda: self._sample(prompts, self.batch.steps, bool(rest)),
            lambda: self._sample(prompts[:2], WARM_STEPS, bool(rest)),
        )

    def _generate(self, prompts: Sequence[Tensor], steps: int) -> None:
        longest = max(map(len, prompts))
        tokens = torch.stack([torch.nn.functional.pad(each, (longest - len(each), 0)) for each in prompts])
        mask = torch.stack([torch.arange(longest) >= longest - len(each) for each in prompts]).long()
        made = self.model.generate(
            tokens, attention_mask=mask, do_sample=True, top_k=0, use_cache=True, max_new_tokens=steps,
            num_return_sequences=self.batch.particles, pad_token_id=0,
        )  # fmt: skip
        if made.shape != (len(prompts) * self.batch.particles, longest + steps):
            raise RuntimeError(f"generate made {tuple(made.shape)}")

    def _sample(self, prompts: Sequence[Tensor], steps: int, twisted: bool) -> float | None:
        assert isinstance(self.lm._decoder, FastDecoder)
        self.lm._decoder._memory.forget()
        model = TwistedLM(self.lm, self.twist if twisted else None, "ignore")
        sampler = Sampler(model, Halves(self.lm.vocab_size), steps, ess_threshold=1.0 if twisted else 0.0)
        sampler = sampler if twisted else replace(sampler, proposal=base)
        result = sampler.smc(Rng(0), [Case(prompt) for prompt in prompts], self.batch.particles)
        ess = torch.stack([info.ess for info in result.infos]).mean()
        return float(ess) / self.batch.particles if twisted else None


def measure(options: Options, record: Record) -> Iterator[str]:
    """Put the rows into `record`, precision by precision; yields what was done."""
    if "prompts" not in options.groups or MODEL not in options.models:
        return
    batch, count = options.sizes.prompts
    for dtype in options.dtypes:
        label, before = f"{MODEL} {dtype} {count}x{batch}", os.getloadavg()
        bench = Prompts(dtype, batch, count, options.quick)
        for kind in PARTS:
            names = (f"generate_{kind}", f"{kind}_mlp")
            timings = alternate({name: bench.task(name) for name in names}, options.sizes.prompt_rounds, label)
            whole = timings[names[0]].of_part(PARTS[kind])
            for name, timing in zip(names, (whole, timings[names[1]]), strict=True):
                record.put(_row(name, dtype, "time", (count, batch), timing, whole))
        timings = alternate({name: bench.task(name) for name in ("different", "equal")}, options.rounds, label)
        record.put(_row("different", dtype, "scaling", (count, batch), timings["different"], timings["equal"]))
        record.put_load(label, before, os.getloadavg())
        yield label


def _row(task: str, dtype: str, kind: str, size: tuple[int, Batch], timing: Timing, other: Timing) -> Row:
    count, batch = size
    return Row(
        name=f"{task}_{count}x{batch}", model=MODEL, dtype=dtype, kind=kind, ratio=timing.median / other.median,
        limit=limits.of_prompts(task), median_s=timing.median, peak_mb=None, task=task,
        particles=count * batch.particles, steps=batch.steps, runs_s=timing.seconds,
        ess=timing.ess if task.endswith("_mlp") else None, limit_s=timing.limit_s,
    )  # fmt: skip
