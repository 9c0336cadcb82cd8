import dataclasses
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import skimage.data
from PIL import Image

from phototagger import clip, models, plan, search, tables
from phototagger.errors import UserError
from phototagger.machine import Machine
from phototagger.thumbnails import ThumbCache, make_thumb

PHOTOS = {
    "pets/cat.png": skimage.data.chelsea,
    "pets/copy \U0001f408.png": skimage.data.chelsea,
    "rocket.png": skimage.data.rocket,
    "caf\\xe9.png": skimage.data.coffee,  # not UTF-8
    "astronaut.png": skimage.data.astronaut,
}


@pytest.fixture(scope="module")
def library(tmp_path_factory, demo_models):
    """A finished run over PHOTOS, in two shards: (results, machine)."""
    work = tmp_path_factory.mktemp("library")
    roots = plan.Roots([plan.Root("photos", str(work / "photos"))])
    machine = Machine(roots, work / "cache", demo_models, work / "labels", "cpu", 8)
    kept = ThumbCache(machine.cache, 512, 85)
    model = clip.load_card_model("demo-clip", demo_models, "cpu")
    digest = models.weights_digest("demo-clip", demo_models)
    records, shards = [], ([], [])
    for rel_path, picture in PHOTOS.items():
        path = roots.locate(rel_path)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture()).save(path, "PNG")
        thumb = make_thumb(path.read_bytes(), size=512, quality=85, max_pixels=10**7)
        kept.put(thumb)
        sha256 = thumb.fields["sha256"]
        (vector,) = clip.embed_images(
            [kept.folder / kept.name(sha256)], model.model, model.preprocess
        )
        shards["/" in rel_path].append({"sha256": sha256, "embedding": vector})
        score = {"label": "thing", "cosine": 0.5, "probability": 0.5}
        records.append(
            {"rel_path": rel_path, **thumb.fields, "thumb": kept.name(sha256)}
            | {"labels": [score], "over_threshold": [score], "models": {"clip": "demo-clip"}}
            | {"tagged": False, "inherited_from": None}
        )
    write_embeddings(work / "results", shards, digest)
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    (work / "results/records.jsonl").write_text(lines, "utf-8")
    thumbs = {"size": 512, "quality": 85, "max_pixels": 10**7, "max_bytes": 10**8}
    (work / "results/audit").mkdir()
    frozen = json.dumps({"config": {"thumbs": thumbs}})
    (work / "results/audit/config.json").write_text(frozen)
    machine.write(work / "results/plan/machine.json")
    return work / "results", machine


def write_embeddings(results, shards, digest):
    for number, rows in enumerate(shards):
        path = results / "embeddings" / f"{number}.parquet"
        filled = [row | {"problem_kind": None, "problem": None} for row in rows]
        tables.write_table(path, tables.embeddings_schema(512), filled, {"model": digest})


def paths(hits):
    return [hit.rel_path for hit in hits]


def test_words_find_what_they_mean(library):
    index = search.Index.load(*library)
    assert set(paths(index.search_text("cat", 2))) == {"pets/cat.png", "pets/copy \U0001f408.png"}
    assert paths(index.search_text("rocket", 1)) == ["rocket.png"]
    assert paths(index.search_text("cup of coffee", 1)) == ["caf\\xe9.png"]


def test_text_scores_are_cosines_with_the_averaged_prompts(library):
    index = search.Index.load(*library)
    model = clip.load_card_model("demo-clip", library[1].models, "cpu")
    texts = clip.embed_texts(["a red boat", "a photo of a red boat"], model.model, model.tokenizer)
    wanted = texts.mean(0) / np.linalg.norm(texts.mean(0))
    hits = index.search_text(" a red boat ", 99)
    assert len(hits) == len(PHOTOS)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    for hit in hits:
        row = index.rows[index.rel_paths.index(hit.rel_path)]
        assert hit.score == pytest.approx(float(index.vectors[row] @ wanted), abs=1e-5)


def test_likeness_is_brute_force_over_the_stored_embeddings(library):
    results, machine = library
    stored = {}
    for shard in (results / "embeddings").glob("*.parquet"):
        for row in tables.read_table(shard).to_pylist():
            stored[row["sha256"]] = np.asarray(row["embedding"], np.float64)
    lines = (results / "records.jsonl").read_text("utf-8").splitlines()
    digests = {r["rel_path"]: r["sha256"] for r in map(json.loads, lines)}

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    query = stored[digests["astronaut.png"]]
    wanted = sorted(digests, key=lambda path: -cosine(query, stored[digests[path]]))
    hits = search.find(results, machine, like="astronaut.png", k=4)
    assert paths(hits) == wanted[:4]
    for hit in hits:
        wanted_score = cosine(query, stored[digests[hit.rel_path]])
        assert hit.score == pytest.approx(wanted_score, abs=1e-5)


def test_a_photo_is_known_by_rel_path_by_file_and_by_content(library, tmp_path):
    results, machine = library
    wanted = search.find(results, machine, like="caf\\xe9.png", k=3)
    assert wanted[0].rel_path == "caf\\xe9.png"
    assert wanted[0].score == pytest.approx(1, abs=1e-5)
    inside = machine.roots.locate("caf\\xe9.png")
    outside = tmp_path / "elsewhere.png"
    shutil.copy(inside, outside)
    assert search.find(results, machine, like=str(inside), k=3) == wanted
    assert search.find(results, machine, like=str(outside), k=3) == wanted


def test_copies_of_a_photo_are_both_found(library):
    first, second = search.find(*library, like="pets/cat.png", k=2)
    assert {first.rel_path, second.rel_path} == {"pets/cat.png", "pets/copy \U0001f408.png"}
    assert first.score == second.score


@pytest.mark.parametrize("size", [(451, 300), (250, 166)])  # seen as thumbnail, and as it is
def test_a_photo_from_elsewhere_is_embedded(library, tmp_path, size):
    path = tmp_path / "other.jpg"
    Image.fromarray(skimage.data.chelsea()).resize(size).transpose(
        Image.Transpose.FLIP_LEFT_RIGHT
    ).save(path)
    (hit, _, third) = search.find(*library, like=str(path), k=3)
    assert hit.rel_path == "pets/cat.png"
    assert hit.score > 0.9 > third.score


def test_a_known_photo_needs_neither_torch_nor_the_model(library, tmp_path):
    results, _ = library
    code = f"""
import sys
from pathlib import Path
from phototagger import search
assert not {{"torch", "open_clip", "pyarrow", "PIL"}} & set(sys.modules)
from phototagger.machine import Machine
machine = Machine.load({str(results / "plan/machine.json")!r})
hits = search.find(Path({str(results)!r}), machine, like="rocket.png", k=2)
search.write_html(hits, Path({str(tmp_path / "page.html")!r}),
                  results=Path({str(results)!r}), machine=machine, title="x")
assert not {{"torch", "open_clip"}} & set(sys.modules)
print(hits[0].rel_path)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "rocket.png\n"), done.stderr


def test_page_shows_the_hits_and_nothing_from_outside(library, tmp_path):
    results, machine = library
    hits = search.find(results, machine, like="pets/cat.png", k=3)
    page = tmp_path / "page.html"

    def write(machine):
        search.write_html(hits, page, results=results, machine=machine, title='<i>"cat"')
        return page.read_text("utf-8")

    html = write(machine)
    assert html.count("data:image/jpeg;base64,") == 3
    assert "&lt;i&gt;&#34;cat&#34;" in html
    assert "<i>" not in html
    assert "3 closest of 5 photos" in html
    assert "not CLIP" in html
    assert "http://" not in html
    assert "https://" not in html
    again = dataclasses.replace(machine, cache=tmp_path / "new cache")
    assert write(again) == html


def test_what_a_person_can_mend(library, tmp_path):
    results, machine = library

    def message(results=results, machine=machine, **what):
        with pytest.raises(UserError) as caught:
            search.find(results, machine, **({"k": 3} | what))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no results" in message(tmp_path, query="cat")
    assert "empty" in message(query="  ")
    assert "at least one" in message(query="cat", k=0)
    assert "at least one" in message(like="rocket.png", k=-1)
    assert "no such photo" in message(like="nowhere.jpg")
    assert "no such photo" in message(like=str(tmp_path))
    assert "either" in message()
    assert "either" in message(query="cat", like="rocket.png")
    text = tmp_path / "notes.jpg"
    text.write_text("not a picture")
    assert "notes.jpg" in message(like=str(text))


def test_a_changed_model_is_refused(library, tmp_path):
    results, machine = library
    copy = tmp_path / "results"
    shutil.copytree(results, copy)
    write_embeddings(copy, [[], []], "0" * 64)
    with pytest.raises(UserError, match="no photos"):
        search.find(copy, machine, query="cat", k=1)
    shutil.copytree(results / "embeddings", copy / "embeddings", dirs_exist_ok=True)
    rows = tables.read_table(copy / "embeddings/1.parquet").to_pylist()
    tables.write_table(
        copy / "embeddings/1.parquet", tables.embeddings_schema(512), rows, {"model": "0" * 64}
    )
    with pytest.raises(UserError, match="different models"):
        search.find(copy, machine, query="cat", k=1)
    (copy / "embeddings/0.parquet").unlink()
    assert search.find(copy, machine, like="pets/cat.png", k=1)  # needs no model
    with pytest.raises(UserError, match="is not the model"):
        search.find(copy, machine, query="cat", k=1)
