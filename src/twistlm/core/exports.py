"""What leaves for other people's tools: data frames of pandas, and trees of data as ArviZ reads them.

Both libraries are optional (`pip install 'twistlm[arviz]'`) and are imported when something is asked for.
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from twistlm.core.errors import ConfigError

Group = Mapping[str, tuple[Sequence[str], Any]]
"""Variables of a group: the name of each axis, and the values."""


def frame(rows: Sequence[Mapping[str, Any]]) -> Any:
    """A `pandas.DataFrame` of rows that all have the same names.

    Raises:
        ConfigError: pandas is not installed.
    """
    return _library("pandas").DataFrame.from_records(list(rows))


def tree(groups: Mapping[str, Group], attributes: Mapping[str, Any], sample_dims: Mapping[str, Sequence[str]]) -> Any:
    """An `xarray.DataTree` by ArviZ's conventions.

    Args:
        groups: by name; axes that groups share have the same name.
        attributes: of the whole.
        sample_dims: which axes every variable of a group has, where they are not chain and draw.

    Raises:
        ConfigError: ArviZ is not installed.
    """
    arviz, xarray = _library("arviz_base"), _library("xarray")
    made = {}
    for name, variables in groups.items():
        own = list(sample_dims.get(name, ("chain", "draw")))
        made[name] = arviz.dict_to_dataset(
            {each: values for each, (_, values) in variables.items()},
            dims={each: [axis for axis in axes if axis not in own] for each, (axes, _) in variables.items()},
            sample_dims=own,
        )
    whole = xarray.DataTree.from_dict(made)
    whole.attrs.update(attributes)
    return whole


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"this needs {name.replace('_', '-')}: pip install 'twistlm[arviz]'") from error
