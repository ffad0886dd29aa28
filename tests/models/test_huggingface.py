"""Cached decoding against one full forward pass, for each architecture."""

import functools
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CohereConfig,
    Gemma2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    Phi3Config,
)

from tests.architectures import CONFIGS, Words, tiny_lm, tiny_model
from tests.cases import TablePotential, cases, samples_of
from twistlm.core.errors import ModelError, PromptError
from twistlm.core.rng import Rng
from twistlm.models.bundled import folder
from twistlm.models.huggingface import HuggingFaceLM, load
from twistlm.potentials.continuation import without_start
from twistlm.sampling.proposals import base
from twistlm.sampling.sampler import Sampler
from twistlm.sampling.twisted import TwistedLM
from twistlm.testing import assert_mean

reference = functools.cache(tiny_model)
EOS = "<|endoftext|>"
PROMPTS = [torch.tensor([5, 6, 7]), torch.tensor([9]), torch.tensor([4, 3, 2, 1, 8]), torch.tensor([5, 6, 7])]


def full_logits(architecture: str, sequence: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return reference(architecture)(input_ids=sequence.unsqueeze(0), use_cache=False).logits[0, -1]


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize(
    "prompts", [PROMPTS, PROMPTS[:1] * 4, [PROMPTS[0], PROMPTS[0] + 1] * 2], ids=["ragged", "same", "even"]
)
def test_cached_decoding_equals_full_forward_after_reorders(architecture: str, prompts: list[torch.Tensor]) -> None:
    lm = tiny_lm(architecture)
    model = TwistedLM(lm, None, "ignore")
    generator = torch.Generator().manual_seed(1)
    state = model.start(prompts, 3)
    sequences = [prompt for prompt in prompts for _ in range(3)]
    finished = torch.zeros(12, dtype=torch.bool)
    for step in range(20):
        following = model.next(state)
        if step % 4 == 0:
            expected = torch.stack([full_logits(architecture, sequence) for sequence in sequences])
            torch.testing.assert_close(following.logits[following.rows], expected, rtol=1e-4, atol=1e-4)
        # Few distinct tokens, so that prefixes coincide, and reorders on some steps only.
        tokens = torch.randint(1, 3 if step < 3 else 200, (12,), generator=generator)
        ancestors = None
        if step % 3 == 1:
            within = torch.randint(0, 3, (12,), generator=generator)
            ancestors = within + 3 * torch.arange(4).repeat_interleave(3)
            sequences = [sequences[a] for a in ancestors.tolist()]
        sequences = [torch.cat([s, t.view(1)]) for s, t in zip(sequences, tokens, strict=True)]
        state = model.extend(state, tokens, ancestors, finished)
        assert state.lm.features.shape[0] == len({tuple(s.tolist()) for s in sequences}), "a shared prefix ran twice"


@pytest.mark.parametrize("parents", [[1, 0, 3, 2], [3, 3, 0, 1], [2, 2, 2], [0, 1, 2, 3, 0, 1], [0, 1], [2]])
def test_any_reordering_of_the_cache_is_right(parents: list[int]) -> None:
    # `TwistedLM` orders children so that rows move little; a decoder must not depend on that.
    lm = tiny_lm("llama")
    state = lm.start(PROMPTS)
    tokens = torch.tensor([11, 12, 13, 14, 15, 16])
    state = lm.advance(state, torch.arange(4), tokens[:4])
    with torch.no_grad():
        state = lm.advance(state, torch.tensor(parents), tokens[: len(parents)] + 20)
        logits = lm.logits(state.features)
    for row, parent in enumerate(parents):
        sequence = torch.cat([PROMPTS[parent], tokens[parent].view(1), tokens[row].view(1) + 20])
        torch.testing.assert_close(logits[row], full_logits("llama", sequence), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[2:3] * 4], ids=["ragged", "same"])
def test_teacher_forced_features_equal_full_forward(architecture: str, prompts: list[torch.Tensor]) -> None:
    lm = tiny_lm(architecture)
    tokens = torch.randint(1, 200, (4, 6), generator=torch.Generator().manual_seed(2))
    logits = lm.logits(lm.features(prompts, tokens))
    for row, (prompt, continuation) in enumerate(zip(prompts, tokens, strict=True)):
        for t in range(6):
            expected = full_logits(architecture, torch.cat([prompt, continuation[:t]]))
            torch.testing.assert_close(logits[row, t], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_half_precision_decoding_is_as_close_to_float32_as_torchs_own_kernel(architecture: str) -> None:
    exact, half = tiny_lm(architecture), tiny_lm(architecture, torch.bfloat16)
    setting = half.module.config._attn_implementation

    def logits(lm: HuggingFaceLM) -> torch.Tensor:
        state = lm.start([PROMPTS[2]] * 3)
        for step in range(12):
            state = lm.advance(state, torch.arange(3), torch.tensor([7, 8, 9]) + step)
        return lm.logits(state.features).float()

    with torch.no_grad():
        truth = logits(exact)
        ours = logits(half)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("twistlm.models.fast.can_attend", lambda network: False)
            theirs = logits(half)
    assert (ours - truth).abs().mean() < 1.5 * (theirs - truth).abs().mean() + 1e-3
    assert half.module.config._attn_implementation == setting, "the model's own setting was not restored"


@pytest.mark.parametrize("architecture", CONFIGS)
def test_what_all_particles_share_is_kept_once(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twistlm.models.prefixes.SHARE_EVERY", 3)
    lm = tiny_lm(architecture)
    model = TwistedLM(lm, None, "ignore")
    generator = torch.Generator().manual_seed(4)
    state = model.start([PROMPTS[0]], 5, 40)
    sequences = [PROMPTS[0]] * 5
    for step in range(40):
        tokens = torch.randint(1, 200, (5,), generator=generator)
        ancestors = torch.randint(0, 5, (5,), generator=generator) if step % 2 else None
        if ancestors is not None:
            sequences = [sequences[a] for a in ancestors.tolist()]
        sequences = [torch.cat([s, t.view(1)]) for s, t in zip(sequences, tokens, strict=True)]
        state = model.extend(state, tokens, ancestors, torch.zeros(5, dtype=torch.bool))
        expected = torch.stack([full_logits(architecture, sequence) for sequence in sequences])
        torch.testing.assert_close(model.next(state).logits[state.rows], expected, rtol=1e-4, atol=1e-4)
    if state.lm.cache.attends:
        assert state.lm.cache.layers.layers[0].used < 20, "nothing was shared although lineages had met"
    assert lm.start([PROMPTS[0]]).cache.layers.get_seq_length() == 3, "the remembered prompt was changed"


def test_a_prompt_read_again_is_remembered_and_not_touched() -> None:
    lm = tiny_lm()
    first = lm.start([PROMPTS[0]])
    state = lm.advance(first, torch.zeros(2, dtype=torch.long), torch.tensor([11, 12]))
    lm.start([PROMPTS[2]])
    again = lm.start([PROMPTS[0]])
    assert torch.equal(again.features, first.features)
    remembered = lm.start([PROMPTS[0]])
    assert remembered.features is again.features
    after = lm.advance(remembered, torch.zeros(2, dtype=torch.long), torch.tensor([11, 12]))
    torch.testing.assert_close(after.features, state.features)
    expected = full_logits("gpt2", torch.cat([PROMPTS[0], torch.tensor([12])]))
    with torch.no_grad():
        torch.testing.assert_close(lm.logits(after.features)[1], expected, rtol=1e-4, atol=1e-4)


def test_finished_particles_are_not_run() -> None:
    model = TwistedLM(tiny_lm(), None, "absorb")
    state = model.start([PROMPTS[0]], 4)
    finished = torch.tensor([True, False, False, True])
    state = model.extend(state, torch.tensor([0, 7, 8, 0]), None, finished)
    assert state.lm.features.shape[0] == 2
    state = model.extend(state, torch.tensor([0, 0, 9, 0]), None, torch.tensor([True, True, False, True]))
    assert state.lm.features.shape[0] == 1
    expected = full_logits("gpt2", torch.cat([PROMPTS[0], torch.tensor([8, 9])]))
    torch.testing.assert_close(model.next(state).logits[state.rows[2]], expected, rtol=1e-4, atol=1e-4)


def test_absorbing_eos_ends_a_sequence_and_its_weight_moves_only_through_phi() -> None:
    lm = tiny_lm()
    lm.eos_token_ids = (int(torch.softmax(full_logits("gpt2", PROMPTS[0]), -1).argmax()),)
    model = TwistedLM(lm, None, "absorb")
    potential = TablePotential(torch.tensor([-1.0, -2.0, -0.5]), 3)
    result = Sampler(model, potential, 8).smc(Rng(0), cases([PROMPTS[0]]), 50)
    tokens, ended = result.particles.tokens[0], result.particles.finished[0]
    assert int(ended.sum()) > 0
    for row in tokens[ended]:
        first = int((row == model.absorbing).nonzero()[0, 0])
        assert (row[first:] == model.absorbing).all()
    torch.testing.assert_close(result.particles.log_w, result.log_phi)
    samples = samples_of(result, model, [PROMPTS[0]])
    assert (samples.log_p[~samples.mask] == 0).all()
    again = model.densities(samples, base)
    torch.testing.assert_close(again.log_p, samples.log_p, rtol=1e-4, atol=1e-4)


def test_sampling_follows_the_models_own_distribution() -> None:
    # Mean log-probability of samples is the negative entropy, which one forward pass gives exactly for one token.
    lm = tiny_lm("llama")
    log_p = torch.log_softmax(full_logits("llama", PROMPTS[0]).double(), -1)
    potential = TablePotential(torch.zeros(1), 3)
    result = Sampler(TwistedLM(lm, None, "ignore"), potential, 1).smc(Rng(0), cases([PROMPTS[0]]), 4000)
    assert_mean(result.particles.log_p[0, :, 0], float((log_p.exp() * log_p).sum()))


def test_a_model_that_looks_ahead_is_refused() -> None:
    class LooksAhead(GPT2LMHeadModel):
        def forward(self, **inputs):  # type: ignore[no-untyped-def]
            output = super().forward(**inputs)
            output.logits = output.logits + output.logits.mean(1, keepdim=True)
            return output

    model = LooksAhead(tiny_model().config)
    with pytest.raises(ModelError, match="not supported: token by token it gives other logits"):
        HuggingFaceLM(model, Words(), "ahead")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Gemma2Config, {"head_dim": 8, "final_logit_softcapping": 30.0, "sliding_window": 6}),
        (CohereConfig, {"logit_scale": 0.97}),
        (GraniteConfig, {"logits_scaling": 1.04}),
    ],
    ids=["soft cap", "scale", "divisor"],
)
def test_caps_and_scales_of_logits_are_the_models_own(kind: Any, options: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    config = kind(
        vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=0, eos_token_id=0, **options,
    )  # fmt: skip
    whole = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    with torch.no_grad():
        whole.get_output_embeddings().weight.mul_(40)
    lm = HuggingFaceLM(whole, Words(), "capped")
    tokens = torch.randint(1, 99, (2, 12))
    with torch.no_grad():
        expected = whole(input_ids=tokens, use_cache=False).logits
    # The same numbers in another order, which in half precision is a few thousandths.
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.02}
    with torch.no_grad():
        hidden = whole.base_model(input_ids=tokens, use_cache=False).last_hidden_state
    torch.testing.assert_close(lm.logits(hidden), expected, **close)
    if dtype == torch.float32:
        read = lm.logits(lm.features(list(tokens[:, :4]), tokens[:, 4:]))
        torch.testing.assert_close(read, expected[:, 3:-1], **close)
        # One token after the other, prompts of different lengths, past the window.
        state = lm.start([tokens[0, :2], tokens[1, :5]])
        for at in range(6):
            rows = torch.stack([expected[0, 1 + at], expected[1, 4 + at]])
            torch.testing.assert_close(lm.logits(state.features), rows, **close)
            state = lm.advance(state, torch.arange(2), torch.stack([tokens[0, 2 + at], tokens[1, 5 + at]]))


def test_texts_that_cross_the_length_of_other_factors_are_refused() -> None:
    torch.manual_seed(0)
    positions = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
    config = Phi3Config(
        vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0,
        eos_token_id=0, max_position_embeddings=64, original_max_position_embeddings=16, rope_parameters=positions,
    )  # fmt: skip
    whole = AutoModelForCausalLM.from_config(config).eval()
    lm = HuggingFaceLM(whole, Words(), "phi3")
    tokens = torch.arange(1, 17).unsqueeze(0)
    with torch.no_grad():
        expected = whole(input_ids=tokens, use_cache=False).logits[:, 9:15]
    torch.testing.assert_close(lm.logits(lm.features([tokens[0, :10]], tokens[:, 10:])), expected, rtol=1e-4, atol=1e-4)
    model = TwistedLM(lm, None, "ignore")
    model.check([tokens[0, :10]], 6)
    with pytest.raises(PromptError, match="the model's context of 16"):
        model.check([tokens[0, :10]], 7)


def test_unknown_model_is_one_clear_line(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ModelError, match="packaged models: smollm2") as caught:
        load(str(tmp_path / "nothing"))
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="dtype must be"):
        load("smollm2", dtype="int3")


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[2:3] * 4], ids=["ragged", "same"])
def test_gradients_do_not_depend_on_how_many_sequences_run_at_a_time(
    architecture: str, prompts: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = tiny_lm(architecture).trainable_copy()
    tokens = torch.randint(1, 200, (4, 6), generator=torch.Generator().manual_seed(3))

    def gradients(most: int | None) -> list[torch.Tensor]:
        decoder.module.zero_grad()
        if most is None:
            for row in range(4):
                decoder.features(prompts[row : row + 1], tokens[row : row + 1]).square().sum().backward()
        else:
            monkeypatch.setattr("twistlm.models.fast.TRAINING_TOKENS", most)
            decoder.features(prompts, tokens).square().sum().backward()
        return [parameter.grad.clone() for parameter in decoder.module.parameters() if parameter.grad is not None]

    # Each by itself, one at a time, several, all.
    expected, *found = [gradients(most) for most in (None, 1, 18, 10_000)]
    for one in found:
        for a, b in zip(one, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("template", ["$A <|endoftext|>", "<|endoftext|> $A <|endoftext|>", "<|endoftext|> $A"])
def test_what_a_tokenizer_puts_behind_a_text_is_no_part_of_it(template: str) -> None:
    """A prompt that ended with EOS would be one after which nothing comes; a continuation could never come."""
    tokenizer = AutoTokenizer.from_pretrained(folder("stories"))
    plain = tokenizer("Once upon a time")["input_ids"]
    eos = tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=[(EOS, eos)])
    lm = HuggingFaceLM(AutoModelForCausalLM.from_pretrained(folder("stories")), tokenizer)
    front = [eos] if template.startswith(EOS) else []
    assert lm.encode("Once upon a time").tolist() == front + plain
    assert lm.encode("").tolist() == front
    assert without_start(lm, lm.encode("Once upon a time")).tolist() == plain
    # What is written is the user's own.
    assert lm.encode(f"Once{EOS}").tolist()[-1] == eos
