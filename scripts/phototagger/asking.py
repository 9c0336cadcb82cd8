"""Asking a model about photos: which questions, in which order, when to ask again, what to keep.

Every reply is written to `<cache>/describe/ab/<key>.json` the moment it arrives. The key is the
SHA-256 of all that shapes a reply: the photo's SHA-256, how its picture is prepared, the setup's
digest, the texts, the schema and the decoding parameters. Replies that were cut off or rejected are
kept as well, so that a run that was killed goes through the same steps again without a request.

The fields of one photo are asked for one after the other, with the picture first in each message,
so that a server's prefix cache has the picture; many photos are under way at the same time.

The photos of a capture group show one picture: one of them is asked about, the others inherit.
"""

import asyncio
import base64
import contextlib
import hashlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any, Protocol

from phototagger import answers, groups, keywords, names, prompts
from phototagger.aliases import picture_of
from phototagger.chat import Question, Refused, Reply
from phototagger.errors import TransientError
from phototagger.problems import PhotoProblem, one_line
from phototagger.prompts import Prompt
from phototagger.replies import Kept, Replies
from phototagger.tasks import Task, needs, sha256_json
from phototagger.timeleft import TimeLeft

log = logging.getLogger(__name__)

RECIPE = "1"  # raised when the same settings would ask something else
RAISES = 2  # times the token limit is doubled for an answer that was cut off
RESEEDS = {"answer_invalid": 2}  # times another seed is tried; once for all other kinds

Row = Mapping[str, Any]  # of the thumbs table
Value = str | list[str]


# -------------------------------------------------------------------------------------- answers


@dataclass(frozen=True)
class Answer:
    """What became of one field of one photo."""

    field: str
    status: str  # done, skipped or failed; inherited until it is known what
    text: str | None = None
    keywords: list[str] | None = None
    paths: Mapping[str, list[str]] = field(default_factory=dict)  # of keywords in a vocabulary
    kind: str | None = None
    message: str | None = None
    notes: tuple[str, ...] = ()
    model: str | None = None
    server: str | None = None
    request: str | None = None  # key of the kept reply
    seed: int | None = None
    max_tokens: int | None = None
    prompt_tokens: int | None = None  # of all replies it took
    completion_tokens: int | None = None
    seconds: float | None = None
    attempts: int | None = None  # requests
    finish_reason: str | None = None
    fresh: bool = False  # something was asked just now
    inherited_from: str | None = None  # rel_path of the photo that was asked about instead

    @property
    def value(self) -> Value | None:
        return self.keywords if self.field == "keywords" else self.text


@dataclass
class Outcome:
    """All answers, photo by photo in the given order, and what they cost in this run."""

    answers: list[list[Answer]]
    requests: int = 0
    retries: Counter[str] = field(default_factory=Counter)
    reseeds: int = 0
    raised: int = 0
    server: str | None = None
    model: str | None = None

    def add_requests(self, later: "Outcome") -> None:
        """Count in what the same Asker was asked later; its counts go on from one to the next."""
        self.requests, self.retries = later.requests, later.retries
        self.reseeds, self.raised = later.reseeds, later.raised


class Connection(Protocol):
    """A server that is up and was checked; `chat.ChatClient` and who it speaks to."""

    version: str | None
    counts: Any

    async def ask(self, question: Question) -> Reply: ...


Connect = Callable[[], AbstractAsyncContextManager[Connection]]


# --------------------------------------------------------------------------------------- asking


class Asker:
    """Asks one setup about photos, with a connection that is made when it is first needed.

        async with Asker(...) as asker:
            outcome = await asker.ask(rows, earlier)

    `picture` gives the encoded picture of a row.
    """

    def __init__(
        self,
        task: Task,
        replies: Replies,
        picture: Callable[[Row], bytes],
        connect: Connect,
        *,
        image_recipe: str,
        workers: int,
        time_left: TimeLeft | None = None,
    ):
        self._task = task
        self._replies = replies
        self._picture = picture
        self._connect = connect
        self._image_recipe = image_recipe
        self._workers = workers
        self._time_left = time_left or TimeLeft()
        self._rules = keywords.Rules(
            max_keywords=task.max_keywords,
            lowercase=task.lowercase,
            plural=task.plural,
            language=task.language,
            vocabulary=_labels(task.vocabulary),
            strict=task.strict,
            max_words=task.prompts["keywords"].max_words if "keywords" in task.prompts else None,
        )
        self._stack = AsyncExitStack()
        self._connection: Connection | None = None
        self._connecting = asyncio.Lock()
        self._pending: dict[str, asyncio.Future[Kept]] = {}
        self._reseeds = self._raised = 0

    async def __aenter__(self) -> "Asker":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def ask(
        self,
        rows: Sequence[Row],
        earlier: Mapping[str, Mapping[str, Value]],
        progress: Callable[[list[Answer]], None] = lambda _: None,
    ) -> Outcome:
        """Answers for every row. `earlier`: other setups' answers, rel_path -> field -> value.

        Capture groups are looked for among the rows.

        Raises UserError if the server cannot be had or used, TransientError if the allocation ends
        before all is asked; replies so far are kept.
        """
        found: list[list[Answer]] = [[] for _ in rows]
        sources = groups.capture_groups(rows).sources(rows, self._task.prompts, self._asks)

        async def answer(number: int) -> None:
            row = rows[number]
            quoted = dict(earlier.get(row["rel_path"], {}))
            found[number] = await self._photo(row, quoted, sources)
            progress(found[number])

        await self._for_each(range(len(rows)), answer)
        await self._ask_repeated_again(rows, found, earlier)
        _inherit(rows, found)
        outcome = Outcome(found, reseeds=self._reseeds, raised=self._raised)
        if self._connection:
            outcome.requests = self._connection.counts.requests
            outcome.retries = Counter(self._connection.counts.retries)
            outcome.server = self._connection.version
        models = Counter(a.model for photo in found for a in photo if a.model)
        outcome.model = min(models, default=None)
        return outcome

    async def _photo(
        self, row: Row, quoted: dict[str, Value], sources: Mapping[tuple[str, str], str]
    ) -> list[Answer]:
        picture = _Picture(row, self._picture)
        found = []
        for name in self._task.prompts:
            if not self._asks(row, name):
                answer = _skipped(name)
            elif source := sources.get((row["rel_path"], name)):
                answer = Answer(name, "inherited", inherited_from=source)
            else:
                answer = await self._field(row, name, quoted, picture)
            found.append(answer)
            if answer.value:
                quoted[name] = answer.value
        return found

    def _asks(self, row: Row, name: str) -> bool:
        """Decided before anything is asked: what the photo's own metadata has is not asked for."""
        return self._task.overwrite or not row.get(f"own_{name}")

    async def _field(
        self,
        row: Row,
        name: str,
        quoted: Mapping[str, Value],
        picture: "_Picture",
        reseeds: int = 0,
    ) -> Answer:
        """Ask until there is a good answer, or a reason why there will be none."""
        prompt = self._task.prompts[name]
        system, user = prompts.render(prompt, self._context(row, quoted))
        tally = _Tally()
        limit, raised = prompt.max_tokens, 0
        while True:
            question = Question(
                system=system,
                user=user,
                image=None,
                schema=prompt.schema,
                max_tokens=limit,
                temperature=prompt.temperature,
                top_p=prompt.top_p,
                seed=photo_seed(self._task.seed, picture_of(row), name, reseeds),
            )
            try:
                key, kept, fresh = await self._reply(row, question, picture)
            except (Refused, PhotoProblem) as error:
                kind, message = _reason(error)
                log.warning("%s: %s: %s", row["rel_path"], name, error)
                return tally.failed(name, question, kind, message)
            tally.add(key, kept, fresh)
            cut = kept.reply.finish_reason == "length"
            if cut and raised < RAISES and not self._loops(kept.reply.text):
                limit, raised = 2 * limit, raised + 1
                self._raised += fresh
                continue
            kind, message, value = self._judge(name, prompt, kept.reply, cut)
            if kind is None:
                return self._done(name, question, tally, value)
            if reseeds >= RESEEDS.get(kind, 1):
                return tally.failed(name, question, kind, message)
            reseeds, limit, raised = reseeds + 1, prompt.max_tokens, 0
            self._reseeds += fresh

    def _judge(
        self, name: str, prompt: Prompt, reply: Reply, cut: bool
    ) -> tuple[str | None, str, Value]:
        """(problem kind or None, message, value) of a reply."""
        refusal = reply.refusal or ("filtered" if reply.finish_reason == "content_filter" else "")
        if refusal and "refusal" in self._task.reject:
            return "answer_refusal", f"the model refused: {one_line(refusal)}", ""
        if cut:
            if self._loops(reply.text):
                return "answer_loop", "the model repeated itself until it was cut off", ""
            return "answer_truncated", "no end after four times the tokens", ""
        try:
            value = answers.parse(reply.text, name, prompt.schema, prompt.max_chars)
        except answers.Invalid as error:
            return "answer_invalid", one_line(str(error)), ""
        language, reject = self._task.language, self._task.reject
        detector = answers.judge(name, value, language=language, reject=reject)
        if not value and name != "keywords":
            return "answer_empty", "an empty text", value
        if detector:
            return f"answer_{detector}", f"rejected as {detector}: {one_line(_shown(value))}", value
        if name == "keywords" and self._leaves_nothing(value):
            message = f"no keyword is left after cleaning: {one_line(_shown(value))}"
            return "answer_empty", message, value
        return None, "", value

    def _leaves_nothing(self, words: Value) -> bool:
        """Whether keywords are worth nothing; with a strict vocabulary, none is a result."""
        if "empty" not in self._task.reject or self._task.strict:
            return False
        return not keywords.clean(words, self._rules).keywords

    def _loops(self, text: str) -> bool:
        loop = answers.judge("description", text, language=self._task.language, reject=("loop",))
        return "loop" in self._task.reject and loop is not None

    def _done(self, name: str, question: Question, tally: "_Tally", value: Value) -> Answer:
        if name != "keywords":
            return tally.answer(name, question, status="done", text=str(value))
        cleaned = keywords.clean(value, self._rules)
        words = [word.keyword for word in cleaned.keywords]
        paths = {w.keyword: list(w.path) for w in cleaned.keywords if list(w.path) != [w.keyword]}
        notes = tuple(_log("dropped", cleaned.dropped) + _log("mapped", cleaned.mapped))
        return tally.answer(name, question, status="done", keywords=words, paths=paths, notes=notes)

    async def _reply(
        self, row: Row, question: Question, picture: "_Picture"
    ) -> tuple[str, Kept, bool]:
        """(key, reply, whether it was asked for just now). Raises Refused and PhotoProblem."""
        request = self._request(row, question)
        key = sha256_json(request)
        if kept := self._replies.get(key):
            return key, kept, False
        while key in self._pending:  # a copy of the photo is being asked about
            with contextlib.suppress(PhotoProblem):  # of the copy
                return key, await asyncio.shield(self._pending[key]), False
        future = self._pending[key] = asyncio.get_running_loop().create_future()
        try:
            self._time_left.check()
            connection = await self._connected()
            image = await picture.data_url(self._task.setup.image.format)
            reply = await connection.ask(_with_image(question, image))
            self._time_left.answered(reply.seconds)
            kept = Kept(reply, connection.version)
            self._replies.put(key, request, kept)
            future.set_result(kept)
        except BaseException as error:
            future.set_exception(error if isinstance(error, Exception) else RuntimeError("stopped"))
            future.exception()  # whoever waits gets it; nobody has to
            raise
        finally:
            del self._pending[key]
        return key, kept, True

    def _request(self, row: Row, question: Question) -> dict[str, Any]:
        setup = self._task.setup
        asked = asdict(question)
        del asked["image"]
        return {
            "recipe": RECIPE,
            "photo": picture_of(row),
            "picture": self._image_recipe,
            "setup": setup.slug,
            "setup_digest": setup.digest,
            "model": setup.model,
            **asked,
        }

    async def _connected(self) -> Connection:
        async with self._connecting:
            if self._connection is None:
                self._connection = await self._stack.enter_async_context(self._connect())
        return self._connection

    def _context(self, row: Row, quoted: Mapping[str, Value]) -> dict[str, Any]:
        told = set(self._task.context)
        folder = names.folder_of(row["rel_path"]).rpartition("/")[2]
        return {
            "language": self._task.language,
            "max_keywords": self._task.max_keywords,
            "keywords_given": list(row.get("own_keywords") or ()) if "keywords" in told else [],
            "folder": folder if "folder" in told and folder != "." else None,
            "date": (row.get("taken_at") or "")[:10] or None if "date" in told else None,
            "place": row.get("place") if "place" in told else None,
            "caption": quoted.get("caption"),
            "keywords": quoted.get("keywords"),
        }

    # ---------------------------------------------------------------- the same text on many photos

    async def _ask_repeated_again(
        self,
        rows: Sequence[Row],
        found: list[list[Answer]],
        earlier: Mapping[str, Mapping[str, Value]],
    ) -> None:
        """Once more, with another seed, for texts that too many photos got; then it is a problem.

        Judged when all answers are there, so that it does not depend on the order of arrival.
        """
        if "repeated" not in self._task.reject:
            return
        for position in range(len(self._task.prompts)):
            suspects = _repeated(rows, found, position)

            async def again(number: int, position: int = position) -> None:
                await self._again(rows[number], found[number], position, earlier, reseeds=1)

            async def dependents(number: int, position: int = position) -> None:
                for later in self._quoting(found[number], position):
                    await self._again(rows[number], found[number], later, earlier)

            await self._for_each(suspects, again)
            for number in _repeated(rows, found, position):
                found[number][position] = _as_repeated(found[number][position])
            await self._for_each(suspects, dependents)

    def _quoting(self, found: Sequence[Answer], position: int) -> list[int]:
        """Positions of later fields whose questions quote the answer at `position`."""
        return [
            later
            for later, answer in enumerate(found)
            if answer.status not in ("skipped", "inherited")
            and found[position].field in needs(self._task.prompts[answer.field])
        ]

    async def _again(
        self,
        row: Row,
        found: list[Answer],
        position: int,
        earlier: Mapping[str, Mapping[str, Value]],
        reseeds: int = 0,
    ) -> None:
        """Ask for one field again and replace its answer."""
        quoted = dict(earlier.get(row["rel_path"], {}))
        quoted |= {answer.field: answer.value for answer in found[:position] if answer.value}
        picture, old = _Picture(row, self._picture), found[position]
        new = await self._field(row, old.field, quoted, picture, reseeds)
        self._reseeds += new.fresh and reseeds > 0
        found[position] = _after(new, old)

    async def _for_each(
        self, numbers: Iterable[int], work: Callable[[int], Awaitable[None]]
    ) -> None:
        """Do the work for all numbers in their order, `workers` of them at a time."""
        todo = iter(sorted(numbers))
        too_late: list[TransientError] = []

        async def worker() -> None:
            for number in todo:
                try:
                    await work(number)
                except TransientError as error:
                    if self._time_left.is_enough():
                        raise
                    too_late.append(error)  # what the others have asked may still be answered
                    return

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._workers):
                    group.create_task(worker())
        except BaseExceptionGroup as errors:
            raise _first(errors) from None
        if too_late:
            raise too_late[0]


class _Picture:
    """The picture of a photo, prepared when it is first needed."""

    def __init__(self, row: Row, prepare: Callable[[Row], bytes]):
        self._row = row
        self._prepare = prepare
        self._url: str | None = None

    async def data_url(self, format_: str) -> str:
        """Raises PhotoProblem."""
        if self._url is None:
            data = await asyncio.to_thread(self._prepare, self._row)
            self._url = f"data:image/{format_};base64,{base64.b64encode(data).decode()}"
        return self._url


class _Tally:
    """Adds up the replies that one answer took."""

    def __init__(self) -> None:
        self._kept: list[Kept] = []
        self._key: str | None = None
        self._fresh = False

    def add(self, key: str, kept: Kept, fresh: bool) -> None:
        self._kept.append(kept)
        self._key = key
        self._fresh |= fresh

    def failed(self, name: str, question: Question, kind: str, message: str) -> Answer:
        return self.answer(name, question, status="failed", kind=kind, message=message)

    def answer(self, name: str, question: Question, **values: Any) -> Answer:
        replies = [kept.reply for kept in self._kept]
        last = self._kept[-1] if self._kept else None
        return Answer(
            name,
            model=last and last.reply.model,
            server=last and last.server,
            request=self._key,
            seed=question.seed,
            max_tokens=question.max_tokens,
            prompt_tokens=_total(reply.prompt_tokens for reply in replies),
            completion_tokens=_total(reply.completion_tokens for reply in replies),
            seconds=round(sum(reply.seconds for reply in replies), 3) if replies else None,
            attempts=sum(reply.attempts for reply in replies) if replies else None,
            finish_reason=last and last.reply.finish_reason,
            fresh=self._fresh,
            **values,
        )


def photo_seed(base: int, sha256: str, name: str, attempt: int) -> int:
    """Seed of a question: 0 to 2^31 - 1, of the photo's content, not of the order of asking."""
    text = f"{base} {sha256} {name} {attempt}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) & 0x7FFFFFFF


def percentiles(seconds: Sequence[float]) -> tuple[float, float]:
    """Median and 95th percentile of at least one value, in milliseconds' precision."""
    if len(seconds) == 1:
        return round(seconds[0], 3), round(seconds[0], 3)
    cuts = quantiles(seconds, n=20, method="inclusive")
    return round(cuts[9], 3), round(cuts[18], 3)


def _repeated(rows: Sequence[Row], found: list[list[Answer]], position: int) -> set[int]:
    """Numbers of the photos whose text too many others have as well; copies count once."""
    values = {
        row["sha256"]: _shown(photo[position].value)
        for row, photo in zip(rows, found, strict=True)
        if photo[position].status == "done" and photo[position].value
    }
    suspects = answers.repeated(values)
    return {
        number
        for number, (row, photo) in enumerate(zip(rows, found, strict=True))
        if row["sha256"] in suspects and photo[position].status == "done"
    }


def _skipped(name: str) -> Answer:
    has = "keywords" if name == "keywords" else f"a {name}"
    message = f"the photo's own metadata has {has}"
    return Answer(name, "skipped", kind="own_metadata", message=message)


def _inherit(rows: Sequence[Row], found: list[list[Answer]]) -> None:
    """Give the members of capture groups the answers of the photos that were asked about."""
    photos = {row["rel_path"]: photo for row, photo in zip(rows, found, strict=True)}
    for photo in found:
        for position, answer in enumerate(photo):
            if answer.status == "inherited":
                source = photos[answer.inherited_from][position]
                passed_on = {"inherited_from": answer.inherited_from, "fresh": False}
                photo[position] = Answer(**_fields(source) | passed_on)


def _as_repeated(answer: Answer) -> Answer:
    message = f"many photos got the same answer: {one_line(_shown(answer.value or ''))}"
    nothing = {"text": None, "keywords": None, "paths": {}, "kind": "answer_repeated"}
    return Answer(**_fields(answer) | nothing | {"status": "failed", "message": message})


def _after(new: Answer, old: Answer) -> Answer:
    """An answer with what the one before it cost."""
    costs = ("prompt_tokens", "completion_tokens", "seconds", "attempts")
    total = {name: _total([getattr(old, name), getattr(new, name)]) for name in costs}
    if total["seconds"] is not None:
        total["seconds"] = round(total["seconds"], 3)
    return Answer(**_fields(new) | total | {"fresh": new.fresh or old.fresh})


def _shown(value: Value) -> str:
    return value if isinstance(value, str) else ", ".join(value)


def _reason(error: Refused | PhotoProblem) -> tuple[str, str]:
    if isinstance(error, Refused):
        return error.kind, one_line(error.message)
    return "picture_failed", error.problem.message


def _with_image(question: Question, image: str) -> Question:
    return Question(**_fields(question) | {"image": image})


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def _log(what: str, words: Sequence[tuple[str, str]]) -> list[str]:
    """A note about keywords, if there are any."""
    said = "; ".join(f"{word} ({detail})" for word, detail in words)
    return [f"{what}: {one_line(said)}"] if said else []


def _total(counts: Iterable[float | None]) -> Any:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _first(errors: BaseExceptionGroup) -> BaseException:
    """The error that is about the run, not about a task that was cancelled for it."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _labels(pack: str | None) -> Any:
    if pack is None:
        return None
    from phototagger.labels import load_pack

    return load_pack(Path(pack)).labels
