"""What model servers said, kept by content: one file per request, whole or not there."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from phototagger.chat import Reply
from phototagger.files import keep


@dataclass(frozen=True)
class Kept:
    """A reply, and who gave it."""

    reply: Reply
    server: str | None


class Replies:
    """Kept replies, `ab/<key>.json`: the request (without the picture) and the reply."""

    def __init__(self, folder: Path):
        self._folder = folder
        self.writable = True  # until it has turned out that it may only be read

    def path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.json"

    def get(self, key: str) -> Kept | None:
        """None if it is not known or the file is damaged."""
        try:
            data = json.loads(self.path(key).read_bytes())
            return Kept(Reply(**data["reply"]), data["server"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, key: str, request: Mapping[str, Any], kept: Kept) -> None:
        content = {"request": request, "reply": asdict(kept.reply), "server": kept.server}
        text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
        self.writable = keep(self.path(key), text)
