"""Label packs: the vocabulary that photos are scored against, read from text files.

Three formats, told apart by what is found (config/labels/README.md describes them for users):

* a plain text file: one label per line, `#` comments; labels are lower-cased
* a Lightroom keyword list: a tab-indented tree, `{synonym}` lines below a keyword, `[keyword]` for
  what is not exported; keywords stay as written, only the text that is embedded is lower-cased
* a folder: every `*.txt` in it (in either format above) is a group; `prompts.yaml`,
  `thresholds.yaml` and `synonyms.yaml` say what is special about groups and labels; in the trees of
  a folder a line that ends in a colon is a heading: part of the hierarchy, but never a label itself

**Identity.** A label's id is its keyword. Where a keyword stands in several places of the tree
(crane, the bird and the machine), each gets the nearest ancestors that tell it apart in
parentheses: `crane (bird)`, `crane (machine)`, at need `crane (water > bird)`. The embedded text is
then `crane bird`; the keyword that is written stays `crane`. The same path twice is one label.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path

import yaml

from phototagger import names
from phototagger.errors import UserError, one_of

KEYWORD_BYTES = 64  # what IPTC's Keywords field holds

# Separators of tags.csv, of hierarchies in XMP and of keyword fields in photo programs, and the
# marks of the Lightroom format, which inside a keyword can only be a slip.
_SEPARATORS = "|,;/{}[]"
_CONTROL = frozenset({"Cc", "Cs", "Zl", "Zp"})
_NUMBER = re.compile(r"([+-]?)(\d+(?:\.\d*)?|\.\d+)")
_YAML_FILES = ("prompts.yaml", "synonyms.yaml", "thresholds.yaml")


@dataclass(frozen=True)
class Label:
    """One label of a pack. Thresholds: a number, or a signed string relative to the global one."""

    label: str  # unique in the pack
    group: str  # file name without suffix
    path: tuple[str, ...]  # exported ancestors, then the keyword as it is written to metadata
    text: str  # what goes into a template's {}
    export: bool = True  # False: scored and shown, never written
    synonyms: tuple[str, ...] = ()  # written along with the keyword
    templates: tuple[str, ...] | None = None  # of its group; None: the configured ones
    threshold: float | str | None = None
    group_threshold: float | str | None = None
    synonym_group: str | None = None  # of the labels of a group only the best one stays

    @property
    def keyword(self) -> str:
        return self.path[-1]


@dataclass(frozen=True)
class Pack:
    """A vocabulary in its own order, which decides ties."""

    name: str
    labels: tuple[Label, ...]
    duplicates: tuple[str, ...] = ()  # one line each: what was dropped, and where it stands first
    empty_groups: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Of what shapes results: neither comments nor layout nor where the pack lies."""
        content = json.dumps([asdict(label) for label in self.labels], ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class PackReport:
    """What `labels check` says about a pack."""

    name: str
    digest: str
    labels: int
    groups: dict[str, int]  # labels per group, in pack order
    synonym_groups: dict[str, list[str]]  # id -> labels of which only the best stays
    synonyms: int  # extra keywords written along
    not_exported: int
    duplicates: list[str]
    warnings: list[str]


def load_pack(path: Path) -> Pack:
    """Read a label file, a Lightroom keyword list or a folder of them.

    Raises UserError, naming file and line, if it is not there, empty, or not as documented.
    """
    path = Path(path)
    if path.is_dir():
        return _load_folder(path)
    if not path.is_file():
        raise UserError(f"{path}: no such label file or folder; see labels.path")
    group = names.encode(path.stem)
    labels, duplicates = _identify({group: _parse(path, headings=False)})
    if not labels:
        raise UserError(f"{path}: no labels in it; write one per line")
    return Pack(group, tuple(labels), tuple(duplicates))


def check_pack(path: Path) -> PackReport:
    """Load a pack and report counts, what was dropped and what may surprise.

    Raises UserError as `load_pack` does.
    """
    pack = load_pack(path)
    groups: dict[str, int] = {}
    equivalent: dict[str, list[str]] = {}
    for label in pack.labels:
        groups[label.group] = groups.get(label.group, 0) + 1
        if label.synonym_group is not None:
            equivalent.setdefault(label.synonym_group, []).append(label.label)
    return PackReport(
        name=pack.name,
        digest=pack.digest,
        labels=len(pack.labels),
        groups=groups,
        synonym_groups=equivalent,
        synonyms=sum(len(label.synonyms) for label in pack.labels),
        not_exported=sum(not label.export for label in pack.labels),
        duplicates=list(pack.duplicates),
        warnings=list(_warnings(pack)),
    )


def resolve_threshold(
    label: float | str | None, group: float | str | None, default: float
) -> float:
    """The threshold that counts: the label's, else its group's, else the global `default`.

    A string ("+0.02") is relative to `default`.
    """
    own = next((value for value in (label, group) if value is not None), default)
    return default + float(own) if isinstance(own, str) else float(own)


def check_templates(templates: Iterable[str], where: str) -> None:
    """Raise UserError if there is no template, or one without a place for the label."""
    templates = list(templates)
    if not templates:
        raise UserError(f"{where}: no template; give at least one, such as 'a photo of a {{}}'")
    for template in templates:
        if "{}" not in template:
            raise UserError(f"{where}: template {template!r} has no {{}} for the label; add it")


# ---------------------------------------------------------------------------------- text files


@dataclass(eq=False)
class _Node:
    """A line of a label file that names something."""

    keyword: str
    where: str  # file:line
    parent: "_Node | None" = None
    export: bool = True
    heading: bool = False
    has_children: bool = False
    synonyms: list[str] = field(default_factory=list)

    @property
    def ancestors(self) -> list["_Node"]:
        """From the top of the tree down to the parent."""
        return [*self.parent.ancestors, self.parent] if self.parent else []

    @property
    def scored(self) -> bool:
        """Headings, and what is not exported but holds others, only give structure."""
        return not self.heading and (self.export or not self.has_children)


def _read(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: not UTF-8; save the file with encoding UTF-8") from error
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))


def _lines(path: Path) -> list[tuple[str, str]]:
    """(file:line, line) of what is neither blank nor a comment."""
    lines = enumerate(_read(path).split("\n"), 1)
    return [
        (f"{path}:{number}", line.rstrip(" \t"))
        for number, line in lines
        if line.strip(" \t") and not line.lstrip(" \t").startswith("#")
    ]


def _enclosed(text: str, marks: str) -> bool:
    return text.startswith(marks[0]) and text.endswith(marks[1])


def _parse(path: Path, headings: bool) -> list[_Node]:
    lines = _lines(path)
    if any(
        line.startswith("\t") or _enclosed(line.strip(), "{}") or _enclosed(line.strip(), "[]")
        for _, line in lines
    ):
        return _parse_tree(lines, headings)
    return [
        _Node(_checked(re.sub(" +", " ", line.strip(" ")).lower(), where), where)
        for where, line in lines
    ]


def _parse_tree(lines: list[tuple[str, str]], headings: bool) -> list[_Node]:
    nodes: list[_Node] = []
    branch: list[_Node] = []  # the open node of every depth
    for where, line in lines:
        content = line.lstrip("\t")
        depth = len(line) - len(content)
        if content.startswith(" "):
            raise UserError(f"{where}: indented with blanks; indent with tabs")
        if depth > len(branch):
            raise UserError(
                f"{where}: indented by {depth} tabs, but the keyword above allows at most "
                f"{len(branch)}; go one level deeper at a time"
            )
        del branch[depth:]
        if _enclosed(content, "{}"):
            if not branch:
                raise UserError(f"{where}: synonym without a keyword above it; indent it below one")
            synonym = _checked(content[1:-1].strip(), where)
            if synonym not in (branch[-1].keyword, *branch[-1].synonyms):
                branch[-1].synonyms.append(synonym)
            continue
        node = _node(content, where, headings, branch[-1] if branch else None)
        if node.parent:
            node.parent.has_children = True
        nodes.append(node)
        branch.append(node)
    for node in nodes:
        if node.heading and not node.has_children:
            raise UserError(f"{node.where}: heading with nothing below it; indent labels with tabs")
    return nodes


def _node(content: str, where: str, headings: bool, parent: _Node | None) -> _Node:
    export = not _enclosed(content, "[]")
    keyword = content if export else content[1:-1].strip()
    heading = headings and keyword.endswith(":")
    if heading:
        keyword = keyword[:-1].rstrip()
    return _Node(_checked(keyword, where), where, parent, export, heading)


def _checked(text: str, where: str) -> str:
    """The text, if it can be a keyword everywhere."""
    if not text:
        raise UserError(f"{where}: empty label; name it or remove the line")
    for char in text:
        if char in _SEPARATORS or unicodedata.category(char) in _CONTROL:
            raise UserError(
                f"{where}: {char!r} inside the label {text!r}; photo programs and tags.csv use it "
                "as a separator: leave it out"
            )
    return text


# ----------------------------------------------------------------------------------- identities


def _identify(groups: dict[str, list[_Node]]) -> tuple[list[Label], list[str]]:
    """Labels with unique ids in file order, and a line for each duplicate that was dropped."""
    first: dict[tuple[str, ...], tuple[_Node, str]] = {}
    duplicates = []
    for group, nodes in groups.items():
        for node in nodes:
            if not node.scored:
                continue
            place = tuple(n.keyword.casefold() for n in (*node.ancestors, node))
            if place in first:
                duplicates.append(f"{node.where}: {node.keyword}: as {first[place][0].where}")
            else:
                first[place] = (node, group)
    namesakes: dict[str, list[tuple[str, ...]]] = {}
    for place in first:
        namesakes.setdefault(place[-1], []).append(place)
    labels: dict[str, Label] = {}
    for place, (node, group) in first.items():
        depth = _distinguishing(place, namesakes[place[-1]])
        label = _label(node, group, depth)
        if label.label.casefold() in labels:
            raise UserError(
                f"{node.where}: {label.label} is also another label's id; rename one of the two"
            )
        labels[label.label.casefold()] = label
    return list(labels.values()), duplicates


def _distinguishing(place: tuple[str, ...], namesakes: list[tuple[str, ...]]) -> int:
    """How many ancestors it takes to tell a place from those with the same keyword."""
    if len(namesakes) == 1:
        return 0
    for depth in range(1, len(place)):
        ending = place[-1 - depth :]
        if sum(other[-1 - depth :] == ending for other in namesakes) == 1:
            return depth
    return len(place) - 1  # at the top of the tree, or the end of a longer path


def _label(node: _Node, group: str, depth: int) -> Label:
    ancestors = node.ancestors
    near = [ancestor.keyword for ancestor in ancestors[len(ancestors) - depth :]]
    return Label(
        label=f"{node.keyword} ({' > '.join(near)})" if near else node.keyword,
        group=group,
        path=(*(a.keyword for a in ancestors if a.export), node.keyword),
        text=" ".join([node.keyword, *reversed(near)]).lower(),
        export=node.export,
        synonyms=tuple(node.synonyms),
    )


# -------------------------------------------------------------------------------------- folders


def _load_folder(folder: Path) -> Pack:
    files = sorted(p for p in folder.iterdir() if p.suffix == ".txt" and p.name[0] != ".")
    for path in sorted(folder.iterdir()):
        if path.suffix in (".yaml", ".yml") and path.name not in _YAML_FILES:
            raise one_of(f"{path}: file of a label pack", path.name, list(_YAML_FILES))
    groups = {names.encode(path.stem): _parse(path, headings=True) for path in files}
    labels, duplicates = _identify(groups)
    if not labels:
        raise UserError(f"{folder}: no labels in it; a pack has a *.txt file for each group")
    lookup = _Lookup(labels, list(groups))
    templates = _read_prompts(folder / "prompts.yaml", lookup)
    group_thresholds, thresholds = _read_thresholds(folder / "thresholds.yaml", lookup)
    synonym_groups = _read_synonyms(folder / "synonyms.yaml", lookup)
    labels = [
        replace(
            label,
            templates=templates.get(label.group),
            threshold=thresholds.get(label.label),
            group_threshold=group_thresholds.get(label.group),
            synonym_group=synonym_groups.get(label.label),
        )
        for label in labels
    ]
    used = {label.group for label in labels}
    empty = tuple(group for group in groups if group not in used)
    return Pack(names.encode(folder.name), tuple(labels), tuple(duplicates), empty)


class _Lookup:
    """Resolves what the YAML files name."""

    def __init__(self, labels: list[Label], groups: list[str]):
        self.groups = groups
        self._ids = {label.label.casefold(): label.label for label in labels}
        self._by_keyword: dict[str, list[str]] = {}
        for label in labels:
            self._by_keyword.setdefault(label.keyword.casefold(), []).append(label.label)

    def group(self, name: str, where: str) -> str:
        if name not in self.groups:
            raise one_of(f"{where}: group", name, self.groups)
        return name

    def label(self, name: str, where: str) -> str:
        """The id for an id, or for a keyword that only one label has, in any case."""
        key = unicodedata.normalize("NFC", name).strip().casefold()
        if key in self._ids:
            return self._ids[key]
        candidates = self._by_keyword.get(key, [])
        if len(candidates) > 1:
            raise one_of(f"{where}: label in several places", name, candidates)
        close = get_close_matches(key, self._ids, n=3)
        hint = f"; did you mean {', '.join(self._ids[c] for c in close)}?" if close else ""
        raise UserError(f"{where}: label {name!r} is in none of the pack's *.txt files{hint}")


def _read_prompts(path: Path, lookup: _Lookup) -> dict[str, tuple[str, ...]]:
    templates = {}
    for name, where, node in _mapping(path, _compose(path)):
        group = lookup.group(name, where)
        items = [(_scalar(path, item), _at(path, item)) for item in _items(node)]
        for template, line in items:
            check_templates([template], line)
        check_templates([template for template, _ in items], where)
        templates[group] = tuple(template for template, _ in items)
    return templates


def _read_thresholds(
    path: Path, lookup: _Lookup
) -> tuple[dict[str, float | str], dict[str, float | str]]:
    groups: dict[str, float | str] = {}
    labels: dict[str, float | str] = {}
    for section, where, node in _mapping(path, _compose(path)):
        if section not in ("groups", "labels"):
            raise one_of(f"{where}: section", section, ["groups", "labels"])
        for name, line, value in _mapping(path, node):
            threshold = _threshold(_scalar(path, value), line)
            if section == "groups":
                groups[lookup.group(name, line)] = threshold
            else:
                labels[lookup.label(name, line)] = threshold
    return groups, labels


def _threshold(text: str, where: str) -> float | str:
    match = _NUMBER.fullmatch(text.strip())
    if not match or float(match[2]) > 1:
        raise UserError(
            f"{where}: threshold {text!r}; give a number from 0 to 1, or one with a sign "
            "(+0.02, -0.01) that is added to the global threshold"
        )
    sign, number = match.groups()
    return f"{sign}{float(number):g}" if sign else float(number)


def _read_synonyms(path: Path, lookup: _Lookup) -> dict[str, str]:
    """Label -> id of its group: the group's key, or its first label."""
    root = _compose(path)
    if isinstance(root, yaml.MappingNode):
        groups = [(name, where, _items(node)) for name, where, node in _mapping(path, root)]
    elif isinstance(root, yaml.SequenceNode):
        groups = [(None, _at(path, node), _items(node)) for node in root.value]
    elif root is None:
        return {}
    else:
        raise UserError(f"{_at(path, root)}: expected a list of lists of labels")
    member: dict[str, str] = {}
    for name, where, nodes in groups:
        labels = [lookup.label(_scalar(path, node), _at(path, node)) for node in nodes]
        if len(set(labels)) < 2:
            raise UserError(f"{where}: a group of synonyms needs at least two labels")
        for label in labels:
            if label in member:
                raise UserError(f"{where}: {label!r} is in two groups of synonyms; keep one")
        member |= dict.fromkeys(labels, name or labels[0])
    return member


# YAML is read as nodes: they know their line, and leave +0.02, no and 007 the strings they are.


def _compose(path: Path) -> yaml.Node | None:
    if not path.is_file():
        return None
    try:
        return yaml.compose(_read(path), Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "bad character"
        raise UserError(f"{path}{line}: not valid YAML ({problem}); mend that line") from error


def _at(path: Path, node: yaml.Node) -> str:
    return f"{path}:{node.start_mark.line + 1}"


def _mapping(path: Path, node: yaml.Node | None) -> Iterator[tuple[str, str, yaml.Node]]:
    """(key, file:line, value) of a mapping; an absent or empty one has none."""
    if node is None or (isinstance(node, yaml.ScalarNode) and not node.value):
        return
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{_at(path, node)}: expected lines of the form 'name: value'")
    seen = set()
    for key, value in node.value:
        name = _scalar(path, key)
        if name in seen:
            raise UserError(f"{_at(path, key)}: {name!r} is given twice; keep one")
        seen.add(name)
        yield name, _at(path, key), value


def _items(node: yaml.Node) -> list[yaml.Node]:
    """The items of a list; a single value counts as a list of one."""
    return node.value if isinstance(node, yaml.SequenceNode) else [node]


def _scalar(path: Path, node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise UserError(f"{_at(path, node)}: expected a single text or number")
    return node.value


# --------------------------------------------------------------------------------------- report


def _warnings(pack: Pack) -> Iterator[str]:
    for group in pack.empty_groups:
        yield f"{group}: group without labels"
    keywords: dict[str, list[str]] = {}
    for label in pack.labels:
        keywords.setdefault(label.keyword.casefold(), []).append(label.label)
    for labels in keywords.values():
        if len(labels) > 1:
            yield f"one keyword for several labels: {', '.join(labels)}"
    long = {}
    for label in pack.labels:
        for keyword in (*label.path, *label.synonyms):
            if len(keyword.encode()) > KEYWORD_BYTES:
                long[keyword] = len(keyword.encode())
    for keyword, size in long.items():
        yield f"{keyword}: {size} bytes; programs that read IPTC cut it at {KEYWORD_BYTES}"
    for label in pack.labels:
        for synonym in label.synonyms:
            if synonym.casefold() in keywords:
                yield f"{label.label}: its synonym {synonym} is a label too"
