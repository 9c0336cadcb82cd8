"""A work directory whose run has proposed sidecars: what is published from."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from phototagger import plan
from phototagger.errors import UserError
from phototagger.machine import Machine
from phototagger.manifest import Proposed, read_manifest

AGAIN = "photo-tagger run"


@dataclass(frozen=True)
class Library:
    """A work directory whose run has proposed sidecars."""

    machine: Machine
    results: Path
    extensions: tuple[str, ...]
    run_id: str
    fields: Mapping[str, bool] = field(default_factory=dict)  # `metadata.fields` of the run

    @classmethod
    def load(cls, results: Path = Path("results")) -> "Library":
        """Raises UserError when there are no proposals."""
        try:
            machine = Machine.load(results / "plan/machine.json")
            frozen = json.loads((results / "audit/config.json").read_text("utf-8"))
            config, run_id = frozen["config"], frozen["run_id"]
            extensions = config["photos"]["extensions"]
            fields = config.get("metadata", {}).get("fields", {})
        except FileNotFoundError as error:
            raise _nothing(results) from error
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(f"{results}: damaged ({error}); `{AGAIN}` again") from error
        if places := machine.roots.in_buckets:
            raise UserError(
                f"{places[0]}: photos in a bucket are only read, nothing is written beside them; "
                "the proposed sidecars are in results/sidecars"
            )
        return cls(machine, results, tuple(extensions), run_id, fields)

    @cached_property
    def manifests(self) -> list[Path]:
        """In path order. Raises UserError when there are none."""
        folder = self.results / "sidecars-manifest"
        try:
            shards, _ = plan.read_index(self.results / "plan/index.json")
        except FileNotFoundError as error:
            raise _nothing(self.results) from error
        found = [folder / f"{shard.name}.tsv" for shard in shards]
        found = [path for path in found if path.exists()]
        if shards and not found:
            raise _nothing(self.results)
        return found

    def rows(self) -> Iterator[Proposed]:
        for manifest in self.manifests:
            yield from read_manifest(manifest)

    @cached_property
    def leaders(self) -> dict[str, str]:
        """Photos that were not described themselves -> the one of their capture that was."""
        return {row.rel_path: row.leader for row in self.rows() if row.leader != row.rel_path}


def _nothing(results: Path) -> UserError:
    return UserError(f"{results}: nothing is proposed yet; run `photo-tagger run` first")
