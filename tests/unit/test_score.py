"""Scores against numpy; thresholds, synonyms and ties against a plain loop."""

import json
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from score import compare, reached, score

from phototagger.errors import UserError
from phototagger.job import Stats
from phototagger.labels import resolve_threshold
from phototagger.tables import SCORES, embeddings_schema, write_table

SCALE = 27.0


def entry(label: str, threshold=None, group_threshold=None, synonym_group=None) -> dict:
    return {
        "label": label,
        "threshold": threshold,
        "group_threshold": group_threshold,
        "synonym_group": synonym_group,
    }


def run(folder: Path, images: list, labels: np.ndarray, entries: list[dict], **options) -> list:
    """Write the inputs, score, and return the rows."""
    dimension = labels.shape[1]
    rows = [
        {"sha256": f"{i:064x}", "embedding": v, "problem_kind": None if v is not None else "bad"}
        for i, v in enumerate(images)
    ]
    write_table(folder / "e.parquet", embeddings_schema(dimension), rows, {})
    schema = pa.schema([("label", pa.string()), ("embedding", pa.list_(pa.float32(), dimension))])
    rows = [{"label": e["label"], "embedding": v} for e, v in zip(entries, labels, strict=True)]
    write_table(folder / "l.parquet", schema, rows, {})
    content = {"pack": "p", "model": "m", "logit_scale": SCALE, "labels": entries}
    (folder / "l.json").write_text(json.dumps(content))
    options = {"topk": 5, "measure": "cosine", "threshold": 0.2, "digests": {"code": "c"}} | options
    score(
        folder / "e.parquet",
        folder / "l.json",
        folder / "l.parquet",
        folder / "s.parquet",
        **options,
    )
    table = pq.read_table(folder / "s.parquet")
    assert table.schema.equals(SCORES)
    return table.to_pylist()


def random(seed: int, photos: int, labels: int, dimension: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(photos, dimension)) * rng.uniform(0.1, 50, (photos, 1))
    return images.astype(np.float32), rng.normal(size=(labels, dimension)).astype(np.float32)


def test_cosines_and_probabilities_are_numpys(tmp_path):
    images, labels = random(0, 7, 40, 16)
    entries = [entry(f"label {i}") for i in range(40)]
    rows = run(tmp_path, list(images), labels, entries, topk=40)
    expected = (images / np.linalg.norm(images, axis=1, keepdims=True)) @ (
        labels / np.linalg.norm(labels, axis=1, keepdims=True)
    ).T
    softmax = np.exp(SCALE * expected)
    softmax /= softmax.sum(1, keepdims=True)
    for i, row in enumerate(rows):
        cosines = [top["cosine"] for top in row["top"]]
        assert cosines == sorted(cosines, reverse=True)
        assert sum(top["probability"] for top in row["top"]) == pytest.approx(1, abs=1e-5)
        for top in row["top"]:
            j = int(top["label"].split()[1])
            assert top["cosine"] == pytest.approx(expected[i, j], abs=1e-6)
            assert top["probability"] == pytest.approx(softmax[i, j], rel=1e-4)
        over = {top["label"] for top in row["over_threshold"]}
        assert over == {f"label {j}" for j in range(40) if expected[i, j] >= 0.2}
        assert [top for top in row["top"] if top["label"] in over] == row["over_threshold"]


def test_scores_do_not_depend_on_the_other_photos():
    images, labels = random(1, 64, 300, 512)
    together = compare(images, labels, SCALE)
    for i in (0, 13, 63):
        alone = compare(images[i : i + 1], labels, SCALE)
        assert np.array_equal(alone.cosine[0], together.cosine[i])
        assert np.array_equal(alone.order[0], together.order[i])


@pytest.mark.parametrize(("topk", "expected"), [(1, 1), (3, 3), (4, 4), (99, 4)])
def test_topk(tmp_path, topk, expected):
    rows = run(tmp_path, [np.ones(2)], np.eye(4, 2), [entry(c) for c in "abcd"], topk=topk)
    assert len(rows[0]["top"]) == expected


def test_equal_scores_stand_in_the_packs_order(tmp_path):
    labels = np.array([[1, 0], [2, 0], [0, 1], [0.5, 0], [3, 3]])
    rows = run(tmp_path, [np.array([5.0, 0])], labels, [entry(c) for c in "dbcae"], topk=4)
    assert [top["label"] for top in rows[0]["top"]] == ["d", "b", "a", "e"]


def test_many_equal_scores_stand_in_the_packs_order():
    """More than sorting by insertion, which is stable by nature, is used for."""
    images, labels = random(4, 8, 10, 6)
    order = compare(images, labels[np.arange(300) % 10], SCALE).order
    for row in order.reshape(8, 10, 30):
        for equals in row:
            assert equals.tolist() == list(range(equals[0], 300, 10))


def test_zero_vectors_score_zero(tmp_path):
    rows = run(tmp_path, [np.zeros(2), np.ones(2)], np.eye(3, 2), [entry(c) for c in "abc"])
    assert [top["cosine"] for top in rows[0]["top"]] == [0, 0, 0]
    assert [top["label"] for top in rows[0]["top"]] == ["a", "b", "c"]
    assert rows[0]["top"][0]["probability"] == pytest.approx(1 / 3)
    assert rows[1]["top"][2]["cosine"] == 0


def test_photos_without_embedding_are_left_out(tmp_path):
    stats = Stats()
    images = [None, np.array([0.0, 1.0]), None]
    rows = run(tmp_path, images, np.eye(2), [entry("a"), entry("b")], stats=stats)
    assert [row["sha256"] for row in rows] == [f"{1:064x}"]
    assert rows[0]["top"][0]["label"] == "b"
    assert (stats.photos, stats.computed, stats.skipped) == (3, 1, 2)
    assert run(tmp_path, [None, None], np.eye(2), [entry("a"), entry("b")]) == []
    assert run(tmp_path, [], np.eye(2), [entry("a"), entry("b")]) == []


def test_digests_are_repeated_and_bytes_are_stable(tmp_path):
    images, labels = random(2, 5, 4, 8)
    contents = set()
    for _ in range(2):
        run(tmp_path, list(images), labels, [entry(c) for c in "abcd"], digests={"listing": "7"})
        contents.add((tmp_path / "s.parquet").read_bytes())
    assert len(contents) == 1
    metadata = pq.read_schema(tmp_path / "s.parquet").metadata
    assert metadata[b"phototagger.listing"] == b"7"


def test_thresholds_of_label_group_and_measure(tmp_path):
    labels = np.array([[1.0, 0], [1, 0.0001], [1, 0.0002], [1, 0.0003]])
    entries = [entry("a"), entry("b", 1), entry("c", "+0.6"), entry("d", None, "-0.6")]
    image = np.array([0.8, 0.6])
    names = lambda rows: {top["label"] for top in rows[0]["over_threshold"]}  # noqa: E731
    assert names(run(tmp_path, [image], labels, entries, threshold=0.5)) == {"a", "d"}
    assert names(run(tmp_path, [image], labels, entries, threshold=0.85)) == {"d"}
    probability = {"measure": "probability"}
    assert names(run(tmp_path, [image], labels, entries, threshold=0.24, **probability)) == {
        "a",
        "d",
    }
    assert names(run(tmp_path, [image], labels, entries, threshold=0.26, **probability)) == {"d"}


def test_a_score_at_the_threshold_reaches_it(tmp_path):
    """As float32, in which scores are: 0.7 is 0.69999999 there."""
    image = np.array([0.7, np.sqrt(1 - 0.49)])
    rows = run(tmp_path, [image], np.eye(2), [entry("a"), entry("b")], threshold=0.7)
    assert {top["label"] for top in rows[0]["over_threshold"]} == {"a", "b"}


def test_of_synonyms_the_best_stays(tmp_path):
    labels = np.array([[1.0, 0.3], [1, 0.1], [1, 0.2], [1, 0.0], [1, 0.0]])
    entries = [entry(c, synonym_group=g) for c, g in zip("abcde", "xx yy", strict=True)]
    entries[2]["synonym_group"] = None
    rows = run(tmp_path, [np.array([1.0, 0]), np.array([0.0, 1])], labels, entries, threshold=0.15)
    assert [top["label"] for top in rows[0]["over_threshold"]] == ["d", "b", "c"]
    assert [top["label"] for top in rows[1]["over_threshold"]] == ["a", "c"]
    assert len(rows[0]["top"]) == 5  # the list of best labels is not affected


limits = st.one_of(st.none(), st.floats(0, 1), st.sampled_from(["+0.1", "-0.1", "+0", "-0.5"]))


@given(
    st.integers(0, 10**6),
    st.lists(st.tuples(limits, limits, st.sampled_from([None, "x", "y"])), min_size=1, max_size=9),
    st.floats(-0.2, 1),
    st.sampled_from(["cosine", "probability"]),
)
def test_reached_against_a_loop(seed, specs, threshold, measure):
    entries = [entry(str(i), *spec) for i, spec in enumerate(specs)]
    rng = np.random.default_rng(seed)
    images = rng.integers(-2, 3, (4, 3)).astype(np.float32)  # coarse, so that there are ties
    labels = rng.integers(-2, 3, (len(specs), 3)).astype(np.float32)
    scores = compare(images, labels, SCALE)
    over = reached(scores, entries, measure, threshold)
    values = scores.cosine if measure == "cosine" else scores.probability
    for i in range(4):
        expected, seen = [], set()
        for j in sorted(range(len(specs)), key=lambda j: (-scores.cosine[i, j], j)):
            limit = resolve_threshold(specs[j][0], specs[j][1], threshold)
            group = specs[j][2]
            if values[i, j] >= np.float32(limit) and (group is None or group not in seen):
                expected.append(j)
                seen.add(group)
        assert scores.order[i][over[i]].tolist() == expected


@settings(max_examples=30)
@given(st.integers(1, 20), st.integers(1, 30), st.floats(0.01, 1000), st.integers(0, 999))
def test_probabilities_sum_to_one(photos, labels, scale, seed):
    scores = compare(*random(seed, photos, labels, 6), scale)
    assert scores.cosine.dtype == scores.probability.dtype == np.float32
    assert scores.probability.sum(1) == pytest.approx(np.ones(photos), abs=1e-5)
    assert (scores.probability >= 0).all()


def test_refusals(tmp_path):
    with pytest.raises(UserError, match=r"score\.measure: unknown 'dot'; valid are: cosine, prob"):
        run(tmp_path, [np.ones(2)], np.eye(2), [entry("a"), entry("b")], measure="dot")
    write_table(tmp_path / "other.parquet", embeddings_schema(3), [], {})
    with pytest.raises(UserError, match="does not go with"):
        score(
            tmp_path / "other.parquet",
            tmp_path / "l.json",
            tmp_path / "l.parquet",
            tmp_path / "s.parquet",
            topk=1,
            measure="cosine",
            threshold=0,
            digests={},
        )


def test_a_shard_takes_milliseconds():
    images, labels = random(3, 256, 300, 512)
    entries = [entry(str(i), synonym_group=str(i // 3) if i < 90 else None) for i in range(300)]
    best = np.inf
    for _ in range(5):
        start = time.process_time()
        reached(compare(images, labels, SCALE), entries, "cosine", 0.1)
        best = min(best, time.process_time() - start)
    assert best < 0.25
