"""The Snakemake logger plugin: records in, JSON lines out."""

import json
import logging
from pathlib import Path

import pytest
from snakemake_interface_logger_plugins.common import LogEvent
from snakemake_interface_logger_plugins.registry import LoggerPluginRegistry
from snakemake_logger_plugin_phototagger import LogHandler, LogHandlerSettings, describe


def record(level: int = logging.INFO, message: str | None = None, **fields) -> logging.LogRecord:
    return logging.makeLogRecord({"levelno": level, "msg": message, "created": 12.3456, **fields})


def test_snakemake_finds_the_plugin():
    assert LoggerPluginRegistry().get_plugin("phototagger").name == "phototagger"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            {"event": LogEvent.RUN_INFO, "stats": {"thumbs": 2, "total": 2}},
            {"time": 12.346, "event": "run_info", "jobs": {"thumbs": 2, "total": 2}},
        ),
        (
            {
                "event": LogEvent.JOB_INFO,
                "jobid": 3,
                "rule_name": "thumbs",
                "wildcards": {"shard": "ab"},
                "log": [Path("results/logs/thumbs/ab.log")],
                "reason": "Missing output files",
            },
            {
                "time": 12.346,
                "event": "job_info",
                "job": 3,
                "rule": "thumbs",
                "wildcards": {"shard": "ab"},
                "log": ["results/logs/thumbs/ab.log"],
                "reason": "Missing output files",
            },
        ),
        (
            {"event": LogEvent.JOB_FINISHED, "job_id": 3},
            {"time": 12.346, "event": "job_finished", "job": 3},
        ),
        (
            {"event": LogEvent.ERROR, "exception": "E", "level": logging.ERROR, "message": "no"},
            {"time": 12.346, "event": "error", "exception": "E", "message": "no"},
        ),
        (
            {"level": logging.WARNING, "message": "careful"},
            {"time": 12.346, "event": "message", "message": "careful"},
        ),
        (
            {"event": LogEvent.JOB_ERROR, "jobid": 3, "rule_name": "thumbs", "rule_msg": "TIMEOUT"},
            {
                "time": 12.346,
                "event": "job_error",
                "job": 3,
                "rule": "thumbs",
                "wildcards": None,
                "log": None,
                "said": "TIMEOUT",
            },
        ),
        (
            {"event": LogEvent.GROUP_ERROR, "groupid": "g", "job_error_info": [{"jobid": 3}]},
            {"time": 12.346, "event": "group_error", "group": "g", "jobs": [3]},
        ),
        ({"message": "Building DAG of jobs..."}, None),
        ({"event": LogEvent.SHELLCMD, "shellcmd": "true"}, None),
    ],
)
def test_what_is_kept_of_a_record(given, expected):
    assert describe(record(**given)) == expected


def test_every_line_is_there_at_once_and_is_json(tmp_path):
    path = tmp_path / "logs/events.jsonl"
    handler = LogHandler(None, LogHandlerSettings(path=str(path)))
    handler.emit(record(event=LogEvent.PROGRESS, done=1, total=2))
    handler.emit(record(level=logging.ERROR, message="caf\udce9\nnext"))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    handler.close()
    assert [line["event"] for line in lines] == ["progress", "message"]
    assert lines[1]["message"] == "caf\udce9\nnext"
