"""Medoids against brute force, over any split into shards; and the CSV files themselves."""

import csv
import json
import tracemalloc
from pathlib import Path

import medoids as rule
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from medoids import medoids

from phototagger import names, plan
from phototagger.tables import embeddings_schema, write_table

Photo = tuple[str, int, list[str]]  # rel_path, which content, keywords
TAGGED = "tagged.jpg"  # how names of photos end that are tagged already


def sha256(content: int) -> str:
    return f"{content:064x}"


def write(folder: Path, shards: list[list[Photo]], vectors: dict[int, list | None]) -> None:
    dimension = next(len(v) for v in vectors.values() if v is not None)
    lines = []
    for number, photos in enumerate(shards):
        rows = [
            {
                "sha256": sha256(content),
                "embedding": vectors[content],
                "problem_kind": None if vectors[content] is not None else "embed_failed",
            }
            for content in dict.fromkeys(content for _, content, _ in photos)
        ]
        write_table(folder / f"{number}.parquet", embeddings_schema(dimension), rows, {})
        for rel_path, content, keywords in photos:
            entries = [{"keyword": keyword} for keyword in keywords]
            record = {"rel_path": rel_path, "sha256": sha256(content), "keywords": entries}
            record["tagged"] = rel_path.endswith(TAGGED)
            lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    (folder / "records.jsonl").write_text("".join(lines), "utf-8")


def run(
    folder: Path, shards: list[list[Photo]], vectors: dict, tag_aware=False, min_size=3
) -> tuple[list[list[str]], list[list[str]]]:
    write(folder, shards, vectors)
    tables = [folder / f"{number}.parquet" for number in range(len(shards))]
    outputs = folder / "folders.csv", folder / "tags.csv"
    medoids(tables, folder / "records.jsonl", *outputs, tag_aware=tag_aware, min_size=min_size)
    return tuple(
        list(csv.reader(path.read_text("utf-8").splitlines(keepends=True))) for path in outputs
    )


def brute_force(photos: list[Photo], vectors: dict) -> tuple[str, float] | None:
    units = []
    for rel_path, content, _ in photos:
        if vectors[content] is None:
            continue
        vector = np.array(vectors[content], np.float32).astype(float)
        norm = np.linalg.norm(vector)
        units.append((rel_path, vector / norm if norm else vector))
    if not units:
        return None
    mean = np.mean([unit for _, unit in units], axis=0)
    norm = np.linalg.norm(mean)
    centroid = mean / norm if norm else mean
    cosines = [round(float(unit @ centroid), 9) for _, unit in units]
    best = int(np.argmax(cosines))  # the first of equal ones
    return units[best][0], cosines[best]


# thirds: no tie by chance that rounding could tear apart
coordinates = st.sampled_from([0.0, 1.0, -1.0, 1 / 3, 2.0])
libraries = st.lists(
    st.tuples(
        st.sampled_from([".", "a", "a/b", "a b", "ä,\"'", "z"]),
        st.integers(0, 9),
        st.lists(st.sampled_from(["cat", "sea, salty", "été"]), max_size=3),
    ),
    min_size=1,
    max_size=24,
)


@settings(max_examples=60, deadline=None)
@given(
    libraries,
    st.lists(
        st.one_of(st.none(), st.lists(coordinates, min_size=3, max_size=3)),
        min_size=10,
        max_size=10,
    ),
    st.integers(1, 7),
    st.integers(1, 3),
)
def test_against_brute_force(tmp_path_factory, rows, contents, size, min_size):
    photos = [
        (f"{number:03}.jpg" if folder == "." else f"{folder}/{number:03}.jpg", content, keywords)
        for number, (folder, content, keywords) in enumerate(rows)
    ]
    photos.sort(key=lambda photo: plan.sort_key(photo[0]))
    vectors = dict(enumerate(contents)) | {99: [1.0, 0, 0]}
    shards = [photos[i : i + size] for i in range(0, len(photos), size)]
    folder = tmp_path_factory.mktemp("medoids")
    found, tags = run(folder, shards, vectors, tag_aware=True, min_size=min_size)

    groups: dict[str, list[Photo]] = {}
    buckets: dict[tuple[str, str], list[Photo]] = {}
    for photo in photos:
        groups.setdefault(names.folder_of(photo[0]), []).append(photo)
        for tag in set(photo[2]):
            buckets.setdefault((names.folder_of(photo[0]), tag), []).append(photo)
    expected = {name: brute_force(members, vectors) for name, members in groups.items()}
    order = sorted((name for name in groups if expected[name]), key=plan.sort_key)
    assert [row[0] for row in found[1:]] == order
    for name, rel_path, cosine in found[1:]:
        assert rel_path == expected[name][0]
        assert float(cosine) == pytest.approx(expected[name][1], abs=1e-6)

    kept = {k: m for k, m in buckets.items() if len(m) >= min_size and brute_force(m, vectors)}
    assert [(row[0], row[1]) for row in tags[1:]] == sorted(
        kept, key=lambda key: (plan.sort_key(key[0]), key[1])
    )
    for name, tag, count, rel_path, cosine in tags[1:]:
        medoid, value = brute_force(kept[name, tag], vectors)
        assert (int(count), rel_path) == (len(kept[name, tag]), medoid)
        assert float(cosine) == pytest.approx(value, abs=1e-6)


def test_two_photos_tie_and_the_first_in_path_order_stands(tmp_path):
    rng = np.random.default_rng(0)
    vectors = {i: rng.normal(size=64).tolist() for i in range(60)}
    photos = [(f"{i // 2:02}/{i % 2}.jpg", i, []) for i in range(60)]
    found, _ = run(tmp_path, [photos[:31], photos[31:]], vectors)
    assert [row[1] for row in found[1:]] == [f"{i:02}/0.jpg" for i in range(30)]


def test_copies_of_a_photo_each_count(tmp_path):
    vectors = {0: [1.0, 0.0], 1: [0.0, 1.0]}
    photos = [("a/1.jpg", 0, []), ("a/2.jpg", 1, []), ("a/3.jpg", 1, []), ("b/1.jpg", 1, [])]
    found, _ = run(tmp_path, [photos[:2], photos[2:]], vectors)
    assert found[1:] == [["a", "a/2.jpg", "0.894427"], ["b", "b/1.jpg", "1.000000"]]


def test_any_split_into_shards_gives_the_same_bytes(tmp_path):
    rng = np.random.default_rng(1)
    vectors = {i: rng.normal(size=32).tolist() for i in range(40)}
    photos = [(f"f{i % 7}/{i:03}.jpg", i % 40, ["cat"]) for i in range(90)]
    photos.sort(key=lambda photo: plan.sort_key(photo[0]))
    contents = set()
    for size in (1, 8, 90):
        shards = [photos[i : i + size] for i in range(0, 90, size)]
        run(tmp_path, shards, vectors, tag_aware=True)
        contents.add((tmp_path / "folders.csv").read_bytes() + (tmp_path / "tags.csv").read_bytes())
    assert len(contents) == 1


def test_groups_are_done_a_few_at_a_time(tmp_path, monkeypatch):
    rng = np.random.default_rng(2)
    vectors = {i: rng.normal(size=8).tolist() for i in range(30)}
    photos = [(f"{i // 3:02}/{i}.jpg", i, []) for i in range(30)]
    shards = [photos[:7], photos[7:20], photos[20:]]
    whole, _ = run(tmp_path, shards, vectors)
    monkeypatch.setattr(rule, "GROUPS_AT_ONCE", 3)
    assert run(tmp_path, shards, vectors)[0] == whole


def test_names_are_quoted_and_kept(tmp_path):
    folders = ['Fête, "été"', "日本", "bar|bar", "new\\nline", " blank"]
    photos = [(f"{folder}/ü,1.jpg", 0, ['a "b"', "a, b"]) for folder in folders]
    photos.sort(key=lambda photo: plan.sort_key(photo[0]))
    found, tags = run(tmp_path, [photos], {0: [1.0, 0.0]}, tag_aware=True, min_size=1)
    assert found[0] == ["folder", "medoid_rel_path", "cosine_to_centroid"]
    assert sorted(row[0] for row in found[1:]) == sorted(folders)
    assert all(row[1] == f"{row[0]}/ü,1.jpg" for row in found[1:])
    assert [row[1] for row in tags[1:3]] == ['a "b"', "a, b"]
    assert b"\r" not in (tmp_path / "folders.csv").read_bytes()


def test_tags_only_when_asked(tmp_path):
    photos = [("1.jpg", 0, ["cat"]), ("2.jpg", 0, ["cat", "cat"]), ("3.jpg", 0, [])]
    vectors = {0: [1.0, 0.0]}
    header = ["folder", "tag", "photos", "medoid_rel_path", "cosine_to_centroid"]
    assert run(tmp_path, [photos], vectors)[1] == [header]
    tags = run(tmp_path, [photos], vectors, tag_aware=True, min_size=2)[1]
    assert tags[1:] == [[".", "cat", "2", "1.jpg", "1.000000"]]
    assert run(tmp_path, [photos], vectors, tag_aware=True, min_size=3)[1] == [header]


def test_nothing_to_find(tmp_path):
    assert run(tmp_path, [[]], {0: [1.0]})[0][1:] == []
    photos = [("1.jpg", 0, []), ("a/2.jpg", 1, [])]
    found, _ = run(tmp_path, [photos], {0: None, 1: [0.0, 0.0]})
    assert found[1:] == [["a", "a/2.jpg", "0.000000"]]


def test_memory_is_that_of_a_shard(tmp_path):
    """80 shards of 128 photos at 256 dimensions are 10 MB; one is 0.13 MB (0.26 in float64)."""
    rng = np.random.default_rng(3)
    vectors = dict(enumerate(rng.normal(size=(10240, 256)).astype(np.float32)))
    photos = [(f"{i // 512:03}/{i}.jpg", i, []) for i in range(10240)]
    shards = [photos[i : i + 128] for i in range(0, 10240, 128)]
    write(tmp_path, shards, vectors)
    del vectors, photos
    tables = [tmp_path / f"{number}.parquet" for number in range(80)]
    tracemalloc.start()
    medoids(
        tables,
        tmp_path / "records.jsonl",
        tmp_path / "f.csv",
        tmp_path / "t.csv",
        tag_aware=False,
        min_size=1,
    )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6_000_000


def test_photos_that_are_tagged_already_have_no_say(tmp_path):
    vectors = {0: [1.0, 0.0], 1: [0.0, 1.0], 2: [0.6, 0.8], 3: None}
    photos = [("a/1.jpg", 0, ["x"]), ("a/2.jpg", 1, ["x"]), (f"a/3{TAGGED}", 2, ["x"])]
    photos += [(f"b/{TAGGED}", 0, ["x"]), (f"c/{TAGGED}", 3, [])]
    folders, tags = run(tmp_path, [photos], vectors, tag_aware=True, min_size=1)
    assert [row[:2] for row in folders[1:]] == [["a", "a/1.jpg"]]
    assert [row[:4] for row in tags[1:]] == [["a", "x", "2", "a/1.jpg"]]
