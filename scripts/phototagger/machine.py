"""Where things lie on this machine: `results/plan/machine.json`.

Everything here may differ between two machines (or mount points) without making any result stale:
jobs read it when they run, and no rule declares it. What shapes a result is a rule's param instead.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

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

    @classmethod
    def load(cls, path: Path | str = PATH) -> "Machine":
        data = json.loads(Path(path).read_text("utf-8"))
        roots = [Root(r["name"], r["path"], r["only"] and tuple(r["only"])) for r in data["roots"]]
        return cls(
            Roots(roots),
            Path(data["cache"]),
            Path(data["models"]),
            Path(data["labels"]),
            data["device"],
            data["batch_size"],
            Servers(**data["servers"] | {"base_url": tuple(data["servers"]["base_url"])}),
        )

    def write(self, path: Path = PATH) -> None:
        data = asdict(self) | {"roots": [asdict(root) for root in self.roots.roots]}
        write_if_changed(path, json.dumps(data, indent=1, default=str) + "\n")
