"""What the figures depend on, and the memory of this process."""

import ctypes
import gc
import os
import platform
import resource
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

MB = 1e6


def describe() -> dict[str, Any]:
    """Processor, threads and versions."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "malloc": {name: value for name, value in sorted(os.environ.items()) if name.startswith("MALLOC_")},
        "system": _system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _system() -> str:
    """Kernel and C library. A hoster's own suffix of the kernel's release says nothing that a figure depends on."""
    numbers = platform.release().split("-")[0]
    return "-".join((platform.system(), numbers, platform.machine(), *filter(None, platform.libc_ver())))


def release() -> None:
    """Give memory that nothing uses back to the system, so that it does not hide what is allocated next (glibc)."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return


def forget_peak() -> None:
    """Let the kernel's record of the highest resident memory start again (Linux; a no-op elsewhere)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def resident_mb() -> float:
    """Resident memory now (the highest since the process began if not on Linux)."""
    return _status("VmRSS")


def peak_mb() -> float:
    """Highest resident memory since `forget_peak` (since the process began if not on Linux)."""
    return _status("VmHWM")


def _status(field: str) -> float:
    try:
        status = Path("/proc/self/status").read_text()
        return float(status.split(f"{field}:")[1].split()[0]) * 1024 / MB
    except (OSError, IndexError):
        # Kilobytes, but bytes on macOS.
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MB
