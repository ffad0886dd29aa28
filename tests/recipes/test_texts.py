"""What goes into the corpus of the bundled language model."""

import pytest

from recipes.cleaning import clean, fault, key
from recipes.topics import OPENINGS, topic
from recipes.trigram import Trigram
from twistlm.core.rng import Rng

GOOD = (
    "Once upon a time, there was a dog. It was sad and sat by the door. A girl came and gave it a bone. "
    "Then they ran to the park and played all day."
)


def test_a_plain_story_stays() -> None:
    assert fault(GOOD) is None
    assert clean(GOOD, finished=True) == GOOD


def test_a_story_that_was_cut_off_ends_at_its_last_sentence() -> None:
    assert clean(GOOD + ' "Come," she said. Then the', finished=False) == GOOD + ' "Come," she said.'
    assert clean("no end at all", finished=False) == ""


def test_curly_quotes_and_white_space_are_made_plain() -> None:
    assert clean("He said “no”…\n\n  ‘Why’ — she\u00a0asked.", finished=True) == "He said \"no\"... 'Why' - she asked."


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Once there was a dog.", "short"),
        (GOOD + " 🐶.", "not ascii"),
        (GOOD + " **The end.**", "markup"),
        (GOOD + " As an AI I cannot say more.", "assistant"),
        (GOOD + " The dog was very good." * 3, "loop"),
        (GOOD + " And then the", "unfinished"),
    ],
)
def test_what_is_left_out_and_why(text: str, reason: str) -> None:
    assert fault(text) == reason


def test_texts_that_begin_alike_have_one_key() -> None:
    assert key(GOOD) == key(GOOD.replace("park", "zoo").replace("dog.", "DOG!"))
    assert key(GOOD) != key(GOOD.replace("sad", "glad"))


def test_topics_are_reproducible_and_various() -> None:
    drawn = [topic(Rng(0).fork(i)) for i in range(300)]
    assert drawn[:5] == [topic(Rng(0).fork(i)) for i in range(5)]
    assert len({each.instruction for each in drawn}) > 290
    assert {each.opening for each in drawn} == set(OPENINGS)


def test_a_trigram_model_repeats_what_it_has_counted() -> None:
    model = Trigram([[1, 2, 3, 4], [1, 2, 3, 5]])
    drawn = [model.sample(Rng(seed), [1, 2], 2) for seed in range(400)]
    followed = [tokens[2:] for tokens in drawn]
    # 3 follows 1 2 always by trigram and bigram, and one time in four by unigram.
    assert 0.92 < sum(tokens[0] == 3 for tokens in followed) / 400 < 0.99
    assert {tokens[1] for tokens in followed if tokens[0] == 3} >= {4, 5}
