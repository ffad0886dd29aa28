"""Prompts of different lengths, with common beginnings, read once and decoded together: exact, whatever is shared."""

import functools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tests.architectures import CONFIGS, tiny_lm, tiny_model
from twistlm.models import reading
from twistlm.models.fast import FastDecoder
from twistlm.models.groups import Groups
from twistlm.models.huggingface import HuggingFaceLM
from twistlm.models.reading import READING_COLUMNS, SPARE, batches, shared_length
from twistlm.sampling.twisted import TwistedLM

reference = functools.cache(tiny_model)
STEM = torch.arange(20, 32)
SETS = {
    "template": [torch.cat([STEM, torch.tensor(rest)]) for rest in ([5, 6, 7], [9], [4, 3, 2, 1, 8, 4, 3], [5, 6])],
    "one is the beginning of all": [
        STEM,
        torch.cat([STEM, torch.tensor([5])]),
        torch.cat([STEM, torch.tensor([5, 6])]),
    ],
    "nothing in common": [torch.tensor([7, 7, 7, 7]), torch.tensor([8]), torch.tensor([9, 9])],
    "of one token": [torch.tensor([7]), torch.tensor([8]), torch.tensor([9])],
    "very different": [torch.arange(1, 36), torch.tensor([1, 2]), torch.tensor([1, 3, 3])],
    "repeated": [torch.tensor([4, 5]), torch.tensor([4, 5, 6]), torch.tensor([4, 5]), torch.tensor([4, 6])],
}


def sequence_logits(architecture: str, sequence: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = reference(architecture)(input_ids=sequence.unsqueeze(0), use_cache=False).logits[0]
    return logits


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("prompts", SETS.values(), ids=SETS)
@pytest.mark.parametrize("spare", [0, 1024], ids=["many batches", "one batch"])
def test_decoding_equals_full_forward_after_any_reorder(
    architecture: str, prompts: list[Tensor], spare: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "SPARE", spare)
    monkeypatch.setattr(reading, "SPARE_TOKENS", spare // 512)
    lm = tiny_lm(architecture)
    generator = torch.Generator().manual_seed(3)
    state = lm.start(prompts, (8, 12))
    sequences = list(prompts)
    for step in range(12):
        found = lm.logits(state.features)
        for row, sequence in enumerate(sequences):
            torch.testing.assert_close(found[row], sequence_logits(architecture, sequence)[-1], rtol=1e-4, atol=1e-4)
        # Rows that split, die out, change places, and prompts that have no row any more.
        count = (8, 3, 5, 12)[step % 4]
        parents = torch.randint(0, len(sequences), (count,), generator=generator)
        tokens = torch.randint(1, 200, (count,), generator=generator)
        sequences = [torch.cat([sequences[p], t.view(1)]) for p, t in zip(parents.tolist(), tokens, strict=True)]
        state = lm.advance(state, parents, tokens)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2", "opt"])
def test_half_precision_is_as_close_to_float32_as_padding_is(architecture: str) -> None:
    prompts = SETS["template"]
    exact, half = tiny_lm(architecture), tiny_lm(architecture, torch.bfloat16)

    def logits(lm: HuggingFaceLM) -> Tensor:
        state = lm.start(prompts)
        for step in range(12):
            state = lm.advance(state, torch.arange(4), torch.tensor([7, 8, 9, 10]) + step)
        return lm.logits(state.features).float()

    truth, ours = logits(exact), logits(half)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("twistlm.models.fast.can_attend", lambda network: False)
        theirs = logits(half)
    assert (ours - truth).abs().mean() < 1.5 * (theirs - truth).abs().mean() + 1e-3


def test_what_a_network_attends_to_by_column_is_padded_instead() -> None:
    lm = tiny_lm("llama")
    lm.module.config.sliding_window = 4
    assert lm.start(SETS["template"]).cache.groups is None
    lm.module.config.sliding_window = None
    assert lm.start(SETS["template"]).cache.groups is not None


def test_nothing_of_a_prompt_is_kept_for_each_of_its_particles() -> None:
    model = TwistedLM(tiny_lm("llama"), None, "ignore")
    state = model.start(SETS["template"], 50, 3)
    tokens = torch.arange(200)
    for _ in range(2):
        state = model.extend(state, tokens, None, torch.zeros(200, dtype=torch.bool))
    layer = state.lm.cache.layers.layers[0]
    assert layer.used == 2
    assert layer.prompt[0].shape[-2] == len(STEM)
    # Two shared heads; four rests of at most seven tokens.
    assert [keys.shape[:2] for keys, _ in layer.rests] == [(4 * 2, 7)]


# --- Teacher-forced ---


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("prompts", SETS.values(), ids=SETS)
@pytest.mark.parametrize("length", [1, 5])
@pytest.mark.parametrize("most", [40, 16_384], ids=["in parts", "at once"])
def test_features_equal_full_forward(
    architecture: str, prompts: list[Tensor], length: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twistlm.models.fast.PASS_TOKENS", most)
    lm, generator = tiny_lm(architecture), torch.Generator().manual_seed(5)
    each = [prompts[i] for i in torch.randint(0, len(prompts), (20,), generator=generator).tolist()]
    tokens = torch.randint(1, 200, (20, length), generator=generator)
    with torch.no_grad():
        logits = lm.logits(lm.features(each, tokens))
    assert logits.shape[:2] == tokens.shape
    for row, (prompt, continuation) in enumerate(zip(each, tokens, strict=True)):
        expected = sequence_logits(architecture, torch.cat([prompt, continuation[:-1]]))[len(prompt) - 1 :]
        torch.testing.assert_close(logits[row], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("name", ["template", "nothing in common", "very different"])
def test_gradients_are_those_of_each_sequence_by_itself_and_always_the_same(
    architecture: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, prompts = tiny_lm(architecture, scale=2.0).trainable_copy(), SETS[name]
    tokens = torch.randint(1, 200, (4 * len(prompts), 6), generator=torch.Generator().manual_seed(3))
    each = prompts * 4

    def gradients(most: int | None) -> list[Tensor]:
        decoder.module.zero_grad()
        if most is None:
            for row in range(len(each)):
                decoder.features(each[row : row + 1], tokens[row : row + 1]).square().sum().backward()
        else:
            monkeypatch.setattr("twistlm.models.fast.TRAINING_TOKENS", most)
            decoder.features(each, tokens).square().sum().backward()
        return [parameter.grad.clone() for parameter in decoder.module.parameters() if parameter.grad is not None]

    expected, *found = [gradients(most) for most in (None, 1, 18, 10_000, 18)]
    for one in found:
        for a, b in zip(one, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    assert all(torch.equal(a, b) for a, b in zip(found[1], found[3], strict=True))


def passes(lm: HuggingFaceLM | FastDecoder, run: functools.partial[object]) -> list[tuple[int, ...]]:
    """Shapes of the tokens of each pass through the network within `run`."""
    seen: list[tuple[int, ...]] = []
    hook = lm.module.register_forward_pre_hook(
        lambda module, args, options: seen.append(tuple(options["input_ids"].shape)), with_kwargs=True
    )
    run()
    hook.remove()
    return seen


def test_what_prompts_share_is_read_once_and_all_is_remembered() -> None:
    lm, prompts = tiny_lm("llama"), SETS["template"]
    tokens = torch.ones(40, 5, dtype=torch.long)
    assert passes(lm, functools.partial(lm.start, prompts)) == [(1, 12), (4, 7)]
    # Neither in another order nor for given sequences are they read again.
    assert passes(lm, functools.partial(lm.start, prompts[::-1])) == []
    assert passes(lm, functools.partial(lm.features, prompts * 10, tokens)) == [(40, 4)]
    # Others with the same beginning read what is theirs.
    assert passes(lm, functools.partial(lm.start, [prompts[0], prompts[1]])) == [(2, 3)]
    assert passes(lm, functools.partial(lm.start, [STEM])) == []


def test_memory_is_bounded_and_belongs_to_one_network(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = tiny_lm("llama").trainable_copy()
    decoder.start(SETS["template"])
    kept = decoder._memory._kept
    assert len(kept) == 2
    # Two layers, keys and values, two heads of width 8, float32; the stem counts in both.
    assert sum(each.nbytes for each in kept.values()) == 2 * 2 * 2 * 8 * 4 * (12 + 12 + 4 * 7)
    monkeypatch.setattr(reading, "REMEMBERED", 10_000)
    decoder.start(SETS["of one token"])
    decoder.start(SETS["nothing in common"])
    assert sum(each.nbytes for each in kept.values()) <= 10_000
    monkeypatch.setattr(reading, "REMEMBERED", 0)
    decoder.start(SETS["template"])
    assert len(kept) == 1
    decoder.start([STEM])
    with torch.no_grad():
        next(decoder.module.parameters()).mul_(1.5)
    before = decoder.start([STEM]).features
    expected = decoder.features([STEM], torch.ones(1, 1, dtype=torch.long))[:, 0]
    torch.testing.assert_close(before, expected.detach(), rtol=1e-4, atol=1e-4)


def test_a_reading_does_not_depend_on_what_was_read_before() -> None:
    fresh, used = tiny_lm("llama", torch.bfloat16), tiny_lm("llama", torch.bfloat16)
    prompts = SETS["template"]
    used.start([prompts[0], prompts[2]])
    used.start(prompts[:3])
    used.start([prompts[1]])
    a, b = fresh.start(prompts), used.start(prompts[::-1])
    assert torch.equal(a.features, b.features.flip(0))
    parents, tokens = torch.tensor([0, 1, 2, 3]), torch.tensor([11, 12, 13, 14])
    a, b = fresh.advance(a, parents, tokens), used.advance(b, parents.flip(0), tokens)
    assert torch.equal(a.features, b.features)


# --- How prompts are put together ---


def test_the_common_beginning_leaves_each_prompt_a_token() -> None:
    assert shared_length([(1, 2, 3), (1, 2, 4)]) == 2
    assert shared_length([(1, 2), (1, 2, 3)]) == 1
    assert shared_length([(1,), (1, 2)]) == 0
    assert shared_length([(2, 2), (1, 2)]) == 0


@pytest.mark.parametrize(
    ("lengths", "before", "most", "expected"),
    [
        ([60, 40, 20, 5], 0, 8192, [(0, 4)]),
        ([2000, *[20] * 63], 0, 8192, [(0, 1), (1, 64)]),
        ([50] * 100, 0, 1000, [(at, at + 20) for at in range(0, 100, 20)]),
        ([10] * 100, READING_COLUMNS // 50 - 10, 8192, [(0, 50), (50, 100)]),
        ([9000, 9000], 0, 8192, [(0, 1), (1, 2)]),
        ([7], 0, 8192, [(0, 1)]),
    ],
)  # fmt: skip
def test_batches_waste_little_and_fit(
    lengths: Sequence[int], before: int, most: int, expected: list[tuple[int, int]]
) -> None:
    assert batches(lengths, SPARE, most, before) == expected


def test_batches_of_many_lengths_are_few_and_mostly_tokens() -> None:
    lengths = sorted(torch.randint(5, 60, (3000,), generator=torch.Generator().manual_seed(0)).tolist(), reverse=True)
    ranges = batches(lengths, SPARE)
    assert [end for _, end in ranges[:-1]] == [start for start, _ in ranges[1:]]
    padded = sum((end - start) * lengths[start] for start, end in ranges)
    assert padded < 1.35 * sum(lengths)
    assert len(ranges) <= 6


def test_every_row_has_a_slot_of_its_prompt() -> None:
    generator = torch.Generator().manual_seed(0)
    owner = torch.randint(0, 7, (40,), generator=generator)
    owner[owner >= 5] = 0  # the last batch has no rows
    groups = Groups.of([(5, 5), (3, 2, 1), (1, 1)], owner)
    assert groups.slots[2] is None
    assert groups.biases[0] is None
    flat = torch.cat([slots.flatten() for slots in groups.slots if slots is not None])
    assert torch.equal(flat[groups.places], torch.arange(40))
    prompts = torch.cat([
        torch.arange(first, first + len(slots)).repeat_interleave(slots.shape[1])
        for first, slots in zip((0, 2), groups.slots[:2], strict=True) if slots is not None
    ])  # fmt: skip
    assert torch.equal(prompts[groups.places], owner)
    assert torch.equal(groups.padding, torch.tensor([0, 0, 2, 3, 4, 4, 4])[owner])
