"""The shape that the classifiers share: a BERT of two layers with a vocabulary of its own."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from twistlm.core.rng import Rng

VOCABULARY = 6144
LENGTH = 128
SPECIAL = ["[PAD]", "[CLS]"]


def make_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE of lower-cased text after a `[CLS]`: no character is unknown."""
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=3,
    )  # fmt: skip
    made.train_from_iterator(texts, trainer)
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", cls_token="[CLS]", model_max_length=LENGTH, truncation_side="left",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def make_network(labels: Sequence[str], seed: int, name: str, **config: Any) -> BertForSequenceClassification:
    """Width 160, two layers, four heads."""
    settings = BertConfig(
        vocab_size=VOCABULARY, hidden_size=160, num_hidden_layers=2, num_attention_heads=4, intermediate_size=480,
        max_position_embeddings=LENGTH, type_vocab_size=1, pad_token_id=0, id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)}, hidden_dropout_prob=0.1, **config,
    )  # fmt: skip
    with Rng(seed).fork(name, "weights").initialising():
        return BertForSequenceClassification(settings)


class Texts:
    """Texts as tokens with their targets, in batches of like length."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], targets: Tensor) -> None:
        self.pad, self.targets = tokenizer.pad, targets
        self.ids: list[list[int]] = tokenizer(list(texts), truncation=True, max_length=LENGTH)["input_ids"]

    def batch(self, chosen: Sequence[int]) -> tuple[Mapping[str, Tensor], Tensor]:
        """Padded inputs and targets."""
        inputs = self.pad([{"input_ids": self.ids[i]} for i in chosen], return_tensors="pt")
        return dict(inputs), self.targets[list(chosen)]

    def forever(self, size: int, seed: int) -> Iterator[tuple[Mapping[str, Tensor], Tensor]]:
        """Batches in a new order every time round; within 50 batches texts are sorted by length."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            order = torch.randperm(len(self.ids), generator=generator).split(50 * size)
            for part in order:
                ranked = sorted(part.tolist(), key=lambda i: len(self.ids[i]))
                rows = [ranked[at : at + size] for at in range(0, len(ranked), size)]
                for at in torch.randperm(len(rows), generator=generator).tolist():
                    yield self.batch(rows[at])

    @torch.no_grad()
    def logits(self, network: Any, size: int = 256) -> Tensor:
        """Logits of all texts [B, labels], float64."""
        network.eval()
        order = sorted(range(len(self.ids)), key=lambda i: len(self.ids[i]))
        found = torch.empty(len(order), network.config.num_labels, dtype=torch.float64)
        for at in range(0, len(order), size):
            inputs, _ = self.batch(order[at : at + size])
            found[order[at : at + size]] = network(**inputs).logits.double()
        return found


def save(network: Any, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """The folder, weights in bfloat16: a third of a per cent of a weight is nothing to a classifier."""
    network.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


def calibration(probability: Tensor, truth: Tensor, bins: int = 10) -> float:
    """Expected calibration error: mean distance of predicted and true frequency over bins of equal width."""
    index = (probability * bins).long().clamp(0, bins - 1)
    total = 0.0
    for each in range(bins):
        inside = index == each
        if inside.any():
            total += float(inside.double().mean() * (probability[inside].mean() - truth[inside].double().mean()).abs())
    return total
