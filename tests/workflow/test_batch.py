"""A library in batches, as docs/performance.md recommends beyond a million photos."""

import re


def test_a_batch_is_a_part_of_the_shards_and_nothing_else(library):
    library.settings["PHOTO_TAGGER__PLAN__SHARD_SIZE"] = "16"
    planned = library.snakemake("--dry-run", "sidecars_all", "--batch", "sidecars_all=1/3")
    output = planned.stdout + planned.stderr
    read = set(re.findall(r"Read the photos of shard ([0-9a-f]{10})", output))
    proposed = set(re.findall(r"Propose the sidecars of shard ([0-9a-f]{10})", output))
    shards = {path.stem for path in (library.results / "plan/shards").glob("*.tsv")}
    assert read == proposed
    assert read < shards
    assert abs(len(read) - len(shards) / 3) < 1
    assert "Collect the records" not in output
    assert "the photo that stands for each folder" not in output
