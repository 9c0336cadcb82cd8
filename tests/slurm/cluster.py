"""A real Slurm of two nodes on this machine: `cpu1` in partition `cpu`, `gpu1` with GPUs in `gpu`.

    with cluster(folder) as slurm:
        subprocess.run(["sbatch", "-p", "gpu", "--gpus=1", ...])
        slurm.jobs()

Started without systemd and stopped with the test; its daemons are children and die with it. The
GPUs are character devices: Slurm hands them out, nothing can be computed on them. Slurm's clients
read /etc/slurm only (Snakemake's executor removes SLURM_CONF), so one cluster runs at a time.
"""

import ctypes
import fcntl
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

CONF = Path("/etc/slurm/slurm.conf")
GRES = Path("/etc/slurm/gres.conf")
MARK = "# Made by photo-tagger's tests, and removed by them."
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "sinfo")
NODES = ("cpu1", "gpu1")
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"}

# No control groups and no accounting, which containers lack; more CPUs than the machine has, since
# jobs here wait more than they compute; finished jobs are kept, to be looked at afterwards. A job
# that is requeued waits until its credential has expired.
SLURM_CONF = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={run}/munge.socket,cred_expire=20
SlurmctldPort={ports[0]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={run}/slurmctld.pid
SlurmdPidFile={run}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
GresTypes=gpu
MpiDefault=none
ReturnToService=2
MinJobAge=3600
MaxJobCount=20000
KillWait=5
OverTimeLimit=0
Prolog={folder}/prolog.sh
{options}
SlurmdParameters=config_overrides
NodeName=cpu1 Port={ports[1]} {node} CPUs={cpus} CoresPerSocket={cpus}
NodeName=gpu1 Port={ports[2]} {node} CPUs={cpus} CoresPerSocket={cpus} Gres=gpu:{gpus}
PartitionName=cpu Nodes=cpu1 Default=YES MaxTime=INFINITE DefMemPerCPU=100 State=UP
PartitionName=gpu Nodes=gpu1 MaxTime=INFINITE DefMemPerCPU=100 State=UP
"""


@dataclass(frozen=True)
class Job:
    """What the controller knows about a job; times in unix seconds, memory in megabytes."""

    id: str
    name: str
    comment: str
    state: str
    node: str
    partition: str
    cpus: int
    mem_mb: int
    minutes: int
    gpus: int
    start: float
    end: float
    restarts: int


@dataclass(frozen=True)
class Cluster:
    folder: Path

    def run(self, *command: str) -> str:
        return subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=60
        ).stdout

    def jobs(self) -> list[Job]:
        """Every job since the start, the members of arrays each."""
        text = self.run("scontrol", "show", "job", "--detail", "--oneliner")
        return [_job(line) for line in text.splitlines() if line.startswith("JobId=")]

    def active(self) -> list[Job]:
        return [job for job in self.jobs() if job.state not in ENDED]

    def wait(self, seconds: float = 60) -> None:
        """Until no job is waiting, running or ending."""
        deadline = time.monotonic() + seconds
        while active := self.active():
            assert time.monotonic() < deadline, f"still there: {active}"
            time.sleep(0.2)

    def gpus_held(self) -> dict[str, tuple[int, ...]]:
        """Numbers of the GPUs that each job was given, as its node was told."""
        lines = [line.split() for line in (self.folder / "gpus.txt").read_text().splitlines()]
        return {job: tuple(int(n) for n in gpus[0].split(",")) for job, *gpus in lines if gpus}

    def cancel_all(self) -> None:
        subprocess.run(["scancel", "--user", "root"], capture_output=True, timeout=60)
        self.wait()


def _job(line: str) -> Job:
    found = dict(re.findall(r"(\S+?)=(\S*)", line))
    comment = re.search(r" Comment=(.*?) \w+=", line)
    tres = dict(part.split("=") for part in found.get("TRES", "").split(",") if "=" in part)
    gpus = re.search(r"JOB_GRES=gpu:(?:[^:\s]+:)?(\d+)", line)
    return Job(
        id=found["JobId"],
        name=found["JobName"],
        comment=comment[1].strip() if comment else "",
        state=found["JobState"],
        node=found.get("NodeList", ""),
        partition=found["Partition"],
        cpus=int(found["NumCPUs"].split("-")[0]),
        mem_mb=_megabytes(tres.get("mem", "0")),
        minutes=_minutes(found["TimeLimit"]),
        gpus=int(gpus[1]) if gpus else 0,
        start=_seconds(found["StartTime"]),
        end=_seconds(found["EndTime"]),
        restarts=int(found["Restarts"]),
    )


def _megabytes(text: str) -> int:
    units = {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024 * 1024}
    return round(float(text.rstrip("KMGT")) * units.get(text[-1], 1))


def _minutes(text: str) -> int:
    days, _, rest = text.rpartition("-")
    hours, minutes, _ = rest.split(":")
    return int(days or 0) * 24 * 60 + int(hours) * 60 + int(minutes)


def _seconds(text: str) -> float:
    if text in {"Unknown", "None"}:
        return 0.0
    return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))


def why_not() -> str | None:
    """The reason why no cluster can be started here."""
    if os.geteuid() != 0:
        return "Slurm's daemons are started by root only"
    missing = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if missing:
        return f"{', '.join(missing)}: not installed (Debian: slurmctld slurmd slurm-client munge)"
    if CONF.exists() and not CONF.read_text(errors="replace").startswith(MARK):
        return f"{CONF} is a real cluster's"
    return None


@contextmanager
def cluster(folder: Path, gpus: int = 2, cpus: int = 16, options: str = "") -> Iterator[Cluster]:
    """Run a cluster; skips the test where that cannot be, and waits while another one runs.

    `options`: further lines of slurm.conf.
    """
    with (Path(tempfile.gettempdir()) / "photo-tagger-slurm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if reason := why_not():
            pytest.skip(reason)
        folder.mkdir(parents=True, exist_ok=True)
        daemons: list[subprocess.Popen[bytes]] = []
        slurm = Cluster(folder)
        try:
            _configure(folder, gpus, cpus, options)
            _start(folder, daemons)
            yield slurm
            slurm.cancel_all()
        finally:
            for daemon in reversed(daemons):
                _stop(daemon)
            for path in (CONF, GRES):
                path.unlink(missing_ok=True)


def _configure(folder: Path, gpus: int, cpus: int, options: str) -> None:
    run, devices = folder / "run", folder / "dev"
    for path in (folder / "state", run, devices, *(folder / f"spool-{node}" for node in NODES)):
        path.mkdir(parents=True, exist_ok=True)
    run.chmod(0o755)  # or munged refuses to open its socket there
    for index in range(gpus):
        if not (devices / f"gpu{index}").exists():
            os.mknod(devices / f"gpu{index}", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    prolog = folder / "prolog.sh"
    prolog.write_text(f'#!/bin/sh\necho "$SLURM_JOB_ID $SLURM_JOB_GPUS" >> {folder}/gpus.txt\n')
    prolog.chmod(0o755)
    host = socket.gethostname().split(".")[0]
    node = (
        f"NodeHostname={host} NodeAddr=127.0.0.1 Boards=1 SocketsPerBoard=1 ThreadsPerCore=1 "
        "RealMemory=200000 State=UNKNOWN"
    )
    conf = SLURM_CONF.format(
        host=host,
        folder=folder,
        run=run,
        node=node,
        ports=_free_ports(3),
        cpus=cpus,
        gpus=gpus,
        options=options,
    )
    CONF.parent.mkdir(exist_ok=True)
    CONF.write_text(f"{MARK}\n{conf}")
    devices = f"{folder}/dev/gpu[0-{gpus - 1}]" if gpus > 1 else f"{folder}/dev/gpu0"
    GRES.write_text(f"{MARK}\nNodeName=gpu1 Name=gpu File={devices}\n")


def _start(folder: Path, daemons: list[subprocess.Popen[bytes]]) -> None:
    run = folder / "run"
    munged = [
        *("munged", "--foreground", "--force", f"--key-file={folder}/munge.key"),
        *(f"--socket={run}/munge.socket", f"--pid-file={run}/munged.pid"),
        *(f"--log-file={folder}/munged.log", f"--seed-file={run}/munged.seed"),
    ]
    daemons.append(_daemon(munged, folder))
    _until(lambda: (run / "munge.socket").exists(), folder)
    daemons.append(_daemon(["slurmctld", "-D"], folder))
    daemons.extend(_daemon(["slurmd", "-D", "-N", node], folder) for node in NODES)
    _until(_idle, folder)


def _daemon(command: list[str], folder: Path) -> "subprocess.Popen[bytes]":
    with (folder / "daemons.log").open("ab") as output:
        return subprocess.Popen(
            command,
            env=_environment(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=_die_with_the_test,
        )


def _die_with_the_test() -> None:
    set_death_signal = 1
    ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)


def _environment(environment: Mapping[str, str]) -> dict[str, str]:
    clean = {key: value for key, value in environment.items() if not key.startswith("SLURM")}
    return clean | {"PATH": _path()}


def _path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"


def _idle() -> bool:
    found = subprocess.run(
        ["sinfo", "-h", "-N", "-o", "%N %T"], capture_output=True, text=True, timeout=60
    )
    return sorted(found.stdout.split()) == sorted([*NODES, "idle", "idle"])


def _until(ready, folder: Path, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        logs = (path.read_text(errors="replace")[-2000:] for path in sorted(folder.glob("*.log")))
        assert time.monotonic() < deadline, "Slurm did not start:\n" + "\n".join(logs)
        time.sleep(0.1)


def _stop(daemon: "subprocess.Popen[bytes]") -> None:
    daemon.terminate()
    try:
        daemon.wait(10)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    with suppress(OSError):
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in sockets]
    for probe in sockets:
        probe.close()
    return ports
