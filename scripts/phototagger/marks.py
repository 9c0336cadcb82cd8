"""Marks: what photo-tagger says in a sidecar, in its own namespace, about what it wrote there.

They make a sidecar self-describing: a keyword that `written` does not list, and a text that has
another digest than the one in `digests`, is a person's. `config/exiftool/photo-tagger.config`
tells ExifTool how to write them.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from phototagger import rdf
from phototagger.fields import FIELDS, KEYWORD_LISTS

NAMESPACE = "http://ns.photo-tagger.org/xmp/1.0/"
GROUP = "XMP-phototagger"  # what ExifTool calls the namespace
DECLINED = "declined"  # KeywordMark.source of a keyword that a person removed
WITHDRAWN = "withdrawn"  # of one that stands no more, but for copies that some program made


@dataclass(frozen=True)
class ModelMark:
    """What made the values of one field."""

    field: str  # caption, description, keywords, or clip
    model: str
    setup: str | None = None
    profile: str | None = None
    prompt_digest: str | None = None


@dataclass(frozen=True)
class KeywordMark:
    """Where one keyword comes from."""

    path: str  # levels joined with bars
    source: str  # vlm, clip, declined or withdrawn
    score: str | None = None  # six decimals


@dataclass(frozen=True)
class Marks:
    """All marks of a sidecar."""

    run_id: str | None = None
    inherited_from: str | None = None  # file name of the photo of the same capture
    models: tuple[ModelMark, ...] = ()
    keywords: tuple[KeywordMark, ...] = ()
    written: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # tag -> our values in it
    digests: Mapping[str, str] = field(default_factory=dict)  # tag -> `text_digest` of our text

    def without_run(self) -> "Marks":
        return replace(self, run_id=None)

    def normal(self) -> "Marks":
        """The same without empty entries, as it is read back."""
        written = {tag: tuple(ours) for tag, ours in self.written.items() if ours}
        return replace(self, written=written, digests={t: d for t, d in self.digests.items() if d})

    @property
    def empty(self) -> bool:
        """Whether nothing but a run is named."""
        return self.without_run() == Marks()


def text_digest(text: str) -> str:
    """SHA-256 of a text's UTF-8 bytes, 64 hexadecimal digits."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


# The elements of the namespace. A model or keyword is one line of text, which ExifTool writes and a
# program reads several times as fast as a structure. A list in which exactly the keywords of
# KeywordSources are ours is merely named, in WrittenIn; any other has its own element.
_WRITTEN = {f"Written{tag.partition(':')[2]}": tag for tag in KEYWORD_LISTS}
_DIGESTS = {f"Digest{f.tag.partition(':')[2]}": f.tag for f in FIELDS if f.tag not in KEYWORD_LISTS}
_ELEMENTS = {"RunID", "InheritedFrom", "Models", "KeywordSources", "WrittenIn"}
_ELEMENTS |= {*_WRITTEN, *_DIGESTS}
ELEMENTS = {f"{{{NAMESPACE}}}{name}": name for name in _ELEMENTS}


def read(nodes: Mapping[str, rdf.Node]) -> Marks:
    """The marks in the nodes of `ELEMENTS`, by the elements' short names; odd ones are left out."""

    def texts(name: str) -> list[str]:
        return rdf.texts(nodes[name]) if name in nodes else []

    def text(name: str) -> str | None:
        return next(iter(texts(name)), None)

    models, keywords = [], []
    for line in texts("Models"):
        if parts := _parts(line, 5):
            name, setup, profile, digest, model = parts
            if name is not None:
                models.append(ModelMark(name, model, setup, profile, digest))
    for line in texts("KeywordSources"):
        if parts := _parts(line, 3):
            source, score, path = parts
            if source is not None:
                keywords.append(KeywordMark(path, source, score))
    named = texts("WrittenIn")
    written = {tag: own for tag in KEYWORD_LISTS if tag in named if (own := _spelt(keywords, tag))}
    written |= {tag: tuple(own) for name, tag in _WRITTEN.items() if (own := texts(name))}
    return Marks(
        run_id=text("RunID"),
        inherited_from=text("InheritedFrom"),
        models=tuple(models),
        keywords=tuple(keywords),
        written={tag: written[tag] for tag in KEYWORD_LISTS if tag in written},
        digests={tag: digest for name, tag in _DIGESTS.items() if (digest := text(name))},
    )


def tags(marks: Marks) -> dict[str, list[str] | str]:
    """Marks as values of ExifTool's tags."""
    found: dict[str, list[str] | str | None] = {
        "RunID": marks.run_id,
        "InheritedFrom": marks.inherited_from,
        "Models": [
            _line(m.field, m.setup, m.profile, m.prompt_digest, last=m.model) for m in marks.models
        ],
        "KeywordSources": [_line(k.source, k.score, last=k.path) for k in marks.keywords],
    }
    written = {tag: tuple(own) for tag, own in marks.written.items() if own}
    named = [tag for tag, own in written.items() if own == _spelt(marks.keywords, tag)]
    found["WrittenIn"] = sorted(named)
    for name, tag in _WRITTEN.items():
        found[name] = [] if tag in named else list(written.get(tag, ()))
    for name, tag in _DIGESTS.items():
        found[name] = marks.digests.get(tag)
    return {f"{GROUP}:{name}": value for name, value in found.items() if value}


def _spelt(keywords: Iterable[KeywordMark], tag: str) -> tuple[str, ...]:
    """The keywords that are written as they stand in a list: paths, or all their levels."""
    paths = [k.path for k in keywords if k.source not in (DECLINED, WITHDRAWN)]
    separator = KEYWORD_LISTS[tag]
    if separator:
        return tuple(dict.fromkeys(path.replace("|", separator) for path in paths))
    return tuple(dict.fromkeys(level for path in paths for level in path.split("|")))


def _line(*words: str | None, last: str) -> str:
    """Words with a blank after each, `-` for none; the last is anything, to the end."""
    return " ".join([*map(_word, words), last])


def _word(word: str | None) -> str:
    if not word:
        return "-"
    if word == "-":
        return "%2D"
    return word.replace("%", "%25").replace(" ", "%20")


def _parts(line: str, count: int) -> list[str | None] | None:
    """The inverse of `_line`; None if it is no such line."""
    *words, last = line.split(" ", count - 1)
    if len(words) < count - 1 or not last:
        return None
    return [*map(_unword, words), last]


def _unword(word: str) -> str | None:
    if word == "-":
        return None
    return word.replace("%2D", "-").replace("%20", " ").replace("%25", "%") if "%" in word else word
