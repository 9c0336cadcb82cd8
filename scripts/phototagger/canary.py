"""Pictures that only a model which really sees them can answer for.

Three questions, asked in two rounds about pictures made on the spot: the colour of a shape, how
many dots, which digit. The two rounds never share an answer, so a model that says the same each
time cannot get both.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

KINDS = ("colour", "dots", "digit")
ROUNDS = 2
EDGE = 336  # pixels; about what small vision encoders take in one piece

COLOURS = {
    "red": (215, 25, 25),
    "green": (0, 145, 40),
    "blue": (20, 60, 220),
    "yellow": (250, 215, 0),
    "black": (0, 0, 0),
    "purple": (130, 0, 150),
}
DOTS = ("1", "2", "3", "4", "5")
DIGITS = tuple("0123456789")
ANSWERS = {"colour": tuple(COLOURS), "dots": DOTS, "digit": DIGITS}

QUESTIONS = {
    "colour": "What colour is the shape in this picture? Answer with one word.",
    "dots": "How many black dots are in this picture? Answer with one number.",
    "digit": "Which single digit is written in this picture? Answer with that digit only.",
}

_BACKGROUND = (255, 255, 255)
_SHAPES = ("circle", "square", "triangle")
# Other words that are taken for a colour; those of the value "" are never right.
_SYNONYMS = {
    "crimson": "red",
    "scarlet": "red",
    "navy": "blue",
    "gold": "yellow",
    "golden": "yellow",
    "violet": "purple",
    "magenta": "purple",
    "orange": "",
    "brown": "",
    "pink": "",
}
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Challenge:
    """One question about one picture."""

    kind: str  # of KINDS
    question: str
    answer: str  # one of ANSWERS[kind]
    image: "Image.Image"

    def right(self, text: str) -> bool:
        return parse(self.kind, text) == self.answer


def challenges(seed: int, edge: int = EDGE) -> list[Challenge]:
    """The questions of all rounds; pictures are RGB, `edge` pixels square."""
    draw = random.Random(seed)
    answers = {kind: draw.sample(ANSWERS[kind], ROUNDS) for kind in KINDS}
    return [
        Challenge(
            kind,
            QUESTIONS[kind],
            answers[kind][number],
            _draw(kind, answers[kind][number], draw, edge),
        )
        for number in range(ROUNDS)
        for kind in KINDS
    ]


def passes(right: Sequence[str]) -> bool:
    """Whether so many right answers (their kinds) show that the model sees.

    All but one, or both colours and both digits: small models that see well still count badly. The
    best of guessers, who knows that the two rounds differ, passes with a chance of 8.1e-4.
    """
    if len(right) >= ROUNDS * len(KINDS) - 1:
        return True
    return right.count("colour") == right.count("digit") == ROUNDS


def parse(kind: str, text: str) -> str | None:
    """The one answer that a text names, in digits or words; None if it names none or several."""
    if kind == "colour":
        named = {_SYNONYMS.get(word, word) for word in _words(text)} & {*COLOURS, ""}
    else:
        named = set(re.findall(r"\d+(?:\.\d+)?", text))
        # "The one digit is 7": words count only where there are no figures.
        named = named or {str(_NUMBERS.index(w)) for w in _words(text) if w in _NUMBERS}
    return next(iter(named)) or None if len(named) == 1 else None


def encode(image: "Image.Image", file_format: str, quality: int) -> bytes:
    """A picture as the bytes of a file: `jpeg` or `png`."""
    buffer = BytesIO()
    options = {"quality": quality} if file_format == "jpeg" else {}
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


# -------------------------------------------------------------------------------------- drawing


def _draw(kind: str, answer: str, draw: random.Random, edge: int) -> "Image.Image":
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (edge, edge), _BACKGROUND)
    canvas = ImageDraw.Draw(image)
    {"colour": _shape, "dots": _dots, "digit": _digit}[kind](canvas, answer, draw, edge)
    return image


def _shape(canvas: "ImageDraw.ImageDraw", colour: str, draw: random.Random, edge: int) -> None:
    radius = edge * draw.uniform(0.25, 0.35)
    x, y = (draw.uniform(radius, edge - radius) for _ in range(2))
    box = (x - radius, y - radius, x + radius, y + radius)
    shape = draw.choice(_SHAPES)
    if shape == "circle":
        canvas.ellipse(box, COLOURS[colour])
    elif shape == "square":
        canvas.rectangle(box, COLOURS[colour])
    else:
        canvas.polygon([(x, box[1]), (box[2], box[3]), (box[0], box[3])], COLOURS[colour])


def _dots(canvas: "ImageDraw.ImageDraw", count: str, draw: random.Random, edge: int) -> None:
    cell = edge / 3  # at most one dot in each of nine cells, so that none touch
    radius = edge * draw.uniform(0.07, 0.1)
    for index in draw.sample(range(9), int(count)):
        slack = cell / 2 - radius - edge * 0.02
        x = (index % 3 + 0.5) * cell + draw.uniform(-slack, slack)
        y = (index // 3 + 0.5) * cell + draw.uniform(-slack, slack)
        canvas.ellipse((x - radius, y - radius, x + radius, y + radius), (0, 0, 0))


def _digit(canvas: "ImageDraw.ImageDraw", digit: str, draw: random.Random, edge: int) -> None:
    from PIL import ImageFont

    font = ImageFont.load_default(edge * draw.uniform(0.6, 0.8))
    where = tuple(edge * draw.uniform(0.4, 0.6) for _ in range(2))
    canvas.text(where, digit, (0, 0, 0), font, anchor="mm")
