"""What is on this machine."""

from typing import Any

import pytest

from twistlm.core.errors import ConfigError
from twistlm.models.local import usable_device


@pytest.mark.parametrize("name", ["nowhere", "cpu:x", 5e-324])
def test_what_is_no_device_is_refused_in_one_line(name: Any) -> None:
    with pytest.raises(ConfigError, match=r"cannot be used here \([^\n]+; choose cpu"):
        usable_device(name)
