"""What a person decided about photos: `results/review/decisions.jsonl`.

One line per decision, the last one of a photo counts:

    {"sha256": ..., "decision": "approved" | "rejected", "proposal": SHA-256 or null, ...}

`proposal` is the sidecar of `results/sidecars/` that was reviewed, by the SHA-256 of its bytes;
null if there was none. Other keys are the reviewer's. What a photo is known by is its picture (see
`aliases`), so a decision outlives a rename, an embedding and its undo; an approval holds for what
was approved, and for no later proposal.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from phototagger.errors import UserError, one_of

PATH = Path("review/decisions.jsonl")  # below the results
APPROVED, REJECTED = "approved", "rejected"

_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Decision:
    decision: str  # approved or rejected
    proposal: str | None


@dataclass(frozen=True)
class Decisions:
    """The last decision about each photo, by the SHA-256 of its picture."""

    by_photo: Mapping[str, Decision]

    def rejected(self, photo: str) -> bool:
        found = self.by_photo.get(photo)
        return found is not None and found.decision == REJECTED

    def approved(self, photo: str, proposal: str | None) -> bool:
        """Whether exactly this proposal was approved last."""
        return self.by_photo.get(photo) == Decision(APPROVED, proposal)


def read_decisions(results: Path, picture: Callable[[str], str] = str) -> Decisions:
    """The decisions below `results`; none if there is no such file.

    `picture` gives the SHA-256 of a photo's picture from the photo's (`Aliases.first`).

    Raises UserError naming the line that is no decision: one that is not understood could be a
    rejection.
    """
    path = results / PATH
    found: dict[str, Decision] = {}
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return Decisions(found)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); make it readable") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            photo, decision = _decision(line, f"{path}, line {number}")
            found[picture(photo)] = decision
    return Decisions(found)


def _decision(line: bytes, where: str) -> tuple[str, Decision]:
    try:
        entry = json.loads(line)
        if not isinstance(entry, dict):
            raise ValueError("not an object")
    except ValueError as error:  # also what is not UTF-8
        raise UserError(f"{where}: not JSON ({error}); mend or delete the line") from error
    kind, proposal = entry.get("decision"), entry.get("proposal")
    if kind not in (APPROVED, REJECTED):
        raise one_of(f"{where}, decision", kind, [APPROVED, REJECTED])
    _check_sha256(f"{where}, sha256", entry.get("sha256"))
    if proposal is not None:
        _check_sha256(f"{where}, proposal", proposal)
    return entry["sha256"], Decision(kind, proposal)


def _check_sha256(where: str, value: object) -> None:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise UserError(f"{where}: {value!r} is no SHA-256 (64 hexadecimal digits); mend the line")
