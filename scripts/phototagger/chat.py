"""Asking model servers: chat completions over HTTP, many at a time, on one or several servers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Question:
    """One chat completion about one picture (or none)."""

    system: str
    user: str
    image: str | None  # data URL
    schema: Mapping[str, Any] | None  # of the answer; asked for in the setup's way
    max_tokens: int
    temperature: float
    top_p: float
    seed: int


@dataclass(frozen=True)
class Reply:
    """What came back with HTTP 200 and a choice; nothing about it is judged yet."""

    text: str  # reasoning left out; may be empty
    finish_reason: str  # stop, length ...
    model: str  # as the server called it
    fingerprint: str | None  # system_fingerprint
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None
    seconds: float  # of the request that succeeded
    attempts: int  # requests it took
    refusal: str | None = None
