"""How much a reader has to follow: functions of twistlm that a command enters, and the files that they are in.

python -m tests.calls            (the smoke preset; comprehensions and what is imported do not count)
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import twistlm
from twistlm.cli import main

PACKAGE = str(Path(twistlm.__file__).parent)
# What a frame is that is no function: a module or class body, a comprehension.
NONE = ("<module>", "<listcomp>", "<genexpr>", "<dictcomp>", "<setcomp>")


def entered(run: Callable[[], Any]) -> set[CodeType]:
    """The code of every function of the package that is called, in this thread."""
    seen: set[CodeType] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE) and code.co_name not in NONE:
            seen.add(code)

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return seen


def report() -> None:
    """Print a row for each command."""
    with tempfile.TemporaryDirectory() as folder:
        run = str(Path(folder) / "run")
        smoke, toxic = ["toxicity", "--preset", "smoke"], ["--classifier", "toxicity", "--label", "toxic"]
        for name, arguments in (
            ("train", ["train", *smoke, "--out", run]),
            ("certify", ["certify", run]),
            ("probability", ["probability", "Once", *toxic, "--num-tokens", "4", "--thresholds", "0.5"]),
        ):
            codes = entered(lambda arguments=arguments: main(arguments))  # type: ignore[misc]
            files = {code.co_filename for code in codes}
            print(f"{name}: {len(codes)} functions in {len(files)} files", file=sys.stderr)


if __name__ == "__main__":
    report()
