"""The last describe job of an allocation stops its model server before it ends.

A batch system kills, at some time, what is left when an allocation's jobs are over; on some systems
it does not, and the next user of the GPU finds it taken. So nothing is left to it: a job that knows
of no other one that is still to come in this allocation stops the server itself. Which jobs are to
come is on the command lines of the allocation's Snakemake processes (`--target-jobs`). If in doubt
the server is stopped, since it can be started again.
"""

import logging
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from phototagger import allocation
from phototagger.allocation import Allocation
from phototagger.errors import UserError
from phototagger.job import leave, read_counts
from phototagger.machine import Servers
from phototagger.server import stop_one
from phototagger.setups import Setup

log = logging.getLogger(__name__)

RULE = "describe"
TARGETS = "--target-jobs"
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Shard:
    """A describe job, by its wildcards."""

    setup: str
    shard: str

    @classmethod
    def of(cls, output: Path) -> "Shard":
        """The job that writes results/describe/SETUP/SHARD.jsonl."""
        return cls(output.parent.name, output.stem)


@contextmanager
def leaving(setup: Setup, servers: Servers, output: Path) -> Iterator[None]:
    """Around all that uses the setup's server to write `output`; does nothing outside a batch
    system.

    A first SIGTERM ends the work as ever (`job.leave`); nothing interrupts the stopping of the
    server in the seconds that are left.
    """
    place = allocation.current()
    if place is None:
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    told = False
    try:
        yield
    except (SystemExit, KeyboardInterrupt):
        told = True
        raise
    finally:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        if told or is_last(output, place):
            _stop(setup, servers)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_IGN if told else before)


def _stop(setup: Setup, servers: Servers) -> None:
    try:
        if stop_one(setup, servers):
            log.info("%s: server stopped, this was the last job here that needed it", setup.slug)
    except (UserError, OSError) as error:
        log.warning("%s: its server ends with the allocation: %s", setup.slug, error)


def is_last(output: Path, place: Allocation) -> bool:
    """Whether no other job of the setup is known that is still to end in this allocation."""
    planned = planned_here(Shard.of(output), _snakemakes(place))
    if planned is None:
        return False  # the run itself is here, and stops it at its end
    others = _of_setup(planned, output) - {output.stem}
    return all(_has_ended(output.with_stem(shard), place) for shard in others)


def shards_here(output: Path) -> set[str] | None:
    """The shards for which this allocation has a job of our setup; None if there are no limits."""
    place = allocation.current()
    planned = place and planned_here(Shard.of(output), _snakemakes(place))
    return None if planned is None else _of_setup(planned, output)


def has_whole_run(place: Allocation | None) -> bool:
    """Whether no other node has jobs of the run: it runs outside a batch system, or all of it in
    this allocation."""
    return place is None or any(TARGETS not in line for line in _snakemakes(place))


def _of_setup(planned: Iterable[Shard], output: Path) -> set[str]:
    setup = Shard.of(output).setup
    return {job.shard for job in planned if job.setup == setup}


def planned_here(ours: Shard, lines: Sequence[Sequence[str]]) -> set[Shard] | None:
    """The describe jobs that the Snakemake processes with these command lines were started for.

    None if one of them was started for no jobs in particular, but for the whole run. Those that do
    not name our job are about another task of the same job array.
    """
    if any(TARGETS not in line for line in lines):
        return None
    named = [set(_targets(line)) for line in lines]
    return max((jobs for jobs in named if ours in jobs), key=len, default={ours})


def _targets(line: Sequence[str]) -> Iterator[Shard]:
    """What follows --target-jobs: describe:setup=SETUP,shard=SHARD ..."""
    for word in line[line.index(TARGETS) + 1 :]:
        if word.startswith("--"):
            return
        rule, _, said = word.partition(":")
        wildcards = dict(pair.split("=", 1) for pair in said.split(",") if "=" in pair)
        if rule == RULE and {"setup", "shard"} <= wildcards.keys():
            yield Shard(wildcards["setup"], wildcards["shard"])


def _has_ended(output: Path, place: Allocation) -> bool:
    if output.exists():
        return True
    setup = output.parent
    logs = setup.parents[1] / "logs" / setup.parent.name / setup.name
    counts = read_counts((logs / output.name).with_suffix(".json"))
    return counts.get("job") == place.id and counts.get("error") is not None


def _snakemakes(place: Allocation) -> list[list[str]]:
    """Command lines of the Snakemake processes in the allocation on this node.

    Not those above us only: the members of a group run in steps of their own.
    """
    lines = map(_command_line, allocation.members(place))
    return [line for line in lines if _is_snakemake(line)]


def _command_line(pid: int) -> list[str]:
    try:
        content = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return [os.fsdecode(word) for word in content.split(b"\0")]


def _is_snakemake(line: Iterable[str]) -> bool:
    """snakemake ..., python snakemake ..., python -m snakemake ...; not a shell that runs them."""
    head = list(line)[:6]
    return any(os.path.basename(word) == "snakemake" for word in head)
