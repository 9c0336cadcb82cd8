r"""What would be written beside the photos, for a terminal and for programs.

Names and values come from files of anybody. What a terminal would obey instead of showing it
(control characters, changes of direction) is shown as an escape, `\x1b`; what is very long is cut.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from phototagger import names
from phototagger.merge import Change
from phototagger.publish import Planned, Refused
from phototagger.xmp import FIELDS, KEYWORD_LISTS

Item = Planned | Refused

LIST_LIMIT = 20  # values of a list on a line
TEXT_LIMIT = 400  # characters of a value on a line
_PATH_LIMIT = 4096
_UNLISTED = {"unapproved", "no_sidecar"}  # refusals that were asked for: counted only

# ExifTool's names of namespaces that are written with another prefix everywhere else.
_PREFIXES = {"iptcCore": "Iptc4xmpCore", "microsoft": "MicrosoftPhoto"}
# Controls, line separators, marks and changes of direction, surrogates, invisible operators.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ud800-\udfff\ufeff\ufff9-\ufffb]"
)
_RIGHT_TO_LEFT = re.compile(
    "[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufeff\U00010800-\U00010fff\U0001e800-\U0001efff]"
)
_COLOURS = {"+": "32", "-": "31", "~": "33", "!": "33;1", "folder": "1", "soft": "2"}


def _label(tag: str, element: str) -> str:
    """As `Iptc4xmpCore:AltTextAccessibility`."""
    prefix = tag.removeprefix("XMP-").partition(":")[0]
    return f"{_PREFIXES.get(prefix, prefix)}:{element}"


_LABELS = {f.tag: _label(f.tag, f.element) for f in FIELDS}


# ---------------------------------------------------------------------------------- safe to show


def visible(text: str) -> str:
    """Text without characters that are obeyed instead of shown; lines and tabs stay."""
    return _HIDDEN.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def one_line(text: str, limit: int = TEXT_LIMIT) -> str:
    """Text as a terminal can show it on a line: cut, escaped, its direction kept to itself."""
    cut = text[:limit]
    shown = visible(cut.replace("\r\n", "\n").replace("\n", "\\n").replace("\t", "\\t"))
    if _RIGHT_TO_LEFT.search(shown):
        shown = f"\u2068{shown}\u2069"
    return shown if cut == text else f"{shown}… ({len(text):,} characters)"


def name_shown(name: str | Path) -> str:
    """A path, or an encoded part of one: always from left to right."""
    shown = one_line(names.encode(name) if isinstance(name, Path) else name, _PATH_LIMIT)
    return shown.replace("\u2068", "\u2066", 1)


# ------------------------------------------------------------------------------ what is the same


@dataclass(frozen=True)
class Edit:
    """Fields that change in the same way: a list by its values, a text by before and after."""

    fields: tuple[str, ...]  # as `dc:subject`
    is_list: bool
    added: tuple[str, ...] = ()  # photo-tagger's
    copied: tuple[str, ...] = ()  # added, but a person's, from elsewhere in the photo
    removed: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    before: str | None = None
    after: str | None = None

    @property
    def name(self) -> str:
        return ", ".join(self.fields)


def edits(planned: Planned) -> list[Edit]:
    """The changes, each once: keywords with bars in one list and with slashes in another are the
    same, and so are the texts that several fields hold."""
    found: dict[Any, Edit] = {}
    for change in planned.changes:
        edit = _edit(planned, change)
        lists = (edit.added, edit.copied, edit.removed, edit.kept)
        same_levels = tuple(tuple(v.replace("/", "|") for v in values) for values in lists)
        key = (edit.is_list, edit.before, edit.after, same_levels)
        if key in found:
            edit = replace(found[key], fields=(*found[key].fields, *edit.fields))
        found[key] = edit
    return list(found.values())


def _edit(planned: Planned, change: Change) -> Edit:
    label = (_LABELS.get(change.tag, change.tag),)
    if change.tag not in KEYWORD_LISTS:
        return Edit(label, False, before=change.before, after=change.after)
    ours = set(planned.after.marks.written.get(change.tag, ()))
    had = planned.before.values.get(change.tag, ()) if planned.before else ()
    removed = set(change.removed)
    return Edit(
        label,
        True,
        tuple(value for value in change.added if value in ours),
        tuple(value for value in change.added if value not in ours),
        tuple(change.removed),
        tuple(value for value in had if value not in removed),
    )


# ---------------------------------------------------------------------------------------- counts


@dataclass
class Tally:
    """How many files are written, and how many photos are not, by reason."""

    actions: Counter[str] = field(default_factory=Counter)  # create, update, remove, keep, embed
    refused: Counter[str] = field(default_factory=Counter)  # by kind
    failures: int = 0

    def add(self, item: Item) -> None:
        if isinstance(item, Planned):
            self.actions[action(item)] += 1
            return
        self.refused[item.kind] += 1
        self.failures += item.failure

    def __bool__(self) -> bool:
        return bool(self.actions or self.refused)

    @property
    def writes(self) -> int:
        """Files that are written or removed."""
        return self.actions.total() - self.actions["keep"]

    def sentence(self) -> str:
        """As `3 sidecars new, 1 changed; 12 unchanged; 2 not written (conflict 2)`."""
        counts = ((self.actions[key], word) for key, word in _WORDS.items())
        parts = [f"{count:,} {word}" for count, word in counts if count]
        said = f"sidecars: {', '.join(parts)}" if parts else "sidecars: none"
        if embedded := self.actions["embed"]:
            said = (
                f"photos: {embedded:,} written into; {said}"
                if parts
                else (f"photos: {embedded:,} written into")
            )
        if kept := self.actions["keep"]:
            said += f"; {kept:,} unchanged"
        if self.refused:
            kinds = ", ".join(f"{kind} {count:,}" for kind, count in sorted(self.refused.items()))
            said += f"; not written: {self.refused.total():,} ({kinds})"
        return said


_WORDS = {"create": "new", "update": "changed", "remove": "removed"}


def action(item: Planned) -> str:
    """create, update, remove or keep; embed for a photo that is written into itself."""
    return "embed" if item.embed and item.action != "keep" else item.action


# ----------------------------------------------------------------------------------------- text


class Painter:
    """Colours for a terminal, or none."""

    def __init__(self, colour: bool):
        self._colour = colour

    def __call__(self, text: str, style: str) -> str:
        return f"\x1b[{_COLOURS[style]}m{text}\x1b[0m" if self._colour else text


def text_lines(items: Iterable[Item], tally: Tally, paint: Painter) -> Iterator[str]:
    """A heading per folder, below it each photo with what changes; what stays is left out."""
    folder = None
    for item in items:
        tally.add(item)
        if is_quiet(item):
            continue
        if (here := names.folder_of(item.rel_path)) != folder:
            if folder is not None:
                yield ""
            folder = here
            yield paint(name_shown(folder), "folder")
        yield from (
            _refused_lines(item, paint)
            if isinstance(item, Refused)
            else (_planned_lines(item, paint))
        )


def summary_lines(items: Iterable[Item], tally: Tally, paint: Painter) -> Iterator[str]:
    """A line per folder."""
    folder, own = None, Tally()
    for item in items:
        here = names.folder_of(item.rel_path)
        if folder not in (None, here):
            yield f"{paint(name_shown(folder), 'folder')}  {own.sentence()}"
            own = Tally()
        folder = here
        own.add(item)
        tally.add(item)
    if folder is not None:
        yield f"{paint(name_shown(folder), 'folder')}  {own.sentence()}"


def is_quiet(item: Item) -> bool:
    if isinstance(item, Refused):
        return item.kind in _UNLISTED
    return item.action == "keep"


def refused_line(item: Refused) -> str:
    """Why a photo, or a file of it, is left out, and the way out."""
    name = name_shown(item.rel_path)
    if item.path and names.encode(item.path.name) != item.rel_path.rpartition("/")[2]:
        name += f" ({name_shown(Path(item.path.name))})"
    return f"{name}: {item.kind}: {one_line(item.message, 2000)}"


def _refused_lines(item: Refused, paint: Painter) -> Iterator[str]:
    name = name_shown(item.rel_path.rpartition("/")[2])
    yield f"  {paint('!', '!')} {name}: {paint('not written', '!')} ({item.kind})"
    yield f"      {one_line(item.message, 2000)}"


_SIGNS = {"create": "+", "update": "~", "remove": "-", "embed": "~"}
_ACTIONS = {
    "create": "new",
    "update": "changed",
    "remove": "removed: nothing is left to say",
    "embed": "in the photo itself",
}


def _planned_lines(item: Planned, paint: Painter) -> Iterator[str]:
    kind = action(item)
    sign = _SIGNS[kind]
    said = paint(f"({_ACTIONS[kind]})", "soft")
    yield f"  {paint(sign, sign)} {name_shown(names.encode(item.path.name))} {said}"
    found = edits(item)
    for edit in found:
        yield from (f"      {line}" for line in _edit_lines(edit, paint))
    if not found:
        yield "      " + paint("only photo-tagger's own notes (namespace phototagger)", "soft")
    if item.after.declined:
        yield "      " + paint(
            f"stays out, as you removed it: {_join(item.after.declined)}", "soft"
        )


def declined_names(item: Planned) -> tuple[str, ...]:
    """What a person removed and is not written again: keywords, and names of fields."""
    return tuple(_LABELS.get(name, name) for name in item.after.declined)


def _edit_lines(edit: Edit, paint: Painter) -> Iterator[str]:
    yield paint(edit.name, "soft")
    if not edit.is_list:
        if edit.before is not None:
            yield "  " + paint(f"- {one_line(edit.before)}", "-")
        if edit.after is not None:
            yield "  " + paint(f"+ {one_line(edit.after)}", "+")
        return
    if edit.removed:
        yield "  " + paint(f"- {_join(edit.removed)}", "-")
    if edit.added:
        yield "  " + paint(f"+ {_join(edit.added)}", "+")
    if edit.copied:
        yield (
            "  "
            + paint(f"+ {_join(edit.copied)}", "+")
            + paint("  (yours, from elsewhere)", "soft")
        )
    if not (edit.removed or edit.added or edit.copied):
        yield paint("  other order", "soft")


def _join(values: tuple[str, ...]) -> str:
    shown = ", ".join(_listed(value) for value in values[:LIST_LIMIT])
    more = len(values) - LIST_LIMIT
    return f"{shown} and {more:,} more" if more > 0 else shown


def _listed(value: str) -> str:
    """A value of a list, in quotes where it would look like two."""
    shown = one_line(value, 120)
    return f'"{shown}"' if ", " in value else shown


# ----------------------------------------------------------------------------------------- JSON


def json_line(item: Item) -> str | None:
    """One object, ASCII only; None for a sidecar that stays as it is. Keys: docs/cli.md."""
    if isinstance(item, Planned):
        if item.action == "keep":
            return None
        content = {
            "photo": item.rel_path,
            "file": names.encode(item.path),
            "action": item.action,
            "embed": item.embed,
            "changes": [_json_change(item, change) for change in item.changes],
            "declined": list(item.after.declined),
        }
    else:
        content = {
            "photo": item.rel_path,
            "file": item.path and names.encode(item.path),
            "action": "refused",
            "kind": item.kind,
            "message": item.message,
            "failure": item.failure,
        }
    return _dumps(content)


def json_tally(tally: Tally) -> str:
    counts = {key: tally.actions[key] for key in ("create", "update", "remove", "embed", "keep")}
    refused = dict(sorted(tally.refused.items()))
    return _dumps(counts | {"refused": refused, "failures": tally.failures})


def _json_change(item: Planned, change: Change) -> dict[str, Any]:
    if change.tag not in KEYWORD_LISTS:
        return {"tag": change.tag, "before": change.before, "after": change.after}
    edit = _edit(item, change)
    return {
        "tag": change.tag,
        "added": list(change.added),
        "copied": list(edit.copied),
        "removed": list(change.removed),
    }


def _dumps(content: Any) -> str:
    # Control characters and anything beyond ASCII are escaped by json itself.
    return json.dumps(content).replace("\x7f", "\\u007f")
