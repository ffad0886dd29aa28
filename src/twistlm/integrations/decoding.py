"""`generate` of transformers, drawing from the posterior: two keywords more in a call that is there already::

    model.generate(**inputs, custom_generate=twistlm.integrations.generate, run=run, num_particles=32)

Every sequence is chosen by weight from a run of SMC of its own. (For several of a prompt transformers itself wants
`do_sample=True`, and `top_k=0` then.) What would change the distribution (a temperature,
beams, a penalty) is refused: σ ∝ p₀φ is of the model as it is.
"""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.generation import EosTokenCriteria, GenerationConfig, MaxLengthCriteria
from transformers.utils import ModelOutput

from twistlm.core.errors import ConfigError, ModelError
from twistlm.core.rng import Rng
from twistlm.integrations.answers import changed, sampler_of, target_of
from twistlm.sampling.cases import Case
from twistlm.sampling.target import Target
from twistlm.sampling.twisted import TwistedLM

if TYPE_CHECKING:
    from twistlm.runs.run import Run

# Total variation of two distributions over the next token from which on two models are not the same, by whether both
# are in float32.
SAME, SAME_ROUNDED = 1e-3, 0.05
# What transformers does not hand over as a processor or criterion.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,), "output_scores": (False,), "output_logits": (False,), "output_attentions": (False,),
}  # fmt: skip


@dataclass
class PosteriorOutput(ModelOutput):
    """What `return_dict_in_generate=True` returns.

    Attributes:
        sequences: prompts and new tokens [B, P + T'].
        log_weights: log Ẑ of the run of SMC that each sequence was chosen from [B]. Weighted by exp of it, sequences of
            one prompt are unbiased for p₀φ, with any number of particles.
        log_phi: log φ of each [B].
        log_p: log p₀ of its new tokens [B].
    """

    sequences: Tensor
    log_weights: Tensor | None = None
    log_phi: Tensor | None = None
    log_p: Tensor | None = None


def generate(
    model: Any,
    input_ids: Tensor,
    generation_config: GenerationConfig | None = None,
    *,
    run: "Run | Target | None" = None,
    num_particles: int = 32,
    seed: int | None = None,
    **given: Any,
) -> Tensor | PosteriorOutput:
    """Samples of the target after each prompt: what `generate` calls if it is handed this as `custom_generate`.

    Args:
        model: whose `generate` was called; the run's base model, which is checked at the first prompt.
        input_ids: prompts [B, P], padded on the left, already repeated `num_return_sequences` times.
        generation_config: max_new_tokens must be the target's number of tokens, or be left out.
        run: a run; or a target, which is sampled with what its constraints know.
        num_particles: N of the run of SMC of each sequence.
        seed: of the samples; None takes one from torch's own generator, as `generate` does.
        **given: attention_mask [B, P]; logits_processor, which must be empty; stopping_criteria, which must be those of
            length and EOS alone; and others that mean nothing here.

    Returns:
        Prompts and new tokens [B, P + T'], padded after EOS; or a `PosteriorOutput`.

    Raises:
        ConfigError: something is asked for that this cannot do; the message names the option.
        ModelError: the model is not the run's.
        PromptError: a prompt is empty or too long.
    """
    streamer, config = _streamer(), generation_config or GenerationConfig()
    if run is None:
        raise ConfigError("run is missing: generate(…, custom_generate=twistlm.integrations.generate, run=run)")
    target, sampler = target_of(run), sampler_of(run)
    _refuse(config, given.get("logits_processor", ()), given.get("stopping_criteria", ()), target)
    if streamer is not None and len(input_ids) > 1:
        raise ConfigError(f"a streamer takes one sequence, and {len(input_ids)} were asked for")
    mask = given.get("attention_mask")
    rows = [row if mask is None else row[mask[at].bool()] for at, row in enumerate(input_ids)]
    keys = [tuple(row.tolist()) for row in rows]
    prompts = dict(zip(keys, (row.cpu() for row in rows), strict=True))
    sampler.model.check(list(prompts.values()), sampler.num_steps)
    _check_same(model, target, prompts[keys[0]])
    seed = int(torch.randint(2**31, (1,))) if seed is None else seed
    chosen = sampler.choose(Rng(seed, ("generate",)), [Case(prompts[key]) for key in keys], num_particles)
    tokens = _padded(chosen.samples.tokens, sampler.model, config).to(input_ids.device)
    if streamer is not None:
        # What a particle has written is not known before the last resampling.
        for token in tokens[0]:
            streamer.put(token.view(1).cpu())
        streamer.end()
    sequences = torch.cat([input_ids, tokens], 1)
    if not config.return_dict_in_generate:
        return sequences
    samples = chosen.samples
    return PosteriorOutput(sequences, chosen.log_Z_hat, samples.log_phi, samples.log_p.sum(-1))


def _refuse(config: GenerationConfig, processors: Any, criteria: Any, target: Target) -> None:
    changing = [type(each).__name__ for each in processors]
    if changing:
        raise ConfigError(
            f"{', '.join(changing)} would change the model that is sampled; leave out what asks for it (with "
            "do_sample=True transformers takes top_k=50 unless you say top_k=0)"
        )
    stopping = [each for each in criteria if not isinstance(each, MaxLengthCriteria | EosTokenCriteria)]
    if stopping:
        raise ConfigError(f"{type(stopping[0]).__name__} would end texts that φ wants whole; leave it out")
    asked = {name: getattr(config, name, None) for name in (*NEUTRAL, "max_new_tokens")}
    if (refused := changed(asked, NEUTRAL, target.num_tokens)) is not None:
        raise ConfigError(refused[1])
    asked_ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    own = target.lm.eos_token_ids
    if target.eos == "absorb" and config.eos_token_id is not None and set(asked_ends) != set(own):
        named = ", ".join(map(str, own))
        raise ConfigError(
            f"eos_token_id = {config.eos_token_id}, and this target's texts end with {named}; leave it out"
        )


@torch.no_grad()
def _check_same(model: Any, target: Target, prompt: Tensor) -> None:
    """Raise ModelError unless model and target agree on what comes after a prompt [P]."""
    logits = model(input_ids=prompt.unsqueeze(0).to(model.device)).logits[0, -1]
    own = target.lm.logits(target.lm.start([prompt]).features)[0]
    if logits.shape == own.shape:
        rounded = torch.float32 not in (model.dtype, own.dtype) or model.dtype != own.dtype
        p, q = (torch.softmax(x.double().cpu(), -1) for x in (logits, own))
        if float((p - q).abs().sum()) / 2 <= (SAME_ROUNDED if rounded else SAME):
            return
    raise ModelError(
        f"this model is not {target.model_name!r}, which the run was made with: they differ in what comes after the "
        "prompt; call `generate` of that one, or train on this one"
    )


def _padded(tokens: Tensor, model: TwistedLM, config: GenerationConfig) -> Tensor:
    """New tokens [B, T] as `generate` returns them: padding after EOS, and no more columns than the longest needs."""
    if model.absorbing is None:
        return tokens
    written = model.mask(tokens)
    padding = model.absorbing if config.pad_token_id is None else config.pad_token_id
    return tokens.masked_fill(~written, padding)[:, : int(written.sum(1).max())]


def _streamer() -> Any:
    """The streamer that `generate` was given.

    transformers 5 hands it the prompt and then loses it where `custom_generate` is a function: nobody would tell
    whoever reads from it that there is nothing more to come.
    """
    return sys._getframe(2).f_locals.get("streamer")
