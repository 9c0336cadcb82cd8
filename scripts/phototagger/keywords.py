"""Keywords of a model made fit for a catalogue: cleaned, without doubles, in the user's words.

Nothing is dropped for being a part of another keyword: car, red car and cartoon character are three
things. What is dropped is logged with the reason. The words and phrases are data: `config/words/
{banned,generic,plurals.<language>}.txt`.

Lower case is for all letters of all keywords, names included (simple, and what most catalogues do);
keywords mapped to a vocabulary are spelled as they are there.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property

from phototagger.answers import WORDS, read_words
from phototagger.labels import KEYWORD_BYTES, Label

MAX_WORDS = 4

_SEPARATORS = re.compile(r"[,;|\n\r\t，、；｜،؛]+")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffd\ud800-\udfff]")
_BULLET = re.compile(r"(?:[-*•·#>–—]+\s*|\d{1,2}[.)]\s+)")
_EDGES = " \"'“”„‘’«»`.:!?*_…。！？、「」"
_SAID_CHARS = 100  # of a keyword in the log
_MOST_ITEMS = 500  # of one answer; whatever follows is a loop


@dataclass(frozen=True)
class Rules:
    """How keywords are cleaned; the settings `describe.*` of the same names."""

    max_keywords: int
    lowercase: bool = True
    plural: str = "merge"  # keep, merge or singular
    language: str = "en"  # ISO 639-1
    vocabulary: Sequence[Label] | None = None  # of labels.load_pack
    strict: bool = False  # nothing that is not in the vocabulary
    max_words: int | None = MAX_WORDS  # of one keyword

    @cached_property
    def _index(self) -> "_Vocabulary | None":
        """Made once; use the same rules for many photos."""
        return None if self.vocabulary is None else _Vocabulary(self.vocabulary, self.language)


@dataclass(frozen=True)
class Keyword:
    keyword: str
    path: tuple[str, ...]  # in the vocabulary's hierarchy; just the keyword if it is not in it
    synonyms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cleaned:
    """Keywords in the model's order, most important first; the rest is the log."""

    keywords: list[Keyword]
    dropped: list[tuple[str, str]] = field(default_factory=list)  # (as the model said, why)
    mapped: list[tuple[str, str]] = field(default_factory=list)  # (as the model said, label)


def clean(words: Iterable[str], rules: Rules) -> Cleaned:
    """The keywords that are worth keeping, at most `rules.max_keywords`.

    Items with commas or semicolons are split. Cleaning what was cleaned changes nothing.
    """
    vocabulary = rules._index
    result = Cleaned([])
    seen: dict[str, str] = {}  # normal form -> the keyword that has it
    for said, text in _split(words):
        label, why = vocabulary.find(text) if vocabulary else (None, "")
        if label is not None:
            keyword = Keyword(label.keyword, label.path, label.synonyms)
        elif why or (rules.strict and vocabulary):
            result.dropped.append((said, why or "not in the vocabulary"))
            continue
        else:
            text = _spell(text, rules)
            keyword = Keyword(text, (text,))
            why = _objection(text, rules)
            if why:
                result.dropped.append((said, why))
                continue
        exact = fold(keyword.keyword)
        same = seen.get(exact) or (seen.get(_form(exact, rules)) if label is None else None)
        if same is not None:
            if fold(said) != fold(same):  # a mere repetition is not worth a line
                result.dropped.append((said, f"same as {same}"))
            continue
        if len(result.keywords) >= rules.max_keywords:
            result.dropped.append((said, f"more than {rules.max_keywords} keywords"))
            continue
        seen[exact] = keyword.keyword
        seen.setdefault(_form(exact, rules), keyword.keyword)
        result.keywords.append(keyword)
        if label is not None and fold(text) != exact:
            result.mapped.append((said, label.label))
    return result


def fold(text: str) -> str:
    """The form in which two spellings of one keyword are the same."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


# -------------------------------------------------------------------------------------- spelling


def _split(words: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(as the model said, normalised) for every part of every item that has one."""
    count = 0
    for word in words:
        for part in _SEPARATORS.split(word):
            text = normalise(part)
            count += 1
            if count > _MOST_ITEMS:
                return
            if text:
                yield " ".join(_CONTROL.sub(" ", part).split())[:_SAID_CHARS], text


def normalise(text: str) -> str:
    """NFC, single spaces, no control characters; no bullets, numbering, quotes or end marks."""
    text = unicodedata.normalize("NFC", _CONTROL.sub(" ", text).replace("_", " "))
    text = " ".join(text.replace("|", " ").split())
    while True:
        stripped = text.strip(_EDGES)
        if match := _BULLET.match(stripped):
            stripped = stripped[match.end() :]
        if stripped.startswith("(") and stripped.endswith(")"):
            stripped = stripped[1:-1]
        if stripped == text:
            return text
        text = stripped


def _spell(text: str, rules: Rules) -> str:
    if rules.lowercase:
        text = unicodedata.normalize("NFC", text.lower())
    if rules.plural == "singular":
        text = singular(text, rules.language)
        if rules.lowercase:
            text = unicodedata.normalize("NFC", text.lower())
    return text


def _objection(text: str, rules: Rules) -> str:
    """Why a keyword is not worth keeping; empty if it is."""
    key = fold(text)
    if not any(char.isalpha() for char in text):
        return "no letters in it"
    if key in _words("generic"):
        return "too generic"
    if banned := _banned().search(key):
        return f"banned: {banned.group()}"
    if rules.max_words and len(text.split()) > rules.max_words:
        return f"more than {rules.max_words} words"
    if len(text.encode()) > KEYWORD_BYTES:
        return f"longer than {KEYWORD_BYTES} bytes"
    return ""


@cache
def _words(name: str) -> frozenset[str]:
    return frozenset(fold(normalise(line)) for line in read_words(name))


@cache
def _banned() -> re.Pattern[str]:
    """Banned words and phrases as whole words."""
    phrases = "|".join(re.escape(phrase) for phrase in sorted(_words("banned")))
    return re.compile(rf"(?<![\w-])(?:{phrases})(?![\w-])" if phrases else r"(?!)")


# --------------------------------------------------------------------------------- forms of a word


def _form(key: str, rules: Rules) -> str:
    """What the forms of one keyword have in common; the keyword itself for plural: keep."""
    return key if rules.plural == "keep" else lemma(key, rules.language)


def lemma(keyword: str, language: str) -> str:
    """The base form, by which keywords are compared: horse for horses, roter Apfel for rote Äpfel.

    In English only the last word counts, and only plurals (a painting is not to paint).
    """
    if language == "en":
        return fold(singular(keyword, language))
    return fold(" ".join(_lemma(word, language) for word in keyword.split()))


def singular(keyword: str, language: str) -> str:
    """The keyword in the singular; of several words the last one, and only in English.

    Elsewhere the words of a phrase agree with one another, so that phrases are left alone.
    """
    head, space, last = keyword.rpartition(" ")
    if language == "en":
        if fold(keyword) in _plurals("en"):
            return _plurals("en")[fold(keyword)]
        return f"{head}{space}{_english(last)}"
    return keyword if head else _stable(keyword, lambda word: _lemma(word, language))


def _english(word: str) -> str:
    return _stable(word, _english_once)


def _english_once(word: str) -> str:
    """Of simplemma's lemmas only those of which the word is a regular plural, or our own list."""
    key = fold(word)
    if word.isupper() and len(word) > 1:
        return word
    known = _plurals("en").get(key)
    if known is None:
        found = _library(key, "en").casefold()
        known = found if key in _plural_forms(found) else key
    if known == key:
        return word
    return known.capitalize() if word[:1].isupper() else known


def _plural_forms(noun: str) -> set[str]:
    forms = {f"{noun}s", f"{noun}es"}
    if noun.endswith("y"):
        forms.add(f"{noun[:-1]}ies")
    if noun.endswith("f"):
        forms.add(f"{noun[:-1]}ves")
    if noun.endswith("fe"):
        forms.add(f"{noun[:-2]}ves")
    if noun.endswith("man"):
        forms.add(f"{noun[:-3]}men")
    return forms


def _lemma(word: str, language: str) -> str:
    if (known := _plurals(language).get(fold(word))) is not None:
        return known
    if language == "de" and word[:1].islower():  # nouns are in the dictionary in upper case
        noun = _library(word.capitalize(), language)
        if noun[:1].isupper() and noun != word.capitalize():
            return noun
    return _library(word, language)


def _stable(word: str, step: Callable[[str], str]) -> str:
    """Repeat `step` until nothing changes; the word itself if that goes round in circles."""
    current = word
    for _ in range(4):
        following = step(current)
        if following == current:
            return current
        current = following
    return word


@cache
def _library(word: str, language: str) -> str:
    """simplemma's lemma; the word itself in a language it does not know."""
    import simplemma

    try:
        return simplemma.lemmatize(word, language)
    except ValueError:
        return word


@cache
def _plurals(language: str) -> dict[str, str]:
    """config/words/plurals.<language>.txt: `plural = singular`, or a word that stays as it is."""
    name = f"plurals.{language}"
    if not (WORDS / f"{name}.txt").is_file():
        return {}
    pairs = (line.partition("=") for line in read_words(name))
    return {fold(a.strip()): fold(b.strip() or a.strip()) for a, _, b in pairs}


# ------------------------------------------------------------------------------------ vocabulary


class _Vocabulary:
    """Labels by what they may be called; a label's own name comes before another's synonym."""

    def __init__(self, labels: Sequence[Label], language: str):
        self._language = language
        self._names: dict[str, list[Label]] = {}
        self._others: dict[str, list[Label]] = {}
        self._forms: dict[str, list[Label]] = {}
        for label in labels:
            _add(self._names, _key(label.keyword), label)
            for name in (label.label, label.text, *label.synonyms):
                _add(self._others, _key(name), label)
        # forms of names before forms of synonyms
        for index in (self._names, self._others):
            for key, found in index.items():
                for label in found:
                    _add(self._forms, lemma(key, language), label)

    def find(self, text: str) -> tuple[Label | None, str]:
        """(label, "") or (None, why the keyword must not be used) or (None, "") if unknown."""
        key = _key(text)
        found = self._names.get(key) or self._others.get(key)
        if not found:
            found = self._forms.get(lemma(key, self._language))
        if not found:
            return None, ""
        exported = [label for label in found if label.export]
        if not exported:
            return None, f"{found[0].label} is not exported"
        label = exported[0]
        if len({other.path for other in exported if other.keyword == label.keyword}) > 1:
            # one name in several places of the tree: which is meant cannot be told
            path = (label.keyword,)
            return Label(label.keyword, label.group, path, label.text), ""
        return label, ""


def _key(text: str) -> str:
    return fold(normalise(text))


def _add(index: dict[str, list[Label]], key: str, label: Label) -> None:
    found = index.setdefault(key, [])
    if key and label not in found:
        found.append(label)
