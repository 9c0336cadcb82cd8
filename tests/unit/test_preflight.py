"""The canary: a guesser does not pass, a model that sees does; verdicts are kept per run."""

import fcntl
import itertools
import json
import os
import threading
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from phototagger import canary, preflight
from phototagger.errors import UserError
from phototagger.machine import Servers
from phototagger.server import Served
from phototagger.setups import Setup

# ---------------------------------------------------------------------------------------- rule


def hits(kind: str, same: bool) -> dict[int, Fraction]:
    """How many of a kind's two answers a blind guess gets right, with which chance.

    All guesses are alike but for one thing: whether the guesser says the same twice.
    """
    values = canary.ANSWERS[kind]
    guess = (values[0], values[0 if same else 1])
    truths = list(itertools.permutations(values, canary.ROUNDS))
    counts = [sum(g == t for g, t in zip(guess, truth, strict=True)) for truth in truths]
    return {n: Fraction(counts.count(n), len(truths)) for n in range(canary.ROUNDS + 1)}


def chance(same: dict[str, bool]) -> Fraction:
    """Of passing by guessing, exactly."""
    found = [hits(kind, same[kind]) for kind in canary.KINDS]
    total = Fraction(0)
    for combination in itertools.product(*(each.items() for each in found)):
        right, weight = [], Fraction(1)
        for kind, (count, share) in zip(canary.KINDS, combination, strict=True):
            right += [kind] * count
            weight *= share
        total += weight * canary.passes(right)
    return total


def test_no_blind_guesser_passes_once_in_a_thousand():
    strategies = [
        dict(zip(canary.KINDS, same, strict=True))
        for same in itertools.product([True, False], repeat=len(canary.KINDS))
    ]
    best = max(chance(same) for same in strategies)
    assert best < Fraction(1, 1000)
    assert float(best) == pytest.approx(8.1e-4, rel=0.02)  # the figure in canary.passes


def test_who_says_the_same_each_time_never_passes():
    assert chance(dict.fromkeys(canary.KINDS, True)) == 0


def test_a_model_that_counts_badly_passes_and_one_that_reads_badly_does_not():
    assert canary.passes(["colour", "digit"] * 2)
    assert canary.passes(["colour", "dots", "digit", "colour", "dots"])
    assert not canary.passes(["colour", "dots", "colour", "dots"])
    assert not canary.passes(["colour", "dots", "dots", "digit"])
    assert not canary.passes([])


# ------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize(
    ("kind", "text", "answer"),
    [
        ("colour", "Red", "red"),
        ("colour", "The shape is a **blue** triangle on a white background.", "blue"),
        ("colour", "Violet.", "purple"),
        ("colour", "red or green", None),
        ("colour", "orange", None),
        ("colour", "red, maybe orange", None),
        ("colour", "a coloured shape", None),
        ("colour", "reddish", None),
        ("dots", "3", "3"),
        ("dots", "There are three black dots.", "3"),
        ("dots", "3 (three)", "3"),
        ("dots", "1, 2, 3", None),
        ("dots", "3.5", "3.5"),
        ("digit", "The digit is 7.", "7"),
        ("digit", "The one large digit is 7", "7"),
        ("digit", "seven", "7"),
        ("digit", "17", "17"),
        ("digit", "", None),
        ("digit", "0123456789", "0123456789"),
    ],
)
def test_answers_are_read_with_leniency_but_not_out_of_a_list(kind, text, answer):
    assert canary.parse(kind, text) == answer


@given(st.sampled_from(canary.KINDS), st.text())
def test_any_text_is_read_without_an_error(kind, text):
    assert canary.parse(kind, text) is None or canary.parse(kind, text)


@given(st.integers(0, 2**64 - 1))
def test_the_rounds_never_share_an_answer(seed):
    made = canary.challenges(seed, 32)
    assert [challenge.kind for challenge in made] == [*canary.KINDS] * canary.ROUNDS
    for kind in canary.KINDS:
        first, second = [challenge.answer for challenge in made if challenge.kind == kind]
        assert first != second
        assert {first, second} <= set(canary.ANSWERS[kind])
    assert all(challenge.right(challenge.answer) for challenge in made)
    assert not any(challenge.answer in challenge.question.split() for challenge in made)


# ------------------------------------------------------------------------------------ pictures


def spots(image: Image.Image) -> int:
    """Number of connected dark areas."""
    pixels = image.convert("L").point(lambda v: v < 128)
    dark = {
        (x, y) for y in range(image.height) for x in range(image.width) if pixels.getpixel((x, y))
    }
    count = 0
    while dark:
        count, todo = count + 1, [dark.pop()]
        while todo:
            x, y = todo.pop()
            near = {(x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)} & dark
            dark -= near
            todo += near
    return count


@pytest.mark.parametrize("edge", [112, 336])
def test_the_pictures_show_what_is_asked(edge):
    for seed in range(6):
        for challenge in canary.challenges(seed, edge):
            assert challenge.image.size == (edge, edge)
            colours = {colour for _, colour in challenge.image.getcolors(edge * edge)}
            if challenge.kind == "colour":
                assert canary.COLOURS[challenge.answer] in colours
                assert len(colours) == 2
            else:
                ink = {tuple(c) for c in colours if max(c) < 60}
                assert ink
                count = spots(challenge.image)
                assert count == (int(challenge.answer) if challenge.kind == "dots" else 1)


def test_pictures_are_reproducible_from_a_seed_and_differ_without_one():
    def made(seed: int) -> list[bytes]:
        return [
            canary.encode(challenge.image, "png", 90) for challenge in canary.challenges(seed, 64)
        ]

    assert made(5) == made(5)
    assert made(5) != made(6)


@pytest.mark.parametrize("file_format", ["jpeg", "png"])
def test_pictures_are_encoded_as_the_setup_wants_them(file_format):
    challenge = canary.challenges(1, 64)[0]
    with Image.open(BytesIO(canary.encode(challenge.image, file_format, 90))) as image:
        assert image.format == file_format.upper()


# ------------------------------------------------------------------------------------- verdicts


SETUP = Setup("s", "tagging", "openai", "m", None, "http://127.0.0.1:1/v1", digest="d" * 64)
SERVED = Served(("http://127.0.0.1:1/v1",), "m", "v1", "instance-1", own=False)
REPORT = preflight.Report(("m",), True, True, "passed", True, "v1", 33, ("doubtful",))


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces the checks; the list tells which instances were checked."""
    asked: list[str] = []

    def check(setup, served, servers, *, api_key=None):
        asked.append(served.instance)
        if served.model == "blind":
            raise UserError("answers without looking")
        return REPORT

    monkeypatch.setattr(preflight, "check", check)
    return asked


def test_a_good_verdict_is_kept_for_the_run(checks: list[str], tmp_path: Path):
    for _ in range(2):
        assert preflight.ensure(SETUP, SERVED, Servers(), tmp_path) == REPORT
    assert checks == ["instance-1"]


def test_a_bad_verdict_is_raised_again_without_asking(checks: list[str], tmp_path: Path):
    blind = Served(SERVED.base_urls, "blind", None, "instance-1", own=False)
    for _ in range(2):
        with pytest.raises(UserError, match="without looking"):
            preflight.ensure(SETUP, blind, Servers(), tmp_path, api_key="secret")
    assert checks == ["instance-1"]
    assert not any("secret" in path.read_text() for path in tmp_path.iterdir())


def test_a_server_that_was_started_again_is_checked_again(checks: list[str], tmp_path: Path):
    preflight.ensure(SETUP, SERVED, Servers(), tmp_path)
    again = Served(SERVED.base_urls, "m", "v1", "instance-2", own=False)
    preflight.ensure(SETUP, again, Servers(), tmp_path)
    assert checks == ["instance-1", "instance-2"]


def test_a_damaged_verdict_is_made_again(checks: list[str], tmp_path: Path):
    preflight.ensure(SETUP, SERVED, Servers(), tmp_path)
    (kept,) = tmp_path.glob("*.json")
    kept.write_text("{")
    assert preflight.ensure(SETUP, SERVED, Servers(), tmp_path) == REPORT
    assert json.loads(kept.read_text())["setup"] == "s"
    assert len(checks) == 2


def test_other_jobs_wait_for_the_one_that_checks(checks: list[str], tmp_path: Path):
    preflight.ensure(SETUP, SERVED, Servers(), tmp_path)
    (lock,), (kept,) = tmp_path.glob("*.lock"), tmp_path.glob("*.json")
    text = kept.read_text()
    kept.unlink()
    held = os.open(lock, os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_EX)
    other = threading.Thread(target=preflight.ensure, args=(SETUP, SERVED, Servers(), tmp_path))
    other.start()
    other.join(0.2)
    assert other.is_alive()
    kept.write_text(text)
    os.close(held)
    other.join(10)
    assert not other.is_alive()
    assert len(checks) == 1
