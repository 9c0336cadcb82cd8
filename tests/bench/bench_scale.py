"""A large library from end to end, the start of a job on a node, and a million photos planned.

    python tests/bench/bench_scale.py --photos 100000 [--work DIR] [--model NAME] [--no-write]

makes that many small JPEGs, runs the pipeline over them, adds a photo, runs again, and runs a part
of the library on one core and on two. It writes the table "library" of docs/performance.md. With
--work, figures and photos are kept there: what was interrupted goes on where it was. As one of the
benchmarks of `run.py` this measures the table "scale", without photos.
"""

import argparse
import csv
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import psutil
from PIL import Image

HERE = Path(__file__).parent
if __name__ == "__main__":
    sys.path[:0] = [str(HERE), str(HERE.parents[1] / "scripts")]

from bench_plan import make_files, row  # noqa: E402

from phototagger import CLONE, demo_clip, models  # noqa: E402
from phototagger.plan import read_index  # noqa: E402

PER_FOLDER = 500
SCALING_PHOTOS = 5000  # at most; run on one core, then on two
SERVED = 0.2  # seconds between looks at the processes of a run
MB = 1e6
RULES = (
    *("thumbs", "embed", "labels", "score", "record", "sidecars"),
    *("collect", "export", "medoids", "summary", "report", "check"),
)


# --------------------------------------------------------------------------------------- photos


def make_photos(folder: Path, photos: int) -> Path:
    """Small JPEGs, each different, 500 to a folder, every other with the time it was taken.

    Folders that are complete are left as they are.
    """
    starts = range(0, photos, PER_FOLDER)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        done = pool.map(partial(_make_folder, folder, photos), starts, chunksize=4)
        for number, _ in enumerate(done, 1):
            if number % 40 == 0:
                say(f"{min(number * PER_FOLDER, photos):,} photos made")
    return folder


def _make_folder(folder: Path, photos: int, start: int) -> None:
    shoot = folder / f"{2000 + start // 100_000}" / f"shoot {start // PER_FOLDER:05d}"
    numbers = range(start, min(start + PER_FOLDER, photos))
    shoot.mkdir(parents=True, exist_ok=True)
    if len(os.listdir(shoot)) < len(numbers):
        for number in numbers:
            make_photo(shoot / f"IMG_{number:07d}.jpg", number)


def make_photo(path: Path, seed: int) -> None:
    """160 x 120 pixels of soft colours."""
    pixels = random.Random(seed).randbytes(8 * 6 * 3)
    image = Image.frombytes("RGB", (8, 6), pixels).resize((160, 120), Image.Resampling.BILINEAR)
    exif = Image.Exif()
    if seed % 2:
        when = time.strftime("%Y:%m:%d %H:%M:%S", time.gmtime(1.0e9 + 300 * seed))
        exif.get_ifd(0x8769)[36867] = when  # DateTimeOriginal
    image.save(path, "JPEG", exif=exif)


# ------------------------------------------------------------------------------------- watching


@dataclass
class Usage:
    """What a run of Snakemake took; if it was interrupted and went on, all of it together."""

    wall: float = 0.0  # s
    cpu: float = 0.0  # s, of all processes
    main_cpu: float = 0.0  # s, of Snakemake itself
    main_peak: float = 0.0  # MB resident
    peaks: dict[str, float] = field(default_factory=dict)  # rule -> MB resident of one job, at most
    jobs: dict[str, int] = field(default_factory=dict)  # seen at a glance; brief ones escape
    finished: bool = False

    @property
    def share(self) -> float:
        """Snakemake's own part of the processor time."""
        return self.main_cpu / self.cpu


class Watch(threading.Thread):
    """Looks at the processes of a run until it ends."""

    def __init__(self, process: subprocess.Popen, before: Usage):
        super().__init__(daemon=True)
        self.usage = Usage(**asdict(before))
        self._before = before
        self._main = psutil.Process(process.pid)
        self._known: dict[int, str | None] = {}  # pid -> rule
        self._since = time.perf_counter()
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(SERVED):
            try:
                self._look()
            except psutil.Error:
                continue  # it ended meanwhile

    def _look(self) -> None:
        times = self._main.cpu_times()
        usage, before = self.usage, self._before
        usage.wall = before.wall + time.perf_counter() - self._since
        usage.main_cpu = before.main_cpu + times.user + times.system
        usage.main_peak = max(usage.main_peak, self._main.memory_info().rss / MB)
        living = 0.0
        for child in self._main.children(recursive=True):
            try:
                rule = self._rule(child)
                used = child.cpu_times()
                living += used.user + used.system
                if rule:
                    rss = child.memory_info().rss / MB
                    usage.peaks[rule] = max(usage.peaks.get(rule, 0.0), rss)
            except psutil.Error:
                continue
        ended = times.children_user + times.children_system
        usage.cpu = max(usage.cpu, usage.main_cpu + before.cpu - before.main_cpu + ended + living)

    def _rule(self, child: psutil.Process) -> str | None:
        if child.pid not in self._known:
            self._known[child.pid] = rule = rule_of(child.cmdline())
            if rule:
                self.usage.jobs[rule] = self.usage.jobs.get(rule, 0) + 1
        return self._known[child.pid]

    def end(self, cpu: float) -> Usage:
        """`cpu`: seconds of all processes by the kernel's own account, now that they have ended."""
        self._over.set()
        self.join()
        self.usage.wall = self._before.wall + time.perf_counter() - self._since
        self.usage.cpu = self._before.cpu + cpu
        return self.usage


def rule_of(command: list[str]) -> str | None:
    """The rule whose script a process runs: Snakemake makes a copy `tmp... .<rule>.py` of it."""
    for word in command[1:3]:
        if ".snakemake/scripts/" in word and word.endswith(".py"):
            return word.split(".")[-2]
    return None


# ---------------------------------------------------------------------------------------- a run


@dataclass(frozen=True)
class Library:
    """A work directory and its settings."""

    work: Path
    photos: Path
    model: str
    models: Path
    per_stage: int = 0  # photos, for the lines that show progress

    @property
    def results(self) -> Path:
        return self.work / "results"

    def environment(self) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("PHOTO_TAGGER")}
        # the tiny model's cosines mean nothing: about five of its labels reach this one
        threshold = {"PHOTO_TAGGER__SCORE__THRESHOLD": "0.4"}
        return clean | {
            "PHOTO_TAGGER__PHOTOS__ROOTS": json.dumps([str(self.photos)]),
            "PHOTO_TAGGER__CLIP__MODEL": self.model,
            "PHOTO_TAGGER__CLIP__MODELS_DIR": str(self.models),
            "PYTHONPATH": str(CLONE / "scripts"),
            **(threshold if self.model == demo_clip.TINY else {}),
        }

    def command(self, *arguments: str, cores: int = 2) -> list[str]:
        return [
            *(sys.executable, "-m", "snakemake", "--snakefile", str(CLONE / "Snakefile")),
            *("--directory", str(self.work), "--cores", str(cores)),
            *("--workflow-profile", str(CLONE / "profiles/default"), *arguments),
        ]

    def run(self, note: Path | None = None, cores: int = 2) -> Usage:
        """Run, watched; with `note`, what an interrupted run took is remembered there."""
        self.work.mkdir(parents=True, exist_ok=True)
        before = _noted(note)
        log = self.work / "snakemake.log"
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        with log.open("ab") as output:
            command = self.command("--nolock", cores=cores)
            process = subprocess.Popen(
                command, env=self.environment(), stdout=output, stderr=output
            )
        try:
            watch = Watch(process, before)
            watch.start()
            self._wait(process, watch, note)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - ended.ru_utime - ended.ru_stime
        usage = watch.end(cpu)
        if process.returncode:
            raise RuntimeError(f"{log}: " + log.read_text(errors="replace")[-3000:])
        usage.finished = True
        _note(note, usage)
        return usage

    def _wait(self, process: subprocess.Popen, watch: Watch, note: Path | None) -> None:
        said = time.monotonic()
        while process.poll() is None:
            try:
                process.wait(0.5)
            except subprocess.TimeoutExpired:
                if time.monotonic() - said > 20:
                    said = time.monotonic()
                    _note(note, watch.usage)
                    say(self._progress(watch.usage))

    def _progress(self, usage: Usage) -> str:
        stages = ("thumbs", "embeddings", "scores", "records", "sidecars-manifest")
        done = ", ".join(f"{name} {_files(self.results / name)}" for name in stages)
        return f"{usage.wall:.0f} s: shards of {done}; main process {usage.main_peak:.0f} MB"

    def computed(self, rule: str, since: float) -> int:
        """Photos that jobs of a rule computed since then, by their counts."""
        total = 0
        for path in (self.results / "logs" / rule).glob("*.json"):
            if path.stat().st_mtime >= since:
                counts = json.loads(path.read_text())
                total += counts["computed"]
        return total

    def spent(self) -> dict[str, tuple[int, float]]:
        """Rule -> jobs and their seconds added up, by Snakemake's benchmark files."""
        found: dict[str, tuple[int, float]] = {}
        base = self.results / "benchmarks"
        for path in chain(base.glob("*.tsv"), base.glob("*/*.tsv")):
            with path.open() as file:
                seconds = sum(float(line["s"]) for line in csv.DictReader(file, delimiter="\t"))
            rule = path.relative_to(base).parts[0].removesuffix(".tsv")
            jobs, before = found.get(rule, (0, 0.0))
            found[rule] = jobs + 1, before + seconds
        return found


def _files(folder: Path) -> int:
    return sum(not name.startswith(".") for name in os.listdir(folder)) if folder.exists() else 0


def _noted(note: Path | None) -> Usage:
    return Usage(**json.loads(note.read_text())) if note and note.exists() else Usage()


def _note(note: Path | None, usage: Usage) -> None:
    if note:
        note.with_suffix(".new").write_text(json.dumps(asdict(usage)))
        note.with_suffix(".new").replace(note)


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


# ------------------------------------------------------------------------------------ a library


def bench_library(place: Path, photos: int, model: str) -> list[dict]:
    """Rows: the whole run, a run with nothing to do, one more photo, one core against two."""
    say(f"making {photos:,} photos")
    folder = make_photos(place / "photos", photos)
    library = Library(place / "work", folder, model, models_folder(place, model))
    note = place / "run.json"
    usage = _noted(note)
    if not usage.finished:
        say("running the pipeline")
        usage = library.run(note)
    spent_note = place / "spent.json"
    if not spent_note.exists():
        spent_note.write_text(json.dumps(library.spent()))
    say("running it again, nothing to do")
    library.run()  # caches warm
    nothing = library.run()
    say("running it with one more photo")
    more, computed = one_more(library, photos)
    say("running a part of it on one core, then on two")
    part = min(photos, SCALING_PHOTOS)
    one, two = scaling(place, part, model)

    rows = [
        plain("photos, end to end", photos, "photos"),
        plain("wall", usage.wall, "s"),
        plain("photos per second", photos / usage.wall, "photos/s"),
        plain("processor time of everything", usage.cpu, "s"),
        row("Snakemake's share of it", 100 * usage.share, 5, "%"),
        plain("peak memory of the main process", usage.main_peak, "MB"),
        row("nothing to be done", nothing.wall, 5 if photos <= 100_000 else None, "s"),
        row("one photo more", more.wall, 30, "s"),
        row("its photos decoded", computed["thumbs"], 1, "photos"),
        row("its photos embedded", computed["embed"], 1, "photos"),
        row(
            f"{part:,} photos on two cores against one",
            one.wall / two.wall,
            None,
            "x",
            f"{one.wall:.0f} s and {two.wall:.0f} s; model {model}.",
        ),
    ]
    for rule, (jobs, seconds) in sorted(
        json.loads(spent_note.read_text()).items(), key=lambda item: _order(item[0])
    ):
        name = f"rule {rule}: {jobs:,} jobs" if jobs > 1 else f"rule {rule}"
        rows.append(plain(f"{name}, seconds in all", seconds, "s"))
        if rule in usage.peaks:
            rows.append(plain(f"rule {rule}: peak memory of a job", usage.peaks[rule], "MB"))
    return rows


def _order(rule: str) -> int:
    return RULES.index(rule) if rule in RULES else len(RULES)


def one_more(library: Library, photos: int) -> tuple[Usage, dict[str, int]]:
    """A run after one photo was added: what it took, and how many photos were worked on."""
    number = photos + 1
    while (path := library.photos / "2000/shoot 00000" / f"IMG_{number:07d}.jpg").exists():
        number += 1
    make_photo(path, number)
    started = time.time()
    usage = library.run()
    return usage, {rule: library.computed(rule, started) for rule in ("thumbs", "embed")}


def scaling(place: Path, photos: int, model: str) -> tuple[Usage, Usage]:
    """The same photos with nothing known, on one core and on two."""
    found = []
    folder = make_photos(place / "part", photos)
    for cores in (1, 2):
        work = place / f"cores-{cores}"
        shutil.rmtree(work, ignore_errors=True)
        library = Library(work, folder, model, models_folder(place, model))
        found.append(library.run(cores=cores))
    return found[0], found[1]


def models_folder(place: Path, model: str) -> Path:
    """A folder with the model: the tiny one is built, others have to be in the usual place."""
    if model != demo_clip.TINY:
        return models.default_models_dir()
    folder = place / "models"
    if not (folder / demo_clip.TINY).exists():
        demo_clip.build(folder, demo_clip.TINY)
    return folder


def plain(name: str, value: float, unit: str) -> dict[str, Any]:
    return row(name, value, None, unit)


# ------------------------------------------------------------------------------- start of a job


@dataclass(frozen=True)
class Start:
    """What passes on a node before a rule's script begins, and from then to the end, in seconds."""

    before: float
    whole: float
    cpu: float  # of Snakemake before the script begins; says more where others work, too


def start_job(library: Library, rule: str, shard: str | None, mode: str) -> Start:
    """Run one job as executors do it on a node: Snakemake there parses the Snakefile again."""
    target = f"{rule}:shard={shard}" if shard else f"{rule}:"
    command = library.command(
        *("--target-jobs", target, "--allowed-rules", rule, "--mode", mode),
        *("--force", "--target-files-omit-workdir-adjustment", "--max-inventory-time", "0"),
        *("--attempt", "1", "--retries", "0", "--force-use-threads", "--no-hooks", "--nolock"),
        *("--ignore-incomplete", "--nocolor", "--local-groupid", "local"),
    )
    started = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, env=library.environment(), cwd=library.work, stdout=log, stderr=log
        )
        main, before = psutil.Process(process.pid), None
        while process.poll() is None:
            if before is None and _runs_script(main):
                before = time.perf_counter() - started
                used = main.cpu_times()
            time.sleep(0.005)
        if process.returncode or before is None:
            log.seek(0)
            raise RuntimeError(f"{' '.join(command)}\n{log.read().decode()[-3000:]}")
    return Start(before, time.perf_counter() - started, used.user + used.system)


def _runs_script(main: psutil.Process) -> bool:
    try:
        return any(rule_of(child.cmdline()) for child in main.children(recursive=True))
    except psutil.Error:
        return False


def planned(place: Path, photos: int) -> tuple[Library, float, float]:
    """A library of empty files, planned by a dry run; that run's seconds and peak memory in MB."""
    folder = make_files(place / f"files-{photos}", photos)
    library = Library(
        place / f"work-{photos}", folder, demo_clip.TINY, models_folder(place, demo_clip.TINY)
    )
    library.work.mkdir()
    command = library.command("--dry-run", "--quiet")
    measure = (
        "import resource, subprocess, sys, time; t = time.perf_counter();"
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL);"
        "print(time.perf_counter() - t, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    for _ in range(2):  # the second time with what was read of photos known
        output = subprocess.check_output(
            [sys.executable, "-c", measure, *command], env=library.environment(), text=True
        )
    seconds, peak = map(float, output.split())
    return library, seconds, peak * 1024 / MB


def starts(library: Library) -> Iterator[Start]:
    """Some jobs of the first shard, one after the other."""
    shards, _ = read_index(library.results / "plan/index.json")
    for _ in range(5):
        yield start_job(library, "thumbs", shards[0].name, "remote")


def run(tmp: Path) -> list[dict]:
    """Rows of the table "scale"."""
    rows, before = [], {}
    for photos in (100, 100_000):
        library, seconds, peak = planned(tmp, photos)
        found = list(starts(library))
        before[photos] = statistics.median(start.before for start in found)
        whole = statistics.median(start.whole for start in found)
        rows += [
            plain(f"start of a job, plan of {photos:,} photos", before[photos], "s"),
            plain("its processor time until then", min(start.cpu for start in found), "s"),
            plain("the same to its end", whole, "s"),
            plain(f"dry run of {photos:,} photos, memory", peak, "MB"),
        ]
    rows.append(row("the one against the other", before[100_000] / before[100], 1.5, "x"))
    shutil.rmtree(tmp / "files-100000")
    _, seconds, peak = planned(tmp, 1_000_000)
    rows += [
        plain("dry run of 1,000,000 photos, nothing made yet", seconds, "s"),
        row("its memory", peak, 1500, "MB"),
    ]
    return rows


def main() -> None:
    import run as bench

    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--photos", type=int, default=2000)
    options.add_argument("--model", default=demo_clip.TINY)
    options.add_argument("--work", type=Path, help="folder to go on from")
    options.add_argument("--no-write", action="store_true", help="leave docs/performance.md alone")
    given = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="photo-tagger-scale-") as tmp:
        rows = bench_library((given.work or Path(tmp)).absolute(), given.photos, given.model)
    bench.show("library", rows)
    if not given.no_write:
        bench.write("library", rows)


if __name__ == "__main__":
    main()
