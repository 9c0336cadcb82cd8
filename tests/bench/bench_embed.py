"""How fast photos are embedded, against the model alone and against a plain open_clip pass.

Ours and theirs take turns in one run, and the best of each counts: what is compared is the code,
not the moment.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
from embed import compute, load_picture, open_cache
from PIL import Image
from thumbs import thumbs

from phototagger import clip, models
from phototagger.machine import Machine
from phototagger.plan import Photo, Root, Roots, format_listing
from phototagger.tables import read_table

SIZE, QUALITY, BATCH, THREADS = 512, 85, 32, 2
SOURCES = ("astronaut", "cat", "coffee", "rocket")


def run(tmp: Path) -> list[dict[str, Any]]:
    """The rows of the table; `tmp` is an empty folder."""
    models_dir = models.default_models_dir()
    models.build_demo(models_dir)
    demo = clip.load_card_model("demo-clip", models_dir, "cpu")
    small = make_photos(tmp / "small", 96, 800)
    large = make_photos(tmp / "large", 12, 6000)
    rows = steady(demo, work(tmp / "a", small, models_dir))
    rows += steady(random_vit(), work(tmp / "b", make_photos(tmp / "few", 32, 800), models_dir))
    rows.append(with_start(work(tmp / "c", small, models_dir)))
    rows.append(from_originals(demo, tmp / "d", large, models_dir))
    return rows


def row(name: str, ours: float, theirs: float, goal: float | None) -> dict[str, Any]:
    ratio = round(ours / theirs, 2)
    rates = {"ours": round(ours, 1), "theirs": round(theirs, 1)}
    return {"name": name, **rates, "ratio": ratio, "goal": goal, "unit": "photos/s"}


def fastest(tasks: list[Callable[[], None]], rounds: int = 3) -> list[float]:
    """Seconds of each task: the best of several rounds in which they take turns."""
    seconds = [float("inf")] * len(tasks)
    for _ in range(rounds):
        for i, task in enumerate(tasks):
            start = time.perf_counter()
            task()
            seconds[i] = min(seconds[i], time.perf_counter() - start)
    return seconds


# --------------------------------------------------------------------------------------- photos


def make_photos(folder: Path, count: int, long_edge: int) -> Path:
    """Different photos with the detail of real ones, as JPEG, 3:2."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(1)
    for i in range(count):
        photo = Image.fromarray(getattr(skimage.data, SOURCES[i % len(SOURCES)])()).resize(
            (long_edge, long_edge * 2 // 3)
        )
        noise = generator.integers(-6, 7, (long_edge * 2 // 3, long_edge, 1), np.int16)
        pixels = np.clip(np.asarray(photo, np.int16) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:04}.jpg", quality=92)
    return folder


def work(folder: Path, photos: Path, models_dir: Path) -> Machine:
    """A work directory (the parent of `cache`) with the shard's thumbnails made."""
    folder.mkdir()
    roots = Roots([Root("photos", str(photos))])
    machine = Machine(roots, folder / "cache", models_dir, folder / "labels", "cpu", BATCH)
    machine.write(folder / "machine.json")
    listing = [
        Photo(path.name, path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(photos.iterdir())
    ]
    (folder / "shard.tsv").write_bytes(format_listing(listing))
    make_thumbs(machine)
    return machine


def make_thumbs(machine: Machine) -> None:
    folder = machine.cache.parent
    thumbs(
        folder / "shard.tsv",
        folder / "thumbs.parquet",
        machine=machine,
        size=SIZE,
        quality=QUALITY,
        max_pixels=10**9,
        max_bytes=10**9,
        threads=THREADS,
        digests={},
    )


# ----------------------------------------------------------------------------------------- rows


def pipeline(loaded: clip.Clip, machine: Machine) -> None:
    """What the embed rule does from the thumbs table to the cache, the model being loaded."""
    rows = read_table(machine.cache.parent / "thumbs.parquet").to_pylist()
    cache = open_cache(machine.cache, "0" * 64, loaded.dimension, size=SIZE, quality=QUALITY)
    load = partial(
        load_picture, image_size=loaded.image_size, machine=machine, size=SIZE, quality=QUALITY
    )
    for photo, vector in compute(rows, loaded, load, batch_size=BATCH, threads=THREADS):
        cache.put(photo["sha256"], vector)


def steady(loaded: clip.Clip, machine: Machine) -> list[dict[str, Any]]:
    """The embed rule against the bare forward pass on tensors that are ready in memory."""
    import torch

    count = read_table(machine.cache.parent / "thumbs.parquet").num_rows
    torch.set_num_threads(THREADS)
    size = loaded.image_size
    pixels = torch.randn(BATCH, 3, size, size)

    def forward(layout: torch.memory_format) -> None:
        loaded.model.to(memory_format=layout)
        ready = pixels.contiguous(memory_format=layout)
        with torch.inference_mode():
            for start in range(0, count, BATCH):
                loaded.model.encode_image(ready[: count - start])

    def embed_all() -> None:
        loaded.model.to(memory_format=torch.channels_last)  # as load_card_model leaves it
        pipeline(loaded, machine)

    layouts = [torch.contiguous_format, torch.channels_last]
    ours, plain, best = fastest([embed_all, *(partial(forward, layout) for layout in layouts)])
    return [
        row(
            f"embed, {loaded.name}, thumbnail to cache / bare forward",
            count / ours,
            count / plain,
            0.9,
        ),
        row("the same / forward with channels last", count / ours, count / best, 0.9),
    ]


def random_vit() -> clip.Clip:
    """ViT-B-32 with random weights: the cost of the real one."""
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32")
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    return clip.Clip("ViT-B-32", model.eval(), preprocess, tokenizer, "cpu", 100.0, 512, 224)


def with_start(machine: Machine) -> dict[str, Any]:
    """A whole embed job as a process, imports and loading of the model included."""
    folder = machine.cache.parent
    code = f"""
from pathlib import Path
from embed import embed
from phototagger.machine import Machine
embed(Path("thumbs.parquet"), Path("out.parquet"), model="demo-clip", model_digest="1" * 64,
      machine=Machine.load("machine.json"), threads={THREADS}, size={SIZE}, quality={QUALITY},
      digests={{}})
"""
    scripts = str(Path(models.__file__).parents[1])
    job = [sys.executable, "-c", f"import sys; sys.path.insert(0, {scripts!r})\n{code}"]
    count = read_table(folder / "thumbs.parquet").num_rows
    seconds = []
    for _ in range(2):  # all photos are new, then none is
        start = time.perf_counter()
        subprocess.run(job, cwd=folder, check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    name = f"embed job of {count} photos with its start / job with all known"
    return row(name, count / seconds[0], count / seconds[1], None)


def from_originals(
    loaded: clip.Clip, folder: Path, photos: Path, models_dir: Path
) -> dict[str, Any]:
    """Thumbnails and embeddings of 24-megapixel files against open_clip with a torch DataLoader."""
    import shutil

    import torch
    from torch.utils.data import DataLoader

    machine = work(folder, photos, models_dir)
    files = sorted(photos.iterdir())

    def ours() -> None:
        shutil.rmtree(machine.cache)
        make_thumbs(machine)
        pipeline(loaded, machine)

    def plain() -> None:
        loader = DataLoader(Files(files, loaded.preprocess), batch_size=BATCH, num_workers=THREADS)
        with torch.inference_mode():
            for pixels in loader:
                loaded.model.encode_image(pixels)

    seconds = fastest([ours, plain], rounds=2)
    count = len(files)
    name = "thumbs + embed of 24-megapixel JPEGs / open_clip + DataLoader(num_workers=2)"
    return row(name, count / seconds[0], count / seconds[1], 3.0)


class Files:
    """The dataset of a plain pass: open the original, preprocess."""

    def __init__(self, files: list[Path], preprocess: Callable):
        self.files = files
        self.preprocess = preprocess

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        return self.preprocess(Image.open(self.files[index]))


def lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    for r in rows:
        goal = f"goal {r['goal']}" if r["goal"] else ""
        yield f"{r['name']}: {r['ours']} / {r['theirs']} {r['unit']} = {r['ratio']} {goal}"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        print(*lines(run(Path(name))), sep="\n")
