"""A run on a machine with two GPUs, which are only names here: jobs have one each."""

import re
from dataclasses import dataclass
from itertools import combinations

from workflow.library import Library

HELD = re.compile(r"GPU (\S+): ([0-9.]+) to ([0-9.]+)")


@dataclass(frozen=True)
class Held:
    gpu: str
    begin: float
    end: float

    def overlaps(self, other: "Held") -> bool:
        return self.begin < other.end and other.begin < self.end


def held(library: Library) -> list[Held]:
    """What the jobs' logs say about the GPUs they had."""
    logs = library.results / "logs"
    text = "".join(path.read_text() for path in logs.rglob("*.log"))
    return [Held(gpu, float(begin), float(end)) for gpu, begin, end in HELD.findall(text)]


def test_jobs_share_out_the_gpus(library: Library, tmp_path):
    library.settings |= {
        "CUDA_VISIBLE_DEVICES": "0,1",
        "PHOTO_TAGGER__CLIP__DEVICE": "cuda",
        "PHOTO_TAGGER__SERVERS__RUN_DIR": str(tmp_path / "run"),
    }
    # More jobs than GPUs may run at a time, so that it is not the limit which keeps them apart.
    limits = ("--resources", "gpu=3", "asking=1", "--set-threads", "embed=1", "labels=1")
    library.snakemake("embed_all", "results/labels/labels.json", *limits, "--cores", "3")
    found = held(library)
    assert {each.gpu for each in found} == {"0", "1"}
    pairs = list(combinations(found, 2))
    assert [
        pair for pair in pairs if pair[0].gpu == pair[1].gpu and pair[0].overlaps(pair[1])
    ] == []
    assert any(one.overlaps(other) for one, other in pairs)  # both were used at the same time
