"""What a job of each rule needs: threads, memory, time and disk.

One table, `NEEDS`: what a job takes whatever it has to do, and what every photo adds. The figures
are measured peaks (`results/benchmarks`, 64 to 512 photos of 24 megapixels) with room above them,
since asking for too little costs a job, and for a little too much only a place in a queue. Memory
and time grow with every attempt.

All shards of a plan count as its largest. They are nearly the same size anyway, and a job array
has one request for all its jobs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

# A model server runs in its describe job: megabytes of main memory for each of its GPUs (weights on
# their way to the GPU, CUDA itself), and for one that computes on the CPU.
SERVER_PER_GPU = 24_000
SERVER_ON_CPU = 4_000
# While a model is loaded, its weights are there twice: as read from the file and as parameters.
WEIGHTS_COPIES = 2

Resource = int | Callable[[Any, int], int]  # the latter of (wildcards, attempt)


@dataclass(frozen=True)
class Need:
    """Of a rule; `..._each` for every photo of the shard, or of the library."""

    threads: int = 1
    memory: float = 1_000  # MB
    memory_each: float = 0.5
    minutes: float = 10
    minutes_each: float = 0
    disk: float = 100  # MB: results, cache and what is written on the way
    disk_each: float = 0.05


NEEDS: Mapping[str, Need] = {
    # Every thread may decode a picture: a photo of 30 megapixels takes 250 MB on its way.
    # Time: 3 s a photo, for raw files from a slow file server.
    "thumbs": Need(
        threads=8, memory=2_000, memory_each=0.5, minutes=10, minutes_each=0.05, disk_each=0.2
    ),
    # torch 1.4 GB, with CUDA 3 GB, and the weights. Time: a large model on the CPU.
    "embed": Need(threads=8, memory=4_000, memory_each=0.5, minutes=15, minutes_each=0.05),
    "labels": Need(threads=8, memory=4_000, memory_each=0, minutes=30, disk_each=0),
    "score": Need(),
    # The answers, without the server. Time: ten minutes until it is ready, twenty of working ahead.
    "describe": Need(memory=1_500, memory_each=1, minutes=40, minutes_each=0.1),
    "record": Need(),
    "sidecars": Need(threads=2, minutes_each=0.02),
    # Over all shards: they stream, and what grows is little (medoids of 100,000 photos: 175 MB).
    "collect": Need(memory_each=0.001, minutes_each=0.0005, disk_each=0.02),
    "export": Need(memory_each=0.001, minutes_each=0.0005, disk_each=0.02),
    "medoids": Need(memory_each=0.005, minutes_each=0.0005, disk_each=0.002),
    "summary": Need(memory_each=0.001, minutes_each=0.0005, disk_each=0.02),
    "report": Need(memory_each=0.001, minutes_each=0.0005, disk_each=0.02),
    "check": Need(memory_each=0.001, minutes_each=0.001, disk_each=0.002),
}


def of(
    rule: str,
    photos: int,
    memory: Callable[[Any], float] = lambda wildcards: 0,
    disk: float = 0,
) -> dict[str, Resource]:
    """A rule's resources for Snakemake; `memory` and `disk` are megabytes that come on top.

    `attempt` is there for the script to know.
    """
    need = NEEDS[rule]
    megabytes = need.memory + need.memory_each * photos
    minutes = round(need.minutes + need.minutes_each * photos)
    return {
        "mem_mb": lambda wildcards, attempt: attempt * round(megabytes + memory(wildcards)),
        "runtime": lambda wildcards, attempt: attempt * minutes,
        "disk_mb": round(need.disk + need.disk_each * photos + disk),
        "attempt": lambda wildcards, attempt: attempt,
    }
