"""Answers of models: from a reply's text to a value, and which values are not worth keeping.

The detectors of `judge` are meant for answers that no person would keep; they say nothing when in
doubt. The phrases that they look for are data: `config/words/{refusals,meta}.txt`.
"""

import hashlib
import json
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from phototagger import CLONE
from phototagger.prompts import languages

WORDS = CLONE / "config/words"
DETECTORS = ("digits", "empty", "language", "loop", "meta", "refusal")  # of one answer

# Languages that an identifier takes for one another; an answer in one passes for the others.
_RELATED = (
    {"no", "nb", "nn", "da", "sv"},
    {"hr", "bs", "sr", "sl", "mk"},
    {"id", "ms"},
    {"cs", "sk"},
    {"pt", "gl", "es", "ca"},
    {"ru", "uk", "be", "bg", "mk", "sr"},
    {"de", "lb"},
    {"nl", "af"},
    {"hi", "mr", "ne"},
    {"fa", "ps", "ur", "ar"},
    {"tr", "az"},
    {"ga", "gd"},
    {"is", "fo"},
    {"lv", "lt"},
    {"zu", "xh"},
)
_SURE = 0.9  # probability of the language that the whole text seems to be in
_UNLIKELY = 0.01  # of the language it should be in


class Invalid(Exception):  # noqa: N818 - it reads as what the answer is
    """A reply that is not what was asked for; the message says what is wrong with it."""


# -------------------------------------------------------------------------------------- reading


def parse(
    text: str, field: str, schema: Mapping[str, Any], max_chars: int | None = None
) -> str | list[str]:
    """The value of `field` in a model's reply: a text, or a list of texts for keywords.

    Code fences, prose around the JSON and a bare list or string are tolerated; lists and texts that
    are too long are cut (`shorten`, to `max_chars` or the schema's maxLength). Raises Invalid if
    there is no JSON or it does not satisfy the schema; an empty value is left to `judge`.
    """
    value = _value(_decode(text, field), field)
    wanted = schema.get("properties", {}).get(field, {})
    if field == "keywords" and isinstance(value, str):
        value = re.split(r"[,;\n]", value)
    if isinstance(value, str):
        limit = min(n for n in (max_chars, wanted.get("maxLength"), 1_000_000) if n)
        value = shorten(tidy(value), limit)
    elif isinstance(value, list):
        value = [tidy(item) if isinstance(item, str) else item for item in value]
        value = [item for item in value if item != ""][:_MOST_ITEMS]
    if value or not isinstance(value, str | list):
        _validate(value, field, schema)
    return value


def tidy(text: str) -> str:
    """On one line, in NFC, without control characters and without quotes around the whole."""
    text = unicodedata.normalize("NFC", text.encode("utf-8", "replace").decode())
    text = " ".join(_CONTROL.sub(" ", text).split())
    while len(text) > 1 and _QUOTES.get(text[0]) == text[-1]:
        inner = text[1:-1]
        if text[0] in inner or text[-1] in inner:
            break
        text = inner.strip()
    return text


def shorten(text: str, max_chars: int) -> str:
    """The sentences that fit into `max_chars`; of a single long one the words that fit, and "…"."""
    if len(text) <= max_chars:
        return text
    ends = [match.end() for match in _SENTENCE_END.finditer(text) if match.end() <= max_chars]
    if ends and ends[-1] >= max_chars // 4:  # more than an abbreviation at the very beginning
        return text[: ends[-1]].strip()
    head = text[: max_chars - 1]
    words = head.rpartition(" ")[0]
    return f"{(words or head).rstrip(' ,;:-')}…"


_MOST_ITEMS = 500  # of a list; whatever follows is a loop
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff]")
_SENTENCE_END = re.compile(r"[.!?][\"'”’»)]*(?=\s)|[。！？][」』”]?")
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "„": "“", "「": "」", "`": "`"}
_FENCE = re.compile(r"^\s*```[a-zA-Z]*\s*|\s*```\s*$")
_START = re.compile(r"[{\[]")
_ATTEMPTS = 50  # brackets in prose at which JSON is looked for


def _decode(text: str, field: str) -> Any:
    """The JSON in a reply: all of it, or the first object with the field, or the first list."""
    stripped = _FENCE.sub("", text.strip().removeprefix("\ufeff"))
    if not stripped:
        raise Invalid("the answer is empty")
    try:
        return json.loads(stripped, strict=False)
    except (ValueError, RecursionError):
        pass
    found = list(_embedded(stripped))
    for value in found:
        if isinstance(value, dict) and _key(value, field) is not None:
            return value
    if _START.match(stripped) and not found:
        raise Invalid(f"the JSON is incomplete or malformed: {_excerpt(stripped)}")
    if field == "keywords":
        for value in found:
            if isinstance(value, list) and value and isinstance(value[0], str):
                return value
    if found:
        return found[0]
    raise Invalid(f"there is no JSON in the answer: {_excerpt(stripped)}")


def _embedded(text: str) -> Iterator[Any]:
    """Objects and lists in a text, outermost first, one after the other."""
    decoder = json.JSONDecoder(strict=False)
    position = 0
    for _ in range(_ATTEMPTS):
        match = _START.search(text, position)
        if not match:
            return
        try:
            value, position = decoder.raw_decode(text, match.start())
            yield value
        except (ValueError, RecursionError):
            position = match.end()


def _key(data: Mapping[str, Any], field: str) -> str | None:
    return next((key for key in data if key.strip().lower() == field), None)


def _value(data: Any, field: str) -> Any:
    if isinstance(data, dict):
        key = _key(data, field)
        if key is None:
            names = ", ".join(sorted(data)[:5]) or "none"
            raise Invalid(f"the answer has no {field!r} (its keys: {_excerpt(names)})")
        return data[key]
    if isinstance(data, list if field == "keywords" else str):
        return data
    raise Invalid(f"the answer is not an object with {field!r}: {_excerpt(json.dumps(data))}")


def _validate(value: Any, field: str, schema: Mapping[str, Any]) -> None:
    wanted = schema.get("properties", {}).get(field, {})
    longest = wanted.get("items", {}).get("maxLength")
    checked = value
    if isinstance(value, list):  # too long or too many: such keywords are dropped later
        checked = [item[:longest] if isinstance(item, str) else item for item in value]
        checked = checked[: wanted.get("maxItems")]
    validator = _validator(json.dumps(schema, sort_keys=True))
    error = next(validator.iter_errors({field: checked}), None)
    if error is not None:
        where = ".".join(str(part) for part in error.absolute_path) or field
        raise Invalid(f"{where}: {_excerpt(' '.join(error.message.split()))}")
    kind = list if field == "keywords" else str
    items = value if isinstance(value, list) else [value]
    if not isinstance(value, kind) or not all(isinstance(item, str) for item in items):
        raise Invalid(f"{field}: not {'a list of texts' if kind is list else 'a text'}")


@cache
def _validator(schema: str) -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(json.loads(schema))


def _excerpt(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:119]}…"


# -------------------------------------------------------------------------------------- judging


def judge(
    field: str, value: str | Sequence[str], *, language: str, reject: Collection[str]
) -> str | None:
    """The first detector that objects to an answer, of those named in `reject`.

    `language` is an ISO 639-1 code. Keywords are judged one by one for phrases and joined for the
    rest.
    """
    items = [value] if isinstance(value, str) else list(value)
    detectors = {
        "empty": lambda: not any(_says_something(item) for item in items),
        "digits": lambda: _mostly_digits(items),
        "refusal": lambda: _any_matches("refusals", field, items),
        "meta": lambda: _any_matches("meta", field, items),
        "loop": lambda: _loops_in_list(items) if field == "keywords" else _loops(items[0]),
        "language": lambda: _wrong_language(field, items, language),
    }
    return next((name for name, objects in detectors.items() if name in reject and objects()), None)


def repeated(values: Mapping[str, str]) -> set[str]:
    """The keys (SHA-256 of photos) whose text stands on too many of the photos.

    Frames of a burst may get the same text: it takes more than four, and a tenth of all.
    """
    normal = {key: _normal(text) for key, text in values.items()}
    counts = Counter(normal.values())
    limit = max(_SAME_TEXT, len(values) // 10)
    return {key for key, text in normal.items() if counts[text] > limit}


_SAME_TEXT = 4
_APOSTROPHES = str.maketrans("’‘ʼ`´“”„", "'''''\"\"\"")
_LEADING = re.compile(r"^[\W_]+")


def _normal(text: str) -> str:
    text = unicodedata.normalize("NFC", text).translate(_APOSTROPHES).casefold()
    return " ".join(text.split())


# ------------------------------------------------------------------ nothing said, or only numbers


def _says_something(text: str) -> bool:
    return any(char.isalnum() for char in text) and _normal(text).strip(" .!?") not in _NOTHING


_NOTHING = frozenset({"none", "null", "n/a", "na", "nan", "undefined", "nil", "unknown"})


def _mostly_digits(items: Sequence[str]) -> bool:
    """No letters: in the text, or in more than half of the keywords (a bib number may be one)."""
    numbers = [item for item in items if _says_something(item) and not _has_letter(item)]
    return len(numbers) * 2 > len(items)


def _has_letter(text: str) -> bool:
    return any(char.isalpha() for char in text)


# -------------------------------------------------------------------------------------- phrases


@dataclass(frozen=True)
class Phrases:
    """What the lines of a file in config/words ask to look for, as patterns on `_normal` text."""

    beginning: re.Pattern[str]
    anywhere: re.Pattern[str]
    whole: frozenset[str]


@cache
def phrase_list(name: str) -> Phrases:
    """`refusals` or `meta`.

    A plain line must stand at the beginning of an answer; one after `...` may stand anywhere in it;
    one after `=` must be the whole answer.
    """
    kinds: dict[str, list[str]] = {"": [], "...": [], "=": []}
    for line in read_words(name):
        kind = next(mark for mark in ("...", "=", "") if line.startswith(mark))
        kinds[kind].append(_normal(line.removeprefix(kind)))
    return Phrases(_pattern(kinds[""]), _pattern(kinds["..."]), frozenset(kinds["="]))


@cache
def read_words(name: str) -> tuple[str, ...]:
    """The lines of config/words/<name>.txt but comments and blank ones."""
    lines = (WORDS / f"{name}.txt").read_text("utf-8").splitlines()
    return tuple(text for line in lines if (text := line.partition("#")[0].strip()))


def words_digest() -> str:
    """64 hex digits over what the files in config/words say, without comments and layout."""
    content = {path.stem: read_words(path.stem) for path in sorted(WORDS.glob("*.txt"))}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _pattern(phrases: Sequence[str]) -> re.Pattern[str]:
    if not phrases:
        return re.compile(r"(?!)")
    parts = [
        (r"\b" if phrase[0].isalnum() else "")
        + re.escape(phrase)
        # scripts that do not put spaces between words have no boundary to look for
        + (r"(?![\w-])" if phrase[-1].isalnum() and ord(phrase[-1]) < 0x0E00 else "")
        for phrase in sorted(phrases)
    ]
    return re.compile("|".join(parts))


def _any_matches(name: str, field: str, items: Sequence[str]) -> bool:
    """Of keywords, a whole sentence or most of them: "string" may well be in the picture."""
    found = [item for item in items if _matches(phrase_list(name), item)]
    if field != "keywords":
        return bool(found)
    return len(found) * 2 > len(items) or any(len(item.split()) >= _SENTENCE for item in found)


_SENTENCE = 5  # words


def _matches(phrases: Phrases, text: str) -> bool:
    text = _LEADING.sub("", _normal(text))
    return (
        text.rstrip(" .!?") in phrases.whole
        or phrases.beginning.match(text) is not None
        or phrases.anywhere.search(text) is not None
    )


# ---------------------------------------------------------------------------------------- loops

_SAME_CHAR = re.compile(r"([^\W\d_]|[^\w\s.…—–-])\1{7,}|[.…—–_-]{20,}|(\d)\2{11,}")
_PERIOD = re.compile(r"(.{2,40}?)\1{4,}")  # also in scripts without spaces
_PERIOD_CHARS = 20
_PHRASE_WORDS = 12
_COMPRESSIBLE = 0.3  # zlib's size to the text's; good prose of this length stays above 0.5
_COMPRESSIBLE_BYTES = 400


def _loops(text: str) -> bool:
    normal = _normal(text)
    return (
        _stutters(normal)
        or _repeats_phrase(re.findall(r"\w+", normal))
        or _repeats_sentence(normal)
        or _compresses(normal)
    )


def _stutters(text: str) -> bool:
    """The same letter eight times in a row, or a few characters five times."""
    if _SAME_CHAR.search(text):
        return True
    runs = (match.group() for match in _PERIOD.finditer(text))
    return any(len(run) >= _PERIOD_CHARS and _has_letter(run) for run in runs)


def _repeats_phrase(words: Sequence[str]) -> bool:
    """The same word five times in a row, two four times, three or more three times."""
    for length in range(1, _PHRASE_WORDS + 1):
        needed = length * ({1: 5, 2: 4}.get(length, 3) - 1)  # words equal to those `length` before
        run = 0
        for before, word in zip(words, words[length:], strict=False):
            run = run + 1 if before == word else 0
            if run >= needed:
                return True
    return False


def _repeats_sentence(text: str) -> bool:
    """The same sentence of some length three times, or half of at least four sentences."""
    sentences = [s.strip() for s in re.split(r"[.!?。！？]+", text)]
    counts = Counter(s for s in sentences if len(s) >= 12)
    total = counts.total()
    again = total - len(counts)
    return max(counts.values(), default=0) >= 3 or (total >= 4 and again * 2 >= total)


def _compresses(text: str) -> bool:
    data = text.encode()
    if len(data) < _COMPRESSIBLE_BYTES:
        return False
    return len(zlib.compress(data, 9)) < _COMPRESSIBLE * len(data)


def _loops_in_list(items: Sequence[str]) -> bool:
    """At least six keywords, of which half are repetitions but for numbers; or one that loops."""
    if any(_stutters(_normal(item)) for item in items):
        return True
    bare = [" ".join(re.findall(r"[^\W\d]+", _normal(item))) for item in items]
    named = [item for item in bare if item]
    return len(named) >= 6 and len(set(named)) * 2 <= len(named)


# -------------------------------------------------------------------------------------- language


@cache
def _identifier() -> Any:
    from py3langid import langid

    # its confidence is scaled by the length of the text, so that it is a probability
    identifier = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
    identifier.set_languages(sorted(set(identifier.labels) & languages().keys()))
    return identifier


def _wrong_language(field: str, items: Sequence[str], language: str) -> bool:
    """Surely another language than asked for: as a whole, and in each half of it.

    Short texts and mixed ones are never objected to: names of places and things are what they are.
    """
    words = ", ".join(items).split() if field == "keywords" else items[0].split()
    text = " ".join(words)
    if sum(char.isalpha() for char in text) * _density(text) < (60 if field == "keywords" else 40):
        return False
    identifier = _identifier()
    expected = {language, *(other for group in _RELATED if language in group for other in group)}
    if not expected & set(identifier.labels):
        return False
    if not _surely_other(identifier, text, expected, _SURE, _UNLIKELY):
        return False
    middle = len(text) // 2 if len(words) < 4 else len(" ".join(words[: len(words) // 2]))
    return all(
        _surely_other(identifier, half, expected, 0, 10 * _UNLIKELY)
        for half in (text[:middle], text[middle:])
    )


def _surely_other(
    identifier: Any, text: str, expected: Collection[str], sure: float, unlikely: float
) -> bool:
    ranks = dict(identifier.rank(text))
    best = max(ranks, key=ranks.__getitem__)
    likely = sum(ranks.get(code, 0) for code in expected)
    return best not in expected and ranks[best] >= sure and likely < unlikely


def _density(text: str) -> int:
    """How much a letter says: characters of Chinese, Japanese and Korean stand for syllables."""
    dense = sum("\u3040" <= char <= "\u9fff" or "\uac00" <= char <= "\ud7a3" for char in text)
    return 3 if dense * 2 > len(text) else 1
