"""A model that sees: it answers the canary's questions from the pixels of the pictures it is sent.

Written against what the questions ask, with Pillow only; it does not know the answers.
"""

import base64
import json
from functools import cache
from io import BytesIO
from typing import Any

from PIL import Image, ImageChops, ImageDraw, ImageFont

HUES = {  # of saturated colours, on a scale of 0 to 255
    "red": range(-10, 12),
    "yellow": range(25, 48),
    "green": range(60, 110),
    "blue": range(150, 182),
    "purple": range(182, 225),
}


def answer(body: dict[str, Any]) -> str:
    """What such a model says to a chat completion request; also to a schema."""
    question, image = parts(body)
    if wanted := body.get("response_format"):
        word = wanted["json_schema"]["schema"]["properties"]["word"]["enum"][0]
        return json.dumps({"word": word})
    if image is None:
        return "READY"
    if "colour" in question:
        return f"The shape is {colour(image)}."
    if "dots" in question:
        return str(count(image))
    if "digit" in question:
        return digit(image)
    return "A simple picture."


def parts(body: dict[str, Any]) -> tuple[str, Image.Image | None]:
    """The text of the last message, and its picture."""
    content = body["messages"][-1]["content"]
    if isinstance(content, str):
        return content, None
    text = " ".join(part["text"] for part in content if part["type"] == "text")
    urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    if not urls:
        return text, None
    data = base64.b64decode(urls[0].partition(",")[2])
    return text, Image.open(BytesIO(data)).convert("RGB")


def colour(image: Image.Image) -> str:
    """Of what is not white: by the hue of most of it."""
    pixels = [
        p
        for p in image.resize((48, 48)).convert("HSV").get_flattened_data()
        if p[1] > 150 and p[2] > 80
    ]
    if not pixels:
        return "black"
    hues = sorted(hue if hue < 240 else hue - 256 for hue, _, _ in pixels)
    hue = hues[len(hues) // 2]
    return next((name for name, hues in HUES.items() if hue in hues), "unknown")


def count(image: Image.Image) -> int:
    """Connected dark areas, by flood filling them one by one."""
    dark = image.convert("L").point(lambda v: 0 if v < 128 else 255)
    found = 0
    while spot := ImageChops.invert(dark).getbbox():
        left, top, right, _ = spot
        x = next(x for x in range(left, right) if dark.getpixel((x, top)) == 0)
        ImageDraw.floodfill(dark, (x, top), 255)
        found += 1
    return found


def digit(image: Image.Image) -> str:
    """The digit that looks most like it when both are drawn to the same size."""
    seen = _shape(image)
    return min("0123456789", key=lambda d: _distance(seen, _drawn(d)))


@cache
def _drawn(character: str) -> tuple[Image.Image, float]:
    image = Image.new("RGB", (200, 200), "white")
    font = ImageFont.load_default(150)
    ImageDraw.Draw(image).text((100, 100), character, "black", font, anchor="mm")
    return _shape(image)


def _shape(image: Image.Image) -> tuple[Image.Image, float]:
    """The ink, scaled to a square, and how wide it was for its height."""
    ink = image.convert("L").point(lambda v: 255 if v < 128 else 0)
    left, top, right, bottom = ink.getbbox() or (0, 0, 1, 1)
    return ink.crop((left, top, right, bottom)).resize((32, 32)), (right - left) / (bottom - top)


def _distance(one: tuple[Image.Image, float], other: tuple[Image.Image, float]) -> float:
    difference = ImageChops.difference(one[0], other[0]).histogram()
    pixels = sum(value * number for value, number in enumerate(difference)) / (255 * 32 * 32)
    return pixels + abs(one[1] - other[1])
