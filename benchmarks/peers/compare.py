"""twistlm and its peers on the same model and the same target: speed, memory, and log Z.

    python benchmarks/peers/compare.py            # most of an hour; writes results.json and results.md beside itself
    python benchmarks/peers/compare.py --quick    # minutes, tiny runs: only shows that everything works
    python benchmarks/peers/compare.py --only constraint --output benchmarks/peers/constraints.json

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

from floor import operations
from problem import PENALTY, make_problem
from summary import summarise, to_markdown
from tasks import TASKS
from transformers import AutoTokenizer

from twistlm.models.packaged import packaged_model

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
VENVS = HERE / ".venvs"
OURS, GENLM, LLAMPPL, BEST_OF_N = "twistlm", "genlm-control", "llamppl", "best-of-N"
TRANSFORMERS, OPENVINO, LLAMA_CPP, OUTLINES = "transformers", "openvino-genai", "llama.cpp", "outlines, masked"
ENVIRONMENTS = (None, "genlm-control", "llamppl", "transformers", "openvino", "llama-cpp", "outlines")
# φ of plain draws: near 1, so that the mean of a few shows whether they are draws from p₀.
GENTLE = ("--penalty", "0.05")
ENVIRONMENT = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
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


def engines(
    scenario: str, particles: int, tokens: int, repeats: int, dtype: str = "bfloat16", *flags: str
) -> list[Job]:
    """Draws from p₀ by inference engines, weighed."""
    return [
        Job(scenario, OPENVINO, "openvino_prior.py", "openvino", particles, tokens, repeats, dtype, flags),
        Job(scenario, LLAMA_CPP, "llama_cpp_prior.py", "llama-cpp", particles, tokens, repeats, dtype, flags),
    ]


def prior(scenario: str, particles: int, tokens: int, repeats: int, dtype: str) -> list[Job]:
    """Draws from p₀ by everybody."""
    size = (particles, tokens, repeats, dtype)
    return [
        Job(scenario, OURS, "ours_prior.py", None, *size, GENTLE),
        Job(scenario, TRANSFORMERS, "best_of_n.py", "transformers", *size, GENTLE),
        *engines(scenario, *size, *GENTLE),
    ]


def jobs() -> list[Job]:
    """Everything that one round measures."""
    made: list[Job] = []
    for dtype in EXACT_DTYPES:
        made += [ours("exact", 40, 2, 60, dtype), *peers("exact", 40, 2, 40, dtype), best_of_n("exact", 2, 40, dtype)]
        made += engines("exact", 100, 2, 20, dtype)
        made += [*prior("prior", 100, 20, 5, dtype), *prior("prior, long", 32, 200, 2, dtype)]
        made += prior("prior, single", 1, 40, 3, dtype)
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
    return made + [job for name in TASKS for job in constrained(name)]


def constrained(name: str) -> list[Job]:
    """A hard constraint for everybody; genlm-control has fewer particles, since each of its runs takes long."""
    tokens, flags, scenario = TASKS[name].tokens, ("--task", name), f"constraint: {name}"
    return [
        Job(scenario, OURS, "constraint_ours.py", None, 40, tokens, 16, flags=flags),
        Job(scenario, f"{GENLM}, AWRS", "constraint_genlm.py", "genlm-control", 10, tokens, 5, flags=flags),
        Job(scenario, GENLM, "constraint_genlm.py", "genlm-control", 10, tokens, 5, flags=(*flags, "--direct")),
        Job(scenario, OUTLINES, "constraint_generate.py", "outlines", 40, tokens, 4, flags=(*flags, "--masked")),
        Job(scenario, BEST_OF_N, "constraint_generate.py", "outlines", 100, tokens, 1, flags=flags),
    ]


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny runs, only to see that everything works")
    parser.add_argument("--rounds", type=int, default=3, help="times that each job is measured")
    parser.add_argument("--resume", action="store_true", help="go on where an earlier call was stopped")
    parser.add_argument("--only", nargs="*", help="these scenarios alone; 'constraint' is all of them")
    parser.add_argument("--output", type=Path, default=HERE / "results.json", help="a .md is written beside it")
    options = parser.parse_args()
    model = packaged_model("smollm2")
    wanted = set(options.only or ())
    todo = [job for job in jobs() if not wanted or wanted & {job.scenario, job.scenario.split(":")[0]}]
    if options.quick:
        options.rounds = 1
        todo = [replace(job, particles=min(job.particles, 4), tokens=min(job.tokens, 3), repeats=2) for job in todo]
    needed = {job.environment for job in todo} | ({"transformers"} if any(map(is_exact, todo)) else set())
    interpreters = {name: interpreter(name) for name in ENVIRONMENTS if name in needed}
    start, load = time.perf_counter(), os.getloadavg()
    known = json.loads(options.output.read_text()) if options.resume and options.output.exists() else {"records": []}
    # The machine can do what it ever did: a moment without others shows it.
    earlier = known.get("rates", {})
    rates = {dtype: max(speed, earlier.get(dtype, 0.0)) for dtype, speed in machine_rates().items()}
    if known["records"] and known["jobs"] != [json.loads(json.dumps(asdict(job))) for job in todo]:
        sys.exit(f"{options.output} is of other jobs; leave --resume out to start again")
    exact = known.get("exact", [])
    if not exact and any(map(is_exact, todo)):
        for dtype in EXACT_DTYPES:
            arguments = ["--dtype", dtype, *(["--tolerance", "0.5"] if options.quick else [])]
            exact.append(call(interpreters["transformers"], "exact.py", model, arguments))
    records: list[dict[str, Any]] = known["records"]
    lengths, config = prompt_lengths(model), json.loads((model / "config.json").read_text())
    for number in range(len(records), options.rounds * len(todo)):
        turn, place = divmod(number, len(todo))
        job = todo[place]
        print(f"round {turn + 1} of {options.rounds}, job {place + 1} of {len(todo)}: {job}", flush=True)
        arguments = ["--particles", str(job.particles), "--tokens", str(job.tokens), "--dtype", job.dtype]
        arguments += ["--repeats", str(job.repeats), "--seed", str(1000 * turn), *job.flags]
        record = call(interpreters[job.environment], job.script, model, arguments)
        operated = operations(config, lengths[prompt_of(job)], job.particles, job.tokens)
        records.append({"scenario": job.scenario, **record, "system": job.system, "operations": operated})
        minutes = (time.perf_counter() - start) / 60
        results = {
            "machine": {**describe_machine(), "load_average": [load, os.getloadavg()], "minutes": minutes},
            "rounds": turn + 1,
            "jobs": [asdict(job) for job in todo],
            "rates": rates,
            "exact": exact,
            "rows": summarise(records, exact, rates),
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
        # The lists are complete, and one of them leaves out on purpose what pip would add.
        install = ["-m", "pip", "install", "--quiet", "--no-deps", "--requirement"]
        subprocess.run([python, *install, requirements], check=True)
        installed.write_text(requirements.read_text())
    return python


def call(python: Path, script: str, model: Path, arguments: list[str]) -> dict[str, Any]:
    """What a script of this folder wrote. Its errors show; what else it says does not."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out.json"
        command = [str(python), str(HERE / script), "--model", str(model), "--json", str(output), *arguments]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
        record: dict[str, Any] = json.loads(output.read_text())
        return record


def machine_rates() -> dict[str, float]:
    """Operations per second of the fastest product, by precision, with the threads of all systems."""
    command = [sys.executable, "-m", "benchmarks.suite.arithmetic", "--threads", "2"]
    said = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=True).stdout
    rates: dict[str, float] = json.loads(said)
    return rates


def is_exact(job: Job) -> bool:
    """Whether Z is known there."""
    return job.scenario == "exact"


def prompt_of(job: Job) -> str:
    """Which prompt a job reads."""
    constraint = job.scenario.removeprefix("constraint: ")
    return constraint if constraint in TASKS else "long" if "--long-prompt" in job.flags else "short"


def prompt_lengths(model: Path) -> dict[str, int]:
    """Tokens of every prompt."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    made = {name: make_problem(tokenizer, long_prompt=name == "long").prompt for name in ("short", "long")}
    made |= {name: tokenizer.encode(task.prompt) for name, task in TASKS.items()}
    return {name: len(prompt) for name, prompt in made.items()}


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
