"""Asking model servers, on scripted ones that fail in every way known."""

import asyncio
import base64
import json
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import pytest

from phototagger import chat, dialects, probe
from phototagger.chat import ChatClient, Question, Refused, Reply, api_key_of
from phototagger.endpoints import Endpoint, Pool, Turnstile
from phototagger.errors import UserError
from phototagger.machine import Servers
from phototagger.server import Served
from phototagger.setups import Setup
from servers.fault_server import FaultServer

SCHEMA = {
    "type": "object",
    "properties": {"caption": {"type": "string", "minLength": 1, "maxLength": 80}},
    "required": ["caption"],
}
KEY = "sk-very-secret-1234567890"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "BACKOFF", 0.01)


def setup_of(**options: Any) -> Setup:
    defaults = {"slug": "s", "purpose": "test", "backend": "vllm", "model": "tiny-vlm"}
    return Setup(**defaults | {"command": None, "base_url": "http://127.0.0.1:9/v1"} | options)


def question(number: int = 0, **options: Any) -> Question:
    picture = "data:image/jpeg;base64," + base64.b64encode(b"%d" % number).decode()
    defaults = {"system": "You see.", "user": "What is it?", "image": picture, "schema": SCHEMA}
    rest = {"max_tokens": 100, "temperature": 0.2, "top_p": 0.9, "seed": number}
    return Question(**defaults | rest | options)


def client_of(
    *servers: FaultServer, setup: Setup | None = None, key: str | None = None, **options: Any
) -> ChatClient:
    served = Served(tuple(s.base_url for s in servers), "tiny-vlm", None, "1", own=False)
    return ChatClient(setup or setup_of(), served, Servers(**options), key)


def ask_one(server: FaultServer, *, client: dict | None = None, **options: Any) -> Reply:
    """The reply to one question to a server."""

    async def ask() -> Reply:
        async with server, client_of(server, **client or {}) as asking:
            return await asking.ask(question(**options))

    return asyncio.run(ask())


# ---------------------------------------------------------------------------- what can pass


PASSING = {
    "429": "429",
    "503": "503",
    "423": "423",
    "409": "409",
    "424": "424",
    "425": "425",
    "408": "408",
    "500": "500",
    "500 plain": "500",
    "502 html": "502",
    "200 error": "502",
    "reset": "dropped",
    "cut": "dropped",
    "half": "bad_body",
    "html": "bad_body",
    "empty_choices": "empty_choices",
    "abort": "abort",
}


@pytest.mark.parametrize(("fault", "reason"), PASSING.items())
def test_failure_that_passes_is_repeated_and_counted(fault: str, reason: str) -> None:
    async def ask() -> None:
        async with FaultServer(script=[fault, fault]) as server, client_of(server) as client:
            reply = await client.ask(question())
            assert json.loads(reply.text)["caption"]
            assert reply.attempts == client.counts.requests == server.stats.received == 3
            assert client.counts.retries == {reason: 2}

    asyncio.run(ask())


def test_hanging_server_is_given_up_after_the_time_out() -> None:
    async def ask() -> None:
        server = FaultServer(script=["hang"])
        async with server, client_of(server, timeout=0.2) as client:
            reply = await client.ask(question())
            assert client.counts.retries == {"timeout": 1}
            assert server.stats.disconnects == 1
            assert reply.seconds < 0.15  # of the request that succeeded

    asyncio.run(ask())


@pytest.mark.parametrize("fault", ["500", "reset", "half", "abort"])
def test_retries_end(fault: str) -> None:
    async def ask() -> None:
        async with FaultServer(script=[fault] * 9) as server, client_of(server, retries=2) as c:
            with pytest.raises(Refused, match=r"\(3 requests\)$") as error:
                await c.ask(question())
            assert error.value.kind == "server_failed"
            assert server.stats.received == c.counts.requests == 3
            assert sum(c.counts.retries.values()) == 2

    asyncio.run(ask())


def test_busy_answers_do_not_use_up_retries() -> None:
    reply = ask_one(FaultServer(script=["503", "423"] * 3), client={"retries": 0})
    assert reply.attempts == 7


@pytest.mark.parametrize("value", ["1", "date"])
def test_retry_after_is_honoured(value: str) -> None:
    start = time.monotonic()
    ask_one(FaultServer(script=["429"], retry_after=value))
    assert 0.9 <= time.monotonic() - start < 3


def test_retry_after_is_bounded() -> None:
    assert probe.retry_after("86400") == probe.RETRY_AFTER_MAX
    assert 5 < probe.retry_after(formatdate(time.time() + 9, usegmt=True)) < 10
    said = [probe.retry_after(v) for v in ("-3", "soon", "nan", None, "", "1.5")]
    assert said == [0, None, None, None, None, 1.5]


def test_idle_connection_that_the_server_closed() -> None:
    """vLLM closes after 5 s what a pool would keep."""

    async def ask() -> None:
        server = FaultServer(keepalive=0.1)
        async with server, client_of(server, retries=0) as client:
            for number in range(3):
                await client.ask(question(number))
                await asyncio.sleep(0.3)
            assert client.counts.requests == 3

    asyncio.run(ask())


# ------------------------------------------------------------------------- what cannot pass


@pytest.mark.parametrize("fault", ["400", "413", "422", "400 string", "422 detail"])
def test_question_that_the_server_refuses_is_asked_once(fault: str) -> None:
    async def ask() -> None:
        async with FaultServer(script=[fault]) as server, client_of(server) as client:
            with pytest.raises(Refused) as error:
                await client.ask(question())
            assert (error.value.kind, server.stats.received) == ("server_refused", 1)
            assert "\n" not in error.value.message
            assert (await client.ask(question())).attempts == 1

    asyncio.run(ask())


CONCERNS_ALL = {"401": "api_key_env", "403": "api_key_env", "404": "tiny-vlm", "quota": "quota"}


@pytest.mark.parametrize(("fault", "says"), CONCERNS_ALL.items())
def test_what_concerns_every_question_ends_all(fault: str, says: str) -> None:
    async def ask() -> None:
        server = FaultServer(script=[fault], latency=0.1)
        async with server, client_of(server, concurrency=2) as client:
            asked = [client.ask(question(n)) for n in range(20)]
            results = await asyncio.gather(*asked, return_exceptions=True)
            errors = [r for r in results if isinstance(r, UserError)]
            assert says in str(errors[0])
            assert (len(errors), server.stats.received) == (19, 2)  # one was in flight beside it

    asyncio.run(ask())


def test_moderated_picture_is_not_everybodys_error() -> None:
    async def ask() -> None:
        async with FaultServer(script=["ok", "403"]) as server, client_of(server) as client:
            await client.ask(question())
            with pytest.raises(Refused):
                await client.ask(question(1))

    asyncio.run(ask())


def test_server_that_refuses_everything() -> None:
    async def ask() -> int:
        async with FaultServer(script=["400"] * 99) as server, client_of(server) as client:
            for number in range(99):
                try:
                    await client.ask(question(number))
                except Refused:
                    continue
                except UserError:
                    return number + 1
        return 0

    assert asyncio.run(ask()) == chat.HOPELESS


def test_busy_budget() -> None:
    async def ask() -> None:
        server = FaultServer(faults={"503": 1})
        async with server, client_of(server, busy_budget=0.3) as client:
            start = time.monotonic()
            asked = [client.ask(question(n)) for n in range(4)]
            results = await asyncio.gather(*asked, return_exceptions=True)
            assert all(isinstance(r, UserError) and "busy_budget" in str(r) for r in results)
            assert 0.3 <= time.monotonic() - start < 2

    asyncio.run(ask())


def test_api_key_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_KEY", f" {KEY}\n")
    servers = Servers(api_key_env="THE_KEY")
    assert api_key_of(servers) == KEY
    assert api_key_of(Servers()) is None
    monkeypatch.delenv("THE_KEY")
    with pytest.raises(UserError, match="no environment variable of that name is set"):
        api_key_of(servers)
    assert ask_one(FaultServer(api_key=KEY), client={"key": KEY}).text
    with pytest.raises(UserError) as error:
        ask_one(FaultServer(api_key="other"), client={"key": KEY, "api_key_env": "THE_KEY"})
    assert KEY not in str(error.value)
    assert "THE_KEY" in str(error.value)


def test_server_that_quotes_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    said = f"no such key: {KEY} in Authorization: Bearer {KEY[:9]}"
    monkeypatch.setitem(chat.__dict__, "BACKOFF", 0)
    monkeypatch.setattr("servers.fault_server.REFUSALS", {"400": said, "500": said})
    for fault in ("400", "500"):
        with pytest.raises(Refused) as error:
            ask_one(FaultServer(script=[fault] * 9), client={"key": KEY, "retries": 1})
        assert "sk-" not in error.value.message


ERRORS = {
    b'{"error": {"message": "too\\nlong", "code": 400}}': "too long",
    b'{"error": "Unauthorized"}': "Unauthorized",
    b'{"detail": "Not Found"}': "Not Found",
    b'{"detail": [{"msg": "field required"}, {"msg": "extra"}]}': "field required; extra",
    b"Internal Server Error": "Internal Server Error",
    b"<html><head><title>502 Bad Gateway</title>": "502 Bad Gateway",
    b"<p>Go <b>away</b></p>": "Go away",
    b"": "",
    b"\xff\x00\x1b[31m": "\ufffd [31m",
    b"[]": "[]",
    b'{"error": {}}': '{"error": {}}',
    b"x" * 999: "x" * 199 + "…",
}


@pytest.mark.parametrize(("body", "line"), ERRORS.items())
def test_error_bodies(body: bytes, line: str) -> None:
    assert dialects.explain(body)[0] == line


def test_rate_limits_that_speak_of_quota_are_waited_for() -> None:
    assert dialects.is_quota("You exceeded your current quota", "insufficient_quota")
    assert dialects.is_quota("Your credit balance is too low", "invalid_request_error")
    assert not dialects.is_quota("You exceeded your current quota", "resource_exhausted")


# ---------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("fault", ["think", "reasoning"])
def test_reasoning_is_left_out(fault: str) -> None:
    assert json.loads(ask_one(FaultServer(script=[fault])).text)["caption"]


def test_reasoning_without_its_ends() -> None:
    assert dialects.without_reasoning("I see a {dog}.\n</think>\n{}") == "{}"
    assert dialects.without_reasoning("<think>I see a") == ""
    assert dialects.without_reasoning('{"caption": "a < b"}') == '{"caption": "a < b"}'


def test_answers_without_content() -> None:
    assert ask_one(FaultServer(script=["null"])).text == ""
    reply = ask_one(FaultServer(script=["only reasoning"]))
    assert (reply.text, reply.finish_reason) == ("", "length")
    assert "sorry" in str(ask_one(FaultServer(script=["refusal"])).refusal)
    assert ask_one(FaultServer(script=["length"])).finish_reason == "length"
    reply = ask_one(FaultServer(length_below=200), max_tokens=200)
    assert reply.finish_reason == "stop"


def test_reply_has_what_the_server_said() -> None:
    reply = ask_one(FaultServer())
    assert (reply.model, reply.fingerprint) == ("tiny-vlm", "fault-server")
    assert reply.prompt_tokens > 64
    assert (reply.completion_tokens or 0) > 0
    assert reply.cached_tokens == 0


@pytest.mark.parametrize(
    "body",
    [[], "x", None, {}, {"choices": {}}, {"choices": [None]}, {"choices": [{"message": None}]}],
)
def test_bodies_that_are_no_answer(body: Any) -> None:
    with pytest.raises(dialects.UnreadableError):
        dialects.read(body)


# --------------------------------------------------------------------------------- dialects


def sent(setup: Setup, **options: Any) -> dict[str, Any]:
    """The body that a server gets."""
    server = FaultServer(keep=True)
    assert json.loads(ask_one(server, client={"setup": setup}, **options).text)["caption"]
    return server.bodies[0]


def test_json_schema_and_the_order_of_a_message() -> None:
    body = sent(setup_of(token_field="max_completion_tokens"), seed=2**31 + 5)
    wanted = body["response_format"]["json_schema"]
    assert (wanted["schema"], wanted["strict"], wanted["name"]) == (SCHEMA, True, "answer")
    assert (body["max_completion_tokens"], body["seed"]) == (100, 5)
    assert "max_tokens" not in body
    system, user = body["messages"]
    assert (system["role"], user["role"]) == ("system", "user")
    assert [part["type"] for part in user["content"]] == ["image_url", "text"]


def test_openai_gets_no_limits() -> None:
    body = sent(setup_of(backend="openai"))
    assert body["response_format"]["json_schema"]["schema"] == {
        "type": "object",
        "properties": {"caption": {"type": "string"}},
        "required": ["caption"],
        "additionalProperties": False,
    }


def test_property_that_is_named_like_a_limit() -> None:
    schema = {"type": "object", "properties": {"pattern": {"type": "string", "pattern": "a"}}}
    assert dialects.strict(schema)["properties"] == {"pattern": {"type": "string"}}


def test_other_dialects() -> None:
    assert sent(setup_of(structured_output="guided_json"))["guided_json"] == SCHEMA
    body = sent(setup_of(structured_output="json_object"))
    assert body["response_format"] == {"type": "json_object", "schema": SCHEMA}
    plain = dialects.payload(setup_of(structured_output="none"), "m", question())
    assert "response_format" not in plain
    assert json.dumps(SCHEMA) in plain["messages"][1]["content"][1]["text"]
    without = dialects.payload(setup_of(), "m", question(schema=None, image=None, system=""))
    assert without["messages"] == [{"role": "user", "content": "What is it?"}]
    assert "response_format" not in without


def test_ollamas_own_form() -> None:
    extra = {"think": False, "options": {"num_ctx": 8192, "top_p": None}}
    body = sent(setup_of(backend="ollama", structured_output="format", extra_body=extra))
    assert body["format"] == SCHEMA
    assert body["messages"][1]["images"] == [base64.b64encode(b"0").decode()]
    assert (body["think"], body["stream"]) == (False, False)
    assert body["options"] == {"num_predict": 100, "temperature": 0.2, "seed": 0, "num_ctx": 8192}


def test_extra_body_adds_and_takes_out() -> None:
    extra = {"temperature": None, "chat_template_kwargs": {"enable_thinking": False}}
    setup = setup_of(extra_body=extra)
    for _ in range(2):
        body = dialects.payload(setup, "m", question())
        assert "temperature" not in body
        assert body["chat_template_kwargs"] == {"enable_thinking": False}


# -------------------------------------------------------------------- many, on several servers


def ask_many(client: ChatClient, count: int) -> Callable[[], Any]:
    asked = [client.ask(question(number)) for number in range(count)]
    return asyncio.gather(*asked, return_exceptions=True)


def test_every_fault_at_once_and_the_totals_add_up() -> None:
    async def ask() -> None:
        names = [*PASSING, "400", "null"]
        server = FaultServer(faults=dict.fromkeys(names, 0.03), latency=0.002)
        async with server, client_of(server, concurrency=16) as client:
            results = await ask_many(client, 300)
            assert {type(r) for r in results} == {Reply, Refused}
            counts = client.counts
            assert (counts.answered, counts.refused) == (
                sum(isinstance(r, Reply) for r in results),
                sum(isinstance(r, Refused) for r in results),
            )
            assert counts.answered + counts.refused == counts.questions == 300
            assert counts.requests == 300 + sum(counts.retries.values()) == server.stats.received
            assert server.stats.most_in_flight <= 16
            assert server.stats.asked_again == 0

    asyncio.run(ask())


def test_requests_in_flight_adapt_to_what_the_server_takes() -> None:
    async def ask() -> None:
        server = FaultServer(latency=0.02, slots=4, overflow="503")
        async with server, client_of(server, concurrency=64) as client:
            await ask_many(client, 300)
            window = client._pool.endpoints[0].window
            assert window < 16
            assert client.counts.answered == 300
            server.slots = 64
            for _ in range(2):
                await ask_many(client, 300)
            assert client._pool.endpoints[0].window > 2 * window

    asyncio.run(ask())


def test_window_shrinks_once_for_one_moment_and_comes_back() -> None:
    async def ask() -> None:
        endpoint = Endpoint("http://x/v1", 64, object)
        endpoint.in_flight = 64
        sent_at = time.monotonic()
        for _ in range(64):
            endpoint.overloaded(sent_at)
        assert endpoint.window == 48
        for _ in range(64 * 32):
            endpoint.answered(1.0, 0.0)
        assert endpoint.window == 64

    asyncio.run(ask())


def test_slow_connection_does_not_hold_up_others_for_long() -> None:
    async def ask() -> None:
        turnstile = Turnstile()
        leave_late = await turnstile.enter()  # and is not left
        async with asyncio.timeout(1):
            leave = await turnstile.enter()
        leave_late()  # must not end the other's turn
        waiting = asyncio.create_task(turnstile.enter())
        await asyncio.sleep(0)
        assert not waiting.done()
        leave()
        (await waiting)()

    asyncio.run(ask())


def test_dead_endpoint_is_left_alone_while_the_other_works() -> None:
    async def ask() -> None:
        first, second = FaultServer(latency=0.01), FaultServer(latency=0.01, die_after=40)
        async with first, second, client_of(first, second, concurrency=4) as client:
            results = await ask_many(client, 200)
            assert all(isinstance(r, Reply) for r in results)
            counts = client.counts
            assert counts.by_endpoint[first.base_url] > 150
            # What was in flight when it died, and a try for each second since.
            assert 1 <= counts.retries["connect"] + counts.retries["dropped"] <= 12
            assert counts.requests == 200 + sum(counts.retries.values())

    asyncio.run(ask())


def test_server_that_comes_back_is_used_again() -> None:
    async def ask() -> None:
        server = FaultServer()
        async with server:
            pass
        async with client_of(server, retries=0) as client:
            asked = asyncio.create_task(client.ask(question()))
            await asyncio.sleep(0.2)
            async with FaultServer(port=server.port):
                assert (await asked).attempts >= 2
                assert client.counts.retries["connect"] >= 1

    asyncio.run(ask())


def test_nobody_there_at_all() -> None:
    async def ask() -> None:
        server = FaultServer()
        async with server:
            pass
        async with client_of(server, busy_budget=0.5) as client:
            with pytest.raises(UserError, match="cannot be reached"):
                await client.ask(question())

    asyncio.run(ask())


def test_own_server_that_died_is_noticed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def dead(_: Served) -> None:
        raise UserError("the server ended: CUDA out of memory")

    async def ask() -> None:
        server = FaultServer(script=["reset"])
        monkeypatch.setattr("phototagger.server.check_alive", dead)
        served = Served((server.base_url,), "tiny-vlm", None, "1", own=True)
        async with server:
            served = Served((server.base_url,), "tiny-vlm", None, "1", own=True)
            async with ChatClient(setup_of(), served, Servers()) as client:
                with pytest.raises(UserError, match="out of memory"):
                    await client.ask(question())

    asyncio.run(ask())


def test_work_is_shared_by_speed() -> None:
    async def ask() -> None:
        fast, slow = FaultServer(latency=0.01, slots=4), FaultServer(latency=0.06, slots=4)
        async with fast, slow, client_of(fast, slow, concurrency=4) as client:
            await ask_many(client, 200)
            counts = client.counts.by_endpoint
            assert 2 < counts[fast.base_url] / counts[slow.base_url] < 9

    asyncio.run(ask())


def test_questions_about_one_picture_go_to_one_server() -> None:
    async def ask() -> None:
        one, other = FaultServer(keep=True, latency=0.01), FaultServer(keep=True, latency=0.01)

        async def photo(client: ChatClient, number: int) -> None:
            for user in ("a caption", "keywords", "a description"):
                await client.ask(question(number, user=user))

        async with one, other, client_of(one, other, concurrency=8) as client:
            await asyncio.gather(*(photo(client, number) for number in range(8)))
        seen = [
            {body["messages"][-1]["content"][0]["image_url"]["url"] for body in server.bodies}
            for server in (one, other)
        ]
        assert all(seen)
        assert not seen[0] & seen[1]

    asyncio.run(ask())


def test_a_server_with_room_is_preferred_if_it_is_faster() -> None:
    async def ask() -> None:
        fast, slow = FaultServer(latency=0.01), FaultServer(latency=0.1)
        async with fast, slow, client_of(fast, slow, concurrency=16) as client:
            for start in range(0, 80, 4):  # never more in flight than either of them takes
                await asyncio.gather(*(client.ask(question(start + n)) for n in range(4)))
            counts = client.counts.by_endpoint
            assert counts[fast.base_url] > 5 * counts[slow.base_url]

    asyncio.run(ask())


def test_answers_that_come_too_late_shrink_the_window_and_one_that_hangs_does_not() -> None:
    async def window(faults: dict[str, float]) -> float:
        server = FaultServer(faults=faults)
        async with server, client_of(server, concurrency=16, timeout=0.2, retries=20) as client:
            asked = [asyncio.create_task(client.ask(question(n))) for n in range(60)]
            await asyncio.sleep(1)
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
            return client._pool.endpoints[0].window

    assert asyncio.run(window({"hang": 1.0})) < 12
    assert asyncio.run(window({"hang": 0.05})) == 16


def test_cancelled_questions_leave_no_slot_taken() -> None:
    async def ask() -> None:
        async with FaultServer(latency=0.05) as server, client_of(server, concurrency=2) as client:
            tasks = [asyncio.create_task(client.ask(question(n))) for n in range(10)]
            await asyncio.sleep(0.02)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert client._pool.endpoints[0].in_flight == 0
            assert (await client.ask(question())).attempts == 1

    asyncio.run(ask())


def test_slot_that_was_given_at_the_moment_of_cancelling() -> None:
    async def ask() -> None:
        pool = Pool([Endpoint("http://x/v1", 1, object)])
        endpoint = await pool.acquire()
        waiting = asyncio.create_task(pool.acquire())
        await asyncio.sleep(0)
        pool.release(endpoint)  # to the one that waits, which is cancelled before it wakes
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert endpoint.in_flight == 0

    asyncio.run(ask())


def test_end_does_not_wait_for_an_endpoint_that_rests() -> None:
    async def ask() -> None:
        endpoint = Endpoint("http://x/v1", 1, object)
        endpoint.away()
        pool = Pool([endpoint])
        waiting = [asyncio.create_task(pool.acquire()) for _ in range(3)]
        await asyncio.sleep(0)
        pool.fail(lambda: UserError("over"))
        async with asyncio.timeout(0.5):
            results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [str(r) for r in results] == ["over"] * 3

    asyncio.run(ask())


def test_proxy_of_the_environment_is_not_asked_for_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert ask_one(FaultServer()).attempts == 1
