"""How fast each stage was: read from the counts that jobs leave beside their logs, kept per run in
`results/metrics.json`.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from phototagger import runtoken
from phototagger.files import explained, write_atomic
from phototagger.job import read_counts
from phototagger.prompts import FIELDS

# Rules with a job per shard (describe: per setup and shard), in order.
STAGES = ("thumbs", "embed", "score", "describe", "record", "sidecars")

log = logging.getLogger(__name__)


@dataclass
class Stage:
    """Totals over the jobs of one rule within one run."""

    jobs: int = 0
    photos: int = 0
    computed: int = 0
    cached: int = 0
    problems: int = 0
    skipped: int = 0
    seconds: float = 0.0  # wall time in which at least one of its jobs ran
    photos_per_second: float = 0.0


@dataclass
class Asked:
    """Totals of one field (caption, keywords, description) over the jobs of one run."""

    setup: str | None = None
    done: int = 0
    cached: int = 0  # of those done: known already, nothing was asked
    failed: int = 0
    skipped: int = 0
    inherited: int = 0  # of those done or failed: another photo of the capture group was asked
    prompt_tokens: int = 0
    completion_tokens: int = 0
    busy: float = 0.0  # seconds from request to answer, added up over requests in flight
    seconds_p50: float | None = None  # per answer, None if nothing was asked
    seconds_p95: float | None = None

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass
class Describe(Stage):
    """The stage that asks model servers; its photos count once per setup."""

    requests: int = 0
    retries: dict[str, int] = field(default_factory=dict)  # by reason
    reseeds: int = 0  # asked again with another seed, after a useless answer
    server_failed: int = 0  # answers that a server failed on; the next run asks again
    raised: int = 0  # asked again with more tokens, after one that was cut off
    prompt_tokens: int = 0
    completion_tokens: int = 0
    fields: dict[str, Asked] = field(default_factory=dict)
    profile: str | None = None
    servers: dict[str, str | None] = field(default_factory=dict)  # setup -> version of its server
    models: dict[str, str] = field(default_factory=dict)  # setup -> model


class RunFacts(Protocol):
    """What `append_metrics` needs to know about a run (see `workflow.Run`)."""

    started: float
    token: str | None
    run_id: str
    config: Any


@explained()
def append_metrics(run: RunFacts, results: Path = Path("results")) -> None:
    """Add this run to the history in `results/metrics.json`.

    A history that cannot be read is kept aside as `metrics.json.corrupt-N`, with a warning.
    """
    path = results / "metrics.json"
    stages = stages_since(results, run.started, run.token)
    entry = {
        "run_id": run.run_id,
        "model": run.config.clip.model,
        **_asked_of(stages.get("describe"), run.config.clip.model),
        "started": _timestamp(run.started),
        "seconds": round(time.time() - run.started, 3),
        "stages": {name: asdict(stage) for name, stage in stages.items()},
    }
    history = [*_read_history(path), entry]
    content = {"history": history, "last": entry}
    write_atomic(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _asked_of(stage: Stage | None, clip: str) -> dict[str, Any]:
    """Setup and model per field, server versions per setup; empty if nothing was described."""
    stage = stage if isinstance(stage, Describe) else Describe()
    setups = {name: asked.setup for name, asked in stage.fields.items()}
    models = {name: stage.models[slug] for name, slug in setups.items() if slug in stage.models}
    return {
        "setup": setups,
        "profile": stage.profile,
        "server": stage.servers,
        "models": {"clip": clip, **models},
    }


def stages_since(results: Path, started: float, token: str | None = None) -> dict[str, Stage]:
    """Totals per rule of the finished jobs of the run with that token; without one, of those that
    finished after `started` (seconds since the epoch).

    Shard stages come first, in the order of the pipeline, then the other rules by name.
    """
    spans: dict[str, list[tuple[float, float]]] = {}
    stages: dict[str, Stage] = {}
    described: list[dict[str, Any]] = []
    for rule, finished, counts in _finished_jobs(results / "logs", started, token):
        stage = stages.setdefault(rule, Describe() if rule == "describe" else Stage())
        stage.jobs += 1
        _add(stage, counts, ("photos", "computed", "cached", "problems", "skipped"))
        extra = counts.get("extra", {})
        ahead = extra.get("ahead", 0)  # computed here, found cached by others
        stage.computed += ahead
        stage.cached -= ahead
        if rule == "describe":
            described.append(extra)
        spans.setdefault(rule, []).append((finished - counts.get("seconds", 0.0), finished))
    for rule, stage in stages.items():
        stage.seconds = round(covered(spans[rule]), 3)
        stage.cached = max(0, stage.cached)  # two jobs may have computed the same ahead
        stage.photos_per_second = round(stage.photos / max(stage.seconds, 0.001), 1)
        if isinstance(stage, Describe):
            _add_requests(stage, described)
    return {rule: stages[rule] for rule in sorted(stages, key=_pipeline_order)}


def _add(total: Any, counts: Mapping[str, Any], names: Iterable[str]) -> None:
    for name in names:
        setattr(total, name, getattr(total, name) + counts.get(name, 0))


def _add_requests(stage: Describe, jobs: Sequence[Mapping[str, Any]]) -> None:
    """Add up what the jobs say about requests, tokens and fields."""
    jobs = sorted(jobs, key=lambda extra: extra.get("setup") or "")
    retries: Counter[str] = Counter()
    latencies: dict[str, list[tuple[int, float, float]]] = {}
    for extra in jobs:
        _add(stage, extra, ("requests", "reseeds", "raised", "server_failed"))
        retries.update(extra.get("retries", {}))
        stage.profile = extra.get("profile") or stage.profile
        if setup := extra.get("setup"):
            stage.servers[setup] = extra.get("server") or stage.servers.get(setup)
            if model := extra.get("model"):
                stage.models[setup] = model
        for name, counts in extra.get("fields", {}).items():
            asked = stage.fields.setdefault(name, Asked(setup))
            tokens = ("prompt_tokens", "completion_tokens")
            _add(
                asked, counts, ("done", "cached", "failed", "skipped", "inherited", "busy", *tokens)
            )
            _add(stage, counts, tokens)
            p50, p95 = counts.get("seconds") or (None, None)
            if p50 is not None and p95 is not None:
                answers = max(1, counts.get("done", 0) - counts.get("cached", 0))
                latencies.setdefault(name, []).append((answers, p50, p95))
    stage.retries = dict(sorted(retries.items()))
    stage.fields = {name: stage.fields[name] for name in sorted(stage.fields, key=_field_order)}
    for name, asked in stage.fields.items():
        asked.busy = round(asked.busy, 3)
        if found := latencies.get(name):
            asked.seconds_p50, asked.seconds_p95 = quantile(found, 0.5), quantile(found, 0.95)


def quantile(jobs: Sequence[tuple[int, float, float]], q: float) -> float:
    """Estimate the q-quantile over jobs of which (answers, p50, p95) are known.

    Each job's distribution is taken as linear from 0 to its median and from there to its 95th
    percentile and beyond, so one job's figures come out as they are. Rounded to milliseconds.
    """
    wanted = q * sum(answers for answers, _, _ in jobs)
    low, high = 0.0, 2 * max(p95 for _, _, p95 in jobs) + 1e-3
    for _ in range(40):
        middle = (low + high) / 2
        below = sum(n * _share_below(middle, p50, p95) for n, p50, p95 in jobs)
        low, high = (middle, high) if below < wanted else (low, middle)
    return round(high, 3)


def _share_below(seconds: float, p50: float, p95: float) -> float:
    if seconds < p50:
        return 0.5 * seconds / p50
    return min(1.0, 0.5 + 0.45 * (seconds - p50) / max(p95 - p50, 1e-6))


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals: parallel jobs are not counted twice."""
    total, end = 0.0, float("-inf")
    for low, high in sorted(spans):
        total += max(0.0, high - max(low, end))
        end = max(end, high)
    return total


def _finished_jobs(
    logs: Path, started: float, token: str | None
) -> Iterator[tuple[str, float, dict[str, Any]]]:
    """Rule, time and counts of each: `<rule>.json`, `<rule>/<shard>.json`, `describe/<setup>/…`."""
    for path in [*logs.glob("*.json"), *logs.glob("*/*.json"), *logs.glob("describe/*/*.json")]:
        try:
            finished = path.stat().st_mtime
        except OSError:
            continue  # pruned meanwhile
        counts = read_counts(path)  # empty, too, if it is not one of ours
        if counts.get("finished") and runtoken.belongs(counts, finished, token, started):
            rule = path.relative_to(logs).parts[0]
            yield rule.removesuffix(".json"), finished, counts


def _pipeline_order(rule: str) -> tuple[int, str]:
    return (STAGES.index(rule) if rule in STAGES else len(STAGES)), rule


def _field_order(name: str) -> tuple[int, str]:
    return (FIELDS.index(name) if name in FIELDS else len(FIELDS)), name


def _read_history(path: Path) -> list[Any]:
    try:
        history = json.loads(path.read_text("utf-8"))["history"]
        if isinstance(history, list):
            return history
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, KeyError):
        pass
    number = 1
    while (aside := path.with_name(f"{path.name}.corrupt-{number}")).exists():
        number += 1
    path.rename(aside)
    log.warning("%s: is not a history of runs; kept as %s, a new one begins", path, aside.name)
    return []


def _timestamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
