"""Model setups: how a known vision-language model is started and called (`registry/entries`)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ImageLimits:
    """The picture a model is shown."""

    max_edge: int = 1024  # pixels
    max_bytes: int | None = None  # of the encoded picture
    format: str = "jpeg"  # jpeg or png
    quality: int = 90


@dataclass(frozen=True)
class Setup:
    """What is known about a model and its server; the keys are described in the schema."""

    slug: str  # "adhoc-..." for a server that was named on the command line
    purpose: str  # tagging, or test: random weights
    backend: str  # vllm, lmdeploy, sglang, llama.cpp, ollama or openai
    model: str | None  # served name; None: the one that the server lists (ad hoc only)
    command: str | None  # the line that starts the server; None: somebody else starts it
    base_url: str  # ends in /v1
    health: str | None = None  # path from the server's root; None: /v1/models only
    start_timeout: float = 600  # seconds
    gpus: int = 0
    structured_output: str = "json_schema"  # json_schema, guided_json, json_object, format or none
    token_field: str = "max_tokens"  # or max_completion_tokens
    extra_body: Mapping[str, Any] = field(default_factory=dict)  # thinking off and the like
    image: ImageLimits = ImageLimits()
    concurrency: int | None = None
    canary: bool = True  # whether it has to prove that it sees pictures
    roles: Mapping[str, int] = field(default_factory=dict)  # role -> priority, the highest wins
    status: str = "unverified"  # success, failed or unverified
    adhoc: bool = False
    digest: str = ""  # SHA-256 of all that shapes an answer, 64 hex digits
    entry: Mapping[str, Any] = field(default_factory=dict)  # as in the file; {} if ad hoc
