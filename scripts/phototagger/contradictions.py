"""What can be wrong with records that satisfy their schema: in themselves, or among themselves."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from phototagger.records import SOURCES

Record = Mapping[str, Any]


def contradiction(record: Record) -> str | None:
    """What is wrong with a record that satisfies its schema, or None."""
    if record["tagged"] and (left := _not_left_alone(record)):
        return f"it is tagged already, but has {left}"
    for name in ("labels", "over_threshold"):
        cosines = [score["cosine"] for score in record[name]]
        if any(first < second for first, second in pairwise(cosines)):
            return f"{name} are not sorted from best to worst"
    labels = {score["label"]: score for score in record["over_threshold"]}
    for score in record["labels"]:
        if labels.get(score["label"], score) != score:
            return f"{score['label']} has two scores"
    for rank, keyword in enumerate(record["keywords"], 1):
        if keyword["rank"] != rank:
            return f"keyword {keyword['keyword']} has rank {keyword['rank']} instead of {rank}"
        if keyword["path"][-1] != keyword["keyword"]:
            return f"keyword {keyword['keyword']} is not the last of its path"
    keywords = record["keywords"]
    scores = [keyword["score"] for keyword in keywords if keyword["score"] is not None]
    if Counter(scores) - Counter(score["cosine"] for score in record["over_threshold"]):
        return "a keyword has a score that no label has"
    return _wrong_source(record)


def _wrong_source(record: Record) -> str | None:
    keywords = record["keywords"]
    order = [SOURCES.index(keyword["source"]) for keyword in keywords]
    if order != sorted(order):
        return "keywords are not in the order of their sources"
    own = [keyword["keyword"] for keyword in keywords if keyword["source"] == "person"]
    if own != record["own"]["keywords"]:
        return "the keywords of source person are not the photo's own"
    seen: set[str] = set()
    for keyword in keywords:
        word = keyword["keyword"].casefold()
        if word in seen:
            return f"keyword {keyword['keyword']} stands twice"
        if keyword["source"] != "clip":  # two labels may share their last level
            seen.add(word)
        elif keyword["score"] is None:
            return f"keyword {keyword['keyword']} of CLIP has no score"
    return None


def _not_left_alone(record: Record) -> str | None:
    fields = ("labels", "over_threshold", "caption", "description", "describe", "inherited_from")
    return next((name for name in fields if record[name]), None)


def field_problem(record: Record, failed: Sequence[str]) -> str | None:
    """What is wrong with the fields that a model was to be asked for, or None.

    `failed`: the messages of the rows of problems beside the record.
    """
    asked = record["describe"]
    done = {field: how["model"] for field, how in asked.items() if how["status"] == "done"}
    for field in ("caption", "description"):
        if (record[field] is not None) != (field in done):
            status = asked[field]["status"] if field in asked else "not asked for"
            return f"{field} is {record[field]!r}, but it was {status}"
    models = {field: name for field, name in record["models"].items() if field != "clip"}
    if models != done:
        return f"models are {models} instead of {done}"
    if "keywords" not in done and any(k["source"] == "vlm" for k in record["keywords"]):
        return "a keyword of a model that found none"
    expected = [field for field, how in asked.items() if how["status"] == "failed"]
    if [message.partition(":")[0] for message in failed] != expected:
        listed = "; ".join(failed) or "nothing"
        return f"failed are {expected}, but the problems are {listed}"
    for message in failed:
        if message not in record["notes"]:
            return f"no note says {message!r}, which is a problem"
    return None


class _Said(NamedTuple):
    """What members of a capture group have in common, as hashes; and from whom they have it."""

    inherited_from: str | None
    tagged: bool
    labels: int
    texts: Mapping[str, tuple[int, str | None]]  # field -> hash of the text, whose it is


class Inheritance:
    """Checks that what a photo inherits is what the photo named has, in a stream of records.

    Remembered are only the records whose names begin alike, up to the first dot: in path order
    the members of a capture group, and at most a few more, stand together.
    """

    def __init__(self) -> None:
        self.count = 0  # records that inherit
        self._prefix = ""
        self._seen: dict[str, _Said] = {}

    def add(self, record: Record) -> Iterator[tuple[str, str]]:
        """Take the next record; (rel_path, what is wrong) of those that are complete by now."""
        rel_path = record["rel_path"]
        if not rel_path.startswith(self._prefix) or not self._prefix:
            yield from self.finish()
            folder, slash, name = rel_path.rpartition("/")
            self._prefix = f"{folder}{slash}{name.partition('.')[0]}."
        self.count += record["inherited_from"] is not None
        texts = {
            field: (hash(record[field]), how["inherited_from"])
            for field, how in record["describe"].items()
            if field != "keywords"
        }
        labels = [(s["label"], s["cosine"]) for s in record["labels"] + record["over_threshold"]]
        said = _Said(record["inherited_from"], record["tagged"], hash(tuple(labels)), texts)
        self._seen[rel_path] = said

    def finish(self) -> Iterator[tuple[str, str]]:
        """What is wrong with the records that were taken and not yet judged."""
        for rel_path, said in self._seen.items():
            leader = said.inherited_from
            if leader and (problem := _not_from(rel_path, said, leader, self._seen.get(leader))):
                yield rel_path, f"inherited from {leader}, {problem}"
            for field, (text, source) in said.texts.items():
                # a photo that could not be embedded has answers, but no record
                known = self._seen.get(source or "")
                if known and known.texts.get(field, (None,))[0] != text:
                    yield rel_path, f"{field} is inherited from {source}, which has another"
        self._seen = {}


def _not_from(rel_path: str, said: _Said, leader: str, known: _Said | None) -> str | None:
    if known is None or rel_path.rpartition(".")[0] != leader.rpartition(".")[0]:
        return "which is no record of the same name"
    if known.inherited_from is not None or known.tagged:
        return "which leads no group"
    if known.labels != said.labels:
        return "which has other labels"
    return None
