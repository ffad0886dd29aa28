"""twistlm and its peers on the same model and the same target: speed, memory, and log Z.

    python benchmarks/peers/compare.py            # most of an hour; writes results.json and results.md beside itself
    python benchmarks/peers/compare.py --quick    # minutes, tiny runs: only shows that everything works

Results are written after every job; --resume goes on where a call was stopped.
Run it in twistlm's environment. Each peer has an environment of its own under `.venvs`, made at the first call (a few
minutes and gigabytes). Systems take turns: every round measures each job once, in a process of its own.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import venv
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from problem import PENALTY
from summary import summarise, to_markdown

from twistlm.models.packaged import packaged_model

HERE = Path(__file__).parent
VENVS = HERE / ".venvs"
OURS, GENLM, LLAMPPL, BEST_OF_N = "twistlm", "genlm-control", "llamppl", "best-of-N"
EXACT_DTYPES = ("bfloat16", "float32")


@dataclass(frozen=True)
class Job:
    """One measurement: a script, in an environment, with its settings.

    Attributes:
        scenario: what it is part of.
        system: whose figures these are.
        script: file in this folder.
        environment: name of a requirements file; None for twistlm's own.
        particles: N.
        tokens: T.
        repeats: timed runs in each round.
        dtype: precision of the network.
        flags: further options of the script.
    """

    scenario: str
    system: str
    script: str
    environment: str | None
    particles: int
    tokens: int
    repeats: int
    dtype: str = "bfloat16"
    flags: tuple[str, ...] = field(default=())


def ours(scenario: str, particles: int, tokens: int, repeats: int, dtype: str = "bfloat16", *flags: str) -> Job:
    """A job of twistlm."""
    return Job(scenario, OURS, "ours.py", None, particles, tokens, repeats, dtype, flags)


def peers(scenario: str, particles: int, tokens: int, repeats: int, dtype: str = "bfloat16", *flags: str) -> list[Job]:
    """The same job for genlm-control and llamppl."""
    return [
        Job(scenario, GENLM, "genlm_control.py", "genlm-control", particles, tokens, repeats, dtype, flags),
        Job(scenario, LLAMPPL, "llamppl_smc.py", "llamppl", particles, tokens, repeats, dtype, flags),
    ]


def best_of_n(scenario: str, tokens: int, repeats: int, dtype: str = "bfloat16") -> Job:
    """Batches of 100 from transformers, the size from which on they do not get faster."""
    return Job(scenario, BEST_OF_N, "best_of_n.py", "transformers", 100, tokens, repeats, dtype)


def jobs() -> list[Job]:
    """Everything that one round measures."""
    made: list[Job] = []
    for dtype in EXACT_DTYPES:
        made += [ours("exact", 40, 2, 60, dtype), *peers("exact", 40, 2, 40, dtype), best_of_n("exact", 2, 40, dtype)]
        made += [ours("main", 40, 40, 10, dtype), *peers("main", 40, 40, 2 if dtype == "bfloat16" else 1, dtype)]
        made += [best_of_n("main", 40, 2, dtype)]
    defaults = Job("main", "genlm-control, defaults", "genlm_control.py", "genlm-control", 40, 40, 1)
    made += [replace(defaults, flags=("--defaults",))]
    made += [ours("doubled", 40, 40, 8, "bfloat16", "--penalty", str(2 * PENALTY))]
    made += [ours("few", 10, 10, 10), *peers("few", 10, 10, 8), best_of_n("few", 10, 4)]
    made += [ours("single", 1, 40, 3), *peers("single", 1, 40, 3)]
    made += [ours("long", 4, 8, 4, "bfloat16", "--long-prompt")]
    made += peers("long", 4, 8, 4, "bfloat16", "--long-prompt")
    made += [ours("long, kept", 4, 8, 6, "bfloat16", "--long-prompt", "--keep-cache")]
    made += peers("long, kept", 4, 8, 6, "bfloat16", "--long-prompt", "--keep-cache")
    made += [Job("constraint", OURS, "constraint_ours.py", None, 40, 11, 5)]
    made += [Job("constraint", GENLM, "constraint_genlm.py", "genlm-control", 10, 11, 5)]
    return made


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny runs, only to see that everything works")
    parser.add_argument("--rounds", type=int, default=3, help="times that each job is measured")
    parser.add_argument("--resume", action="store_true", help="go on where an earlier call was stopped")
    parser.add_argument("--only", nargs="*", help="these scenarios alone")
    parser.add_argument("--output", type=Path, default=HERE / "results.json", help="a .md is written beside it")
    options = parser.parse_args()
    model = packaged_model("smollm2")
    todo = [job for job in jobs() if not options.only or job.scenario in options.only]
    if options.quick:
        options.rounds = 1
        todo = [replace(job, particles=min(job.particles, 4), tokens=min(job.tokens, 3), repeats=2) for job in todo]
    interpreters = {name: interpreter(name) for name in (None, "genlm-control", "llamppl", "transformers")}
    start, load = time.perf_counter(), os.getloadavg()
    known = json.loads(options.output.read_text()) if options.resume and options.output.exists() else {"records": []}
    if known["records"] and known["jobs"] != [json.loads(json.dumps(asdict(job))) for job in todo]:
        sys.exit(f"{options.output} is of other jobs; leave --resume out to start again")
    exact = known.get("exact", [])
    if not exact and any(job.scenario == "exact" for job in todo):
        for dtype in EXACT_DTYPES:
            arguments = ["--dtype", dtype, *(["--tolerance", "0.5"] if options.quick else [])]
            exact.append(call(interpreters["transformers"], "exact.py", model, arguments))
    records: list[dict[str, Any]] = known["records"]
    for number in range(len(records), options.rounds * len(todo)):
        turn, place = divmod(number, len(todo))
        job = todo[place]
        print(f"round {turn + 1} of {options.rounds}, job {place + 1} of {len(todo)}: {job}", flush=True)
        arguments = ["--particles", str(job.particles), "--tokens", str(job.tokens), "--dtype", job.dtype]
        arguments += ["--repeats", str(job.repeats), "--seed", str(1000 * turn), *job.flags]
        record = call(interpreters[job.environment], job.script, model, arguments)
        records.append({"scenario": job.scenario, **record, "system": job.system})
        minutes = (time.perf_counter() - start) / 60
        results = {
            "machine": {**describe_machine(), "load_average": [load, os.getloadavg()], "minutes": minutes},
            "rounds": turn + 1,
            "jobs": [asdict(job) for job in todo],
            "exact": exact,
            "rows": summarise(records, exact),
            "records": records,
        }
        options.output.write_text(json.dumps(results, indent=1) + "\n")
        options.output.with_suffix(".md").write_text(to_markdown(results))
    print(options.output.with_suffix(".md").read_text())


def interpreter(environment: str | None) -> Path:
    """Python of an environment, which is made if it is not there or its requirements have changed."""
    if environment is None:
        return Path(sys.executable)
    folder = VENVS / environment
    python = folder / "bin" / "python"
    requirements = HERE / f"requirements-{environment}.txt"
    installed = folder / "requirements.txt"
    if not installed.exists() or installed.read_text() != requirements.read_text():
        print(f"making {folder}", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--requirement", requirements], check=True)
        installed.write_text(requirements.read_text())
    return python


def call(python: Path, script: str, model: Path, arguments: list[str]) -> dict[str, Any]:
    """What a script of this folder wrote. Its errors show; what else it says does not."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out.json"
        command = [str(python), str(HERE / script), "--model", str(model), "--json", str(output), *arguments]
        done = subprocess.run(command, env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
        record: dict[str, Any] = json.loads(output.read_text())
        return record


def describe_machine() -> dict[str, Any]:
    """What the figures depend on."""
    model = platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    system = f"{platform.system()} {platform.release().split('-')[0]}"
    return {"cpu": model, "cores": os.cpu_count(), "system": system}


if __name__ == "__main__":
    main()
