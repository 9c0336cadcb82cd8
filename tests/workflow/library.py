"""A photo library made for a test, and real runs of the pipeline over it."""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from phototagger import CLONE

# Everything a run promises to be the same for the same photos, configuration and models.
PROMISED = (
    "records.jsonl",
    "problems.csv",
    "tags.csv",
    "folder_medoids.csv",
    "tag_medoids.csv",
    "summary.md",
    "report.html",
    "check.json",
    "folders",
    "sidecars",
)
LABELS = "cat\nboat\nred car\nmountain\nportrait\nsunset\ntree\nstreet\n"


def make_photo(path: Path, seed: int, size: tuple[int, int] = (96, 64)) -> Path:
    """A small JPEG of coloured blocks, different for every seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = random.Random(seed).randbytes(6 * 4 * 3)
    Image.frombytes("RGB", (6, 4), pixels).resize(size).save(path, "JPEG")
    return path


def make_library(folder: Path, photos: int, per_folder: int = 40) -> Path:
    for n in range(photos):
        make_photo(folder / f"shoot {n // per_folder:02d}" / f"IMG_{n:04d}.jpg", n)
    return folder


@dataclass
class Library:
    """A work directory, its photos, and the settings its runs share."""

    work: Path
    photos: Path
    settings: dict[str, str] = field(default_factory=dict)
    clone: Path = CLONE

    @property
    def results(self) -> Path:
        return self.work / "results"

    def environment(self) -> dict[str, str]:
        keys = {"PHOTO_TAGGER__PHOTOS__ROOTS": json.dumps([str(self.photos)]), **self.settings}
        path = str(self.clone / "scripts")  # before the installed package: tests edit clones
        clean = {k: v for k, v in os.environ.items() if not k.startswith("PHOTO_TAGGER__")}
        return clean | keys | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}

    def command(self, *arguments: str) -> list[str]:
        return [
            *(sys.executable, "-m", "snakemake", "--snakefile", str(self.clone / "Snakefile")),
            *("--directory", str(self.work), "--cores", "2"),
            *("--workflow-profile", str(self.clone / "profiles/default")),
            *arguments,
        ]

    def snakemake(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        self.work.mkdir(parents=True, exist_ok=True)
        result = subprocess.run(
            self.command(*arguments), env=self.environment(), capture_output=True, text=True
        )
        if check and result.returncode:
            raise AssertionError(result.stdout[-3000:] + result.stderr[-6000:])
        return result

    def nothing_to_be_done(self) -> bool:
        """Whether one more run finds all results up to date."""
        result = self.snakemake()
        return "Nothing to be done" in result.stdout + result.stderr

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """A run in a process group of its own, to be disturbed."""
        self.work.mkdir(parents=True, exist_ok=True)
        return subprocess.Popen(
            self.command(*arguments),
            env=self.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def clear_counts(self) -> None:
        shutil.rmtree(self.results / "logs", ignore_errors=True)

    def jobs(self, rule: str) -> list[dict]:
        """The counts of the rule's jobs since `clear_counts`."""
        logs = self.results / "logs"
        paths = [*logs.glob(f"{rule}.json"), *logs.glob(f"{rule}/*.json")]
        return [json.loads(path.read_text()) for path in paths]

    def computed(self, rule: str) -> int:
        return sum(job["computed"] + job["extra"].get("ahead", 0) for job in self.jobs(rule))

    def rules_run(self) -> set[str]:
        logs = self.results / "logs"
        return {p.relative_to(logs).parts[0].removesuffix(".json") for p in logs.rglob("*.json")}

    def promised(self) -> dict[str, str]:
        """SHA-256 of every promised file."""
        return {
            str(path.relative_to(self.results)): hashlib.sha256(path.read_bytes()).hexdigest()
            for name in PROMISED
            for path in _files(self.results / name)
        }


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from sorted(p for p in path.rglob("*") if p.is_file())
    else:
        yield path
