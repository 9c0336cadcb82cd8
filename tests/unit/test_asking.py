"""The steps of asking, with a connection that answers from a script."""

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from phototagger import config
from phototagger.asking import Answer, Asker, Outcome, photo_seed
from phototagger.chat import Question, Refused, Reply
from phototagger.errors import UserError
from phototagger.machine import Servers
from phototagger.problems import PhotoProblem
from phototagger.replies import Replies
from phototagger.tasks import Task, plan_tasks

SUBJECTS = ["dog", "horse", "boat", "church", "river", "bridge", "tree", "car", "street", "child"]


def task(**values: Any) -> Task:
    describe = replace(config.load(None, {}, {}).describe, model="m", **values)
    (planned,) = plan_tasks(describe, Servers(base_url=("http://127.0.0.1:9/v1",))).values()
    return planned


def row(name: str, **values: Any) -> dict[str, Any]:
    sha256 = hashlib.sha256(name.partition("=")[0].encode()).hexdigest()
    return {"rel_path": f"shoot/{name}.jpg", "sha256": sha256, "taken_at": None, **values}


def reply(text: str, finish: str = "stop") -> Reply:
    return Reply(text, finish, "m", None, 100, 20, None, 0.5, 1)


def field_of(question: Question) -> str:
    return next(iter(question.schema["properties"]))


def good(question: Question) -> Reply:
    """An answer that nothing is wrong with, another one for each picture."""
    subject = SUBJECTS[len(question.image or "") % len(SUBJECTS)]
    number = sum(question.image.encode()) if question.image else 0
    name = field_of(question)
    if name == "keywords":
        return reply(json.dumps({"keywords": [subject, "evening light", f"house {number}"]}))
    return reply(json.dumps({name: f"A {subject} stands beside the old house number {number}."}))


@dataclass
class Script:
    """A connection; `answer` may raise."""

    answer: Callable[[Question], Reply] = good
    asked: list[Question] = field(default_factory=list)
    opened: int = 0
    version: str | None = "test 1"

    @property
    def counts(self) -> SimpleNamespace:
        return SimpleNamespace(requests=len(self.asked), retries=Counter())

    async def ask(self, question: Question) -> Reply:
        self.asked.append(question)
        await asyncio.sleep(0)
        return self.answer(question)

    @asynccontextmanager
    async def connect(self) -> AsyncIterator["Script"]:
        self.opened += 1
        yield self

    def fields(self) -> list[str]:
        return [field_of(question) for question in self.asked]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "describe"


def run(script: Script, cache: Path, rows: list[dict], workers: int = 4, **values: Any) -> Outcome:
    asker = Asker(
        values.pop("task", None) or task(**values),
        Replies(cache),
        lambda row: row["sha256"].encode(),
        script.connect,
        image_recipe="1",
        workers=workers,
    )
    return asyncio.run(_ask(asker, rows))


async def _ask(asker: Asker, rows: list[dict]) -> Outcome:
    async with asker:
        return await asker.ask(rows, {})


def one(outcome: Outcome, name: str = "caption") -> Answer:
    (found,) = outcome.answers
    return next(answer for answer in found if answer.field == name)


def scripted(*replies: Reply | Exception) -> Callable[[Question], Reply]:
    """Captions from a list, in the order of asking; other fields get good answers."""
    waiting: Iterator[Reply | Exception] = iter(replies)

    def answer(question: Question) -> Reply:
        if field_of(question) != "caption":
            return good(question)
        said = next(waiting)
        if isinstance(said, Exception):
            raise said
        return said

    return answer


GOOD = reply('{"caption": "Two children run along the beach at low tide."}')


def test_three_fields_of_a_photo_with_the_picture_in_each(cache: Path):
    script = Script()
    found = run(script, cache, [row("a"), row("b")])
    assert [[a.field for a in photo] for photo in found.answers] == [
        ["caption", "keywords", "description"]
    ] * 2
    assert all(a.status == "done" for photo in found.answers for a in photo)
    assert len(script.asked) == found.requests == 6
    assert all(q.image.startswith("data:image/jpeg;base64,") for q in script.asked)
    described = [q for q in script.asked if field_of(q) == "description"]
    captions = {photo[0].text for photo in found.answers}
    assert all(any(caption in q.user for caption in captions) for q in described)


def test_what_was_answered_is_never_asked_again(cache: Path):
    rows = [row(str(n)) for n in range(20)]
    first = run(Script(), cache, rows)
    script = Script()
    moved = [{**r, "rel_path": f"elsewhere/{n}.jpg"} for n, r in enumerate(rows)]
    again = run(script, cache, moved)
    assert script.opened == 0
    assert [[replace(a, fresh=True) for a in p] for p in again.answers] == first.answers
    assert again.requests == 0


def test_a_reply_is_on_disk_before_the_next_question(cache: Path):
    def answer(question: Question) -> Reply:
        before = len(list(cache.rglob("*.json")))
        assert before == len(script.asked) - 1
        return good(question)

    script = Script(answer)
    run(script, cache, [row("a"), row("b")], workers=1)
    assert len(list(cache.rglob("*.json"))) == 6


def test_a_changed_prompt_asks_again_what_it_concerns(cache: Path):
    rows = [row("a"), row("b")]
    run(Script(), cache, rows)
    script = Script()
    found = run(script, cache, rows, max_keywords=3)
    assert "caption" not in script.fields()  # its question has no such limit in it
    assert script.fields().count("keywords") == 2
    assert all(len(photo[1].keywords) <= 3 for photo in found.answers)


def test_copies_of_a_photo_are_asked_about_once(cache: Path):
    script = Script()
    found = run(script, cache, [row("a"), row("a=copy"), row("b")])
    assert len(script.asked) == 6
    assert found.answers[0][0].text == found.answers[1][0].text


def test_a_cut_answer_raises_the_limit(cache: Path):
    cut = reply('{"caption": "Two children run', "length")
    script = Script(scripted(cut, cut, GOOD))
    answer = one(run(script, cache, [row("a")]))
    limits = [q.max_tokens for q in script.asked if field_of(q) == "caption"]
    assert limits == [limits[0], 2 * limits[0], 4 * limits[0]]
    assert len({q.seed for q in script.asked if field_of(q) == "caption"}) == 1
    assert (answer.status, answer.attempts, answer.max_tokens) == ("done", 3, limits[-1])
    assert answer.completion_tokens == 60


def test_an_answer_without_end_is_a_problem(cache: Path):
    cut = reply('{"caption": "Two children run', "length")
    answer = one(run(Script(scripted(*[cut] * 6)), cache, [row("a")]))
    assert (answer.status, answer.kind, answer.text) == ("failed", "answer_truncated", None)


@pytest.mark.parametrize(
    ("bad", "kind", "requests"),
    [
        ('{"caption": "I\'m sorry, but I cannot help with that."}', "answer_refusal", 2),
        ('{"caption": "12345"}', "answer_digits", 2),
        ('{"caption": ""}', "answer_empty", 2),
        ("<html>", "answer_invalid", 3),
        ('{"description": "wrong"}', "answer_invalid", 3),
    ],
)
def test_a_bad_answer_is_asked_for_with_another_seed(
    cache: Path, bad: str, kind: str, requests: int
):
    script = Script(scripted(reply(bad), GOOD))
    assert one(run(script, cache, [row("a")])).status == "done"
    asked = [q for q in script.asked if field_of(q) == "caption"]
    assert asked[0].seed != asked[1].seed
    script = Script(scripted(*[reply(bad)] * 5))
    found = run(script, cache / "other", [row("a")])
    assert (one(found).status, one(found).kind) == ("failed", kind)
    assert len([q for q in script.asked if field_of(q) == "caption"]) == requests
    assert one(found, "keywords").status == "done"


def test_keywords_of_which_none_is_left_are_asked_for_again(cache: Path):
    def answer(question: Question) -> Reply:
        banned = field_of(question) == "keywords" and len(script.asked) < 3
        return reply('{"keywords": ["photography", "42"]}') if banned else good(question)

    script = Script(answer)
    found = run(script, cache, [row("a")])
    assert script.fields().count("keywords") == 2
    assert one(found, "keywords").status == "done"


def test_good_keywords_beyond_the_limit_make_up_for_bad_ones(cache: Path):
    said = reply('{"keywords": ["photo", "42", "horses", "horse", "river", "bridge", "gate"]}')
    script = Script(lambda q: said if field_of(q) == "keywords" else good(q))
    found = one(run(script, cache, [row("a")], max_keywords=3), "keywords")
    assert found.keywords == ["horses", "river", "bridge"]
    assert any("gate (more than 3 keywords)" in note for note in found.notes)


def test_what_a_service_filtered_is_a_refusal(cache: Path):
    filtered = reply("", "content_filter")
    found = run(Script(scripted(filtered, filtered)), cache, [row("a")])
    assert one(found).kind == "answer_refusal"


def test_a_rejected_answer_is_kept_as_well(cache: Path):
    bad = reply('{"caption": "12345"}')
    run(Script(scripted(bad, bad)), cache, [row("a")])
    script = Script()
    found = run(script, cache, [row("a")])
    assert (one(found).kind, script.opened) == ("answer_digits", 0)


def test_what_a_server_refuses_is_a_problem_of_one_field(cache: Path):
    refused = Refused("server_refused", "HTTP 400: too many pixels")
    answer = one(run(Script(scripted(refused)), cache, [row("a")]))
    assert (answer.status, answer.kind) == ("failed", "server_refused")
    assert "too many pixels" in answer.message
    script = Script()
    assert one(run(script, cache, [row("a")])).status == "done"  # not kept: it may pass
    assert script.fields()[0] == "caption"


def test_a_picture_that_cannot_be_prepared(cache: Path):
    def broken(_: Any) -> bytes:
        raise PhotoProblem("truncated", "the end is missing")

    asker = Asker(task(), Replies(cache), broken, Script().connect, image_recipe="1", workers=2)
    found = asyncio.run(_ask(asker, [row("a")]))
    assert [(a.status, a.kind) for a in found.answers[0]] == [("failed", "picture_failed")] * 3


def test_an_error_of_the_server_ends_the_run_and_keeps_the_rest(cache: Path):
    def answer(question: Question) -> Reply:
        if len(script.asked) > 10:
            raise UserError("the server is gone")
        return good(question)

    script = Script(answer)
    rows = [row(str(n)) for n in range(50)]
    with pytest.raises(UserError, match="the server is gone"):
        run(script, cache, rows)
    kept = len(list(cache.rglob("*.json")))
    assert 10 - 4 <= kept <= 10  # four were in flight
    script = Script()
    run(script, cache, rows)
    assert len(script.asked) == 150 - kept


def test_own_metadata_is_not_asked_for(cache: Path):
    mine = row("a", own_caption="My dog", own_keywords=["dog"], own_description=None)
    script = Script()
    found = run(script, cache, [mine])
    assert [(a.status, a.kind) for a in found.answers[0]] == [
        ("skipped", "own_metadata"),
        ("skipped", "own_metadata"),
        ("done", None),
    ]
    assert script.fields() == ["description"]
    script = Script()
    run(script, cache, [mine], overwrite=True)
    assert script.fields() == ["caption", "keywords", "description"]  # which quotes the others


def test_context_is_told_only_when_configured(cache: Path):
    told = row("a", own_keywords=["Rex"], taken_at="2024-05-01T10:00:00", place="Porto, Portugal")
    script = Script()
    run(script, cache, [told], overwrite=True)
    texts = " ".join(q.system + q.user for q in script.asked)
    assert not any(word in texts for word in ("Rex", "2024-05-01", "Porto", "shoot"))
    script = Script()
    run(script, cache, [told], overwrite=True, context=("keywords", "folder", "date", "place"))
    texts = " ".join(q.user for q in script.asked)
    assert all(word in texts for word in ("Rex", "2024-05-01", "Porto", "shoot"))


def test_the_same_text_on_many_photos(cache: Path):
    def answer(question: Question) -> Reply:
        return GOOD if field_of(question) == "caption" else good(question)

    rows = [row(str(n)) for n in range(30)]
    script = Script(answer)
    found = run(script, cache, rows)
    assert {p[0].kind for p in found.answers} == {"answer_repeated"}
    assert script.fields().count("caption") == 60  # once more with another seed
    assert {p[1].status for p in found.answers} == {"done"}
    again = Script(answer)
    assert run(again, cache, rows).answers[0][0].kind == "answer_repeated"
    assert again.opened == 0


def test_a_cured_repetition_is_no_problem(cache: Path):
    seen: Counter[str] = Counter()

    def answer(question: Question) -> Reply:
        seen[question.image] += field_of(question) == "caption"
        return (
            GOOD
            if field_of(question) == "caption" and seen[question.image] == 1
            else good(question)
        )

    found = run(Script(answer), cache, [row(str(n)) for n in range(30)])
    assert {p[0].status for p in found.answers} == {"done"}
    assert {p[0].attempts for p in found.answers} == {2}
    assert {p[0].completion_tokens for p in found.answers} == {40}


def test_a_description_quotes_the_caption_that_stays(cache: Path):
    script = Script()
    seen: Counter[str] = Counter()

    def answer(question: Question) -> Reply:
        caption = field_of(question) == "caption"
        seen[question.image] += caption
        return GOOD if caption and seen[question.image] == 1 else good(question)

    script.answer = answer
    found = run(script, cache, [row(str(n)) for n in range(30)])
    kept = {(cache / p[2].request[:2] / f"{p[2].request}.json").read_text() for p in found.answers}
    assert len(kept) == 30
    assert not any("Two children run" in text for text in kept)


def test_a_copy_that_can_be_read_is_asked_about(cache: Path):
    def picture(row: dict) -> bytes:
        if "copy" not in row["rel_path"]:
            raise PhotoProblem("missing", "the file does not exist")
        return b"picture"

    script = Script()
    asker = Asker(task(), Replies(cache), picture, script.connect, image_recipe="1", workers=2)
    found = asyncio.run(_ask(asker, [row("a"), row("a=copy")])).answers
    assert {a.status for a in found[1]} == {"done"}


def test_half_a_character_does_not_end_the_job(cache: Path):
    odd = reply('{"caption": "A boat \\ud83d on the lake at dusk."}')
    assert one(run(Script(scripted(odd)), cache, [row("a")])).status == "done"


def test_an_empty_text_is_never_an_answer(cache: Path):
    empty = reply('{"caption": ""}')
    found = run(Script(scripted(empty, empty)), cache, [row("a")], reject=())
    assert one(found).kind == "answer_empty"


def test_a_damaged_reply_is_asked_for_again(cache: Path):
    run(Script(), cache, [row("a")])
    for path in cache.rglob("*.json"):
        path.write_text(path.read_text()[:-20])
    script = Script()
    assert one(run(script, cache, [row("a")])).status == "done"
    assert len(script.asked) == 3


def test_seeds_depend_on_the_photo_not_on_the_order():
    seeds = {
        photo_seed(base, sha256, name, attempt)
        for base in (0, 1)
        for sha256 in ("a", "b")
        for name in ("caption", "keywords")
        for attempt in (0, 1)
    }
    assert len(seeds) == 16
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert photo_seed(0, "a", "caption", 0) == photo_seed(0, "a", "caption", 0)
