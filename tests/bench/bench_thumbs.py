"""Thumbnails of 24-megapixel JPEGs: CPU seconds against vipsthumbnail and against plain Pillow.

    python tests/bench/bench_thumbs.py

Ours is everything the rule does for a new photo: read, SHA-256, EXIF, decode, scale, encode, write.
"""

import hashlib
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROUNDS = 3
FILES = 4
SIZE = (6000, 4000)


def make_photos(folder: Path, files: int = FILES) -> list[Path]:
    """24-megapixel JPEGs of about 6 MB: real pictures enlarged, with a camera's noise."""
    import numpy as np
    from PIL import Image
    from skimage import data

    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0)
    sources = (data.coffee, data.rocket, data.astronaut, data.chelsea)
    paths = []
    for number, source in enumerate(sources[:files]):
        large = Image.fromarray(source()).resize(SIZE, Image.Resampling.BICUBIC)
        pixels = np.asarray(large, dtype=np.int16)
        grain = noise.normal(0, 5, (SIZE[1], SIZE[0], 1)).astype(np.int16)
        photo = Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8))
        exif = Image.Exif()
        exif[0x010F], exif[0x0110], exif[0x0112] = "Canon", "Canon EOS R6", 1
        path = folder / f"IMG_{number:04d}.jpg"
        photo.save(path, quality=90, exif=exif)
        paths.append(path)
    return paths


def _cpu(who: int) -> float:
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def ours(paths: list[Path], cache: Path) -> float:
    """CPU seconds per photo."""
    from phototagger.thumbnails import ThumbCache, make_thumb, read_photo

    kept = ThumbCache(cache, 512, 85)
    start = _cpu(resource.RUSAGE_SELF)
    for path in paths:
        data, _ = read_photo(path, 1 << 30)
        sha256 = hashlib.sha256(data).hexdigest()
        thumb = make_thumb(data, size=512, quality=85, max_pixels=1 << 28, sha256=sha256, path=path)
        kept.put(thumb)
    return (_cpu(resource.RUSAGE_SELF) - start) / len(paths)


def vips(paths: list[Path], output: Path) -> float:
    """CPU seconds per photo of one process for all files, its start included."""
    output.mkdir(exist_ok=True)
    command = ["vipsthumbnail", "-s", "512", "-o", f"{output}/%s.jpg[Q=85,strip]", *map(str, paths)]
    start = _cpu(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, env=os.environ | {"VIPS_CONCURRENCY": "1"})
    return (_cpu(resource.RUSAGE_CHILDREN) - start) / len(paths)


def pillow(paths: list[Path], output: Path) -> float:
    """CPU seconds per photo of what one writes without looking further."""
    from PIL import Image

    output.mkdir(exist_ok=True)
    start = _cpu(resource.RUSAGE_SELF)
    for path in paths:
        image = Image.open(path).convert("RGB").resize((512, 341), Image.Resampling.LANCZOS)
        image.save(output / path.name, quality=85)
    return (_cpu(resource.RUSAGE_SELF) - start) / len(paths)


def run(tmp: Path) -> list[dict]:
    """Best of a few interleaved rounds, so that a busy machine burdens all alike."""
    paths = make_photos(tmp / "photos")
    peers = {"ours": ours, "vips": vips, "pillow": pillow}
    if not shutil.which("vipsthumbnail"):
        del peers["vips"]
    ours(paths[:1], tmp / "warm")  # imports
    best = dict.fromkeys(peers, float("inf"))
    for number in range(ROUNDS):
        for name, measure in peers.items():
            best[name] = min(best[name], measure(paths, tmp / f"{name}{number}"))
    rows = []
    if "vips" in best:
        rows.append(_row("vipsthumbnail", best["ours"], best["vips"], "≤ 1.0", "ours/theirs"))
    rows.append(_row("plain Pillow", best["ours"], best["pillow"], "≥ 5", "theirs/ours"))
    return rows


def _row(peer: str, ours: float, theirs: float, goal: str, direction: str) -> dict:
    ratio = ours / theirs if direction == "ours/theirs" else theirs / ours
    return {
        "name": f"thumbnail of a 24-megapixel JPEG, against {peer} ({direction})",
        "ours": round(ours, 4),
        "theirs": round(theirs, 4),
        "ratio": round(ratio, 2),
        "goal": goal,
        "unit": "CPU s/photo",
    }


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
    with tempfile.TemporaryDirectory() as folder:
        for row in run(Path(folder)):
            print(row)
