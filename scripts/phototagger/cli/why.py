"""`why PHOTO`: what every stage made of one photo, on which node, and what is wrong or stale."""

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from phototagger import names
from phototagger.cli import options as o
from phototagger.cli.child import holder
from phototagger.cli.errors import FailedError
from phototagger.cli.events import Follower, Job, RunState, live_count, live_counts
from phototagger.cli.run import (
    EVENTS,
    INDEX,
    Request,
    child_environment,
    dry_run,
    enter,
    read_shards,
)
from phototagger.cli.settings import from_options, preflight, remembered
from phototagger.cli.status import FROZEN, Words, failed_dry_run
from phototagger.errors import UserError, one_of
from phototagger.metrics import STAGES

_WIDTH = 10  # of the column of stages


def why(
    photo: Annotated[
        str,
        typer.Argument(
            metavar="PHOTO",
            help="A file, a rel_path of results/tags.csv, or the end of one that no other has.",
        ),
    ],
    workdir: o.Workdir = Path(),
    config_file: o.ConfigFile = None,
    assignments: o.Assignments = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Do not look for what is stale (no dry run).")
    ] = False,
    log: Annotated[
        str | None,
        typer.Option(metavar="STAGE", help="Print the log of the photo's job in this stage."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Tell what became of a photo: per stage job, node and seconds; why it failed or is stale."""
    given = from_options({}, assignments or (), (), config_file)
    typed = Path(os.path.abspath(photo))
    if not workdir.is_dir():
        raise UserError(f"--workdir {workdir}: no such folder; name one that a run has filled")
    enter(workdir)
    if not INDEX.exists():
        raise UserError(f"{Path.cwd()}: no plan here yet; run: photo-tagger run PHOTOS")
    owner = holder()
    state = None
    if not (quick or owner or log):
        before = remembered()
        state = _dry_run(Request(given.over(before) if before else given, []))
    answer = _answer(photo, typed, state, owner)
    if log:
        _print_log(answer, log)
    elif as_json:
        print(json.dumps(answer, indent=1))
    else:
        for line in lines(answer):
            print(line)


def _dry_run(request: Request) -> RunState | None:
    """What is stale; None if Snakemake cannot say, which is told."""
    try:
        preflight(request.settings, child_environment(request.settings))
        code, state = dry_run(request)
        if code:
            raise failed_dry_run(state)
    except UserError as error:  # what is kept can be told all the same
        print(f"photo-tagger: {error}; what is stale is not known", file=sys.stderr)
        return None
    return state


def _answer(
    photo: str, typed: Path, state: RunState | None, owner: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Everything that is known of a photo, for people and for programs."""
    from phototagger import history, plan
    from phototagger.config import load
    from phototagger.machine import Machine
    from phototagger.workflow import own_folders

    frozen = json.loads(FROZEN.read_text("utf-8"))
    config = load(None, {}, frozen["config"])
    machine = Machine.load()
    shards, _ = plan.read_index(INDEX)
    planned = history.Plan(shards, machine.roots, INDEX.parent / "shards")
    place = _find(photo, typed, planned)
    if isinstance(place, Path):
        own = own_folders(machine.roots, machine.cache)
        because = history.why_not(place, planned, config, own)
        return {"photo": names.encode(place), "in_plan": False, "because": because}
    setups = list(frozen["facts"].get("setups") or ())
    rows = history.story(place, config, setups)
    run = _run_under_way() if owner else None
    words = Words.load({})
    for row in rows:
        if state:
            _mark_stale(row, _job_of(state, row, place.shard.name), words)
        if run:
            _mark_running(row, _job_of(run, row, place.shard.name), run)
    return {
        "photo": place.photo.rel_path,
        "in_plan": True,
        "file": names.encode(machine.roots.address(place.photo.rel_path)),
        "bytes": place.photo.size,
        "file_state": history.file_state(machine.roots, place.photo),
        "shard": place.shard.name,
        "number": place.number,
        "photos_in_shard": place.shard.photos,
        "stale_looked_for": state is not None,
        "run_under_way": dict(owner) if owner else None,
        "stages": [row.as_dict() for row in rows],
        "tables": _tables(state),
    }


def _find(photo: str, typed: Path, planned: Any) -> Any:
    """The photo's place in the plan; the file itself, if it is not in it or not any more.

    Raises UserError for a name of several photos, or of none.
    """
    from phototagger import history

    candidates = planned.rel_paths(typed) if os.path.lexists(typed) else planned.keys(photo)
    text = names.encode(photo).removeprefix("./")
    # as it stands in our tables, if it can stand there
    written = [text, *([photo] if names.encode(names.decode(photo)) == photo else [])]
    for rel_path in [*candidates, *written, *planned.rel_paths(typed)]:
        if place := planned.find(rel_path):
            return place
    if typed.is_dir():
        raise UserError(f"{names.encode(photo)}: is a folder; name a photo")
    if os.path.lexists(typed):
        return typed
    if gone := history.was_there([*planned.keys(photo), text, *planned.rel_paths(typed)]):
        return Path(planned.roots.address(gone))
    found = next(filter(None, map(planned.ending, written)), [])
    if not found:
        raise UserError(
            f"{names.encode(photo)}: no such photo, neither as a file nor in the plan of "
            f"{Path.cwd()}"
        )
    if len(found) > 1:
        raise UserError(f"{text}: {len(found)} photos end with that: {', '.join(found)}")
    return planned.find(found[0])


def _job_of(state: RunState, row: Any, shard: str) -> Job | None:
    jobs = state.jobs.values()
    mine = (j for j in jobs if (j.rule, j.shard, j.setup) == (row.stage, shard, row.setup))
    return next(mine, None)


def _mark_stale(row: Any, job: Job | None, words: Words) -> None:
    if job is None:
        return
    if row.state == "done":
        row.state, row.because = "stale", words.why([job])
    elif row.state == "not yet" and row.job:
        row.because = words.why([job])
    elif row.state == "skipped":
        row.because = f"{row.because}; to be looked at again: {words.why([job])}"


def _mark_running(row: Any, job: Job | None, run: RunState) -> None:
    """What the run that is under way does with the stage."""
    if job is None or job.ended:
        return
    counts = live_counts(job.log, job.started, run.token)
    if not counts:
        row.state, row.because, row.job = "waiting", "for a node, or to start", {}
        return
    total = run.shards.get(job.shard or "", 0)
    done = min(total, live_count(job, run.token))
    where = _where(counts)
    row.state, row.because = "running", f"{done:,} of {total:,} photos of the shard{where}"


def _run_under_way() -> RunState:
    from phototagger import runtoken

    state = RunState(read_shards(), token=runtoken.current())
    for event in Follower(EVENTS).new():
        state.apply(event)
    return state


def _tables(state: RunState | None) -> list[str] | None:
    """Rules over all photos that have to be made again; None if that is not known."""
    if state is None:
        return None
    rules = {job.rule for job in state.jobs.values()}
    return sorted(rule for rule in rules if rule not in STAGES and not rule.endswith("all"))


def _print_log(answer: Mapping[str, Any], stage: str) -> None:
    """Print a log, its path on stderr. Raises UserError for a stage that there is not."""
    if not answer["in_plan"]:
        raise FailedError(f"{answer['photo']}: not in the plan: {answer['because']}")
    rows = [row for row in answer["stages"] if stage in (row["stage"], row.get("setup"))]
    if not rows:
        known = {name for row in answer["stages"] for name in (row["stage"], row.get("setup"))}
        raise one_of("--log", stage, sorted(filter(None, known)))
    logs = [row["log"] for row in rows if row.get("log")]
    if not logs:
        raise FailedError(f"{answer['photo']}: no job of {stage} has left a log")
    for path in logs:
        print(path, file=sys.stderr, flush=True)
        sys.stdout.buffer.write(Path(path).read_bytes())
    sys.stdout.flush()


# ------------------------------------------------------------------------------------ for people


def lines(answer: Mapping[str, Any]) -> list[str]:
    """The answer in words."""
    if not answer["in_plan"]:
        return [answer["photo"], _row("not in the plan", answer["because"])]
    number = f"{answer['number']:,} of {answer['photos_in_shard']:,}"
    told = [
        answer["photo"],
        _row("file", f"{answer['file']} ({_FILE[answer['file_state']]})"),
        _row("shard", f"{answer['shard']}, photo {number}"),
    ]
    for row in answer["stages"]:
        told += _stage(row)
    if owner := answer["run_under_way"]:
        where = f"process {owner.get('pid', '?')} on {owner.get('host', '?')}"
        told.append(f"A run is under way ({where}); whether something is stale is not looked for.")
    elif not answer["stale_looked_for"]:
        told.append("Whether something is stale was not looked for.")
    elif answer["tables"]:
        told.append(_row("to do", f"{', '.join(answer['tables'])} (over all photos)"))
    return told


_FILE = {
    "as planned": "unchanged since it was planned",
    "changed": "changed since it was planned",
    "gone": "not there",
    "not looked at": "in a bucket, not looked at",
}


def _row(name: str, text: str) -> str:
    return f"  {name:<{_WIDTH}}{text}" if len(name) < _WIDTH else f"  {name}: {text}"


def _stage(row: Mapping[str, Any]) -> list[str]:
    """A stage's state and job; below it problem, answers, proposal, log."""
    state = row["state"] + (f": {row['because']}" if row.get("because") else "")
    if row.get("setup"):
        state = f"{row['setup']}: {state}"
    job, below = _job(row.get("job", {})), []
    if row["state"] in ("skipped", "running", "waiting"):
        job = ""  # of an earlier run, or not about this photo
    if job and row.get("because"):
        below.append(f"last job: {job}")
    elif job:
        state += f" {job}"
    if problem := row.get("problem"):
        below += [f"{problem['kind']}: {problem['message']}", problem["what_to_do"]]
    for answer in row.get("answers", ()):
        below += _field(answer)
    if proposal := row.get("proposal"):
        below.append(f"proposes {proposal}")
    if row.get("log") and (problem or row["state"] in ("failed", "killed", "running")):
        below.append(f"log: {row['log']}")
    return [_row(row["stage"], state), *(_row("", text) for text in below if text)]


def _job(job: Mapping[str, Any]) -> str:
    """`2026-11-21 14:02 on gpu1 (slurm-12), 12.4 s for 231 photos (0.05 s each): 3 computed`"""
    if not job:
        return ""
    told = time.strftime("%Y-%m-%d %H:%M", time.localtime(job["ended"]))
    told += _where(job)
    if job.get("attempt", 1) > 1:
        told += f", attempt {job['attempt']}"
    told += f", {job.get('seconds', 0):.1f} s"
    photos, each = job.get("photos"), job.get("seconds_per_photo")
    if photos and job["finished"]:
        told += f" for {photos:,} photos ({each:.2g} s each)"
        told += f": {job.get('computed', 0):,} computed, {job.get('cached', 0):,} cached"
        if problems := job.get("problems"):
            told += f", {problems:,} with problems"
    return told


def _where(job: Mapping[str, Any]) -> str:
    """` on gpu1 (slurm-12)`, or nothing if it is not known."""
    place = job.get("node") or job.get("host")
    batch = f" ({job['job']})" if job.get("job") else ""
    return f" on {place}{batch}" if place else ""


def _field(answer: Mapping[str, Any]) -> Sequence[str]:
    """What a model said of one field, and what it took."""
    text = f"{answer['field']}: {answer['status']}"
    if "kind" in answer:
        text += f", {answer['kind']}: {answer.get('message') or ''}".rstrip(": ")
    cost = []
    if answer.get("attempts"):
        cost.append("1 attempt" if answer["attempts"] == 1 else f"{answer['attempts']} attempts")
    if answer.get("seconds") is not None:
        cost.append(f"{answer['seconds']:.1f} s")
    tokens = (answer.get("prompt_tokens") or 0) + (answer.get("completion_tokens") or 0)
    if tokens:
        cost.append(f"{tokens:,} tokens")
    if answer.get("inherited_from"):
        cost.append(f"asked of {answer['inherited_from']}")
    if cost:
        text += f" ({', '.join(cost)})"
    return [text, answer["what_to_do"]] if "what_to_do" in answer else [text]
