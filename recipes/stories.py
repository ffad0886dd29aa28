"""`stories`: a language model of 4.6 million parameters that tells short children's stories.

    python recipes/stories.py      # needs recipes/corpus.py's output; about half an hour on two cores

Byte-level BPE of 4,096 tokens and a transformer of Llama's shape, trained on the corpus and on the tales of Grimm and
Andersen. Writes the folder: weights in bfloat16, tokenizer.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fit import Schedule, fit
from packages import tales
from twistlm.core.rng import Rng

END = "<|endoftext|>"
VOCABULARY = 4096
# Every so many topics of the corpus are held out, whole.
HELD_OUT = 20


@dataclass(frozen=True)
class Options:
    """How long to train, and where.

    Attributes:
        corpus: folder that recipes/corpus.py wrote.
        out: the model's folder.
        steps: updates.
        learning_rate: its peak.
        seed: of everything.
        rows: sequences per update.
        context: tokens of each.
        muon: see `fit.Schedule`.
    """

    corpus: Path = Path("runs/recipes/corpus")
    out: Path = Path("src/twistlm/bundled/stories")
    steps: int = 1_500
    learning_rate: float = 5e-3
    seed: int = 0
    rows: int = 32
    context: int = 256
    muon: bool = True


def main(options: Options) -> None:
    """Train and save."""
    train, held_out = read(options.corpus)
    tokenizer = make_tokenizer(train)
    network = make_network(tokenizer, options)
    packed, checked = pack(tokenizer, train, options.context), pack(tokenizer, held_out, options.context)
    print(f"{len(packed) * options.context:,} tokens to learn from, {len(checked) * options.context:,} held out; "
          f"{sum(p.numel() for p in network.parameters()):,} parameters", flush=True)  # fmt: skip

    def loss(batch: object) -> Tensor:
        return network(input_ids=batch, labels=batch).loss  # type: ignore[no-any-return]

    def evaluate() -> str:
        return f"held out {held_out_loss(network, checked):.4f} nats a token"

    schedule = Schedule(options.steps, options.learning_rate, report_every=150, muon=options.muon)
    fit(network, _batches(packed, options), loss, schedule, evaluate, "stories")
    network.to(torch.bfloat16)
    network.generation_config.pad_token_id = network.config.eos_token_id
    network.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)


def read(corpus: Path) -> tuple[list[str], list[str]]:
    """Stories to learn from, with the tales, and held-out ones of topics that the others do not have."""
    lines = (corpus / "stories.jsonl").read_text(encoding="utf-8").splitlines()
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    train = [row["text"] for row in rows if row["topic"] % HELD_OUT != 0]
    return train + tales(), [row["text"] for row in rows if row["topic"] % HELD_OUT == 0]


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE; `<|endoftext|>` separates texts and pads."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token=END, bos_token=END, pad_token=END, model_max_length=512,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def make_network(tokenizer: PreTrainedTokenizerFast, options: Options) -> LlamaForCausalLM:
    """Six layers of width 256, four key–value heads for eight queries, tied embeddings: 4.6 million parameters."""
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=512, num_hidden_layers=6, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
        pad_token_id=0, attention_dropout=0.0,
    )  # fmt: skip
    with Rng(options.seed).fork("stories", "weights").initialising():
        return LlamaForCausalLM(config)


def pack(tokenizer: PreTrainedTokenizerFast, texts: list[str], context: int) -> Tensor:
    """All texts, each after an end-of-text token, in rows [n, context]."""
    order = list(texts)
    random.Random(0).shuffle(order)
    tokens = [token for ids in tokenizer(order, verbose=False)["input_ids"] for token in (0, *ids)]
    usable = len(tokens) // context * context
    return torch.tensor(tokens[:usable]).view(-1, context)


@torch.no_grad()
def held_out_loss(network: LlamaForCausalLM, packed: Tensor) -> float:
    """Nats per token."""
    network.eval()
    losses = [network(input_ids=part, labels=part).loss * len(part) for part in packed.split(64)]
    return float(sum(losses) / len(packed))


def _batches(packed: Tensor, options: Options) -> Iterator[Tensor]:
    """Rows in a new order every time round, shifted by a random amount, so that texts begin at other places."""
    generator = torch.Generator().manual_seed(options.seed)
    flat = packed.flatten()
    while True:
        shift = int(torch.randint(options.context, (1,), generator=generator))
        usable = (flat.numel() - shift) // options.context * options.context
        rows = flat[shift : shift + usable].view(-1, options.context)
        rows = rows[torch.randperm(len(rows), generator=generator)]
        yield from (part for part in rows.split(options.rows) if len(part) == options.rows)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
