"""What a small job costs on Slurm: by Snakemake's executor for it, and by plain sbatch.

    make cluster applications
    PYTHONPATH=tests .venv/bin/python tests/bench/bench_slurm.py [SHARDS]

Starts the cluster of tests/slurm (root only) and runs a library of four photos a shard through the
tests' model of random weights: all that is measured is what comes on top of the work. Writes the
table in docs/clusters.md.
"""

import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from run import measured_on, replace_lines
from slurm.cluster import Job, cluster
from slurm.runs import OnSlurm
from workflow.library import LABELS, make_library

from phototagger import CLONE, demo_clip

PAGE = CLONE / "docs/clusters.md"
PER_SHARD = 4
# Two CPUs a node, as this machine has; a group that asks for more would wait for ever.
CPUS = 2
SMALL = (
    *("--set-threads", "thumbs=1", "embed=1", "labels=1", "sidecars=1"),
    *("--cores", str(CPUS)),
)
VARIANTS = {"`slurm`": ("slurm", ()), "`slurm-generic`": ("slurm-generic", ())}


def main(shards: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        (base / "labels.txt").write_text(LABELS)
        demo_clip.build(base / "models", demo_clip.TINY)
        settings = {
            "PHOTO_TAGGER__CLIP__MODEL": "tiny-random-clip",
            "PHOTO_TAGGER__CLIP__MODELS_DIR": str(base / "models"),
            "PHOTO_TAGGER__LABELS__PATH": str(base / "labels.txt"),
            "PHOTO_TAGGER__SCORE__THRESHOLD": "-0.05",
            "PHOTO_TAGGER__PLAN__SHARD_SIZE": str(PER_SHARD),
        }
        photos = make_library(base / "photos", shards * PER_SHARD)
        library = OnSlurm(base / "work", photos, settings)
        lines = ["| profile | wall | Slurm jobs | on nodes, in all | a `thumbs` job |"]
        lines.append("|---|---|---|---|---|")
        for n, (variant, (profile, options)) in enumerate(VARIANTS.items()):
            one = replace(library, work=base / f"work{n}", profile=profile)
            with cluster(base / f"slurm{n}", cpus=CPUS) as slurm:
                started = time.monotonic()
                one.snakemake(*SMALL, *options)
                wall = time.monotonic() - started
                jobs = slurm.jobs()
            lines.append(f"| {variant} | {wall:.0f} s | {len(jobs)} | {on_nodes(jobs)} |")
            print(lines[-1], flush=True)
        planned = len(json.loads((one.results / "plan/index.json").read_text())["shards"])
    head = f"{measured_on()}: {shards * PER_SHARD} photos in {planned} shards."
    replace_lines(PAGE, "slurm", [head, "", *lines])


def on_nodes(jobs: list[Job]) -> str:
    """Two cells: the seconds of all jobs, and of a job that makes thumbnails."""
    thumbs = [job.end - job.start for job in jobs if "thumbs" in job.name + job.comment]
    one = f"{statistics.median(thumbs):.0f} s" if thumbs else "-"
    return f"{sum(job.end - job.start for job in jobs):.0f} s | {one}"


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 8)
