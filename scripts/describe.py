"""Rule `describe`: captions, keywords and descriptions of one shard's photos from one model setup.

One line per photo and field (JSON lines), in path order; none for photos that are tagged already.
Of a capture group one photo is asked about, and the others' lines say whose answer they inherit.
Replies are kept by content, so a stale shard costs only the requests nobody has made before; if
there are none, no server is started. A field that got no good answer is a line with the reason, and
never ends the job; a server that cannot be used does.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from phototagger import prompts, tables
from phototagger.asking import Answer, Asker, Connect, Outcome, Row, Value, percentiles
from phototagger.chat import in_flight
from phototagger.errors import UserError
from phototagger.files import open_atomic
from phototagger.job import Stats, job
from phototagger.machine import Machine
from phototagger.pictures import Pictures
from phototagger.replies import Replies
from phototagger.setups import Setup
from phototagger.tasks import Task
from phototagger.timeleft import TimeLeft

AHEAD_SECONDS = 1200  # a job may go on that long for other shards
WORKERS = 8  # photos under way beside the requests in flight, so that pictures are ready in time


def describe(
    thumbs: Path,
    output: Path,
    *,
    task: Task,
    before: Sequence[Path],
    machine: Machine,
    connect: Connect,
    size: int,
    quality: int,
    ahead: bool = False,
    beside: Collection[str] | None = None,
    stats: Stats | None = None,
    time_left: TimeLeft | None = None,
) -> None:
    """Write the answers of a setup for a shard.

    `before` are the answers of other setups that the questions quote. `size` and `quality` are
    those of the thumbnails. With `ahead`, a job that had to ask goes on with other shards for a
    while, so that two models that share a GPU are not loaded in turns for every shard; only with
    those named by `beside`, if that is given.

    Raises UserError if the server cannot be had or used, TransientError if that may pass or the
    allocation ends first; what was answered is kept.
    """
    import asyncio

    stats = stats or Stats()
    time_left = time_left or TimeLeft()
    rows = tables.read_table(thumbs).to_pylist()
    good = [row for row in rows if tables.goes_on(row)]
    stats.photos = len(rows)
    stats.skipped = len(rows) - len(good)
    pictures = Pictures(task.setup.image, machine, size=size, quality=quality)
    replies = Replies(machine.cache / "describe")
    asker = Asker(
        task,
        replies,
        pictures,
        connect,
        image_recipe=pictures.recipe,
        workers=workers(task, machine),
        time_left=time_left,
    )

    def progress(answers: list[Answer]) -> None:
        count(stats, answers)
        stats.progress()

    async def in_time(asking: Awaitable[Outcome]) -> Outcome:
        limit = asyncio.timeout(time_left.until_leaving())
        try:
            async with limit:
                return await asking
        except TimeoutError:
            if not limit.expired():
                raise
            raise time_left.over() from None

    async def ask() -> Outcome:
        async with asker:
            outcome = await in_time(asker.ask(good, read_values(before), progress))
            if ahead and outcome.requests and replies.writable:  # else nobody would find it
                deadline = time.monotonic() + AHEAD_SECONDS
                try:
                    for rows, said in shards_ahead(thumbs, output, before, beside):
                        if time.monotonic() > deadline or not time_left.is_enough():
                            break
                        last = await in_time(asker.ask(rows, read_values(said)))
                        outcome.add_requests(last)
                        stats.extra["ahead"] = stats.extra.get("ahead", 0) + len(rows)
                except UserError as error:  # those shards' own jobs will say so
                    logging.warning("no further ahead: %s", error)
            return outcome

    outcome = asyncio.run(ask())
    recount(stats, len(rows) - len(good), outcome)
    stats.extra |= costs(task, outcome)
    digests = {name: prompts.digest(prompt) for name, prompt in task.prompts.items()}
    with open_atomic(output) as file:
        for row, answers in zip(good, outcome.answers, strict=True):
            for answer in answers:
                said = line(row, answer, task, digests[answer.field])
                file.write(json.dumps(said, ensure_ascii=False) + "\n")


def shards_ahead(
    thumbs: Path, output: Path, before: Sequence[Path], beside: Collection[str] | None = None
) -> Iterator[tuple[list[Row], list[Path]]]:
    """Photos of other shards (of `beside` only) that wait to be asked about, and the answers that
    they quote.
    """
    for table in sorted(thumbs.parent.glob("*.parquet")):
        quoted = [path.with_name(f"{table.stem}.jsonl") for path in before]
        done = output.with_name(f"{table.stem}.jsonl")
        if table == thumbs or done.exists() or not all(path.exists() for path in quoted):
            continue
        if beside is not None and table.stem not in beside:
            continue
        rows = tables.read_table(table).to_pylist()
        yield [row for row in rows if tables.goes_on(row)], quoted


def workers(task: Task, machine: Machine) -> int:
    """Photos under way at once."""
    servers = machine.servers
    return in_flight(task.setup, servers) * max(1, len(servers.base_url)) + WORKERS


def line(row: Row, answer: Answer, task: Task, prompt_digest: str) -> dict[str, Any]:
    """What the output says about one field of one photo."""
    asked = answer.status != "skipped"
    prompt = task.prompts[answer.field]
    return {
        "rel_path": row["rel_path"],
        "sha256": row["sha256"],
        "field": answer.field,
        "status": answer.status,
        "text": answer.text,
        "keywords": answer.keywords,
        "paths": dict(answer.paths),
        "kind": answer.kind,
        "message": answer.message,
        "notes": list(answer.notes),
        "setup": task.setup.slug,
        "setup_digest": task.setup.digest,
        "model": answer.model,
        "server": answer.server,
        "profile": task.profile,
        "prompt_digest": prompt_digest,
        "request": answer.request,
        "seed": answer.seed,
        "max_tokens": answer.max_tokens,
        "temperature": prompt.temperature if asked else None,
        "top_p": prompt.top_p if asked else None,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "seconds": answer.seconds,
        "attempts": answer.attempts,
        "finish_reason": answer.finish_reason,
        "inherited_from": answer.inherited_from,
    }


def read_values(paths: Iterable[Path]) -> dict[str, dict[str, Value]]:
    """Answers that were given: rel_path -> field -> text or keywords."""
    found: dict[str, dict[str, Value]] = {}
    for path in paths:
        with path.open(encoding="utf-8") as file:
            for said in map(json.loads, file):
                value = said["keywords"] if said["field"] == "keywords" else said["text"]
                if value:
                    found.setdefault(said["rel_path"], {})[said["field"]] = value
    return found


def read_others(path: Path, setup: str) -> list[Setup]:
    """The other setups that the plan asks."""
    planned = json.loads(path.read_text("utf-8"))
    return [Task.from_dict(data).setup for slug, data in planned.items() if slug != setup]


def takes_turns(task: Task, others: Sequence[Setup], machine: Machine) -> bool:
    """Whether the setup's server has to leave a GPU to that of another setup."""
    ours = [setup for setup in (task.setup, *others) if setup.command and setup.gpus]
    return not machine.servers.base_url and task.setup in ours and len(ours) > 1


def read_task(path: Path, setup: str, recipe: str) -> Task:
    """What the plan says is to be asked of a setup.

    Raises UserError if the plan was made anew since the job was planned.
    """
    data = json.loads(path.read_text("utf-8")).get(setup)
    task = Task.from_dict(data) if data else None
    if task is None or task.recipe != recipe:
        raise UserError(f"{path}: {setup}: the plan has changed meanwhile; run again")
    return task


# ---------------------------------------------------------------------------------------- counts


def count(stats: Stats, answers: Sequence[Answer]) -> None:
    """Count a photo by the most that happened to one of its fields."""
    if any(answer.status == "failed" for answer in answers):
        stats.problems += 1
    elif any(answer.fresh for answer in answers):
        stats.computed += 1
    elif all(answer.status == "skipped" for answer in answers):
        stats.skipped += 1
    else:
        stats.cached += 1


def recount(stats: Stats, left_out: int, outcome: Outcome) -> None:
    """Count again when all is known: answers may have become problems at the end."""
    stats.computed = stats.cached = stats.problems = 0
    stats.skipped = left_out
    for answers in outcome.answers:
        count(stats, answers)


def costs(task: Task, outcome: Outcome) -> dict[str, Any]:
    """What the job's counts say besides photos."""
    fields = {}
    for position, name in enumerate(task.prompts):
        found = [photo[position] for photo in outcome.answers]
        states = Counter(answer.status for answer in found)
        asked = [answer for answer in found if answer.fresh]
        seconds = sorted(answer.seconds or 0.0 for answer in asked)
        fields[name] = {
            "done": states["done"],
            "cached": sum(a.status == "done" and not a.fresh for a in found),
            "failed": states["failed"],
            "skipped": states["skipped"],
            "inherited": sum(a.inherited_from is not None for a in found),
            "prompt_tokens": sum(answer.prompt_tokens or 0 for answer in asked),
            "completion_tokens": sum(answer.completion_tokens or 0 for answer in asked),
            "seconds": percentiles(seconds) if seconds else None,
            "busy": round(sum(seconds), 3),
        }
    return {
        "requests": outcome.requests,
        "retries": dict(sorted(outcome.retries.items())),
        "reseeds": outcome.reseeds,
        "raised": outcome.raised,
        "server_failed": sum(
            answer.kind == "server_failed" for photo in outcome.answers for answer in photo
        ),
        "fields": fields,
        "setup": task.setup.slug,
        "profile": task.profile,
        "server": outcome.server,
        "model": outcome.model or task.setup.model,
    }


if __name__ == "__main__":
    from contextlib import AbstractAsyncContextManager

    from phototagger import allocation
    from phototagger.connection import Connected, connect
    from phototagger.lastjob import leaving, shards_here
    from phototagger.scratch import ready_for

    with job(snakemake) as stats:
        time_left = TimeLeft.of(allocation.current())
        machine = Machine.load(snakemake.params.machine)
        task = read_task(
            Path(snakemake.params.tasks), snakemake.wildcards.setup, snakemake.params.recipe
        )
        others = read_others(Path(snakemake.params.tasks), task.setup.slug)
        logs = Path("results/logs/servers")
        logging.getLogger("httpx").setLevel(logging.WARNING)  # a line per request otherwise

        def connected() -> AbstractAsyncContextManager[Connected]:
            if not machine.servers.base_url:  # the server will be one of ours
                ready_for([task.setup, *others], machine.scratch)
            return connect(task.setup, machine.servers, logs, others=others, time_left=time_left)

        output = Path(snakemake.output.answers)
        with leaving(task.setup, machine.servers, output):
            describe(
                Path(snakemake.input.thumbs),
                output,
                task=task,
                before=[Path(path) for path in snakemake.input.before],
                machine=machine,
                connect=connected,
                ahead=takes_turns(task, others, machine),
                beside=shards_here(output),
                size=snakemake.params.size,
                quality=snakemake.params.quality,
                stats=stats,
                time_left=time_left,
            )
