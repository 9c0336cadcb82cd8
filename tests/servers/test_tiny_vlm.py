"""The tests' model: the same bytes everywhere, and a real server takes it."""

import base64
import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from PIL import Image

from phototagger import tiny_vlm as tiny
from phototagger.files import sha256_file
from phototagger.server import Served

DIGESTS = {
    "model.safetensors": "b47bf942",
    "model.gguf": "37e87857",
    "mmproj.gguf": "89094e3e",
    "tokenizer.json": "343ee05f",
    "config.json": "3dbab534",
    "preprocessor_config.json": "e61f8436",
    "chat_template.jinja": "36bdec0c",
}
SCHEMA = {
    "type": "object",
    "properties": {
        "caption": {"type": "string", "maxLength": 60},
        "tags": {"type": "array", "items": {"enum": ["beach", "city", "dog"]}, "maxItems": 3},
    },
    "required": ["caption", "tags"],
    "additionalProperties": False,
}
HTTP = httpx.Client(timeout=60, trust_env=False)


def picture(shade: int = 0) -> str:
    file = io.BytesIO()
    Image.linear_gradient("L").point(lambda v: (v + shade) % 256).convert("RGB").save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def ask(served: Served, image: str | None = None, **options: object) -> dict:
    """One chat completion, as the server answers it."""
    parts = [{"type": "text", "text": "Describe the photo."}]
    if image:
        parts.insert(0, {"type": "image_url", "image_url": {"url": image}})
    body = {"model": served.model, "messages": [{"role": "user", "content": parts}]}
    body |= {"max_tokens": 32, "seed": 1, "temperature": 0} | options
    url = f"{served.base_urls[0]}/chat/completions"
    answer = HTTP.post(url, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def text_of(answer: dict) -> str:
    return answer["choices"][0]["message"]["content"]


def test_files_are_those_of_the_recipe(tiny_vlm: Path):
    folder = tiny_vlm / tiny.NAME
    found = {name: sha256_file(folder / name)[:8] for name in DIGESTS}
    assert found == DIGESTS


def test_build_is_kept_and_repaired(tmp_path: Path):
    folder = tiny.build(tmp_path / "sub" / "tiny-vlm")
    weights = folder / "model.gguf"
    before = weights.stat().st_mtime_ns
    tiny.build(folder)
    assert weights.stat().st_mtime_ns == before
    weights.write_bytes(b"cut")
    tiny.build(folder)
    assert sha256_file(weights).startswith(DIGESTS["model.gguf"])
    assert [path.name for path in folder.parent.iterdir()] == ["tiny-vlm"]


def test_build_by_several_at_once(tmp_path: Path):
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(tiny.build, [tmp_path / "tiny-vlm"] * 4))
    assert folders == {tmp_path / "tiny-vlm"}
    assert sha256_file(tmp_path / "tiny-vlm/mmproj.gguf").startswith(DIGESTS["mmproj.gguf"])
    assert [path.name for path in tmp_path.iterdir()] == ["tiny-vlm"]


def test_failed_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(tiny, "_write_gguf_vision", fail)
    with pytest.raises(OSError, match="disk full"):
        tiny.build(tmp_path / "tiny-vlm")
    assert list(tmp_path.iterdir()) == []


def test_server_sees_the_picture(served: Served):
    blind, first, second = (ask(served, image) for image in (None, picture(), picture(128)))
    assert first["usage"]["prompt_tokens"] > blind["usage"]["prompt_tokens"] + 10
    assert text_of(first) != text_of(second)
    assert text_of(ask(served, picture())) == text_of(first)


def test_answers_under_a_schema_end_by_themselves(served: Served):
    form = {"type": "json_schema", "json_schema": {"name": "photo", "schema": SCHEMA}}
    for seed in range(8):
        answer = ask(
            served, picture(), seed=seed, temperature=0.7, max_tokens=256, response_format=form
        )
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert set(json.loads(text_of(answer))) == {"caption", "tags"}
