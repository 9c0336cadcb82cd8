"""Snakemake logger plugin: what happens in a run, one JSON object per line.

    snakemake --logger phototagger --logger-phototagger-path events.jsonl

Every line has `time` (seconds since the epoch) and `event`; see `_FIELDS` for the rest. Warnings
and errors that belong to no event are `event: message`. Snakemake's own console output stays.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from logging import WARNING, LogRecord
from pathlib import Path
from typing import Any

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent
from snakemake_interface_logger_plugins.settings import LogHandlerSettingsBase


@dataclass
class LogHandlerSettings(LogHandlerSettingsBase):
    path: str = field(
        default="results/logs/events.jsonl",
        metadata={"help": "File that gets one JSON object per event"},
    )


# JSON name -> attribute of the log record; the attributes are not uniform between events
_JOB = {"job": "jobid", "rule": "rule_name", "wildcards": "wildcards", "log": "log"}
_FIELDS: dict[str, dict[str, str]] = {
    LogEvent.RUN_INFO: {"jobs": "stats"},
    LogEvent.JOB_INFO: {**_JOB, "reason": "reason"},
    LogEvent.JOB_STARTED: {"jobs": "jobs"},
    LogEvent.JOB_FINISHED: {"job": "job_id"},
    LogEvent.JOB_ERROR: {**_JOB, "said": "rule_msg"},  # what the batch system said, if one did
    LogEvent.GROUP_ERROR: {"group": "groupid"},
    LogEvent.PROGRESS: {"done": "done", "total": "total"},
    LogEvent.ERROR: {"exception": "exception"},
}


class LogHandler(LogHandlerBase):
    """Writes events to `settings.path`, each line at once, so that a reader can follow."""

    def __post_init__(self) -> None:
        path = Path(self.settings.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", buffering=1, encoding="utf-8", errors="backslashreplace")

    def emit(self, record: LogRecord) -> None:
        try:
            line = describe(record)
            if line:
                self._file.write(json.dumps(line) + "\n")
        except Exception:  # as logging wants it: a broken log never stops the work
            self.handleError(record)

    def close(self) -> None:
        self._file.close()
        super().close()

    @property
    def writes_to_stream(self) -> bool:
        return False  # not to the console, so that Snakemake keeps its own handler

    @property
    def writes_to_file(self) -> bool:
        return False  # not a log file in Snakemake's sense, to be named to the user

    @property
    def has_filter(self) -> bool:
        return True  # the default filter would drop events under --quiet

    @property
    def has_formatter(self) -> bool:
        return True

    @property
    def needs_rulegraph(self) -> bool:
        return False


def describe(record: LogRecord) -> dict[str, Any] | None:
    """The JSON object for a log record, None if nobody needs to know."""
    event = getattr(record, "event", None)
    if event in _FIELDS:
        values = {
            name: _plain(getattr(record, attribute, None))
            for name, attribute in _FIELDS[event].items()
        }
        if event == LogEvent.GROUP_ERROR:
            members = getattr(record, "job_error_info", None) or ()
            values["jobs"] = [member.get("jobid") for member in members]
        if record.levelno >= WARNING:
            values["message"] = record.getMessage()
        return {"time": round(record.created, 3), "event": str(event), **values}
    if event is None and record.levelno >= WARNING:
        return {
            "time": round(record.created, 3),
            "event": "message",
            "message": record.getMessage(),
        }
    return None


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Iterable):
        return [_plain(item) for item in value]
    return str(value)
