"""Tiny real classifiers with random weights, saved to folders and read back as a user's would be."""

from pathlib import Path
from typing import Any

import torch

WORDS = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hi", "dog", "cat", "so", "##s", "a", "user", "assistant", "system",
]  # fmt: skip


def save(
    folder: Path, labels: list[str], max_length: int = 12, chat_template: str | None = None, **config: Any
) -> Path:
    """A folder with a random classifier of these labels; its tokenizer has a chat template if one is given."""
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

    (folder / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = BertTokenizer(str(folder / "vocab.txt"), model_max_length=max_length)
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(WORDS),
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
            max_position_embeddings=32,
            id2label=dict(enumerate(labels)),
            label2id={name: i for i, name in enumerate(labels)},
            **config,
        )
    )
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(20)  # scores far apart, so that a mistake shows
    model.save_pretrained(folder)
    return folder


def reference(folder: Path, texts: list[Any], **how: Any) -> torch.Tensor:
    """All logits [B, labels], one text (or pair of texts) at a time: no padding, no sorting."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        each = [(text,) if isinstance(text, str) else text for text in texts]
        return torch.cat([model(**tokenizer(*text, return_tensors="pt", **how)).logits for text in each]).double()
