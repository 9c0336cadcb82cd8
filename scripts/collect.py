"""Rule `collect`: join the shards' records and problems, in the order of the plan.

Bytes are copied as they are, so memory does not grow with the library.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from phototagger.errors import UserError
from phototagger.files import CHUNK, open_atomic
from phototagger.job import Stats, job
from phototagger.records import PROBLEM_COLUMNS

_HEADER = (",".join(PROBLEM_COLUMNS) + "\n").encode()


def collect(
    records: Sequence[Path],
    problems: Sequence[Path],
    records_output: Path,
    problems_output: Path,
    *,
    stats: Stats | None = None,
) -> None:
    """Concatenate the shards' files; of the tables of problems the header stays once.

    Raises UserError for a table of problems with other columns.
    """
    stats = stats or Stats()
    with open_atomic(records_output, "wb") as output:
        for path in records:
            with path.open("rb") as file:
                shutil.copyfileobj(file, output, CHUNK)
    with open_atomic(problems_output, "wb") as output:
        output.write(_HEADER)
        for path in problems:
            with path.open("rb") as file:
                if file.readline() != _HEADER:
                    raise UserError(f"{path}: not a table of problems; delete it and run again")
                shutil.copyfileobj(file, output, CHUNK)
    stats.extra["shards"] = len(records)


if __name__ == "__main__":
    with job(snakemake) as stats:
        collect(
            [Path(path) for path in snakemake.input.records],
            [Path(path) for path in snakemake.input.problems],
            Path(snakemake.output.records),
            Path(snakemake.output.problems),
            stats=stats,
        )
