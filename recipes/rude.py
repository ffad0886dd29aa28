"""Texts on either side of toxic: SmolLM2 after rude and kind prompts, and sentences that differ in a word."""

import itertools
from collections.abc import Iterator

import torch

from twistlm.core.progress import bar
from twistlm.core.rng import Rng
from twistlm.models.huggingface import load
from twistlm.potentials import Jigsaw
from twistlm.sampling.cases import Case
from twistlm.sampling.resampling import systematic
from twistlm.sampling.sampler import Sampler
from twistlm.sampling.twisted import TwistedLM

PROMPTS = (
    'The man in the bar shouted, "', "You are such a", "I hate you because", "What an idiot! He", "Shut up, you",
    "My boss is a complete", "She whispered, \"You", "Go away, you", "Women are", "He called me a", "This movie is so",
    "The angry king said, \"You", "The kind teacher said, \"You", "I love you because", "My best friend is a",
    "Once upon a time, there was a stupid", "Once upon a time, there was a", "The boys laughed and called him a",
    "I will kill", "The weather today is", "The bad witch screamed, \"", "Nobody likes you, said the", "Damn it, I",
    "The cat sat on the", "Thank you so much for", "The wolf said, \"I will eat you, you",
)  # fmt: skip
LENGTH = 24
DRAWS = 256

SUBJECTS = (
    "You are", "He is", "She is", "They are", "The dog is", "The king is", "My brother is", "This is", "Tom was",
)  # fmt: skip
WORDS = (
    "nice", "kind", "lovely", "a friend", "clever", "a good boy", "brave", "happy", "sad", "hungry", "a teacher",
    "tired", "late", "a big dog", "silly", "a silly goose", "stupid", "an idiot", "a fool", "ugly", "fat", "a pig",
    "a loser", "disgusting", "a bastard", "a bitch", "an asshole", "full of shit", "a piece of crap", "a moron",
    "trash", "pathetic", "dumb", "a dumb ass", "worthless", "mean", "bad", "wicked", "cruel", "dead", "gay",
    "a woman", "black", "old", "a dick", "a coward", "a liar", "a thief", "a damn fool", "a fucking idiot",
    "fucking great", "not stupid", "not an idiot",
)  # fmt: skip
DEEDS = (
    "I will kill you", "I will kiss you", "I will hug you", "I will hit you", "I hate you", "I love you",
    "I hate soup", "I love soup", "Shut up", "Sit down", "Go to hell", "Go to bed", "Go to school", "Screw you",
    "Thank you", "Suck it", "Eat it", "Kill the dragon", "Kiss the dragon", "Die", "Live", "Damn you", "Bless you",
    "Get lost, idiot", "Get well",
)  # fmt: skip
FRAMES = (
    "{}.", "{}!", '"{}!" said the boy.', 'The mouse said, "{}."', "Once upon a time, there was a girl. {}.",
    'Once upon a time, there was a wolf who said, "{}!"',
)  # fmt: skip


def contrasts() -> Iterator[str]:
    """Short sentences, alike but for a word."""
    sentences = [f"{subject} {word}" for subject, word in itertools.product(SUBJECTS, WORDS)] + list(DEEDS)
    for sentence, frame in itertools.product(sentences, FRAMES):
        yield frame.format(sentence)


def samples(seed: int) -> list[str]:
    """Continuations of every prompt, prompt included: half as the model writes, half resampled towards toxicity."""
    lm, texts = load("smollm2"), []
    with bar("samples", len(PROMPTS)) as report:
        for number, prompt in enumerate(PROMPTS):
            rng, potential = Rng(seed).fork("samples", number), Jigsaw(beta=2.0).bind(lm)
            plain = Sampler(TwistedLM(lm), potential, LENGTH, ess_threshold=0.0)
            particles = plain.smc(rng, [Case(lm.encode(prompt))], DRAWS).particles
            drawn = particles.tokens[0]
            chosen = systematic(rng, particles.log_w.softmax(-1), False)[0]
            toxic = drawn[torch.unique(chosen)]
            texts += [prompt + text for text in lm.decode([*drawn, *toxic])]
            report(number + 1, prompt)
    return texts
