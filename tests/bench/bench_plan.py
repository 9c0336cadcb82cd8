"""Planning 100,000 and 1,000,000 photos, and runs over a finished library of 100,000."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from phototagger import CLONE
from phototagger.manifest import write_manifest
from phototagger.plan import read_index
from phototagger.prune import SHARD_OUTPUTS

PLAN = """
import json, resource, sys, time
from pathlib import Path
from phototagger import plan
started = time.perf_counter()
roots = plan.resolve_roots([sys.argv[1]], Path.cwd())
photos = plan.scan(roots, plan.ScanOptions((".jpg",)))
size = plan.effective_shard_size(len(photos), 256)
plan.write_shards(Path(sys.argv[2]), plan.partition(photos, size))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([len(photos), time.perf_counter() - started, peak / 2**20]))
"""

MERGED = (
    "labels/labels.json",
    "labels/embeddings.parquet",
    "records.jsonl",
    "problems.csv",
    "tags.csv",
    "folder_medoids.csv",
    "tag_medoids.csv",
    "summary.md",
    "report.html",
    "check.json",
)


def make_files(folder: Path, photos: int) -> Path:
    """Empty files, 500 to a folder."""
    for start in range(0, photos, 500):
        shoot = folder / f"{2000 + start // 100_000}" / f"shoot {start // 500:05d}"
        shoot.mkdir(parents=True)
        for n in range(start, start + 500):
            os.close(os.open(shoot / f"IMG_{n:07d}.jpg", os.O_CREAT | os.O_WRONLY))
    return folder


def measure_plan(photos: Path, target: Path) -> tuple[float, float]:
    """Seconds and peak GiB of planning in a process of its own, warm."""
    for _ in range(2):
        command = [sys.executable, "-c", PLAN, str(photos), str(target)]
        _, seconds, peak = json.loads(subprocess.check_output(command, text=True))
    return seconds, peak


def seconds_of(command: list[str], env: dict[str, str]) -> float:
    """Warm: the second of two runs, neither of which may find anything to do."""
    return [_seconds(command, env) for _ in range(2)][1]


def _seconds(command: list[str], env: dict[str, str]) -> float:
    started = time.perf_counter()
    result = subprocess.run(command, env=env, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(result.stderr[-3000:])
    if "Nothing to be done" not in result.stderr + result.stdout:
        raise RuntimeError("there was something to be done:\n" + result.stderr[-3000:])
    return time.perf_counter() - started


def finished_library(photos: Path, work: Path) -> tuple[list[str], dict[str, str]]:
    """Empty outputs for every shard, marked as done with all that Snakemake records of a job."""
    work.mkdir()
    env = os.environ | {
        "PHOTO_TAGGER__PHOTOS__ROOTS": json.dumps([str(photos)]),
        "PYTHONPATH": str(CLONE / "scripts"),
    }
    snakemake = [
        *(sys.executable, "-m", "snakemake", "--snakefile", str(CLONE / "Snakefile")),
        *("--directory", str(work), "--cores", "2"),
        *("--workflow-profile", str(CLONE / "profiles/default")),
    ]
    subprocess.run([*snakemake, "--dry-run"], env=env, capture_output=True, check=True)  # plans
    results = work / "results"
    shards, _ = read_index(results / "plan/index.json")
    outputs = [results / name for name in MERGED]
    for folder, suffix in SHARD_OUTPUTS.items():
        outputs += [results / folder / f"{shard.name}{suffix}" for shard in shards]
    for path in outputs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for shard in shards:
        write_manifest(results / "sidecars-manifest" / f"{shard.name}.tsv", [])
    (results / "folders").mkdir()
    subprocess.run([*snakemake, "--touch", "--forceall"], env=env, capture_output=True, check=True)
    return snakemake, env


def run(tmp: Path) -> list[dict]:
    small = make_files(tmp / "100k", 100_000)
    seconds, peak = measure_plan(small, tmp / "shards-100k")
    rows = [row("plan 100,000 photos", seconds, 3, "s"), row("its memory", peak, 1.5, "GiB")]
    snakemake, env = finished_library(small, tmp / "work")
    recorded = sum(1 for _ in (tmp / "work/.snakemake/metadata").rglob("*"))
    note = f"{recorded} outputs with recorded params and checksums"
    rows += [
        row("run with nothing to be done", seconds_of(snakemake, env), 5, "s", note),
        row("dry run", seconds_of([*snakemake, "--dry-run"], env), 5, "s"),
    ]
    large = make_files(tmp / "1m", 1_000_000)
    seconds, peak = measure_plan(large, tmp / "shards-1m")
    return [
        *rows,
        row("plan 1,000,000 photos", seconds, None, "s"),
        row("its memory (1,000,000)", peak, 1.5, "GiB"),
    ]


def row(name: str, ours: float, limit: float | None, unit: str, note: str = "") -> dict:
    goal = f"<= {limit:g} {unit}" if limit else None
    ratio = ours / limit if limit else None
    return {
        "name": name,
        "ours": ours,
        "theirs": limit,
        "ratio": ratio,
        "goal": goal,
        "unit": unit,
        "note": note,
    }
