"""Every causal language model of the installed transformers, tiny and random, in a process of its own each.

`python -m tests.models.every` writes what becomes of each into docs/models.md; with names it only prints.
"""

import os
import resource
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.architectures import Words
from twistlm.core.errors import ModelError
from twistlm.models.huggingface import HuggingFaceLM

PAGE, MARK = Path(__file__).parents[2] / "docs/models.md", "<!-- found by tests/models/every.py -->"
VOCAB = 97
CPU_SECONDS, BYTES = 120, 6 * 2**30
# What configurations call their sizes. Windows are short enough to be passed.
SIZES = {
    32: """hidden_size n_embd d_model dim emb_dim embedding_size word_embed_proj_dim hidden_dim lru_width
        input_embedding_size output_embedding_size cross_attention_hidden_size""",
    48: "intermediate_size n_inner ffn_dim decoder_ffn_dim encoder_ffn_dim d_ff ffn_hidden_size",
    24: "moe_intermediate_size shared_expert_intermediate_size",
    4: """num_hidden_layers n_layer n_layers num_layers decoder_layers num_decoder_layers num_attention_heads n_head
        n_heads num_heads decoder_attention_heads encoder_attention_heads attention_heads num_experts num_local_experts
        n_routed_experts moe_num_experts qk_rope_head_dim qk_nope_head_dim linear_num_value_heads index_topk
        time_step_rank mamba_dt_rank chunk_size mamba_chunk_size rotary_dim""",
    2: "num_key_value_heads num_experts_per_tok moe_topk moe_k linear_num_key_heads index_n_heads",
    8: """head_dim global_head_dim v_head_dim kv_lora_rank linear_key_head_dim linear_value_head_dim state_size
        mamba_d_state mamba_n_heads mamba_d_head mamba_num_heads mamba_head_dim ssm_state_size attention_head_size
        index_head_dim kv_channels hidden_size_per_layer_input attention_chunk_size""",
    6: "sliding_window window_size attention_window local_window_size",
    16: "q_lora_rank",
    64: "mamba_ssm_dim mamba_d_ssm",
    128: "max_position_embeddings n_positions n_ctx max_target_positions seq_length",
    1: "encoder_layers n_shared_experts n_group topk_group mamba_n_groups n_groups bos_token_id",
    VOCAB: "vocab_size vocab_size_per_layer_input",
    0: "pad_token_id",
}
NAMED = {name: size for size, names in SIZES.items() for name in names.split()}
# Set even where the default is none.
OPTIONAL = {
    "sliding_window",
    "head_dim",
    "n_inner",
    "q_lora_rank",
    "num_key_value_heads",
    "lru_width",
    "attention_chunk_size",
}
OPTIONAL |= {"num_experts_per_tok", "n_routed_experts", "n_shared_experts"}
# What a configuration wants beyond that.
MORE: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "blt": {"encoder_hash_byte_group_vocab": 50},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "mamba2": {"num_heads": 8},
    "prophetnet": {"num_hidden_layers": ..., "num_decoder_layers": 4, "num_encoder_layers": 1},
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local"] * 4, "num_hidden_layers": ...},
    "xlnet": {"max_position_embeddings": ...},
}


def small(kind: type[PreTrainedConfig]) -> PreTrainedConfig:
    """A configuration of this class with the sizes of `SIZES`, as far as it has them."""
    plain, given = kind(), {}
    plain.allow_global_per_layer_attribute_access = True
    latent = getattr(plain, "kv_lora_rank", None) is not None
    for name, size in NAMED.items():
        now = getattr(plain, name, ...)
        if now is ... or (now is None and name not in OPTIONAL) or isinstance(now, list | tuple) or _fixed(kind, name):
            continue
        # Latent attention rotates a part of its own, and has as many keys as queries.
        given[name] = 4 if latent and name in ("head_dim", "num_key_value_heads") else size
    kinds = getattr(plain, "layer_types", None)
    if kinds and not _fixed(kind, "layer_types"):
        given["layer_types"] = (list(dict.fromkeys(kinds)) * 4)[:4]
    if hasattr(plain, "is_decoder"):
        given["is_decoder"] = True
    for name, own in vars(plain).items():
        if isinstance(own, PreTrainedConfig):
            given.setdefault(name, small(type(own)))
    given |= {"eos_token_id": 2, **MORE.get(kind.model_type, {})}
    return kind(**{name: value for name, value in given.items() if value is not ...})


def _fixed(kind: type[PreTrainedConfig], name: str) -> bool:
    own = getattr(kind, kind.attribute_map.get(name, name), None)
    return isinstance(own, property) and own.fset is None


def tiny(name: str) -> Any:
    """A random model of this `model_type`, always the same; its distributions are far from uniform."""
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[name]]
    torch.manual_seed(0)
    model = kind(small(kind.config_class)).eval().float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15)
        model(input_ids=torch.arange(3, 23).unsqueeze(0), use_cache=False)
    return model


@torch.no_grad()
def largest_error(model: Any, lm: HuggingFaceLM) -> float:
    """The largest difference of log probabilities, in nats, from the model's own forward pass of each text alone."""
    generator = torch.Generator().manual_seed(1)
    worst = 0.0
    for lengths in ((7,), (5, 5), (2, 9, 4)):
        texts = [torch.randint(3, VOCAB - 2, (length + 12,), generator=generator) for length in lengths]
        wholes = [model(input_ids=text.unsqueeze(0), use_cache=False).logits[0].log_softmax(-1) for text in texts]
        expected = torch.stack([whole[-13:] for whole in wholes])
        prompts, tokens = [text[:-12] for text in texts], torch.stack([text[-12:] for text in texts])
        found = [(lm.logits(lm.features(prompts, tokens)), expected[:, :-1])]
        order, state = torch.arange(len(texts)), lm.start(prompts)
        found.append((lm.logits(state.features), expected[:, 0]))
        for at in range(12):
            parents = torch.randint(len(order), (4,), generator=generator)
            order = order[parents]
            state = lm.advance(state, parents, tokens[order, at])
            found.append((lm.logits(state.features), expected[order, at + 1]))
        worst = max([worst, *(float((logits.log_softmax(-1) - right).abs().max()) for logits, right in found)])
    return worst


def becomes(name: str) -> str:
    """What becomes of a model: "fast", "generic", "refused: …", "wrong by … nats", or "raw: …"."""
    try:
        model = tiny(name)
    except Exception as error:
        return f"not made: {type(error).__name__}: {error}"
    try:
        lm = HuggingFaceLM(model, Words(), name)
        worst = largest_error(model, lm)
        return lm.way if worst < 1e-3 else f"wrong by {worst:.2g} nats"
    except ModelError as error:
        return f"refused: {str(error).partition('not supported: ')[2] or error}"
    except Exception as error:
        return f"raw: {type(error).__name__}: {error}"


def each(names: list[str]) -> Iterator[tuple[str, str]]:
    """What becomes of models, one after the other, each in a fork: some die, and some never end."""
    for name in names:
        reading, writing = os.pipe()
        if not (child := os.fork()):
            try:
                torch.set_num_threads(1)
                warnings.simplefilter("ignore")
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
                os.write(writing, becomes(name).strip().split("\n")[0].encode())
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as said:
            found = said.read().decode()
        os.waitpid(child, 0)
        yield name, found or "not made: it takes too long"


def table(found: Mapping[str, str]) -> str:
    """What the page says of the models, as Markdown."""
    lines = [
        f"Of the {len(found)} names that transformers {transformers.__version__} has for causal language models:",
        "",
    ]
    for way in ("fast", "generic"):
        names = [f"`{name}`" for name, what in found.items() if what == way]
        lines += [f"**{way.capitalize()}** ({len(names)}): {', '.join(names)}.", ""]
    for title, kind in (("Refused", "refused: "), ("Not tried: no small random model could be made", "not made: ")):
        # How far off differs between machines.
        rest = {
            name: what.removeprefix(kind).split(" (by ")[0] for name, what in found.items() if what.startswith(kind)
        }
        lines += [f"**{title}** ({len(rest)}):", "", "| name | reason |", "| --- | --- |"]
        lines += [f"| `{name}` | {reason.replace('|', ' ')} |" for name, reason in rest.items()] + [""]
    return "\n".join(lines)


def main(names: list[str]) -> None:
    """Print, and write if no names are given."""
    found = {}
    for name, what in each(names or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)):
        found[name] = what
        print(f"{name:28s} {what}", flush=True)
    if not names:
        PAGE.write_text(PAGE.read_text("utf-8").split(MARK)[0] + MARK + "\n" + table(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
