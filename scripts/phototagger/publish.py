"""Publishing the proposed metadata: what would be written, writing it, and taking it back.

    library = Library.load()
    for item in compare(library, Options()): ...
    outcome = apply(library, Options(), report)
    undo(library.results, outcome.changeset)

The parts are in `comparing` (decides), `applying` (writes) and `undoing`; the record of what was
changed is a `changeset`.
"""

from phototagger.applying import Outcome, apply
from phototagger.comparing import Options, Planned, Refused, Report, compare
from phototagger.library import Library
from phototagger.undoing import Restored, pending, undo

__all__ = [
    "Library",
    "Options",
    "Outcome",
    "Planned",
    "Refused",
    "Report",
    "Restored",
    "apply",
    "compare",
    "pending",
    "undo",
]
