"""A job on a node: Snakemake there parses the Snakefile again, which must not plan again."""

import json
import subprocess
import sys
from pathlib import Path

from workflow.library import Library

# Snakemake, with a note of every file that is opened and every folder that is listed.
WATCHED = """
import os, runpy, sys
notes = open(sys.argv[1], "w")
def note(event, args):
    if event in ("open", "os.listdir", "os.scandir") and isinstance(args[0], (str, os.PathLike)):
        notes.write(os.path.abspath(os.fspath(args[0])) + "\\n")
del sys.argv[1]
sys.addaudithook(note)
runpy.run_module("snakemake", run_name="__main__")
"""


def on_a_node(library: Library, rule: str, shard: str, notes: Path) -> set[str]:
    """Run a job as executors do; what was read by the Snakemake that ran it."""
    command = library.command(
        *("--target-jobs", f"{rule}:shard={shard}", "--allowed-rules", rule, "--mode", "remote"),
        *("--force", "--target-files-omit-workdir-adjustment", "--max-inventory-time", "0"),
        *("--force-use-threads", "--no-hooks", "--nolock", "--ignore-incomplete"),
    )
    arguments = command[command.index("snakemake") + 1 :]
    result = subprocess.run(
        [sys.executable, "-c", WATCHED, str(notes), *arguments],
        env=library.environment(),
        cwd=library.work,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-6000:]
    return set(notes.read_text().splitlines())


def test_a_job_reads_its_own_listing_and_nothing_else_of_the_library(library, tmp_path):
    library.snakemake("--dry-run")
    plan = library.results / "plan"
    before = {path.name: path.read_bytes() for path in plan.glob("*.json")}
    shards = [shard["name"] for shard in json.loads(before["index.json"])["shards"]]
    assert len(shards) > 1
    listings = {shard: plan / f"shards/{shard}.tsv" for shard in shards}
    for shard in shards[1:]:
        listings[shard].unlink()
    library.photos.rename(tmp_path / "gone")  # a plan made now would be an error

    read = on_a_node(library, "thumbs", shards[0], tmp_path / "notes")

    assert (library.results / f"thumbs/{shards[0]}.parquet").exists()
    assert {path.name: path.read_bytes() for path in plan.glob("*.json")} == before
    assert not any(listings[shard].exists() for shard in shards[1:])
    assert not {path for path in read if path.startswith(str(library.photos))}
    assert not {str(listings[shard]) for shard in shards[1:]} & read
    assert str(plan / "shards") not in read  # nor is there a look around
    assert str(plan / "index.json") in read
    # digests of code are the plan's: no other rule's script is read
    scripts = {path for path in read if path.endswith(".py") and "/scripts/" in path}
    of_rules = {path for path in scripts if Path(path).parent == library.clone / "scripts"}
    assert of_rules == {str(library.clone / "scripts/thumbs.py")}
