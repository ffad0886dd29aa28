"""Every causal language model of transformers is right or refused by name, and docs/models.md says which."""

import subprocess
import sys
from pathlib import Path

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.models.every import PAGE, table
from twistlm.models.fast import KNOWN


def test_every_model_is_right_or_refused_by_name() -> None:
    names = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    run = [sys.executable, "-m", "tests.models.every", *names]
    lines = subprocess.run(run, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True).stdout
    found = dict(line.split(maxsplit=1) for line in lines.splitlines())
    assert list(found) == names
    assert not {name: what for name, what in found.items() if what.startswith(("wrong", "raw"))}
    assert sum(what in ("fast", "generic") for what in found.values()) > 0.75 * len(found)

    page = PAGE.read_text(encoding="utf-8")
    if f"transformers {transformers.__version__} " in page:
        kinds = {name: MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[name]].config_class.model_type for name in names}
        assert {kinds[name] for name in names if found[name] == "fast"} == KNOWN
        for kind in ("**Fast**", "**Generic**"):
            assert _line(page, kind) == _line(table(found), kind)


def _line(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(start))
