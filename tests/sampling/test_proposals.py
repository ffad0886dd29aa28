"""The laws of proposals, for every registered one."""

import pytest

from twistlm.core.registry import available
from twistlm.testing import check_proposal

# Of those that take a parameter.
VALUES = {"tempered": (0.0, 0.3, 1.0), "defensive": (0.0, 0.25, 1.0)}


@pytest.mark.parametrize(
    "name",
    [
        f"{name}:{value}" if value is not None else name
        for name, entry in available("proposal").items()
        for value in (VALUES[name] if "parameter" in entry.options else (None,))
    ],
)
def test_laws(name: str) -> None:
    check_proposal(name)
