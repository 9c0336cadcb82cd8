"""Where things lie on this machine: `results/plan/machine.json`.

Everything here may differ between two machines (or mount points) without making any result stale:
jobs read it when they run, and no rule declares it. What shapes a result is a rule's param instead.
What lies in the clone is looked for in the clone that the reader runs from, so that a job in a
container finds it where the image has it.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from phototagger import CLONE
from phototagger.files import write_if_changed
from phototagger.plan import Root, Roots

PATH = Path("results/plan/machine.json")


@dataclass(frozen=True)
class Servers:
    """How model servers are reached and started; meanings of the keys are in the schema."""

    base_url: tuple[str, ...] = ()
    api_key_env: str | None = None
    concurrency: int | None = None
    timeout: float = 120
    retries: int = 6
    busy_budget: float = 300
    port: int | None = None
    start_timeout: float | None = None
    idle: float = 30
    run_dir: str | None = None
    preflight: bool = True
    gpu_model: str | None = None


@dataclass(frozen=True)
class Machine:
    """Folders and devices of this machine."""

    roots: Roots
    cache: Path  # kept thumbnails and embeddings; may be deleted at any time
    models: Path  # one folder per CLIP model
    labels: Path  # the label file or pack
    device: str  # auto, cpu or cuda
    batch_size: int | None  # images per forward pass; None: what suits the device
    servers: Servers = Servers()
    scratch: str | None = None  # on a node's own disk, its variables not yet expanded
    stored: str | None = None  # s3://... below which the results go, instead of into files

    @classmethod
    def load(cls, path: Path | str = PATH) -> "Machine":
        data = json.loads(Path(path).read_text("utf-8"))
        roots = [Root(r["name"], r["path"], r["only"] and tuple(r["only"])) for r in data["roots"]]
        clone = data.get("clone", str(CLONE))
        return cls(
            Roots(roots),
            Path(data["cache"]),
            _in_this_clone(data["models"], clone),
            _in_this_clone(data["labels"], clone),
            data["device"],
            data["batch_size"],
            Servers(**data["servers"] | {"base_url": tuple(data["servers"]["base_url"])}),
            data.get("scratch"),
            data.get("stored"),
        )

    def write(self, path: Path = PATH) -> None:
        data = asdict(self) | {"roots": [asdict(root) for root in self.roots.roots]}
        data["clone"] = str(CLONE)
        write_if_changed(path, json.dumps(data, indent=1, default=str) + "\n")


def _in_this_clone(path: str, clone: str) -> Path:
    """A path of the clone that wrote it (`clone`) in ours; any other as it is."""
    place = Path(path)
    return CLONE / place.relative_to(clone) if place.is_relative_to(clone) else place
