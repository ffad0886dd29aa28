"""openvino-genai: continuous batching, `num_return_sequences` of one prompt, whose blocks of the cache they share.

Weights are kept in float32 and computed with in the precision that is asked for, as are keys and values (eight bits by
default). The stateful pipeline (`LLMPipeline` with ATTENTION_BACKEND=SDPA) is no way to many draws: it seeds every row
of a batch alike, so that all are the same.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openvino  # type: ignore[import-not-found]
import openvino_genai  # type: ignore[import-not-found]
from engines import SHORT, converted, weighed
from measure import Sampler, Settings, measure
from problem import make_problem
from transformers import AutoTokenizer


def load(settings: Settings) -> Sampler:
    """The sampler."""
    problem = make_problem(AutoTokenizer.from_pretrained(settings.model), settings.penalty, settings.long_prompt)
    prompt = openvino.Tensor(np.array([problem.prompt], dtype=np.int64))

    def write(place: Path) -> None:
        tool = Path(sys.executable).with_name("optimum-cli")
        options = ["--task", "text-generation-with-past", "--weight-format", "fp32"]
        subprocess.run([tool, "export", "openvino", "--model", settings.model, *options, place], check=True)

    precision = SHORT[settings.dtype]
    properties = {
        "INFERENCE_PRECISION_HINT": precision,
        "KV_CACHE_PRECISION": precision,
        "INFERENCE_NUM_THREADS": settings.threads,
    }
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.enable_prefix_caching = settings.keep_cache
    place = str(converted(settings, "openvino", write))
    pipeline = openvino_genai.ContinuousBatchingPipeline(place, scheduler, "CPU", properties)

    def draw(seed: int, num_samples: int, num_tokens: int) -> Sequence[Sequence[int]]:
        how = openvino_genai.GenerationConfig()
        how.do_sample, how.temperature, how.top_p, how.rng_seed = True, 1.0, 1.0, seed
        how.ignore_eos, how.max_new_tokens, how.num_return_sequences = True, num_tokens, num_samples
        made: list[list[int]] = pipeline.generate([prompt], [how])[0].m_generation_ids
        return made

    return weighed(problem, draw)


if __name__ == "__main__":
    measure("openvino-genai", load, ("openvino", "openvino-genai", "optimum-intel"))
