"""Preflight against llama.cpp's server, and against scripted ones that see, guess or misbehave."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from phototagger import preflight
from phototagger.errors import UserError
from phototagger.machine import Servers
from phototagger.server import Served, serve
from phototagger.setups import ImageLimits, Setup
from servers import seeing
from servers.fault_server import FaultServer, running

QUICK = Servers(busy_budget=3, timeout=10)
KEY = "sk-very-secret-key"


def setup_for(server: FaultServer, **more: Any) -> Setup:
    values = {"slug": "seeing", "backend": "openai", "model": "tiny-vlm", "digest": "d" * 64}
    return Setup(
        **{"purpose": "tagging", "command": None, "base_url": server.base_url, **values, **more}
    )


def served_by(*servers: FaultServer, model: str = "tiny-vlm") -> Served:
    return Served(tuple(s.base_url for s in servers), model, "v1", "one", own=False)


def check(server: FaultServer, servers: Servers = QUICK, **more: Any) -> preflight.Report:
    return preflight.check(setup_for(server, **more), served_by(server), servers, seed=7)


# ---------------------------------------------------------------------------------- a model sees


@pytest.mark.parametrize("limits", [ImageLimits(), ImageLimits(max_edge=112, format="png")])
def test_a_model_that_sees_passes(limits: ImageLimits):
    with running(answer=seeing.answer, keep=True) as server:
        report = check(server, image=limits)
    assert report == preflight.Report(
        ("tiny-vlm",), True, True, "passed", True, "v1", report.picture_tokens, ()
    )
    assert report.picture_tokens > 0
    pictures = [seeing.parts(body)[1] for body in server.bodies]
    # a chat without a picture, one with it, two rounds of three questions, one with a schema
    assert [picture is not None for picture in pictures] == [False] + [True] * 7 + [False]
    assert all(max(p.size) <= min(336, limits.max_edge) for p in pictures if p)


def test_pictures_differ_from_run_to_run():
    with running(answer=seeing.answer, keep=True) as server:
        for _ in range(2):
            preflight.check(setup_for(server), served_by(server), QUICK)
    first, second = server.bodies[2]["messages"], server.bodies[11]["messages"]
    assert first != second


def test_a_model_that_cannot_count_passes():
    def answer(body: dict[str, Any]) -> str:
        return "many" if "dots" in seeing.parts(body)[0] else seeing.answer(body)

    with running(answer=answer) as server:
        assert check(server).canary == "passed"


def test_a_reasoning_model_passes_and_a_mute_one_is_told_how_to_speak():
    with running(answer=seeing.answer, faults={"think": 1.0}) as server:
        assert check(server).canary == "passed"
    with (
        running(answer=seeing.answer, faults={"only reasoning": 1.0}) as server,
        pytest.raises(UserError, match=r"empty text .*extra_body"),
    ):
        check(server)


# -------------------------------------------------------------------------------- a model is blind


def guess(body: dict[str, Any]) -> str:
    text, _ = seeing.parts(body)
    return {"col": "The shape is red.", "dot": "3", "dig": "7"}.get(
        next((word for word in ("col", "dot", "dig") if word in text), ""), "A picture."
    )


def test_a_blind_model_is_refused_with_evidence_and_what_to_do():
    with (
        running(answer=guess, blind=True) as server,
        pytest.raises(preflight.BlindError) as refused,
    ):
        check(server)
    said = str(refused.value)
    assert "answers without looking" in said
    assert "of 6 questions" in said
    assert "prompt tokens without the picture" in said
    for way_out in ("--mmproj", "vision model", "another setup", "--skip-preflight"):
        assert way_out in said
    assert "\n" not in said


def test_a_server_that_takes_no_picture_is_refused():
    with (
        running(answer=seeing.answer, script=["ok", "400 string"]) as server,
        pytest.raises(preflight.BlindError, match=r"does not take a picture .*not understood"),
    ):
        check(server)


def test_a_model_of_random_weights_has_to_be_shown_pictures_all_the_same():
    test = {"purpose": "test", "canary": False}
    with running() as server:
        report = check(server, **test)
        assert (report.canary, report.vision_ok) == ("not_checked", True)
        assert server.stats.received == 3
    with (
        running(blind=True) as server,
        pytest.raises(preflight.BlindError, match="the picture changes nothing"),
    ):
        check(server, **test)


def test_only_a_setup_for_tests_may_go_without_the_canary():
    with running(answer=guess) as server, pytest.raises(preflight.BlindError, match="looking"):
        check(server, purpose="tagging", canary=False)


def test_every_server_is_checked():
    with (
        running(answer=seeing.answer) as good,
        running(answer=guess, blind=True) as bad,
        pytest.raises(preflight.BlindError) as refused,
    ):
        preflight.check(setup_for(good), served_by(good, bad), QUICK)
    assert bad.base_url in str(refused.value)


# --------------------------------------------------------------------------- what else can be wrong


def test_the_wrong_model_is_refused_with_those_that_are_served():
    with (
        running(models=["llava", "moondream"], any_model=True) as server,
        pytest.raises(UserError, match="llava, moondream"),
    ):
        check(server)
    assert server.stats.received == 0


def test_a_name_without_a_tag_is_found_as_ollama_lists_it():
    with running(models=["tiny-vlm:latest"], any_model=True, answer=seeing.answer) as server:
        assert check(server).models == ("tiny-vlm:latest",)


def test_structured_output_that_is_not_enforced_is_a_warning():
    def answer(body: dict[str, Any]) -> str:
        return '{"word": "cat"}' if "response_format" in body else seeing.answer(body)

    with running(answer=answer) as server:
        report = check(server)
        assert not report.structured_enforced
        assert "not enforced" in report.warnings[0]
    with running(answer=answer) as server:
        report = check(server, structured_output="none")
        assert (report.structured_enforced, report.warnings) == (False, ())


def test_a_server_that_refuses_the_schema_is_an_error():
    with (
        running(answer=seeing.answer, script=["ok"] * 8 + ["400"]) as server,
        pytest.raises(UserError, match="structured_output"),
    ):
        check(server)


@pytest.mark.parametrize("status", ["409", "423", "424", "425", "429", "503"])
def test_a_busy_server_is_waited_for(status: str):
    with running(answer=seeing.answer, script=[status, "ok", status], retry_after="0.3") as server:
        began = time.monotonic()
        assert check(server).canary == "passed"
    if status in ("423", "429", "503"):  # those with the header
        assert time.monotonic() - began >= 0.6
    assert server.stats.faults[status] == 2


def test_a_server_that_stays_busy_is_given_up():
    began = time.monotonic()
    with (
        running(faults={"503": 1.0}) as server,
        pytest.raises(UserError, match="busy_budget"),
    ):
        check(server, replace(QUICK, busy_budget=0.5))
    assert time.monotonic() - began < 10


def test_nobody_there_is_an_error_after_the_budget():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        setup = Setup("s", "tagging", "openai", "m", None, url)
        served = Served((url,), "m", None, "one", own=False)
        with pytest.raises(UserError, match="busy_budget"):
            preflight.check(setup, served, Servers(busy_budget=0.3))


def test_a_key_is_sent_and_appears_in_no_message():
    with running(answer=seeing.answer, api_key=KEY) as server:
        setup, served = setup_for(server), served_by(server)
        assert preflight.check(setup, served, QUICK, api_key=KEY).text_ok
        for key in (None, KEY + "x"):
            with pytest.raises(UserError) as refused:
                preflight.check(setup, served, QUICK, api_key=key)
            assert "API key" in str(refused.value)
            assert KEY not in str(refused.value)


def test_jobs_of_a_run_ask_once_and_a_bad_server_is_not_asked_again(tmp_path: Path):
    with running(answer=guess, blind=True) as server:
        for _ in range(3):
            with pytest.raises(UserError, match="without looking"):
                preflight.ensure(setup_for(server), served_by(server), QUICK, tmp_path)
        assert server.stats.received == 8
    (kept,) = tmp_path.glob("*.json")
    assert "without looking" in json.loads(kept.read_text())["error"]


# ------------------------------------------------------------------------------------- llama.cpp


@contextmanager
def text_only(models: Path) -> Iterator[str]:
    """llama.cpp's server without an image encoder; yields its base URL."""
    command = [sys.executable, "-m", "phototagger.tiny_server", "--port", "0"]
    command += ["--alias", "tiny-vlm", "--model", str(models / "tiny-vlm/model.gguf")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            line = next(line for line in process.stdout if line.startswith("listening on"))
            yield f"{line.split()[-1].rstrip('/')}/v1"
        finally:
            process.terminate()
            process.stdout.close()


def test_the_setup_of_the_tests_passes_on_llama_cpp(tiny_setup: Setup, served: Served):
    report = preflight.check(tiny_setup, served, QUICK)
    assert (report.text_ok, report.vision_ok, report.canary) == (True, True, "not_checked")
    assert report.models == ("tiny-vlm",)
    assert report.structured_enforced
    assert report.picture_tokens >= 20
    assert report.warnings == ()


def test_random_weights_do_not_pass_the_canary(tiny_setup: Setup, served: Served):
    with pytest.raises(UserError, match=r"without looking|empty text"):
        preflight.check(replace(tiny_setup, canary=True), served, QUICK)


def test_llama_cpp_without_an_image_encoder_is_refused(tiny_setup: Setup, tiny_vlm: Path):
    with text_only(tiny_vlm) as url:
        setup = replace(tiny_setup, command=None, base_url=url)
        with (
            serve(setup, QUICK, log=Path("unused")) as served,
            pytest.raises(preflight.BlindError, match=r"does not take a picture .*--mmproj"),
        ):
            preflight.check(setup, served, QUICK)
