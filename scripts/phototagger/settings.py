"""The settings every rule was last run with, for the day Snakemake's own memory is lost.

Snakemake compares params with what `.snakemake/metadata` says of an output. Without that folder
(deleted, or left behind when results were copied) a changed param goes unnoticed. So a run that
reached `check` writes a digest of every rule's params to `results/plan/settings.json`; and where
the metadata is gone, outputs of rules with other settings are made older than their inputs.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from phototagger import runtoken
from phototagger.files import explained, write_if_changed
from phototagger.job import read_counts

SETTINGS = Path("results/plan/settings.json")
CHECK = Path("results/check.json")
COUNTS = Path("results/logs/check.json")
METADATA = Path(".snakemake/metadata")
LONG_AGO = 1.0  # seconds after the epoch; 0 would mean "no time" to some programs


def digests(rules: Iterable[Any], by_wildcards: Mapping[str, str]) -> dict[str, str]:
    """Digest of each rule's params. Of those that depend on wildcards, the digests of listings are
    left out (a changed listing is newer than what was made of it); others are in `by_wildcards`."""
    return {
        rule.name: _digest([*rule.params.items(), ("", by_wildcards.get(rule.name))])
        for rule in rules
        if rule.params
    }


@explained()
def remember(
    rules: Iterable[Any],
    by_wildcards: Mapping[str, str],
    started: float,
    token: str | None = None,
) -> None:
    """Note the settings, if the run since `started`, with that token (see `runtoken`), brought
    everything up to date."""
    if not CHECK.exists():
        return
    if runtoken.belongs(read_counts(COUNTS), CHECK.stat().st_mtime, token, started):
        content = json.dumps(digests(rules, by_wildcards), indent=1, sort_keys=True) + "\n"
        write_if_changed(SETTINGS, content)


def age_what_was_forgotten(rules: Iterable[Any], by_wildcards: Mapping[str, str]) -> list[str]:
    """Without metadata, make outputs of rules with changed settings stale; names those rules."""
    rules = list(rules)
    if METADATA.is_dir() and any(METADATA.iterdir()):
        return []
    try:
        before = json.loads(SETTINGS.read_text("utf-8"))
    except (OSError, ValueError):
        before = {}
    changed = {
        name for name, digest in digests(rules, by_wildcards).items() if before.get(name) != digest
    }
    # An output of a rule without inputs has nothing to be older than, and Snakemake makes it again
    # only for somebody who asks: so it goes, and what was made of it is stale, too.
    gone = {
        str(out) for rule in rules if rule.name in changed and not rule.input for out in rule.output
    }
    changed |= {rule.name for rule in rules if gone & {str(path) for path in rule.input}}
    for rule in rules:
        if rule.name in changed:
            for path in outputs_of(rule):
                path.unlink() if str(path) in gone else os.utime(path, (LONG_AGO, LONG_AGO))
    return sorted(changed)


def _digest(params: Iterable[tuple[str, Any]]) -> str:
    fixed = sorted((name, repr(value)) for name, value in params if not callable(value))
    return hashlib.sha256(repr(fixed).encode()).hexdigest()[:16]


def outputs_of(rule: Any) -> Iterable[Path]:
    """Those that are there."""
    for pattern in rule.output:
        yield from Path().glob(re.sub(r"\{[^/]*\}", "*", str(pattern)))  # constraints included
