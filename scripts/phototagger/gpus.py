"""GPUs: which there are for us, and which of them a job has to itself.

    with lease(snakemake.resources.gpu, machine.servers):
        ...  # torch sees these GPUs only

Snakemake counts GPUs, it does not say which is whose. A lease does: an flock per GPU in the model
servers' run folder, and CUDA_VISIBLE_DEVICES in the environment. A process that is killed loses its
locks by itself. A model server's supervisor inherits its lease and holds it as long as the server
lives. Leases are shared within a batch system's allocation, whose GPUs are its own, else within the
machine.
"""

import fcntl
import logging
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from phototagger import allocation
from phototagger.errors import TransientError
from phototagger.machine import Servers
from phototagger.runfolder import run_dir, scope

VISIBLE = "CUDA_VISIBLE_DEVICES"
DEVICES = Path("/dev")
_TICK = 0.5  # seconds between two looks for a free GPU
_UNFIT = re.compile(r"[^A-Za-z0-9.-]")


@dataclass
class Lease:
    """GPUs that nobody else of ours uses until `close`; by name, as CUDA_VISIBLE_DEVICES has them.

    Without any names nothing was leased: there are no GPUs here that we could tell apart.
    """

    names: tuple[str, ...] = ()
    files: Sequence[IO[bytes]] = ()

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Of the locks; a child process that inherits them holds the lease, too."""
        return tuple(file.fileno() for file in self.files)

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to see these GPUs only."""
        return {VISIBLE: ",".join(self.names)} if self.names else {}

    def close(self) -> None:
        for file in self.files:
            file.close()


def visible(env: Mapping[str, str] = os.environ, devices: Path = DEVICES) -> list[str]:
    """The GPUs that our processes may use: numbers, or what else CUDA_VISIBLE_DEVICES names.

    Without that variable: what NVIDIA's driver shows here; nothing in a job of Slurm, which sets it
    for whoever asked for GPUs.
    """
    said = env.get(VISIBLE)
    if said is not None:
        return _named(said)
    batch = allocation.current(env)
    if batch and batch.id.startswith("slurm-"):
        return []
    # By position: a container may be given nvidia3 alone, which CUDA then calls 0.
    return [str(n) for n, _ in enumerate(devices.glob("nvidia[0-9]*"))]


def limits(env: Mapping[str, str] = os.environ) -> dict[str, int]:
    """How many jobs at a time this machine (or allocation) has room for, by Snakemake's resource.

    One per GPU; without any there is no limit, which would also be one for jobs sent elsewhere. One
    that asks a model server, which has many requests in flight by itself, or one for every GPU,
    since several setups may each have a server.
    """
    count = len(visible(env))
    return {"gpu": count, "asking": count} if count else {"asking": 1}


def _named(said: str) -> list[str]:
    """CUDA ignores the first name that is none, and all behind it."""
    names: list[str] = []
    for name in map(str.strip, said.split(",")):
        if not name or name.startswith("-"):
            break
        if name not in names:
            names.append(name)
    return names


@contextmanager
def lease(
    count: int, servers: Servers, env: MutableMapping[str, str] = os.environ
) -> Iterator[tuple[str, ...]]:
    """Have `count` GPUs to ourselves, and only them in `env`; called before torch is imported.

    Waits until they are free; an idle model server makes way. Without GPUs, or for a count of 0,
    nothing is waited for; a batch system's job that declared none is not shown any.

    Raises UserError if locks cannot be kept in the run folder.
    """
    from phototagger.server import make_way

    if not count:
        if allocation.current(env):
            env.setdefault(VISIBLE, "")
        yield ()
        return
    taken = wait_for(count, servers, env)
    if not taken.names:
        make_way(servers)  # for GPUs that cannot be told apart, such as ROCm's
    before, began = env.get(VISIBLE), time.time()
    env.update(taken.environment)
    try:
        yield taken.names
    finally:
        if taken.names:  # times that can be compared with other jobs'
            logging.info("GPU %s: %.3f to %.3f", ",".join(taken.names), began, time.time())
        taken.close()
        if before is None:
            env.pop(VISIBLE, None)
        else:
            env[VISIBLE] = before


def wait_for(
    count: int,
    servers: Servers,
    env: Mapping[str, str] = os.environ,
    cancelled: threading.Event | None = None,
) -> Lease:
    """The lease itself, for one who hands it on; `close` it.

    A GPU is held as long as one process has its descriptors open.

    Raises UserError if locks cannot be kept in the run folder, and TransientError if the wait was
    `cancelled`.
    """
    names = visible(env)
    if not (count and names):
        return Lease()
    if count > len(names):
        logging.warning("%d GPUs wanted, there are %d: taking those", count, len(names))
        count = len(names)
    from phototagger.server import make_way  # which starts servers with our leases

    folder, sharing = run_dir(servers), scope(allocation.current(env))
    cancelled, told = cancelled or threading.Event(), False
    while (taken := _take(folder, sharing, names, count)) is None:
        make_way(servers)
        if (taken := _take(folder, sharing, names, count)) is not None:
            break
        if not told:
            logging.info("waiting for %d of the GPUs %s: all are in use", count, ", ".join(names))
            told = True
        if cancelled.wait(_TICK):
            raise TransientError("stopped while waiting for a GPU")
    logging.info("on GPU %s", ", ".join(taken.names))
    return taken


def _take(folder: Path, sharing: str, names: Sequence[str], count: int) -> Lease | None:
    """The first `count` free ones; None, and nothing is held, if there are not that many.

    One process looks at a time, so that two never hold half of what each wants.
    """
    files: dict[str, IO[bytes]] = {}
    with (folder / f"gpus@{sharing}.lock").open("ab") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        for name in names:
            if len(files) == count:
                break
            file = (folder / f"gpu-{_UNFIT.sub('_', name)}@{sharing}.lease").open("ab")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
            else:
                files[name] = file
    taken = Lease(tuple(files), tuple(files.values()))
    if len(files) == count:
        return taken
    taken.close()
    return None
