"""How fast each stage was: read from the counts that jobs leave beside their logs, kept per run in
`results/metrics.json`.
"""

import json
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from phototagger.files import write_atomic

STAGES = ("thumbs", "embed", "score", "record", "sidecars")  # rules with a job per shard, in order

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


class RunFacts(Protocol):
    """What `append_metrics` needs to know about a run (see `workflow.Run`)."""

    started: float
    run_id: str
    config: Any


def append_metrics(run: RunFacts, results: Path = Path("results")) -> None:
    """Add this run to the history in `results/metrics.json`.

    A history that cannot be read is kept aside as `metrics.json.corrupt-N`, with a warning.
    """
    path = results / "metrics.json"
    entry = {
        "run_id": run.run_id,
        "model": run.config.clip.model,
        "started": _timestamp(run.started),
        "seconds": round(time.time() - run.started, 3),
        "stages": {
            name: asdict(stage) for name, stage in stages_since(results, run.started).items()
        },
    }
    history = [*_read_history(path), entry]
    content = {"history": history, "last": entry}
    write_atomic(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def stages_since(results: Path, started: float) -> dict[str, Stage]:
    """Totals per rule of the jobs that finished after `started` (seconds since the epoch).

    Shard stages come first, in the order of the pipeline, then the other rules by name.
    """
    spans: dict[str, list[tuple[float, float]]] = {}
    stages: dict[str, Stage] = {}
    for rule, finished, counts in _finished_jobs(results / "logs", started):
        stage = stages.setdefault(rule, Stage())
        stage.jobs += 1
        for name in ("photos", "computed", "cached", "problems", "skipped"):
            setattr(stage, name, getattr(stage, name) + counts.get(name, 0))
        ahead = counts.get("extra", {}).get("ahead", 0)  # computed here, found cached by others
        stage.computed += ahead
        stage.cached -= ahead
        spans.setdefault(rule, []).append((finished - counts.get("seconds", 0.0), finished))
    for rule, stage in stages.items():
        stage.seconds = round(covered(spans[rule]), 3)
        stage.photos_per_second = round(stage.photos / max(stage.seconds, 0.001), 1)
    return {rule: stages[rule] for rule in sorted(stages, key=_pipeline_order)}


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals: parallel jobs are not counted twice."""
    total, end = 0.0, float("-inf")
    for low, high in sorted(spans):
        total += max(0.0, high - max(low, end))
        end = max(end, high)
    return total


def _finished_jobs(logs: Path, started: float) -> Iterator[tuple[str, float, dict[str, Any]]]:
    for path in [*logs.glob("*.json"), *logs.glob("*/*.json")]:
        try:
            finished = path.stat().st_mtime
            counts = json.loads(path.read_text("utf-8")) if finished >= started else {}
        except (OSError, ValueError):
            continue  # pruned meanwhile, or not one of ours
        if isinstance(counts, dict) and counts.get("finished"):
            yield (path.stem if path.parent == logs else path.parent.name), finished, counts


def _pipeline_order(rule: str) -> tuple[int, str]:
    return (STAGES.index(rule) if rule in STAGES else len(STAGES)), rule


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
