"""A person's keywords, each in all keyword lists, since a reader takes one list and no other.

A list of paths has a keyword with its levels and a separator between them, dc:subject has its last
level only. So one keyword looks different in each list, and from a list alone it cannot always be
told what was meant: `AC/DC` is a band, or DC below AC.
"""

from collections.abc import Collection, Iterable

from phototagger.fields import KEYWORD_LISTS, SUBJECT, Values

Levels = tuple[str, ...]  # a keyword with its levels, from the top


def unite(theirs: Values, embedded: Values, lists: Collection[str]) -> Values:
    """A person's keywords, each in all `lists`; other lists of a sidecar stay as they are.

    A path goes into every list of paths, its last level into dc:subject. A flat keyword goes into
    every list as it is, but not where it is a level of one of the person's own paths already.
    """
    human = {tag: list(theirs.get(tag, ())) for tag in KEYWORD_LISTS}
    while True:  # a copy can be read as something new where a level has the separator in it
        everywhere = {tag: extended(v, embedded.get(tag, ())) for tag, v in human.items()}
        paths, words = _human_keywords(everywhere)
        levels = {level for path in paths for level in path}
        uncovered = [word for word in words if word not in levels]
        united = {}
        for tag in human.keys() & lists:
            spelt = [spell(path, tag) for path in paths]
            spelt += uncovered if KEYWORD_LISTS[tag] else words
            wanted = set(spelt)
            in_place = [value for value in everywhere[tag] if value in wanted]
            united[tag] = extended(human[tag], in_place + spelt)
        if united.items() <= human.items():
            return human
        human |= united


def _human_keywords(human: Values) -> tuple[list[Levels], list[str]]:
    """The different keywords in a person's lists: paths of several levels, and flat ones.

    What stands in dc:subject is flat also if a separator is in it. And a path in one list is not a
    new one if it is merely how another list's path looks there: `x/y|z` becomes `x/y/z`.
    """
    flat = dict.fromkeys(human[SUBJECT])
    paths = {
        tag: [tuple(value.split(separator)) for value in human[tag] if value not in flat]
        for tag, separator in KEYWORD_LISTS.items()
        if separator
    }
    keywords: dict[Levels, None] = {}
    for tag, own in paths.items():
        separator = KEYWORD_LISTS[tag]
        copies = {
            separator.join(path)
            for others in paths.values()
            for path in others
            if any(separator in level for level in path)
        }
        keywords |= {path: None for path in own if separator.join(path) not in copies}
    deep = [path for path in keywords if len(path) > 1]
    return deep, list(flat | {path[0]: None for path in keywords if len(path) == 1})


def spell(path: Levels, tag: str) -> str:
    """A keyword as it stands in a list: the whole path, or its last level."""
    if separator := KEYWORD_LISTS[tag]:
        return separator.join(path) if any(path) else ""
    return next((level for level in reversed(path) if level.strip()), "")


def extended(values: Iterable[str], more: Iterable[str]) -> list[str]:
    """`values` as they are, and what is not among them."""
    result = list(values)
    there = set(result)
    new = dict.fromkeys(value for value in more if value.strip() and value not in there)
    return result + list(new)
