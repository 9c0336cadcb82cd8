"""Model servers: started on demand, shared by the jobs of a machine, stopped when nobody uses them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Served:
    """A server that answered with the wanted model."""

    base_urls: tuple[str, ...]  # one; several if servers.base_url names several
    model: str  # what to send as `model`
    version: str | None  # of the server program, as far as it tells
    instance: str  # changes when the server is started again
    own: bool  # started by us, so it may be stopped by us
    log: Path | None = None  # what an own server prints
    info: Mapping[str, Any] = field(default_factory=dict)  # what /v1/models (and /props) said
