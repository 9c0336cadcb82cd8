"""Marks: what photo-tagger says in a sidecar, in its own namespace, about what it wrote there.

They make a sidecar self-describing: a keyword that `written` does not list, and a text that has
another digest than the one in `digests`, is a person's. `config/exiftool/photo-tagger.config`
tells ExifTool how to write them.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

from phototagger import rdf
from phototagger.fields import FIELDS, KEYWORD_LISTS

NAMESPACE = "http://ns.photo-tagger.org/xmp/1.0/"
GROUP = "XMP-phototagger"  # what ExifTool calls the namespace


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
    source: str  # vlm or clip
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


# The elements of the namespace. Keys of the structures are the attributes' names in CamelCase.
_WRITTEN = {f"Written{tag.partition(':')[2]}": tag for tag in KEYWORD_LISTS}
_DIGESTS = {f"Digest{f.tag.partition(':')[2]}": f.tag for f in FIELDS if f.tag not in KEYWORD_LISTS}
_ELEMENTS = {"RunID", "InheritedFrom", "Models", "KeywordSources", *_WRITTEN, *_DIGESTS}
ELEMENTS = {f"{{{NAMESPACE}}}{name}": name for name in _ELEMENTS}


def _camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def _struct_keys(kind: type) -> dict[str, str]:
    return {f.name: _camel(f.name) for f in fields(kind)}


_KEYS = {kind: _struct_keys(kind) for kind in (ModelMark, KeywordMark)}


def read(nodes: Mapping[str, rdf.Node]) -> Marks:
    """The marks in the nodes of `ELEMENTS`, by the elements' short names; odd ones are left out."""

    def text(name: str) -> str | None:
        return next(iter(rdf.texts(nodes.get(name, ""))), None)

    def structs(name: str, kind: type, required: tuple[str, str]) -> tuple:
        found = []
        for item in rdf.items(nodes.get(name, "")):
            if isinstance(item, dict):
                parts = {
                    key: rdf.text_of(item.get(f"{{{NAMESPACE}}}{wire}", "")) or None
                    for key, wire in _KEYS[kind].items()
                }
                if all(parts[key] for key in required):
                    found.append(kind(**parts))
        return tuple(found)

    return Marks(
        run_id=text("RunID"),
        inherited_from=text("InheritedFrom"),
        models=structs("Models", ModelMark, ("field", "model")),
        keywords=structs("KeywordSources", KeywordMark, ("path", "source")),
        written={
            tag: tuple(ours)
            for name, tag in _WRITTEN.items()
            if (ours := rdf.texts(nodes.get(name, "")))
        },
        digests={tag: digest for name, tag in _DIGESTS.items() if (digest := text(name))},
    )


def tags(marks: Marks) -> dict[str, list[str] | str]:
    """Marks as values of ExifTool's tags; a structure, and a list of them, is serialised."""
    found = {
        "RunID": marks.run_id,
        "InheritedFrom": marks.inherited_from,
        "Models": _serialised(marks.models),
        "KeywordSources": _serialised(marks.keywords),
    }
    for name, tag in _WRITTEN.items():
        found[name] = list(marks.written.get(tag, ()))
    for name, tag in _DIGESTS.items():
        found[name] = marks.digests.get(tag)
    return {f"{GROUP}:{name}": value for name, value in found.items() if value}


def _serialised(structs: tuple[ModelMark, ...] | tuple[KeywordMark, ...]) -> str:
    """See https://exiftool.org/struct.html#Serialize."""
    if not structs:
        return ""
    keys = _KEYS[type(structs[0])].items()
    parts = (
        ",".join(f"{wire}={_quoted(v)}" for key, wire in keys if (v := getattr(struct, key)))
        for struct in structs
    )
    return "[" + ",".join(f"{{{part}}}" for part in parts) + "]"


_QUOTES = str.maketrans({char: f"|{char}" for char in "|,]}"})
_ENTITY = re.compile(r"&(?=#?\w+;)")


def _quoted(text: str) -> str:
    # HTML is unescaped twice in structures
    quoted = _ENTITY.sub("&amp;", text.translate(_QUOTES))
    return f"|{quoted}" if quoted[:1] in "[{" or quoted[:1].isspace() else quoted
