"""Questions per second against a model server of known capacity, and what the client costs.

The server is a process of its own that answers after a fixed time and works on a fixed number of
answers at once; it speaks real HTTP on loopback. Rates are steady ones: from the moment when the
first round of answers is there.
"""

import asyncio
import base64
import json
import os
import random
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import requests
from describe import describe
from servers.fault_server import process
from thumbs import thumbs
from workflow.library import make_library

from phototagger import plan
from phototagger.chat import ChatClient, Question
from phototagger.config import load
from phototagger.connection import connect
from phototagger.files import write_atomic
from phototagger.machine import Machine, Servers
from phototagger.plan import Root, Roots
from phototagger.server import Served
from phototagger.setups import Setup
from phototagger.tasks import plan_tasks

PICTURE = 60_000  # bytes, as JPEG of 1,024 pixels
# Answers at once, seconds per answer, rounds; 128 answers/s at most, which two cores can carry.
LOADS = ((8, 0.25, 20), (64, 0.5, 12), (256, 2.0, 5))
PHOTOS = 10_000
THUMBS = {"size": 512, "quality": 85}
FIELDS = ("caption", "keywords", "description")
SCHEMA = {"type": "object", "properties": {"caption": {"type": "string", "maxLength": 80}}}


def run(tmp: Path) -> list[dict]:
    """The rows of the table."""
    rows, costs = [], []
    for slots, latency, rounds in LOADS:
        rate, cpu = asyncio.run(steady(slots, latency, rounds))
        name = f"answers, {slots} in flight, against the server's capacity"
        rows.append(row(name, rate, slots / latency, ">= 0.95"))
        costs.append((slots, cpu))
    slots, latency, _ = LOADS[0]
    one = in_sequence(latency)
    name = f"answers, {slots} in flight, against one photo, three prompts in sequence"
    rows.append(row(name, rows[0]["ours"], one, None))
    for slots, cpu in costs:
        name = f"CPU of the client, {slots} in flight"
        rows.append({"name": name, "ours": cpu, "unit": "ms/answer"})
    rows.append(asyncio.run(memory()))
    rows.append(shard(tmp / "shard"))
    rows.append(library(tmp / "library"))
    return rows


def row(name: str, ours: float, theirs: float, goal: str | None) -> dict:
    ratio = ours / theirs
    return {
        "name": name,
        "ours": ours,
        "theirs": theirs,
        "unit": "answers/s",
        "ratio": ratio,
        "goal": goal,
    }


def pictures() -> list[str]:
    """Data URLs of the size of real ones."""
    generator = random.Random(1)
    return [
        "data:image/jpeg;base64," + base64.b64encode(generator.randbytes(PICTURE)).decode()
        for _ in range(32)
    ]


def question(picture: str, number: int) -> Question:
    return Question(
        "You see.", f"Photo {number}: {FIELDS[number % 3]}?", picture, SCHEMA, 100, 0, 1, 0
    )


def client_of(base_url: str, slots: int) -> ChatClient:
    setup = Setup("bench", "test", "vllm", "tiny-vlm", command=None, base_url=base_url)
    served = Served((base_url,), "tiny-vlm", None, "1", own=False)
    return ChatClient(setup, served, Servers(concurrency=slots))


async def answers(client: ChatClient, count: int, workers: int) -> AsyncIterator[int]:
    """Ask `count` questions; yield their numbers as they are answered."""
    images, numbers, done = pictures(), iter(range(count)), asyncio.Queue()

    async def work() -> None:
        for number in numbers:
            await client.ask(question(images[number % len(images)], number))
            done.put_nowait(number)

    tasks = [asyncio.create_task(work()) for _ in range(workers)]
    for _ in range(count):
        yield await done.get()
    await asyncio.gather(*tasks)


async def steady(slots: int, latency: float, rounds: int) -> tuple[float, float]:
    """Answers per second, and CPU milliseconds of this process per answer."""
    count, start, cpu = slots * rounds, 0.0, 0.0
    with process(latency=latency, slots=slots) as base_url:
        async with client_of(base_url, slots) as client:
            number = 0
            async for _ in answers(client, count, slots):
                number += 1
                if number == slots:
                    start, cpu = time.perf_counter(), time.process_time()
            seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return (count - slots) / seconds, cpu / (count - slots) * 1000


def in_sequence(latency: float, photos: int = 6) -> float:
    """Answers per second when each photo's three questions are asked one after the other."""
    image = pictures()[0]
    with process(latency=latency, slots=8) as base_url, requests.Session() as session:
        start = time.perf_counter()
        for number in range(photos * len(FIELDS)):
            q = question(image, number)
            text = {"type": "text", "text": q.user}
            content = [text, {"type": "image_url", "image_url": {"url": q.image}}]
            messages = [{"role": "user", "content": content}]
            body = {"model": "tiny-vlm", "messages": messages, "max_tokens": 100}
            answer = session.post(f"{base_url}/chat/completions", json=body, timeout=60)
            json.loads(answer.text)["choices"][0]
        return photos * len(FIELDS) / (time.perf_counter() - start)


async def memory() -> dict:
    """Resident memory after 1,000 and after 10,000 questions about different pictures."""
    sizes = {}
    with process(latency=0.05, slots=64) as base_url:
        async with client_of(base_url, 64) as client:
            number = 0
            async for _ in answers(client, PHOTOS, 64):
                number += 1
                if number in (PHOTOS // 10, PHOTOS):
                    sizes[number] = resident()
    first, last = sizes[PHOTOS // 10], sizes[PHOTOS]
    return {
        "name": f"memory of the client after {PHOTOS:,} answers, against after {PHOTOS // 10:,}",
        "ours": last,
        "theirs": first,
        "unit": "MiB",
        "ratio": last / first,
        "goal": "<= 1.05",
    }


# ----------------------------------------------------------------------------- the rule `describe`


def shard(tmp: Path, photos: int = 512, slots: int = 64, latency: float = 0.5) -> dict:
    """The rule over one shard, from its start to its end: pictures, three fields, kept replies."""
    work = Work(tmp, photos, photos)
    with process(latency=latency, slots=slots) as base_url:
        start = time.perf_counter()
        work.describe(base_url, slots, FIELDS)
        seconds = time.perf_counter() - start
    name = f"rule describe, {photos} photos from start to end, {slots} in flight, against capacity"
    return row(name, photos * len(FIELDS) / seconds, slots / latency, None)


def library(tmp: Path) -> dict:
    """Resident memory while the rule goes through shard after shard."""
    sizes = []
    work = Work(tmp, PHOTOS, 250)
    with process(latency=0.05, slots=64) as base_url:
        work.describe(base_url, 64, FIELDS, lambda: sizes.append(resident()))
    first, last = sizes[PHOTOS // 10 // 250 - 1], sizes[-1]
    return {
        "name": f"memory of the rule describe after {PHOTOS:,} photos, against after "
        f"{PHOTOS // 10:,}",
        "ours": last,
        "theirs": first,
        "unit": "MiB",
        "ratio": last / first,
        "goal": "<= 1.05",
    }


class Work:
    """A work directory with small photos and their thumbnails."""

    def __init__(self, tmp: Path, photos: int, shard_size: int):
        folder = make_library(tmp / "photos", photos, 250)
        self._tmp = tmp
        self._machine = Machine(
            Roots([Root("", str(folder), None)]), tmp / "cache", tmp, tmp, "", 1
        )
        found = plan.scan(self._machine.roots, plan.ScanOptions((".jpg",), True, (), None))
        self._tables = []
        limits = {"max_pixels": 10**8, "max_bytes": 10**8, "threads": 2}
        for start in range(0, photos, shard_size):
            listing, table = tmp / f"{start}.tsv", tmp / f"{start}.parquet"
            write_atomic(listing, plan.format_listing(found[start : start + shard_size]))
            thumbs(listing, table, machine=self._machine, **THUMBS, **limits)
            self._tables.append(table)

    def describe(
        self,
        base_url: str,
        slots: int,
        fields: tuple[str, ...],
        after: Callable[[], None] = lambda: None,
    ) -> None:
        """Ask about all shards; `after` is called after each."""
        servers = Servers(base_url=(base_url,), concurrency=slots, preflight=False)
        settings = replace(load(None, {}, {}).describe, model="tiny-vlm", fields=fields)
        (task,) = plan_tasks(settings, servers).values()
        for table in self._tables:
            describe(
                table,
                table.with_suffix(".jsonl"),
                task=task,
                before=[],
                machine=replace(self._machine, servers=servers),
                connect=lambda: connect(task.setup, servers, self._tmp / "log", self._tmp),
                **THUMBS,
            )
            after()


def resident() -> float:
    """Resident set of this process, MiB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for line in run(Path(folder)):
            print(line)
