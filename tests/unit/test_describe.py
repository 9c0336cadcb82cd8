"""The rule over a shard's table, asked of a server that answers over real HTTP."""

import errno
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from describe import describe, read_task, workers
from PIL import Image
from servers.fault_server import FaultServer, running
from thumbs import thumbs
from workflow.library import make_photo

from phototagger import config, files, plan, tables
from phototagger.asking import percentiles
from phototagger.connection import connect
from phototagger.errors import UserError
from phototagger.files import sha256_file, write_atomic
from phototagger.job import Stats
from phototagger.machine import Machine, Servers
from phototagger.pictures import Pictures, encode
from phototagger.plan import Root, Roots
from phototagger.setups import ImageLimits
from phototagger.tasks import Task, plan_tasks

SIZE, QUALITY = 512, 85


@dataclass
class Shard:
    """Photos, their table, and a server to ask."""

    work: Path
    machine: Machine
    table: Path

    def task(self, **values: Any) -> Task:
        settings = replace(config.load(None, {}, {}).describe, model="tiny-vlm", **values)
        (task,) = plan_tasks(settings, self.machine.servers).values()
        return task

    def ask(self, before: list[Path] = (), **values: Any) -> tuple[list[dict], Stats]:
        task, stats = self.task(**values), Stats()
        output = self.work / "described.jsonl"
        describe(
            self.table,
            output,
            task=task,
            before=before,
            machine=self.machine,
            connect=lambda: connect(
                task.setup, self.machine.servers, self.work / "log", self.work / "verdicts"
            ),
            size=SIZE,
            quality=QUALITY,
            stats=stats,
        )
        return [json.loads(line) for line in output.read_text().splitlines()], stats


@pytest.fixture
def shard(tmp_path: Path) -> Callable[[FaultServer], Shard]:
    def make(server: FaultServer) -> Shard:
        folder = tmp_path / "photos"
        for n in range(5):
            make_photo(folder / f"{n}.jpg", n, (640, 480))
        (folder / "2.jpg").write_bytes(b"not a photo")
        (folder / "4.jpg").write_bytes((folder / "1.jpg").read_bytes())
        servers = Servers(base_url=(server.base_url,), preflight=False)
        unused = tmp_path / "unused"
        roots = Roots([Root("", str(folder), None)])
        machine = Machine(roots, tmp_path / "cache", unused, unused, "cpu", 8, servers)
        options = plan.ScanOptions((".jpg",), True, (), None)
        listing, table = tmp_path / "listing.tsv", tmp_path / "thumbs.parquet"
        write_atomic(listing, plan.format_listing(plan.scan(roots, options)))
        limits = {"max_pixels": 10**8, "max_bytes": 10**8}
        thumbs(listing, table, machine=machine, size=SIZE, quality=QUALITY, threads=1, **limits)
        return Shard(tmp_path, machine, table)

    return make


def test_a_line_per_photo_and_field(shard: Callable[[FaultServer], Shard]):
    with running() as server:
        lines, stats = shard(server).ask()
        assert server.stats.received == 9
    assert [(said["rel_path"], said["field"]) for said in lines] == [
        (f"{n}.jpg", field)
        for n in (0, 1, 3, 4)
        for field in ("caption", "keywords", "description")
    ]
    first = lines[0]
    assert (first["status"], first["setup"], first["model"]) == (
        "done",
        "adhoc-openai-tiny-vlm",
        "tiny-vlm",
    )
    assert len(first["request"]) == len(first["setup_digest"]) == len(first["prompt_digest"]) == 64
    assert first["text"].endswith(".")
    assert first["prompt_tokens"] > 0
    assert first["attempts"] == 1
    assert isinstance(lines[1]["keywords"], list)
    assert (stats.photos, stats.computed, stats.cached, stats.skipped) == (5, 3, 1, 1)
    assert stats.extra["requests"] == 9
    assert stats.extra["fields"]["caption"]["done"] == 4


def test_the_kept_reply_says_how_it_came_to_be(shard: Callable[[FaultServer], Shard]):
    with running() as server:
        photos = shard(server)
        lines, _ = photos.ask()
    key = lines[0]["request"]
    kept = json.loads((photos.work / "cache/describe" / key[:2] / f"{key}.json").read_text())
    assert kept["request"]["photo"] == lines[0]["sha256"]
    assert kept["request"]["system"]
    assert kept["request"]["seed"] == lines[0]["seed"]
    assert "image" not in kept["request"]
    assert lines[0]["text"] in kept["reply"]["text"]


def test_the_second_time_nothing_is_asked(shard: Callable[[FaultServer], Shard]):
    with running() as server:
        photos = shard(server)
        lines, _ = photos.ask()
    again, stats = photos.ask()  # the server is gone
    assert again == lines
    assert (stats.computed, stats.cached, stats.extra["requests"]) == (0, 4, 0)


def refuse(monkeypatch: pytest.MonkeyPatch, number: int, after: int) -> None:
    """Have the cache of answers fail with that error, once it has taken so many."""
    real, left = files.write_atomic, iter(range(after))

    def write(path: Path, content: bytes | str) -> None:
        if path.parent.parent.name == "describe" and next(left, None) is None:
            raise OSError(number, os.strerror(number), str(path))
        real(path, content)

    monkeypatch.setattr(files, "write_atomic", write)


def test_answers_that_cannot_be_kept_count_all_the_same(
    shard: Callable[[FaultServer], Shard], monkeypatch: pytest.MonkeyPatch
):
    refuse(monkeypatch, errno.EROFS, after=0)
    with running() as server:
        lines, _ = shard(server).ask()
        assert server.stats.received == 9
    assert [said["status"] for said in lines] == ["done"] * 12


def test_a_full_cache_ends_the_job_and_keeps_what_was_answered(
    shard: Callable[[FaultServer], Shard], monkeypatch: pytest.MonkeyPatch
):
    with running() as server:
        photos = shard(server)
        with monkeypatch.context() as patched:
            refuse(patched, errno.ENOSPC, after=4)
            with pytest.raises(OSError, match="No space left on device"):
                photos.ask()
        assert not (photos.work / "described.jsonl").exists()
        lines, stats = photos.ask()
    assert stats.extra["requests"] == 9 - 4
    assert [said["status"] for said in lines] == ["done"] * 12


def test_what_was_set_is_what_is_sent(shard: Callable[[FaultServer], Shard]):
    with running(keep=True) as server:
        photos = shard(server)
        photos.ask(
            backend="vllm", max_new_tokens=77, temperature=0.5, top_p=0.6, seed=9, language="de"
        )
    assert {body["max_tokens"] for body in server.bodies} == {77}
    assert {(body["temperature"], body["top_p"]) for body in server.bodies} == {(0.5, 0.6)}
    assert len({body["seed"] for body in server.bodies}) == len(server.bodies)
    assert all("German" in body["messages"][0]["content"] for body in server.bodies)
    words = [b["response_format"]["json_schema"]["schema"]["properties"] for b in server.bodies]
    assert {w["keywords"]["maxItems"] for w in words if "keywords" in w} == {15}


def test_answers_of_another_setup_are_quoted(shard: Callable[[FaultServer], Shard]):
    with running(keep=True) as server:
        photos = shard(server)
        before = photos.work / "before.jsonl"
        said = {"rel_path": "3.jpg", "field": "caption", "text": "A gull.", "keywords": None}
        before.write_text(json.dumps(said) + "\n")
        photos.ask([before], fields=("description",))
    asked = [str(body["messages"][-1]) for body in server.bodies]
    assert sum("A gull." in text for text in asked) == 1


def test_a_server_that_is_away_is_one_clear_error(shard: Callable[[FaultServer], Shard]):
    with running() as server:
        photos = shard(server)
    photos.machine = replace(
        photos.machine, servers=replace(photos.machine.servers, busy_budget=0.5)
    )
    with pytest.raises(UserError, match=r"127\.0\.0\.1"):
        photos.ask()
    assert not (photos.work / "described.jsonl").exists()


def test_failed_fields_are_lines_and_the_photo_a_problem(
    shard: Callable[[FaultServer], Shard], caplog: pytest.LogCaptureFixture
):
    with running(faults={"422": 1.0}) as server:
        lines, stats = shard(server).ask(fields=("caption",))
        host = server.base_url.split("/")[2]
    assert not any(host in said["message"] for said in lines)  # results name no host, logs do
    assert f"0.jpg: caption: {host}" in caplog.text
    assert {(said["status"], said["kind"]) for said in lines} == {("failed", "server_refused")}
    assert (stats.problems, stats.skipped, stats.photos) == (4, 1, 5)


def test_a_plan_that_changed_meanwhile(tmp_path: Path, shard: Callable[[FaultServer], Shard]):
    with running() as server:
        task = shard(server).task()
    path = tmp_path / "describe.json"
    path.write_text(json.dumps({task.setup.slug: task.as_dict()}))
    assert read_task(path, task.setup.slug, task.recipe) == task
    with pytest.raises(UserError, match="the plan has changed"):
        read_task(path, task.setup.slug, "0" * 64)
    with pytest.raises(UserError, match="the plan has changed"):
        read_task(path, "other", task.recipe)


def test_photos_under_way(shard: Callable[[FaultServer], Shard]):
    with running() as server:
        photos = shard(server)
    two = replace(photos.machine.servers, base_url=("http://a/v1", "http://b/v1"), concurrency=16)
    assert workers(photos.task(), replace(photos.machine, servers=two)) >= 32


# -------------------------------------------------------------------------------------- pictures


def test_pictures_keep_the_limits():
    noise = Image.effect_noise((2000, 1000), 100).convert("RGB")
    small = encode(noise.copy(), ImageLimits(max_edge=800))
    with Image.open(BytesIO(small)) as image:
        assert (image.format, image.size) == ("JPEG", (800, 400))
    assert encode(noise.copy(), ImageLimits(max_edge=800)) == small
    bounded = encode(noise.copy(), ImageLimits(max_edge=800, max_bytes=30_000))
    assert len(bounded) <= 30_000
    with Image.open(BytesIO(encode(noise, ImageLimits(200, format="png")))) as image:
        assert (image.format, image.size) == ("PNG", (200, 100))


def test_the_thumbnail_is_sent_if_it_is_large_enough(shard: Callable[[FaultServer], Shard]):
    from phototagger.tables import read_table

    with running() as server:
        photos = shard(server)
    row = read_table(photos.table).to_pylist()[0]
    large = Pictures(ImageLimits(max_edge=600), photos.machine, size=SIZE, quality=QUALITY)
    small = Pictures(ImageLimits(max_edge=300), photos.machine, size=SIZE, quality=QUALITY)
    with Image.open(BytesIO(large(row))) as image:
        assert image.size == (600, 450)
    (photos.work / "photos" / row["rel_path"]).unlink()
    with Image.open(BytesIO(small(row))) as image:
        assert image.size == (300, 225)
    assert large.recipe != small.recipe


def test_percentiles():
    assert percentiles([0.5]) == (0.5, 0.5)
    assert percentiles([float(n) for n in range(101)]) == (50.0, 95.0)


# ------------------------------------------------------------------- tagged, and capture groups


@pytest.fixture
def pair(shard: Callable[[FaultServer], Shard]) -> Callable[..., Shard]:
    """The shard, with 0.tif of the same picture as 0.jpg, and with columns of thumbs changed."""

    def make(server: FaultServer, **changes: dict[str, Any]) -> Shard:
        photos = shard(server)
        rows = [row | {"tagged": False} for row in tables.read_table(photos.table).to_pylist()]
        copy = photos.work / "photos/0.tif"
        Image.open(copy.with_name("0.jpg")).save(copy)
        other = rows[0] | {"rel_path": "0.tif", "format": "TIFF"}
        other |= dict.fromkeys(("sha256", "picture"), sha256_file(copy))
        other["bytes"] = copy.stat().st_size
        rows[0]["taken_at"] = other["taken_at"] = "2024-05-01T12:00:00"
        rows = [row | changes.get(row["rel_path"], {}) for row in [rows[0], other, *rows[1:]]]
        tables.write_table(photos.table, tables.THUMBS, rows, {})
        return photos

    return make


def by_photo(lines: list[dict], field: str) -> dict[str, dict]:
    return {said["rel_path"]: said for said in lines if said["field"] == field}


def test_a_tagged_photo_is_not_asked_about(pair: Callable[..., Shard]):
    everything = ("0.jpg", "0.tif", "1.jpg", "4.jpg")
    with running() as server:
        lines, stats = pair(server, **{name: {"tagged": True} for name in everything}).ask()
        assert server.stats.received == 3
    assert {said["rel_path"] for said in lines} == {"3.jpg"}
    assert (stats.photos, stats.computed, stats.cached, stats.skipped) == (6, 1, 0, 5)


def test_if_all_are_tagged_no_server_is_needed(pair: Callable[..., Shard]):
    with running() as server:
        photos = pair(server)
        rows = tables.read_table(photos.table).to_pylist()
        tables.write_table(photos.table, tables.THUMBS, [r | {"tagged": True} for r in rows], {})
        lines, stats = photos.ask()
        assert server.stats.received == 0
    assert lines == []
    assert (stats.photos, stats.skipped, stats.extra["requests"]) == (6, 6, 0)


def test_a_capture_group_is_asked_about_once_and_its_members_inherit(pair: Callable[..., Shard]):
    with running() as server:
        lines, stats = pair(server).ask()
        assert server.stats.received == 9  # as without 0.tif
    for field in ("caption", "keywords", "description"):
        found = by_photo(lines, field)
        leader, member = found["0.jpg"], found["0.tif"]
        assert leader["inherited_from"] is None
        own = {name: member[name] for name in ("rel_path", "sha256")}
        assert member == leader | own | {"inherited_from": "0.jpg"}
        assert member["sha256"] != leader["sha256"]
    assert (stats.photos, stats.computed, stats.cached, stats.skipped) == (6, 3, 2, 1)
    fields = stats.extra["fields"]
    assert (fields["caption"]["done"], fields["caption"]["inherited"]) == (5, 1)
    assert fields["caption"]["prompt_tokens"] == sum(
        by_photo(lines, "caption")[name]["prompt_tokens"] for name in ("0.jpg", "1.jpg", "3.jpg")
    )


def test_own_words_are_not_passed_on(pair: Callable[..., Shard]):
    with running() as server:
        photos = pair(server, **{"0.jpg": {"own_caption": "Ours"}})
        lines, _ = photos.ask()
        assert server.stats.received == 9  # the caption from 0.tif, all else from 0.jpg
        captions, keywords = by_photo(lines, "caption"), by_photo(lines, "keywords")
        assert (captions["0.jpg"]["status"], captions["0.tif"]["status"]) == ("skipped", "done")
        assert captions["0.tif"]["inherited_from"] is None
        assert keywords["0.tif"]["inherited_from"] == "0.jpg"
        lines, _ = photos.ask(overwrite=True)
        assert server.stats.received == 9 + 2  # its caption, and the description that quotes it
    assert by_photo(lines, "caption")["0.tif"]["inherited_from"] == "0.jpg"


def test_what_failed_is_inherited_as_well(pair: Callable[..., Shard]):
    with running() as server:
        photos = pair(
            server, **{"0.jpg": {"thumb": "512/no/thumb.jpg", "sha256": "e" * 64, "picture": None}}
        )
        lines, stats = photos.ask()
    leader, member = (by_photo(lines, "caption")[name] for name in ("0.jpg", "0.tif"))
    assert (leader["status"], leader["kind"]) == ("failed", "picture_failed")
    assert (member["status"], member["message"]) == ("failed", leader["message"])
    assert member["inherited_from"] == "0.jpg"
    assert stats.problems == 2


def test_other_pictures_of_the_same_name_are_asked_about(pair: Callable[..., Shard]):
    with running() as server:
        other = {"taken_at": "2024-05-01T12:00:01"}
        lines, _ = pair(server, **{"0.tif": other, "3.jpg": {"tagged": True}}).ask()
        assert server.stats.received == 9
    assert by_photo(lines, "caption")["0.tif"]["inherited_from"] is None


def test_working_ahead_asks_once_as_well(pair: Callable[..., Shard]):
    with running() as server:
        photos = pair(server)
        table = photos.work / "shards/1.parquet"
        rows = tables.read_table(photos.table).to_pylist()
        tables.write_table(table, tables.THUMBS, rows[2:3], {})
        ahead = [*rows[:2], rows[4] | {"tagged": True}]
        tables.write_table(table.with_name("2.parquet"), tables.THUMBS, ahead, {})
        task = photos.task()
        describe(
            table,
            photos.work / "said/1.jsonl",
            task=task,
            before=[],
            machine=photos.machine,
            connect=lambda: connect(
                task.setup, photos.machine.servers, photos.work / "log", photos.work / "verdicts"
            ),
            ahead=True,
            size=SIZE,
            quality=QUALITY,
        )
        assert server.stats.received == 3 + 3
