"""`registry add` and `registry bench`: tried on real servers, recorded as it was."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from phototagger import hostinfo, setups, trial
from phototagger.cli import main
from servers import seeing
from servers.fault_server import running, sentence

COMMIT = "0123456789abcdef0123456789abcdef01234567-dirty"

COMMAND = (
    "python -m phototagger.tiny_server --model $PHOTO_TAGGER_MODELS/tiny-vlm/model.gguf "
    "--mmproj $PHOTO_TAGGER_MODELS/tiny-vlm/mmproj.gguf "
    "--alias tiny-vlm --host 127.0.0.1 --port {port}"
)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five photos and a file that is none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(5):
        noise = Image.effect_noise((160 + number, 120), 80).convert("RGB")
        noise.save(folder / f"{number}.jpg")
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line in a work directory: (exit status, stdout, stderr)."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("PHOTO_TAGGER__SERVERS__RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("PHOTO_TAGGER__SERVERS__BUSY_BUDGET", "5")
    monkeypatch.setattr(hostinfo, "git_commit", lambda: COMMIT)

    def call(*arguments: object) -> tuple[int, str, str]:
        given = ["registry", *map(str, arguments)]
        monkeypatch.setattr("sys.argv", ["photo-tagger", *given])
        with pytest.raises(SystemExit) as ended:
            main(given)
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return call


def entry(slug: str) -> dict[str, Any]:
    """What was recorded, after the registry's own checks."""
    assert setups.validate() == []
    return dict(setups.load(slug).entry)


def answer(body: dict[str, Any]) -> str:
    """A model that sees, and tags."""
    schema = body.get("response_format", {}).get("json_schema", {}).get("schema", {})
    fields = schema.get("properties", {})
    if not fields or "word" in fields:
        return seeing.answer(body)
    digest = hashlib.sha256(json.dumps(body).encode()).digest()
    words = re.findall(r"[a-z]{4,}", sentence(digest).lower())
    said = {"caption": sentence(digest), "description": sentence(digest), "keywords": words}
    return json.dumps({name: said[name] for name in fields})


def blind(body: dict[str, Any]) -> str:
    return answer(body) if "caption" in json.dumps(body) else "a red 7"


# -------------------------------------------------------------------------------------- success


def test_llama_cpp_is_started_tried_recorded_and_stopped(
    run: Run, photos: Path, tiny_vlm: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PHOTO_TAGGER_MODELS", str(tiny_vlm))
    line = COMMAND.format(port=free_port)
    given = ("--command", line, "--backend", "llama.cpp", "--health", "/health", "--for-tests")
    more = ("--max-edge", 112, "--concurrency", 2, "--role", "testing=7", "--notes", "tiny")
    status, out, err = run("add", "tiny-2", *given, *more, "--photos", photos)
    assert (status, err) == (0, "")
    assert "tiny-2: success, recorded in registry/entries/tiny-2.json" in out
    found = entry("tiny-2")
    assert found["server"]["command"] == line
    assert (found["server"]["host"], found["server"]["port"]) == ("127.0.0.1", free_port)
    assert found["tagger"]["base_url"] == f"http://127.0.0.1:{free_port}/v1"
    assert found["tagger"]["command"].startswith(
        "photo-tagger registry add tiny-2 --command 'python"
    )
    assert found["roles"] == {"testing": 7}
    assert found["model"] | {"weights_sha256": None} == {
        "repo_id": None,
        "revision": None,
        "weights_sha256": None,
        "local_path": "$PHOTO_TAGGER_MODELS/tiny-vlm/model.gguf",
        "served_model_name": "tiny-vlm",
        "format": "gguf",
        "quantization": None,
        "vision": True,
    }
    files = [tiny_vlm / "tiny-vlm" / name for name in ("model.gguf", "mmproj.gguf")]
    assert found["model"]["weights_sha256"] == trial.weights_sha256(files)
    verification = found["verification"]
    assert verification["status"] == "success"
    assert verification["git_commit"] == COMMIT
    assert verification["images_processed"] == 5  # the broken one was left out
    assert verification["stages"] == dict.fromkeys(("caption", "keywords", "description"), 5)
    assert verification["canary"] == "not_checked"
    assert verification["environment"]["packages"]["xllamacpp"]
    assert verification["server_info"]["model"]["id"] == "tiny-vlm"
    assert verification["server_info"]["props"]["model_path"].startswith("$PHOTO_TAGGER_MODELS/")
    speed = found["performance"]
    assert 0 < speed["stages"]["caption"]["p50_s"] <= speed["stages"]["caption"]["p95_s"] < 10
    assert speed["photos_per_s"] > 0
    assert speed["tokens_per_s"] > speed["photos_per_s"]
    assert speed["start_s"] > 0
    assert speed["concurrency"] == 2

    before = Path("registry/entries/tiny-2.json").read_bytes()
    status, _, err = run("add", "tiny-2", *given, "--photos", photos)
    assert status == 2
    assert "never edited" in err
    assert "tiny-2-2" in err
    status, _, err = run("add", "tiny-3", "--like", "tiny-2", "--photos", photos, "--max-images", 2)
    assert (status, err) == (0, "")
    again = entry("tiny-3")
    assert again["verification"]["images_processed"] == 2
    assert again["server"] == found["server"]
    assert setups.load("tiny-3").digest == setups.load("tiny-2").digest
    assert Path("registry/entries/tiny-2.json").read_bytes() == before

    status, out, _ = run("bench", "tiny-2", "--photos", photos, "--json")
    assert status == 0
    measured = json.loads(out)
    assert measured["done"] == dict.fromkeys(("caption", "keywords", "description"), 5)
    assert measured["failure"] is None
    assert Path("registry/entries/tiny-2.json").read_bytes() == before
    assert sorted(p.stem for p in Path("registry/entries").iterdir()) == ["tiny-2", "tiny-3"]


def test_a_server_of_somebody_else_that_sees_is_a_success(run: Run, photos: Path):
    with running(answer=answer, latency=0.02) as server:
        given = ("--base-url", server.base_url, "--backend", "openai", "--model", "tiny-vlm")
        status, out, err = run("add", "hosted", *given, "--role", "caption=80", "--photos", photos)
        assert (status, err) == (0, "")
        assert "5/5" in out
        found = entry("hosted")
        assert found["verification"]["canary"] == "passed"
        assert found["performance"]["start_s"] is None
        assert found["server"]["command"] is None
        assert setups.select("caption").slug == "hosted"
        status, out, _ = run("bench", "hosted", "--photos", photos, "--concurrency", 3)
    assert status == 0
    assert "in flight 3" in out


# -------------------------------------------------------------------------------------- failures


def test_a_blind_model_is_recorded_as_a_failure(run: Run, photos: Path):
    with running(answer=blind, blind=True) as server:
        given = ("--base-url", server.base_url, "--backend", "openai", "--model", "tiny-vlm")
        status, _, err = run("add", "blind", *given, "--role", "caption=99", "--photos", photos)
        assert server.stats.received == 9 - 1  # no schema, and no photo
    assert status == 1
    assert "answers without looking" in err
    found = entry("blind")["verification"]
    assert (found["status"], found["canary"], found["images_processed"]) == ("failed", "failed", 0)
    assert "answers without looking" in found["failure_reason"]
    assert setups.select("caption").slug != "blind"


def test_a_stage_without_usable_answers_is_a_failure(run: Run, photos: Path):
    def mumbling(body: dict[str, Any]) -> str:
        said = answer(body)
        return '{"keywords": 5}' if '"keywords"' in said else said

    with running(answer=mumbling) as server:
        given = ("--base-url", server.base_url, "--backend", "openai", "--model", "tiny-vlm")
        status, out, err = run("add", "mumbling", *given, "--photos", photos)
    assert status == 1
    assert "keywords of 0 of 5 photos (answer_invalid 5)" in err
    found = entry("mumbling")["verification"]
    assert found["stages"] == {"caption": 5, "keywords": 0, "description": 5}
    assert "0/5" in out


def test_a_server_that_does_not_start_is_a_failure_in_one_line(
    run: Run, photos: Path, free_port: int
):
    line = COMMAND.format(port=free_port).replace("$PHOTO_TAGGER_MODELS", "/nowhere")
    given = ("--command", line, "--backend", "llama.cpp", "--start-timeout", 20)
    status, _, err = run("add", "broken", *given, "--photos", photos)
    assert status == 1
    assert err.count("\n") == 1
    found = entry("broken")["verification"]
    assert (found["status"], found["canary"]) == ("failed", None)
    assert "\n" not in found["failure_reason"]
    assert entry("broken")["performance"]["stages"] is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--backend", "openai", "--model", "m"), "--command or --base-url"),
        (("--command", "vllm serve m --port 1 --host h"), "--backend"),
        (("--command", "x | y", "--backend", "vllm"), "|"),
        (("--command", "vllm serve m --port 8000", "--backend", "vllm"), "--host"),
        (("--backend", "vlm", "--base-url", "http://h/v1"), "valid are"),
        (("--like", "tiny-vlm_llama.cpp", "--backend", "vllm"), "leave these out"),
        (("--like", "nobody"), "unknown 'nobody'"),
        (("--like", "tiny-vlm_llama.cpp", "--photos", "."), "no photo"),
        (("--base-url", "http://h/v1", "--backend", "vllm", "--model", "m", "--role", "x"), "="),
        (
            (
                "--base-url",
                "http://h/v1",
                "--backend",
                "vllm",
                "--model",
                "m",
                "--extra-body",
                "[]",
            ),
            "JSON object",
        ),
        (
            ("--base-url", "http://h/v2", "--backend", "vllm", "--model", "m"),
            "tagger.base_url",
        ),
    ],
)
def test_what_cannot_be_tried_is_said_and_not_recorded(run: Run, given: tuple, said: str):
    status, _, err = run("add", "new", *given)
    assert status == 2
    assert said in err
    assert err.count("\n") == 1
    assert not Path("registry").exists()


@pytest.mark.parametrize(
    ("slug", "given", "said"),
    [
        ("Not/one", (), "cannot be one"),
        ("a" * 101, (), "cannot be one"),
        ("new", ("--base-url", "http://127.0.0.1:99999/v1"), "is no URL"),
        ("new", ("--base-url", "http://[::1/v1"), "is no URL"),
        ("new", ("--base-url", "http://me:pw@h/v1"), "name or password"),
        ("new", ("--base-url", "http://h/v1", "--start-timeout", "inf"), "finite"),
        ("new", ("--base-url", "http://h/v1", "--extra-body", '{"model": "x"}'), "extra_body"),
        ("new", ("--command", "vllm serve m --host h --port 1 --api-key sk-1"), "a secret"),
        ("new", ("--base-url", "http://h/v1", "--notes", "a\nb"), "tagger.command"),
    ],
)
def test_what_cannot_be_an_entry_is_refused_before_the_trial(
    run: Run, slug: str, given: tuple, said: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(trial, "run", lambda *_: pytest.fail("was tried"))
    status, _, err = run("add", slug, "--backend", "vllm", "--model", "m", *given)
    assert status == 2
    assert said in err
    assert err.count("\n") == 1
    assert "pw" not in err
    assert "sk-1" not in err
    assert not Path("registry").exists()


def test_a_name_whose_file_was_lost_is_refused_before_the_trial(
    run: Run, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(trial, "run", lambda *_: pytest.fail("was tried"))
    Path("registry").mkdir()
    Path("registry/index.json").write_text('[{"slug": "lost"}]')
    status, _, err = run("add", "lost", "--like", "tiny-vlm_llama.cpp")
    assert status == 2
    assert "is missing, though registry/index.json lists it" in err
    assert [str(path) for path in Path("registry").rglob("*")] == ["registry/index.json"]


@pytest.mark.parametrize("given", [(), ("--registry", "registry/deeper")])
def test_a_registry_that_is_a_file_is_refused_before_the_trial(
    run: Run, given: tuple, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(trial, "run", lambda *_: pytest.fail("was tried"))
    Path("registry").write_text("")
    status, _, err = run("add", "new", "--like", "tiny-vlm_llama.cpp", *given)
    assert status == 2
    assert "registry: is no folder" in err
    assert err.count("\n") == 1


def test_what_was_measured_is_shown_though_it_cannot_be_written(
    run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(setups, "_create", full)
    with running(answer=answer) as server:
        given = ("--base-url", server.base_url, "--backend", "openai", "--model", "tiny-vlm")
        status, out, err = run("add", "new", *given, "--photos", photos)
    assert status == 1
    assert "5/5" in out
    assert "new: success, but not recorded: [Errno 28] No space left" in err
    assert err.count("\n") == 1


def test_outside_a_clone_nothing_is_recorded(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hostinfo, "git_commit", lambda: None)
    status, _, err = run("add", "new", "--like", "tiny-vlm_llama.cpp")
    assert status == 2
    assert "git clone" in err


# -------------------------------------------------------------------------------------- details


def test_the_key_is_in_no_entry_and_no_log(run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TEST_KEY", "sk-secret")
    with running(answer=answer, api_key="sk-secret") as server:
        given = ("--base-url", server.base_url, "--backend", "openai", "--model", "tiny-vlm")
        status, out, err = run("add", "k", *given, "--api-key-env", "TEST_KEY", "--photos", photos)
    assert status == 0
    written = [path.read_text() for path in Path().rglob("*") if path.is_file()]
    assert written
    assert not any("sk-secret" in text for text in [*written, out, err])


def test_gpus_are_read_from_nvidia_smi():
    rows = "NVIDIA RTX 4080, 16376, 550.54\nNVIDIA RTX 4080, [N/A], 550.54\n"
    banner = "| NVIDIA-SMI 550.54   Driver Version: 550.54   CUDA Version: 12.4     |"
    gpus, driver, cuda = hostinfo.parse_nvidia(rows, banner)
    assert gpus == [
        {"name": "NVIDIA RTX 4080", "memory_mib": 16376},
        {"name": "NVIDIA RTX 4080", "memory_mib": None},
    ]
    assert (driver, cuda) == ("550.54", "12.4")
    assert hostinfo.parse_nvidia(None, None) == ([], None, None)


def test_weights_are_hashed_as_the_schema_says(tmp_path: Path):
    for name, content in (("b.gguf", b"b"), ("a.gguf", b"a")):
        (tmp_path / name).write_bytes(content)
    one, two = (hashlib.sha256(content).hexdigest() for content in (b"a", b"b"))
    assert trial.weights_sha256([tmp_path / "a.gguf"]) == one
    both = trial.weights_sha256([tmp_path / "b.gguf", tmp_path / "a.gguf"])
    lines = "".join(sorted((f"{one}  a.gguf\n", f"{two}  b.gguf\n")))
    assert both == hashlib.sha256(lines.encode()).hexdigest()
    # a folder counts as its weight files, however it is named on the command line
    (tmp_path / "config.json").write_text("{}")
    line = f"vllm serve {tmp_path} --served-model-name m --host 127.0.0.1 --port 1"
    wanted = trial.Wanted("s", "vllm", line)
    assert trial.draft(wanted)["model"]["weights_sha256"] == both
    wanted = trial.Wanted("s", "vllm", line.replace(str(tmp_path), "owner/name"), repo_id="o/n")
    assert trial.draft(wanted)["model"]["weights_sha256"] is None
