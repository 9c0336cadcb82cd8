"""A thousand photos asked about, on servers of which every second request goes wrong."""

import json
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from describe import describe
from thumbs import thumbs
from workflow.library import make_library

from phototagger import config, plan
from phototagger.connection import connect
from phototagger.files import write_atomic
from phototagger.job import Stats
from phototagger.machine import Machine, Servers
from phototagger.plan import Root, Roots
from phototagger.problems import KINDS
from phototagger.tasks import plan_tasks
from servers.fault_server import running

PHOTOS, FIELDS, SERVERS = 1000, 3, 6
FAULTS = [
    *("429", "503", "423", "hang", "reset", "half", "html"),
    *("empty_choices", "schema", "length", "think"),
]


def answer(body: dict) -> str:
    """Something to say that differs from photo to photo."""
    picture = body["messages"][-1]["content"][0]["image_url"]["url"]
    number = sum(picture.encode()) * len(picture)
    schema = body["response_format"]["json_schema"]["schema"]
    (field,) = schema["properties"]
    if field == "keywords":
        return json.dumps({field: ["old bridge", "river", f"boat {number % 997}"]})
    return json.dumps({field: f"A boat with the number {number} lies under the old bridge."})


def test_every_photo_ends_done_or_with_a_reason(tmp_path: Path):
    photos = make_library(tmp_path / "photos", PHOTOS, per_folder=500)
    options = {"faults": dict.fromkeys(FAULTS, 0.05), "answer": answer, "retry_after": "0.2"}
    with ExitStack() as stack:
        asked = [stack.enter_context(running(seed=n, **options)) for n in range(SERVERS)]
        asked[0].burst = (200, 10)
        asked[1].die_after = 500
        servers = Servers(
            base_url=tuple(server.base_url for server in asked),
            concurrency=32,
            timeout=0.3,
            retries=8,
            preflight=False,
        )
        unused = tmp_path / "unused"
        roots = Roots([Root("", str(photos), None)])
        machine = Machine(roots, tmp_path / "cache", unused, unused, "cpu", 8, servers)
        found = plan.scan(roots, plan.ScanOptions((".jpg",), True, (), None))
        write_atomic(tmp_path / "listing.tsv", plan.format_listing(found))
        limits = {"size": 512, "quality": 85}
        table, output = tmp_path / "thumbs.parquet", tmp_path / "described.jsonl"
        thumbs(
            tmp_path / "listing.tsv",
            table,
            machine=machine,
            threads=2,
            max_pixels=10**8,
            max_bytes=10**8,
            **limits,
        )
        settings = replace(config.load(None, {}, {}).describe, model="tiny-vlm")
        (task,) = plan_tasks(settings, servers).values()
        stats = Stats()
        describe(
            table,
            output,
            task=task,
            before=[],
            machine=machine,
            connect=lambda: connect(task.setup, servers, tmp_path / "log", tmp_path / "verdicts"),
            stats=stats,
            **limits,
        )
        received = sum(server.stats.received for server in asked)
        suffered = sum((server.stats.faults for server in asked), Counter())

    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(said["rel_path"], said["field"]) for said in lines] == [
        (photo.rel_path, field)
        for photo in found
        for field in ("caption", "keywords", "description")
    ]
    status = Counter(said["status"] for said in lines)
    assert status["done"] + status["failed"] == PHOTOS * FIELDS
    assert status["done"] > 0.85 * PHOTOS * FIELDS
    failed = [said for said in lines if said["status"] == "failed"]
    assert all(said["kind"] in KINDS and said["message"] for said in failed)
    assert all((said["text"] or said["keywords"]) for said in lines if said["status"] == "done")
    assert stats.computed + stats.problems == stats.photos == PHOTOS
    assert stats.problems == len({said["rel_path"] for said in failed})

    # requests issued = questions + counted retries, and questions = photos x fields + those that
    # were asked again with another seed or a higher limit
    extra = stats.extra
    questions = PHOTOS * FIELDS + extra["reseeds"] + extra["raised"]
    assert extra["requests"] == questions + sum(extra["retries"].values())
    never_arrived = extra["retries"].get("connect", 0)
    assert 0 <= extra["requests"] - received <= never_arrived + 32
    assert all(suffered[fault] > 100 for fault in FAULTS)
