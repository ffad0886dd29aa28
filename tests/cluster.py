"""Faults of a cluster: two real raylets on this machine, of which something is killed in the middle of a command.

    python -m tests.cluster                        # twenty faults over all commands, about half an hour
    python -m tests.cluster collect --faults 4     # a worker, a machine, the command, the head

A command that lost a worker or a machine ends as if nothing had been. One that was killed itself, or whose cluster has
lost its head, is given again (on a new cluster, if that one is gone). In each case everything is there in the end, byte
for byte as an undisturbed run without any engine leaves it.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from tests.kills import COMMANDS, FILES, OPTIONS, RESUME, content, differences

FAULTS = ("worker", "machine", "command", "head")
NAMES = ("collect", "probability", "sweep")
# A command that has lost its cluster may notice late.
PATIENCE = 240.0
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TWISTLM_PROGRESS": "0", "RAY_USAGE_STATS_ENABLED": "0"}


class Cluster:
    """A head and a second machine with one core each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster as Raylets

        self.raylets = Raylets(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        self.machine = self.raylets.add_node(num_cpus=1)
        self.raylets.wait_for_nodes()

    @property
    def address(self) -> str:
        return str(self.raylets.address)

    def lose_machine(self) -> None:
        """All its processes at once, as a power failure would."""
        self.raylets.remove_node(self.machine, allow_graceful=False)

    def lose_head(self) -> None:
        self.raylets.remove_node(self.raylets.head_node, allow_graceful=False)

    def lose_worker(self) -> bool:
        """One that is at work, if there is any."""
        for process in psutil.process_iter(["cmdline"]):
            if "ray::_Context" in " ".join(process.info["cmdline"] or []):
                process.send_signal(signal.SIGKILL)
                return True
        return False

    def restored(self) -> "Cluster":
        """This one with both machines, or another where the head is gone."""
        if self.raylets.head_node is None or not self.raylets.head_node.any_processes_alive():
            return self.renewed()
        if not self.machine.any_processes_alive():
            self.machine = self.raylets.add_node(num_cpus=1)
            self.raylets.wait_for_nodes()
        return self

    def renewed(self) -> "Cluster":
        self.raylets.shutdown()
        return Cluster()


def told(command: str) -> list[str]:
    """The arguments, without a number of processes of their own."""
    words = [*COMMANDS[command], *OPTIONS]
    if "--jobs" in words:
        del words[words.index("--jobs") : words.index("--jobs") + 2]
    return words


def start(arguments: list[str], log: Path, cluster: Cluster | None) -> "subprocess.Popen[bytes]":
    env = ENVIRONMENT if cluster is None else {**ENVIRONMENT, "RAY_ADDRESS": cluster.address}
    with log.open("ab") as output:
        return subprocess.Popen([sys.executable, "-m", "twistlm", *arguments], env=env, stdout=output, stderr=output)


def to_the_end(arguments: list[str], log: Path, resume: list[str], out: Path, cluster: Cluster | None) -> float:
    """Give it, again where a worker of what was killed still holds its folder; seconds of the last time."""
    for _ in range(20):
        begun, log_end = time.monotonic(), log.stat().st_size if log.exists() else 0
        code = start([*arguments, *(resume if out.exists() else [])], log, cluster).wait(PATIENCE)
        if code == 0:
            return time.monotonic() - begun
        said = log.read_text(errors="replace")[log_end:]
        if "is being written by" not in said:
            break
        time.sleep(1.0)
    raise SystemExit(f"{' '.join(arguments)} ended with code {code}:\n{log.read_text(errors='replace')[-3000:]}")


def trial(cluster: Cluster, command: str, fault: str, share: float, place: Path, seconds: float) -> Cluster:
    """One fault after a share of the seconds that the command takes; then to the end."""
    out = place / "out" / FILES.get(command, "out")
    shutil.rmtree(out.parent, ignore_errors=True)
    out.parent.mkdir(parents=True)
    log = place / "log"

    arguments = [*told(command), "--engine", "ray", "--out", str(out)]
    process = start(arguments, log, cluster)
    time.sleep(share * seconds)
    if process.poll() is None:
        if fault == "worker":
            while not cluster.lose_worker() and process.poll() is None:
                time.sleep(0.2)
        elif fault == "machine":
            cluster.lose_machine()
        elif fault == "head":
            cluster.lose_head()
        else:
            process.kill()
    try:
        code = process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        if fault != "head":
            raise
        # Whoever waits for a head that is gone ends it by hand.
        process.kill()
        code = process.wait()
    if fault in ("worker", "machine") and code != 0:
        raise SystemExit(f"{command} did not survive losing a {fault}:\n{log.read_text(errors='replace')[-3000:]}")
    cluster = cluster.restored()
    if code != 0:
        to_the_end(arguments, log, RESUME[command], out, cluster)
    return cluster


def main() -> int:
    from twistlm.core.rng import Rng

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("commands", nargs="*", default=list(NAMES))
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--kinds", nargs="*", default=list(FAULTS))
    parser.add_argument("--seed", type=int, default=0)
    asked: Any = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    shares = Rng(asked.seed, ("cluster",)).uniform((1, asked.faults))[0].tolist()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        truth, seconds = {}, {}
        cluster = Cluster()
        for command in asked.commands:
            whole, timed = (
                place / name / FILES.get(command, "out") for name in (f"whole-{command}", f"timed-{command}")
            )
            for out in (whole, timed):
                out.parent.mkdir()
            to_the_end([*told(command), "--out", str(whole)], place / "log", [], whole, None)
            truth[command] = content(whole)
            there = ["--engine", "ray", "--out", str(timed)]
            seconds[command] = to_the_end([*told(command), *there], place / "log", [], timed, cluster)
            wrong += [f"{command}, undisturbed: {each}" for each in differences(truth[command], content(timed))]
            print(f"{command}: {seconds[command]:.0f} s on two machines", flush=True)
        for number, share in enumerate(shares):
            command = asked.commands[number % len(asked.commands)]
            fault = asked.kinds[number // len(asked.commands) % len(asked.kinds)]
            begun = time.monotonic()
            cluster = trial(cluster, command, fault, share, place, seconds[command])
            found = differences(truth[command], content(place / "out" / FILES.get(command, "out")))
            wrong += [f"{command}, fault {number} ({fault}): {each}" for each in found]
            print(
                f"{number + 1}: {command} lost its {fault} after {share:.0%}: {len(found)} files differ, "
                f"{time.monotonic() - begun:.0f} s",
                flush=True,
            )
        cluster.raylets.shutdown()
    print(*wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
