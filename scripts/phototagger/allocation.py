"""What a batch system (Slurm; PBS, LSF and Grid Engine by name) has given to this process.

What is started for several jobs, a model server above all, is shared within an allocation and must
not outlive it: the batch system would kill it in the middle, or worse, not kill it and give its GPU
to somebody else's job. A job therefore has to know which allocation it is in, which process stands
for that on this node, and when it ends.
"""

import os
import re
import socket
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from phototagger import processes
from phototagger.processes import Process

ANSWER = 5.0  # seconds that a batch system has to tell when an allocation ends
_PROC = Path("/proc")
# What starts a step on a node: its child is the outermost process of the step.
_STARTERS = ("slurmstepd",)
# The batch script, which goes on while its steps come and go (`srun`).
_BATCH = "slurm_script"


@dataclass(frozen=True)
class _System:
    name: str
    variable: str  # holds the job's id
    needs: str  # is set as well; a bare JOB_ID could be anybody's


_SYSTEMS = (
    _System("slurm", "SLURM_JOB_ID", "SLURM_JOB_ID"),
    _System("pbs", "PBS_JOBID", "PBS_JOBID"),
    _System("lsf", "LSB_JOBID", "LSB_JOBID"),
    _System("sge", "JOB_ID", "SGE_TASK_ID"),
)


@dataclass(frozen=True)
class Allocation:
    """The part of a batch system's job that is on this node."""

    id: str  # fit for names of files: slurm-1234
    node: str
    owner: Process  # its outermost process on this node: with it, the allocation is over
    told_end: float | None = None  # what the environment says

    @cached_property
    def ends(self) -> float | None:
        """When it is over, in seconds since 1970; None if there is no saying.

        Asks Slurm's controller (once) where the environment does not tell: some 20 ms, and
        `ANSWER` seconds where none answers.
        """
        if self.told_end is not None:
            return self.told_end
        system, _, number = self.id.partition("-")
        return _ask_slurm(number) if system == "slurm" else None


def current(env: Mapping[str, str] = os.environ) -> Allocation | None:
    """The allocation that this process runs in; None outside a batch system.

    Never raises; looks at our ancestors in /proc, and in a step of Slurm at all processes (some
    milliseconds).
    """
    for system in _SYSTEMS:
        number = env.get(system.variable)
        if number and env.get(system.needs):
            node = env.get("SLURMD_NODENAME") or socket.gethostname()
            name = re.sub(r"[^A-Za-z0-9.-]", "_", f"{system.name}-{number}")
            end = _seconds(env.get("SLURM_JOB_END_TIME")) if system.name == "slurm" else None
            owner = None
            if env.get("SLURM_STEP_ID"):
                owner = _batch_script(system.variable, number)
            return Allocation(name, node, owner or _owner(system.variable, number), end)
    return None


def members(place: Allocation) -> list[int]:
    """Numbers of the processes on this node that belong to the allocation, as far as they can be
    told: our ancestors, and whatever has the job's id in its environment.
    """
    system, _, _ = place.id.partition("-")
    variable = next(known.variable for known in _SYSTEMS if known.name == system)
    number = os.environ.get(variable, "")
    found = []
    for pid in ancestors(os.getpid()):
        found.append(pid)
        if pid == place.owner.pid:
            break
    return found + [pid for pid in _pids() if pid not in found and _is_of(pid, variable, number)]


def ancestors(pid: int) -> Iterator[int]:
    """Its parent, the parent's parent and so on, as far as they can be seen."""
    while (pid := _parent(pid)) > 0:
        yield pid


def _owner(variable: str, number: str) -> Process:
    """The highest ancestor that belongs to the job: a child of the batch system's starter, or else
    the last one upwards that has the job's id in its environment.
    """
    found = pid = os.getpid()
    for above in ancestors(pid):
        name = _name(above)
        if name is None or name in _STARTERS:  # none: /proc hides what is not ours (hidepid)
            found = pid
            break
        said = _variable(above, variable)
        if said not in (number, None):
            break
        if said == number:
            found = above
        pid = above
    return _identify(found)


def _batch_script(variable: str, number: str) -> Process | None:
    """The batch script of a step's job, if that is on this node."""
    for pid in _pids():
        if _name(pid) == _BATCH and _is_of(pid, variable, number):
            return _identify(pid)
    return None


def _is_of(pid: int, variable: str, number: str) -> bool:
    return bool(number) and _variable(pid, variable) == number


def _pids() -> list[int]:
    try:
        return [int(name) for name in os.listdir(_PROC) if name.isdecimal()]
    except OSError:
        return []


def _identify(pid: int) -> Process:
    try:
        return processes.identify(pid)
    except OSError:  # it has ended meanwhile, and we shall, too
        return Process(pid, "")


def _parent(pid: int) -> int:
    """The number of its parent; 0 if it has none, or cannot be seen."""
    try:
        text = (_PROC / str(pid) / "stat").read_text("utf-8", "replace")
    except OSError:
        return os.getppid() if pid == os.getpid() else 0
    return int(text.rpartition(")")[2].split()[1])  # proc_pid_stat(5)


def _name(pid: int) -> str | None:
    try:
        return (_PROC / str(pid) / "comm").read_text("utf-8", "replace").strip()
    except OSError:
        return None


def _variable(pid: int, name: str) -> str | None:
    """A variable in the environment that a process was started with.

    Empty if it has none; None if the environment is not for us to read.
    """
    try:
        content = (_PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return None
    start = f"{name}=".encode()
    values = (line[len(start) :] for line in content.split(b"\0") if line.startswith(start))
    return next(values, b"").decode("utf-8", "replace")


def _ask_slurm(number: str) -> float | None:
    try:
        answer = subprocess.run(
            ["squeue", "-h", "-j", number, "-o", "%e"],
            env={**os.environ, "SLURM_TIME_FORMAT": "%s"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=ANSWER,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return _seconds(answer.stdout)


def _seconds(text: str | None) -> float | None:
    """Seconds since 1970, if it is that."""
    text = (text or "").strip()
    return float(text) if text.isdecimal() and int(text) > 0 else None
