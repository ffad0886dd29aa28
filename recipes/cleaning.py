"""What is left out of the corpus, and why: broken text, assistant's talk, loops, repeats."""

import re
from collections import Counter

FEWEST_WORDS = 25
# Curly quotes and dashes are spelt in ASCII, so that a small vocabulary has one token for each.
PLAIN = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "—": "-", "–": "-", "…": "...", "\u00a0": " "})
ASSISTANT = re.compile(
    r"\b(AI|language model|assistant|SmolLM|four-year-old|here is|here's a|sure,|the story|this story|moral of)\b", re.I
)
MARKUP = re.compile(r"[*#_<>|\[\]{}\\]|^\s*\d+\.|https?:|^\s*-\s", re.M)
END = re.compile(r"[.!?][\"']?(?=\s|$)")


def clean(text: str, finished: bool) -> str:
    """One paragraph in plain ASCII quotes; what was cut off ends at its last whole sentence."""
    text = re.sub(r"\s+", " ", text.translate(PLAIN)).strip()
    if finished:
        return text
    ends = [match.end() for match in END.finditer(text)]
    return text[: ends[-1]] if ends else ""


def fault(text: str) -> str | None:
    """Why a cleaned text is left out; None if it is not."""
    words = text.split()
    if len(words) < FEWEST_WORDS:
        return "short"
    if not text.isascii():
        return "not ascii"
    if MARKUP.search(text):
        return "markup"
    if ASSISTANT.search(text):
        return "assistant"
    sentences = Counter(sentence.strip().lower() for sentence in END.split(text) if len(sentence.split()) > 2)
    if sentences and sentences.most_common(1)[0][1] > 2:
        return "loop"
    if END.search(text[-3:]) is None:
        return "unfinished"
    return None


def key(text: str) -> str:
    """Two texts with the same key are taken for one: the first twenty words, letters alone."""
    return " ".join(re.sub(r"[^a-z ]", "", text.lower()).split()[:20])
