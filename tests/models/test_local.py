"""What is on this machine."""

from pathlib import Path
from typing import Any

import pytest
import torch

from twistlm.core.errors import ConfigError, ModelError
from twistlm.models.bundled import folder
from twistlm.models.huggingface import load
from twistlm.models.local import usable_device


@pytest.mark.parametrize("name", ["nowhere", "cpu:x", 5e-324])
def test_what_is_no_device_is_refused_in_one_line(name: Any) -> None:
    with pytest.raises(ConfigError, match=r"cannot be used here \([^\n]+; choose cpu"):
        usable_device(name)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    """Weights that run code when they are read are refused in a line."""
    here = folder("stories")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((here / name).read_bytes())
    with (tmp_path / "pytorch_model.bin").open("wb") as file:
        torch.save({"weight": Path.home}, file)
    with pytest.raises(ModelError, match=f"cannot load model '{tmp_path}'") as caught:
        load(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_configuration_larger_than_any_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(6 * 10**9)
    with pytest.raises(ModelError, match=r"config.json has 5,722 MiB, which no such file has"):
        load(str(tmp_path))
