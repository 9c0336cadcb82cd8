"""Runs of the pipeline on the tests' cluster, as a person starts them, and what they asked for."""

import hashlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from workflow.library import Library

from phototagger import CLONE

PYTHON = CLONE / ".venv-cluster/bin/python"
# Looks at jobs often, and waits for no file server: there is none between these nodes.
PATIENCE = {
    "slurm": ("--slurm-init-seconds-before-status-checks", "1", "--latency-wait", "10"),
    "slurm-generic": ("--seconds-between-status-checks", "1", "--latency-wait", "10"),
}

LAUNCHED: list[subprocess.Popen[str]] = []


def end_all() -> None:
    """Kill the runs that a failed test left; they would submit jobs to the next test's cluster."""
    for run in LAUNCHED:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
    LAUNCHED.clear()


@dataclass
class OnSlurm(Library):
    """A library that is run with `snakemake --profile profiles/<profile>`."""

    profile: str = "slurm"
    options: tuple[str, ...] = ()
    environ: dict[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        return super().environment() | self.environ

    def command(self, *arguments: str) -> list[str]:
        if not PYTHON.exists():
            pytest.skip("no executors for clusters; run: make cluster")
        return [
            *(str(PYTHON), "-m", "snakemake", "--snakefile", str(self.clone / "Snakefile")),
            *(
                "--directory",
                str(self.work),
                "--profile",
                str(self.clone / "profiles" / self.profile),
            ),
            *PATIENCE[self.profile],
            *self.options,
            *arguments,
        ]

    def launch(self, *arguments: str) -> subprocess.Popen[str]:
        """A run that goes on while the test does something; its output is in `output`."""
        return self._launch(self.command(*arguments))

    def launch_as_typed(self) -> subprocess.Popen[str]:
        """The same by `photo-tagger run --profile ...`."""
        words = self._photo_tagger("run", str(self.photos), "--profile", self.profile)
        return self._launch([*words, "--", *PATIENCE[self.profile], *self.options])

    def _launch(self, command: list[str]) -> subprocess.Popen[str]:
        self.work.mkdir(parents=True, exist_ok=True)
        with self.output.open("w") as output:
            run = subprocess.Popen(
                command,
                env=self.environment(),
                stdout=output,
                stderr=output,
                text=True,
                start_new_session=True,
            )
        LAUNCHED.append(run)
        return run

    def photo_tagger(self, *arguments: str) -> str:
        """What `photo-tagger` prints."""
        result = subprocess.run(
            self._photo_tagger(*arguments), env=self.environment(), capture_output=True, text=True
        )
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-6000:]
        return result.stdout

    def _photo_tagger(self, *arguments: str) -> list[str]:
        """The command of the environment that `make cluster` makes."""
        return [str(PYTHON), "-m", "phototagger.cli", *arguments, "--workdir", str(self.work)]

    @property
    def output(self) -> Path:
        return self.work / "run.log"

    def finish(self, run: subprocess.Popen[str], seconds: float = 600) -> None:
        assert run.wait(seconds) == 0, self.output.read_text()[-6000:]

    def counts(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The rule and the counts of every job."""
        logs = self.results / "logs"
        for path in logs.rglob("*.json"):
            rule = path.relative_to(logs).parts[0].removesuffix(".json")
            if rule != "servers":
                yield rule, json.loads(path.read_text())


def apart_from_seconds(library: Library) -> dict[str, str]:
    """SHA-256 of every promised file, as if every answer had taken the same time."""
    found = library.promised()
    for name in found:
        path = library.results / name
        if path.suffix == ".jsonl":
            text = re.sub(r'"seconds": [0-9.e-]+', '"seconds": 0', path.read_text("utf-8"))
            found[name] = hashlib.sha256(text.encode()).hexdigest()
    return found
