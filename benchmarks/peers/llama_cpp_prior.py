"""llama.cpp by llama-cpp-python's low-level interface: many sequences in one context, after a prompt that is read once.

Every step is one `llama_decode` of a token of each sequence, and each sequence draws from its logits by llama.cpp's own
sampler `dist`. Keys and values are kept in the precision of the weights. Sequences have parts of the cache of their
own, to which the prompt's is copied (`llama_memory_seq_cp`): in a unified cache each would attend, masked, to all.
"""

import ctypes
import json
from collections.abc import Sequence
from pathlib import Path

import gguf
import llama_cpp as llama  # type: ignore[import-not-found]
import torch
from engines import SHORT, converted, weighed
from measure import Sampler, Settings, measure
from problem import make_problem
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer

# Cells of a sequence's part of the cache come in multiples of so many.
CELLS = 256
# Numbers of ggml's types, which are those of its file format.
KINDS = {"f32": int(gguf.GGMLQuantizationType.F32), "bf16": int(gguf.GGMLQuantizationType.BF16)}
# It has much to say of every graph. Kept, since a callback that is collected ends the process.
SILENT = llama.llama_log_callback(lambda level, text, data: None)


class Engine:
    """A loaded model, a context for each size, and a generator of random numbers for each sequence."""

    def __init__(self, place: Path, precision: str, threads: int) -> None:
        self.precision, self.threads = precision, threads
        llama.llama_log_set(SILENT, None)
        self.model = llama.llama_model_load_from_file(str(place).encode(), llama.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {place}")
        self._context: tuple[tuple[int, int], ctypes.c_void_p] | None = None

    def context(self, sequences: int, length: int) -> ctypes.c_void_p:
        """One for so many sequences of at most so many tokens; the last one is kept."""
        if self._context is None or self._context[0] != (sequences, length):
            if self._context is not None:
                llama.llama_free(self._context[1])
            how = llama.llama_context_default_params()
            cells = -(-length // CELLS) * CELLS
            how.n_ctx, how.n_seq_max, how.kv_unified = sequences * cells, sequences, False
            how.n_batch = how.n_ubatch = max(sequences, length)
            how.n_threads = how.n_threads_batch = self.threads
            how.type_k = how.type_v = KINDS[self.precision]
            self._context = ((sequences, length), llama.llama_init_from_model(self.model, how))
        return self._context[1]

    def draw(self, prompt: Sequence[int], seed: int, num_samples: int, num_tokens: int) -> list[list[int]]:
        """N sequences of T tokens."""
        context = self.context(num_samples, len(prompt) + num_tokens)
        memory = llama.llama_get_memory(context)
        llama.llama_memory_clear(memory, True)
        samplers = [llama.llama_sampler_init_dist(seed * num_samples + each) for each in range(num_samples)]
        batch = llama.llama_batch_init(max(num_samples, len(prompt)), 0, 1)
        _fill(batch, [(token, at, 0, at == len(prompt) - 1) for at, token in enumerate(prompt)])
        _decode(context, batch)
        for each in range(1, num_samples):
            llama.llama_memory_seq_cp(memory, 0, each, -1, -1)
        made = [[llama.llama_sampler_sample(sampler, context, len(prompt) - 1)] for sampler in samplers]
        for at in range(len(prompt), len(prompt) + num_tokens - 1):
            _fill(batch, [(tokens[-1], at, each, True) for each, tokens in enumerate(made)])
            _decode(context, batch)
            for each, (sampler, tokens) in enumerate(zip(samplers, made, strict=True)):
                tokens.append(llama.llama_sampler_sample(sampler, context, each))
        for sampler in samplers:
            llama.llama_sampler_free(sampler)
        llama.llama_batch_free(batch)
        return made


def _fill(batch: "llama.llama_batch", entries: Sequence[tuple[int, int, int, bool]]) -> None:
    """Token, position, sequence and whether its logits are wanted, of each entry."""
    batch.n_tokens = len(entries)
    for at, (token, position, sequence, wanted) in enumerate(entries):
        batch.token[at], batch.pos[at], batch.logits[at] = token, position, wanted
        batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence


def _decode(context: ctypes.c_void_p, batch: "llama.llama_batch") -> None:
    code = llama.llama_decode(context, batch)
    if code:
        raise RuntimeError(f"llama_decode ended with {code}")


def write(source: Path, precision: str, place: Path) -> None:
    """A GGUF file of a Llama of transformers, without its tokenizer."""
    config = json.loads((source / "config.json").read_text())
    heads, kept = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(str(place), "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kept)
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, tensor in load_file(source / "model.safetensors").items():
        values = tensor.float()
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            values = _interleaved(values, heads if "q_proj" in name else kept)
        new = names.get_name(name, try_suffixes=(".weight",))
        if precision == "bf16" and values.dim() == 2:
            data = values.bfloat16().contiguous().view(torch.uint8).numpy()
            writer.add_tensor(new, data, raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(new, values.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _interleaved(weight: Tensor, heads: int) -> Tensor:
    """Rows [heads · d, k] so that the two halves of each head take turns: llama.cpp rotates neighbours."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def load(settings: Settings) -> Sampler:
    """The sampler."""
    problem = make_problem(AutoTokenizer.from_pretrained(settings.model), settings.penalty, settings.long_prompt)
    precision = SHORT[settings.dtype]
    place = converted(settings, f"{precision}.gguf", lambda scratch: write(settings.model, precision, scratch))
    engine = Engine(place, precision, settings.threads)
    return weighed(problem, lambda seed, count, length: engine.draw(problem.prompt, seed, count, length))


if __name__ == "__main__":
    measure("llama.cpp", load, ("llama-cpp-python", "gguf"))
