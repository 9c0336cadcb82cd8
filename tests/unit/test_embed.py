import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from embed import _prefetch, embed, open_cache, rows_ahead
from PIL import Image
from thumbs import thumbs

from phototagger import clip, models
from phototagger.demo_clip import TINY
from phototagger.errors import UserError
from phototagger.job import Stats
from phototagger.machine import Machine
from phototagger.plan import Photo, Root, Roots, format_listing
from phototagger.tables import THUMBS, read_table, write_table

SIZE, QUALITY, DIMENSION = 128, 85, 32


@pytest.fixture
def shard(tmp_path: Path, tiny_models: Path) -> Path:
    """A work directory with 6 photos: two alike, a panorama, a small one, a broken one."""
    root = tmp_path / "photos"
    root.mkdir()
    cat = Image.fromarray(skimage.data.cat())
    cat.save(root / "a.jpg")
    (root / "b-copy.jpg").write_bytes((root / "a.jpg").read_bytes())
    Image.fromarray(skimage.data.coffee()).save(root / "c.png")
    Image.fromarray(skimage.data.rocket()).resize((3000, 100)).save(root / "d-panorama.png")
    cat.resize((30, 20)).save(root / "e-small.png")
    (root / "f-broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and nothing more")
    make_thumbs(tmp_path, tiny_models)
    return tmp_path


def machine(work: Path, models_dir: Path, batch_size: int = 2) -> Machine:
    roots = Roots([Root("photos", str(work / "photos"))])
    return Machine(roots, work / "cache", models_dir, work / "labels.txt", "cpu", batch_size)


def make_thumbs(work: Path, models_dir: Path) -> None:
    names = sorted(path.name for path in (work / "photos").iterdir())
    photos = []
    for name in names:
        info = (work / "photos" / name).stat()
        photos.append(Photo(name, info.st_size, info.st_mtime_ns))
    (work / "s.tsv").write_bytes(format_listing(photos))
    thumbs(
        work / "s.tsv",
        work / "thumbs.parquet",
        machine=machine(work, models_dir),
        size=SIZE,
        quality=QUALITY,
        max_pixels=10**8,
        max_bytes=10**8,
        threads=2,
        digests={},
    )


def run(work: Path, models_dir: Path, **changes) -> tuple[list[dict], Stats]:
    stats = Stats()
    arguments = {
        "model": TINY,
        "model_digest": models.weights_digest(TINY, models_dir),
        "machine": machine(work, models_dir),
        "threads": 2,
        "size": SIZE,
        "quality": QUALITY,
        "digests": {"model": "m"},
        "stats": stats,
    }
    embed(work / "thumbs.parquet", work / "out.parquet", **(arguments | changes))
    return read_table(work / "out.parquet").to_pylist(), stats


def rows_by_name(work: Path) -> dict[str, dict]:
    return {row["rel_path"]: row for row in read_table(work / "thumbs.parquet").to_pylist()}


def test_one_row_per_content_in_plan_order(shard: Path, tiny_models: Path):
    rows, stats = run(shard, tiny_models)
    of = rows_by_name(shard)
    names = ["a.jpg", "c.png", "d-panorama.png", "e-small.png"]
    assert [row["sha256"] for row in rows] == [of[name]["sha256"] for name in names]
    assert all(len(row["embedding"]) == DIMENSION for row in rows)
    assert all(row["problem"] is None for row in rows)
    counts = (stats.photos, stats.computed, stats.cached, stats.problems, stats.skipped)
    assert counts == (6, 4, 1, 0, 1)
    assert stats.done == stats.photos


def test_embeddings_are_open_clips_own(shard: Path, tiny_models: Path):
    import open_clip
    import torch

    rows, _ = run(shard, tiny_models)
    of = rows_by_name(shard)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tiny_models / TINY}")
    model.eval()
    shown = {  # thumbnail if it has the 64 pixels the model needs, else the photo
        "a.jpg": shard / "cache/thumbs" / of["a.jpg"]["thumb"],
        "c.png": shard / "cache/thumbs" / of["c.png"]["thumb"],
        "e-small.png": shard / "photos/e-small.png",
    }
    found = {row["sha256"]: np.array(row["embedding"], np.float32) for row in rows}
    for name, path in shown.items():
        with torch.no_grad():
            theirs = model.encode_image(preprocess(Image.open(path))[None]).numpy()[0]
        assert np.abs(found[of[name]["sha256"]] - theirs).max() <= 1e-5, name


def test_a_panorama_is_seen_sharp(shard: Path, tiny_models: Path):
    """128 pixels wide it would be 4 high; the middle of the photo itself is what the model gets."""
    rows, _ = run(shard, tiny_models)
    sha256 = rows_by_name(shard)["d-panorama.png"]["sha256"]
    ours = next(np.array(row["embedding"]) for row in rows if row["sha256"] == sha256)
    loaded = clip.load_card_model(TINY, tiny_models, "cpu")
    photo = Image.open(shard / "photos/d-panorama.png")
    theirs = clip.embed_images([photo], loaded.model, loaded.preprocess)[0]
    thumb = Image.open(shard / "cache/thumbs" / rows_by_name(shard)["d-panorama.png"]["thumb"])
    blurred = clip.embed_images([thumb], loaded.model, loaded.preprocess)[0]

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    assert cosine(ours, theirs) > 0.999
    assert cosine(ours, theirs) > cosine(blurred, theirs)


def test_second_run_computes_nothing_and_is_equal(shard: Path, tiny_models: Path):
    run(shard, tiny_models)
    first = (shard / "out.parquet").read_bytes()
    _, stats = run(shard, tiny_models)
    assert (stats.computed, stats.cached, stats.skipped) == (0, 5, 1)
    assert (shard / "out.parquet").read_bytes() == first


def test_known_photos_need_no_torch(shard: Path, tiny_models: Path):
    """In a process of its own, which must not even import it; and the model itself may be gone."""
    run(shard, tiny_models)
    expected = (shard / "out.parquet").read_bytes()
    digest = models.weights_digest(TINY, tiny_models)
    code = f"""
import sys
from pathlib import Path
from embed import embed
from phototagger.machine import Machine
from phototagger.plan import Root, Roots
work = Path({str(shard)!r})
machine = Machine(Roots([Root("photos", str(work / "photos"))]), work / "cache", work / "none",
                  work / "labels.txt", "cpu", 2)
embed(work / "thumbs.parquet", work / "out.parquet", model={TINY!r}, model_digest={digest!r},
      machine=machine, threads=2, size={SIZE}, quality={QUALITY}, digests={{"model": "m"}})
print([m for m in ("torch", "open_clip", "torchvision", "transformers") if m in sys.modules])
"""
    scripts = str(Path(models.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": scripts},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "[]\n", done.stderr
    assert (shard / "out.parquet").read_bytes() == expected


def test_only_the_new_photo_is_computed(shard: Path, tiny_models: Path):
    run(shard, tiny_models)
    Image.fromarray(skimage.data.chelsea()).save(shard / "photos" / "g.png")
    (shard / "photos" / "a.jpg").rename(shard / "photos" / "moved.jpg")
    make_thumbs(shard, tiny_models)
    _, stats = run(shard, tiny_models)
    assert (stats.computed, stats.cached) == (1, 5)


def test_a_job_that_loaded_the_model_works_ahead(shard: Path, tiny_models: Path):
    """The jobs of shards that waited find their photos in the cache, and need no model."""
    for name in ("1", "2", "3"):
        for photo in (shard / "photos").iterdir():
            photo.unlink()
        for n in range(5):
            picture = Image.fromarray(skimage.data.cat()).rotate(int(name) * 10 + n)
            picture.save(shard / f"photos/{n}.jpg")
        make_thumbs(shard, tiny_models)
        (shard / "thumbs").mkdir(exist_ok=True)
        (shard / "thumbs.parquet").rename(shard / f"thumbs/{name}.parquet")
    (shard / "out").mkdir()
    (shard / "out/3.parquet").touch()  # done already
    counts = []
    for name in ("2", "1"):
        stats = Stats()
        embed(
            shard / f"thumbs/{name}.parquet",
            shard / f"out/{name}.parquet",
            model=TINY,
            model_digest=models.weights_digest(TINY, tiny_models),
            machine=machine(shard, tiny_models),
            threads=2,
            size=SIZE,
            quality=QUALITY,
            digests={},
            stats=stats,
        )
        counts.append((stats.computed, stats.cached, stats.extra.get("ahead", 0)))
    assert counts == [(5, 0, 5), (0, 5, 0)]


def test_damaged_cache_files_are_computed_again(shard: Path, tiny_models: Path):
    rows, _ = run(shard, tiny_models)
    digest = models.weights_digest(TINY, tiny_models)
    cache = open_cache(shard / "cache", digest, DIMENSION, size=SIZE, quality=QUALITY)
    cache.path(rows[0]["sha256"]).write_bytes(b"cut")
    cache.put(rows[1]["sha256"], np.full(DIMENSION, np.nan, np.float32))
    again, stats = run(shard, tiny_models)
    assert stats.computed == 2
    assert again == rows


def test_another_model_or_thumbnail_is_another_embedding(shard: Path, tiny_models: Path):
    run(shard, tiny_models)
    for changes in ({"model_digest": "f" * 64}, {"quality": 50}):
        _, stats = run(shard, tiny_models, **changes)
        assert stats.computed == 4


def test_photo_that_is_gone_is_a_problem(shard: Path, tiny_models: Path):
    """Its thumbnail was deleted, and so was the photo."""
    gone = rows_by_name(shard)["c.png"]
    (shard / "cache/thumbs" / gone["thumb"]).unlink()
    (shard / "photos/c.png").unlink()
    rows, stats = run(shard, tiny_models)
    assert [(row["problem_kind"], row["embedding"]) for row in rows if row["problem"]] == [
        ("missing", None)
    ]
    assert (stats.computed, stats.problems, stats.done) == (3, 1, stats.photos)


def test_deleted_thumbnails_are_made_again(shard: Path, tiny_models: Path):
    expected, _ = run(shard, tiny_models)
    for path in (shard / "cache").rglob("*.jpg"):
        path.unlink()
    for path in (shard / "cache" / "embeddings").rglob("*.f32"):
        path.unlink()
    rows, stats = run(shard, tiny_models)
    assert rows == expected
    assert stats.computed == 4


def test_numbers_that_are_not_finite_are_a_problem(shard: Path, tiny_models: Path, monkeypatch):
    """A fault of half precision on GPUs, which a CPU does not show by itself."""
    forward = clip.ImageEncoder._forward

    def overflow(self, pixels):
        vectors = forward(self, pixels)
        vectors[0, 0] = np.inf
        return vectors

    monkeypatch.setattr(clip.ImageEncoder, "_forward", overflow)
    rows, stats = run(shard, tiny_models)
    assert [row["problem_kind"] for row in rows] == ["embed_failed", None, "embed_failed", None]
    assert (stats.computed, stats.problems) == (2, 3)  # the first one has a copy
    monkeypatch.undo()
    rows, stats = run(shard, tiny_models)  # a problem is not kept
    assert (stats.computed, stats.problems) == (2, 0)
    assert all(row["problem"] is None for row in rows)


def test_finished_batches_survive_a_crash(shard: Path, tiny_models: Path, monkeypatch):
    forward, calls = clip.ImageEncoder._forward, []

    def dies(self, pixels):
        calls.append(len(pixels))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return forward(self, pixels)

    monkeypatch.setattr(clip.ImageEncoder, "_forward", dies)
    with pytest.raises(KeyboardInterrupt):
        run(shard, tiny_models)
    assert not (shard / "out.parquet").exists()
    monkeypatch.undo()
    _, stats = run(shard, tiny_models)
    assert stats.computed == 2


def test_no_model_says_what_to_run(shard: Path, tmp_path: Path, tiny_models: Path):
    absent = machine(shard, tmp_path / "no-models")
    with pytest.raises(UserError, match="tiny-random-clip is not in"):
        run(shard, tiny_models, machine=absent)


def test_decoding_runs_ahead_but_not_away():
    started: list[int] = []

    def work(item: int) -> int:
        started.append(item)
        return item * item

    results = _prefetch(work, range(100), threads=2, depth=5)
    assert [next(results) for _ in range(3)] == [(0, 0), (1, 1), (2, 4)]
    assert max(started) <= 2 + 5
    results.close()
    assert len(started) < 20


def test_photos_that_are_tagged_already_cost_nothing(shard: Path, tiny_models: Path, monkeypatch):
    table = shard / "thumbs.parquet"
    rows = read_table(table).to_pylist()
    # one of two copies; and all that there is of another picture
    tagged = [row | {"tagged": row["rel_path"] in ("a.jpg", "c.png")} for row in rows]
    write_table(table, THUMBS, tagged, {})
    found, stats = run(shard, tiny_models)
    names = {row["sha256"]: row["rel_path"] for row in rows}
    assert [names[row["sha256"]] for row in found] == [
        "b-copy.jpg",
        "d-panorama.png",
        "e-small.png",
    ]
    assert (stats.photos, stats.computed, stats.cached, stats.skipped) == (6, 3, 0, 3)

    write_table(table, THUMBS, [row | {"tagged": True} for row in rows], {})
    monkeypatch.setattr(clip, "load_card_model", None)
    found, stats = run(shard, tiny_models)
    assert found == []
    assert (stats.photos, stats.computed, stats.skipped) == (6, 0, 6)


def test_working_ahead_leaves_tagged_photos_alone(shard: Path, tiny_models: Path):
    table = shard / "thumbs.parquet"
    rows = read_table(table).to_pylist()
    folder = shard / "tables"
    write_table(folder / "1.parquet", THUMBS, rows[:1], {})
    write_table(folder / "2.parquet", THUMBS, [row | {"tagged": True} for row in rows], {})
    cache = open_cache(shard / "cache", "m", DIMENSION, size=SIZE, quality=QUALITY)
    ahead = rows_ahead(
        folder / "1.parquet", folder / "out" / "1.parquet", cache, float("inf"), Stats()
    )
    assert list(ahead) == []


def test_working_ahead_leaves_shards_alone_whose_own_job_is_at_work(shard: Path, tiny_models: Path):
    rows = read_table(shard / "thumbs.parquet").to_pylist()
    folder, logs = shard / "tables", shard / "logs"
    for name, row in zip("1234", rows, strict=False):
        write_table(folder / f"{name}.parquet", THUMBS, [row], {})
    cache = open_cache(shard / "cache", "m", DIMENSION, size=SIZE, quality=QUALITY)
    Stats(run="this", path=logs / "2.json").write()  # at work
    Stats(run="this", path=logs / "3.json", error="stopped").write()
    Stats(run="last", path=logs / "4.json").write()  # was killed
    stats = Stats(run="this", path=logs / "1.json")
    output = folder / "out" / "1.parquet"
    ahead = rows_ahead(folder / "1.parquet", output, cache, float("inf"), stats)
    assert [row["rel_path"] for row in ahead] == [row["rel_path"] for row in rows[2:4]]
