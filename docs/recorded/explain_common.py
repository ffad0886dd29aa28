"""What the scripts beside this file share: the run that most of them look at, and how a record is written."""

import datetime
import json
import math
from pathlib import Path
from typing import Any

from twistlm.core.estimates import Estimate
from twistlm.runs.folder.description import versions

HERE = Path(__file__).parent
# Made by the commands that docs/explain/smc.md names.
DRAWS = Path("runs/explain/sentiment.safetensors")
RUNS = Path("runs/explain")


def write(name: str, seed: int, values: dict[str, Any]) -> None:
    """Write docs/recorded/NAME.json: the values, and what made them."""
    record = {
        "command": f"python -m docs.recorded.{name.replace('-', '_')}",
        "date": datetime.date.today().isoformat(),
        "seed": seed,
        "versions": {
            key: value for key, value in versions().items() if key in ("python", "twistlm", "torch", "machine")
        },
        **values,
    }
    # A line for each field: small files, and differences that can be read.
    fields = [
        f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False, allow_nan=False)}"
        for key, value in rounded(record).items()
    ]
    (HERE / f"{name}.json").write_text("{\n" + ",\n".join(fields) + "\n}\n", encoding="utf-8")


def rounded(value: Any) -> Any:
    """The same with four digits after the point; infinite numbers become None."""
    match value:
        case float():
            return round(value, 4) if math.isfinite(value) else None
        case dict():
            return {key: rounded(each) for key, each in value.items()}
        case list() | tuple():
            return [rounded(each) for each in value]
    return value


def interval(estimate: Estimate | None) -> list[float] | None:
    """Value, low, high."""
    return None if estimate is None else [estimate.value, estimate.low, estimate.high]
