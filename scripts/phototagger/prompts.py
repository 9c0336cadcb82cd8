"""Prompt profiles: what a model is asked for each field of a photo (`config/prompts/*.yaml`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FIELDS = ("caption", "keywords", "description")  # in the order in which they are asked for


@dataclass(frozen=True)
class Prompt:
    """One field of a profile."""

    field: str
    system: str
    user: str  # a Jinja template, rendered in a sandbox
    schema: Mapping[str, Any]  # JSON Schema of the answer, an object with the field as a property
    max_tokens: int
    temperature: float
    top_p: float
    max_chars: int | None = None  # of a caption or description
    max_keywords: int | None = None


@dataclass(frozen=True)
class Profile:
    name: str
    description: str
    prompts: Mapping[str, Prompt]  # by field
