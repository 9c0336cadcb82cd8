"""Whole runs that ask a real model server, started by the pipeline from its registry entry."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from workflow.library import Library, make_library, make_photo

from phototagger import CLONE, setups
from servers.fault_server import FaultServer, running

SETUP = "tiny-vlm_llama.cpp"
FIELDS = ("caption", "keywords", "description")


def profile(**captions: str) -> dict:
    """Questions for a model of random weights: short answers that end."""
    text = {"type": "string", "minLength": 1, "maxLength": 40}
    words = {"type": "array", "minItems": 1, "maxItems": 4}
    words["items"] = {"type": "string", "enum": ["beach", "city", "dog", "food", "forest", "sea"]}
    kinds = {"caption": text, "keywords": words, "description": text}
    return {
        "purpose": "Wiring.",
        **{
            name: {
                "system": "You describe photos.",
                "user": captions.get(name, f"Say the {name}."),
                "schema": {
                    "type": "object",
                    "properties": {name: kind},
                    "required": [name],
                    "additionalProperties": False,
                },
                "max_tokens": 96,
                **({} if name == "keywords" else {"max_chars": 200}),
            }
            for name, kind in kinds.items()
        },
    }


def write_profile(library: Library, **captions: str) -> None:
    path = library.work / "config/prompts/tiny.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(profile(**captions)))


@pytest.fixture
def settings(wiring: dict[str, str], tmp_path: Path) -> dict[str, str]:
    return {
        **wiring,
        "PHOTO_TAGGER__PLAN__SHARD_SIZE": "16",
        "PHOTO_TAGGER__DESCRIBE__PROFILE": "tiny",
        "PHOTO_TAGGER__DESCRIBE__REJECT": "[]",
        "PHOTO_TAGGER__SERVERS__RUN_DIR": str(tmp_path / "run"),
    }


@pytest.fixture
def library(settings: dict[str, str], tmp_path: Path, tiny_vlm: Path) -> Iterator[Library]:
    """40 photos and the tests' model setup on any free port; nothing may be left running."""
    models = tmp_path / "models"  # a name of its own: other tests' servers use the same weights
    models.symlink_to(tiny_vlm)
    settings |= {
        "PHOTO_TAGGER__DESCRIBE__SETUP": SETUP,
        "PHOTO_TAGGER__SERVERS__PORT": "0",
        "PHOTO_TAGGER_MODELS": str(models),
    }
    library = Library(
        tmp_path / "work", make_library(tmp_path / "photos", 40, per_folder=10), settings
    )
    write_profile(library)
    yield library
    assert left_over(models) == []


def left_over(models: Path, patience: float = 5) -> list[str]:
    """Command lines of processes that use these models."""
    deadline = time.monotonic() + patience
    while True:
        found = [" ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"])]
        found = [line for line in found if str(models) in line]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def register(library: Library, slug: str, port: int | None, **changes: object) -> None:
    """A setup of the work directory, made from the tests' own."""
    entry = json.loads((CLONE / f"registry/entries/{SETUP}.json").read_text())
    entry["slug"] = slug
    entry["server"] |= {"gpus": changes.get("gpus", 0), "port": port}
    if port is None:
        entry["server"] |= {"command": None, "host": None, "flags": {}}
        entry["tagger"]["base_url"] = changes["base_url"]
        entry |= {"purpose": changes["purpose"], "canary": True}
        entry["verification"] |= {"canary": "passed"}
    text = json.dumps(entry).replace("24080", str(port))
    path = library.work / f"registry/entries/{slug}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    setups.reindex(library.work / "registry")


def servers_checked(library: Library) -> int:
    """Servers that were started in the last run: each was checked once."""
    verdicts = (library.results / "plan/preflight").glob("[0-9a-f]*.json")
    return sum("all-" not in path.name for path in verdicts)


def records(library: Library) -> list[dict]:
    return [json.loads(line) for line in (library.results / "records.jsonl").open()]


def requests(library: Library) -> int:
    """Requests since `clear_counts`."""
    logs = (library.results / "logs/describe").glob("*/*.json")
    return sum(json.loads(path.read_text())["extra"]["requests"] for path in logs)


def test_a_run_and_what_changes_cost(library: Library):
    run = "import sys; from phototagger.cli import main; main(sys.argv[1:])"
    command = ["run", str(library.photos), "--workdir", str(library.work), "--setup", SETUP]
    done = subprocess.run(
        [sys.executable, "-c", run, *command, "--cores", "2"],
        env=library.environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{SETUP}: 120 requests" in done.stdout
    found = records(library)
    assert len(found) == 40
    assert all(r["caption"] and r["description"] for r in found)
    assert {k["source"] for r in found for k in r["keywords"]} == {"vlm", "clip"}
    assert {s["model"] for r in found for s in r["describe"].values()} == {"tiny-vlm"}
    assert found[0]["models"]["caption"] == "tiny-vlm"
    shards = list((library.results / f"describe/{SETUP}").glob("*.jsonl"))
    assert len(shards) >= 3
    assert sum(len(path.read_text().splitlines()) for path in shards) == 120
    assert servers_checked(library) == 1  # several jobs, one server
    assert requests(library) == 120
    sidecars = list((library.results / "sidecars").rglob("*.xmp"))
    assert len(sidecars) == 40
    assert found[0]["description"] in sidecars[0].read_text() or any(
        found[0]["description"] in path.read_text() for path in sidecars
    )
    before = library.promised()
    assert library.nothing_to_be_done()

    # a moved photo costs no request, and no server is started
    library.clear_counts()
    photo = sorted(library.photos.rglob("*.jpg"))[0]
    photo.rename(photo.with_name("IMG_9999.jpg"))
    library.snakemake()
    assert requests(library) == 0
    assert not (library.results / "logs/servers").exists()

    # a new one costs three
    library.clear_counts()
    make_photo(photo, 1234)
    library.snakemake()
    assert requests(library) == 3

    # another question about descriptions concerns the descriptions
    library.clear_counts()
    write_profile(library, description="Tell what is in it.")
    library.snakemake()
    assert requests(library) == 41
    captions = {r["sha256"]: r["caption"] for r in found}
    now = {r["sha256"]: r["caption"] for r in records(library)}
    assert captions.items() <= now.items()

    # the way back costs nothing
    library.clear_counts()
    write_profile(library)
    photo.unlink()
    photo.with_name("IMG_9999.jpg").rename(photo)
    library.snakemake()
    assert requests(library) == 0
    assert library.promised() == before


def test_two_setups_that_share_a_gpu_are_not_loaded_in_turns(library: Library):
    register(library, "one", 24190, gpus=1)
    register(library, "two", 24191, gpus=1)
    write_profile(library, description="{{ caption }} And what else?")
    library.settings |= {
        "PHOTO_TAGGER__DESCRIBE__SETUP": "null",
        "PHOTO_TAGGER__DESCRIBE__CAPTION_SETUP": "one",
        "PHOTO_TAGGER__DESCRIBE__DESCRIPTION_SETUP": "two",
        "PHOTO_TAGGER__CLIP__DEVICE": "cpu",
    }
    library.snakemake("describe_all")
    shards = len(list((library.results / "describe/one").glob("*.jsonl")))
    assert len(list((library.results / "describe/two").glob("*.jsonl"))) == shards >= 3
    # each was loaded once to be checked, and the one that was asked last once more
    assert servers_checked(library) <= 3
    assert requests(library) == answers_kept(library) == 80  # also those asked ahead are counted


def test_nothing_is_asked_if_any_model_of_the_run_is_blind(library: Library):
    with running(blind=True) as server:
        register(library, "blind", None, purpose="tagging", base_url=server.base_url)
        library.settings |= {"PHOTO_TAGGER__DESCRIBE__DESCRIPTION_SETUP": "blind"}
        result = library.snakemake("describe_all", check=False)
        assert result.returncode != 0
    assert answers_kept(library) == 0
    logs = (library.results / "logs/describe").rglob("*.log")
    assert all("blind" in path.read_text() for path in logs)


def test_a_server_that_dies_in_mid_run(library: Library):
    library.settings["PHOTO_TAGGER__SERVERS__CONCURRENCY"] = "2"
    library.snakemake("thumbs_all")
    process = library.start("describe_all", "--nolock")
    deadline = time.monotonic() + 60
    while answers_kept(library) < 5:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    (state,) = Path(library.settings["PHOTO_TAGGER__SERVERS__RUN_DIR"]).glob("*.json")
    os.kill(json.loads(state.read_text())["server"]["pid"], signal.SIGKILL)
    assert process.wait(60) != 0
    logs = (library.results / "logs/describe").rglob("*.log")
    assert any("the model server is gone" in path.read_text() for path in logs)
    kept = answers_kept(library)
    assert kept < 120
    library.clear_counts()
    library.snakemake("describe_all", "--nolock")
    assert answers_kept(library) == 120
    assert requests(library) == 120 - kept


def test_what_a_server_failed_on_is_asked_again_by_the_next_run(library: Library):
    with running(faults={"500 plain": 0.3}) as server:
        library.settings |= {
            "PHOTO_TAGGER__PLAN__SHARD_SIZE": "64",
            "PHOTO_TAGGER__DESCRIBE__SETUP": "null",
            "PHOTO_TAGGER__DESCRIBE__PROFILE": "default",
            "PHOTO_TAGGER__DESCRIBE__MODEL": "tiny-vlm",
            "PHOTO_TAGGER__SERVERS__BASE_URL": json.dumps([server.base_url]),
            "PHOTO_TAGGER__SERVERS__PREFLIGHT": "false",
            "PHOTO_TAGGER__SERVERS__RETRIES": "0",
        }
        library.snakemake()
        kept = answers_kept(library)
        failed = (library.results / "problems.csv").read_text().count(",server_failed,")
        assert 0 < failed == 120 - kept
        server.faults, server.stats.received = {}, 0
        library.snakemake()
        assert (library.results / "problems.csv").read_text().count("\n") == 1
        assert failed <= server.stats.received <= 2 * failed  # descriptions quote new captions
        assert library.nothing_to_be_done()


def test_two_setups_answer_two_fields(library: Library):
    """The description quotes a caption that another server gave."""
    write_profile(library, description="{{ caption }} And what else?")
    with running() as server:
        urls = json.dumps([server.base_url])
        library.settings |= {
            "PHOTO_TAGGER__PLAN__SHARD_SIZE": "64",
            "PHOTO_TAGGER__DESCRIBE__FIELDS": "[caption, description]",
            "PHOTO_TAGGER__DESCRIBE__SETUP": "null",
            "PHOTO_TAGGER__DESCRIBE__CAPTION_MODEL": "tiny-vlm",
            "PHOTO_TAGGER__DESCRIBE__DESCRIPTION_MODEL": "other",
            "PHOTO_TAGGER__SERVERS__BASE_URL": urls,
            "PHOTO_TAGGER__SERVERS__PREFLIGHT": "false",
        }
        server.models = ("tiny-vlm", "other")
        server.keep = True
        library.snakemake()
    found = records(library)
    assert {r["models"]["caption"] for r in found} == {"tiny-vlm"}
    assert {r["models"]["description"] for r in found} == {"other"}
    asked = [str(b["messages"][-1]) for b in server.bodies if b["model"] == "other"]
    assert all(any(r["caption"] in text for text in asked) for r in found)
    assert server.stats.received == 80


def test_a_blind_model_is_refused_before_any_photo(library: Library):
    with running(blind=True) as server:
        library.settings |= {
            "PHOTO_TAGGER__DESCRIBE__SETUP": "null",
            "PHOTO_TAGGER__DESCRIBE__MODEL": "tiny-vlm",
            "PHOTO_TAGGER__SERVERS__BASE_URL": json.dumps([server.base_url]),
        }
        result = library.snakemake(check=False)
        assert result.returncode != 0
        log = "".join(p.read_text() for p in (library.results / "logs/describe").rglob("*.log"))
        assert "picture" in log
        assert server.stats.received < 40  # the probes of one preflight, not one per job
        assert not list((library.results / "describe").rglob("*.jsonl"))
    embeddings = list((library.results / "embeddings").glob("*.parquet"))
    assert embeddings  # the rest of the pipeline went on


def test_kill_9_repeats_at_most_what_was_in_flight(settings: dict[str, str], tmp_path: Path):
    """20 times at random moments; every answer that arrived is asked for once."""
    in_flight, kills = 8, 20
    dice = random.Random(7)
    photos = make_library(tmp_path / "photos", 300, per_folder=100)
    library = Library(tmp_path / "work", photos, settings)
    with running(latency=0.35) as server:
        library.settings |= {
            "PHOTO_TAGGER__PLAN__SHARD_SIZE": "128",
            "PHOTO_TAGGER__DESCRIBE__PROFILE": "default",
            "PHOTO_TAGGER__DESCRIBE__MODEL": "tiny-vlm",
            "PHOTO_TAGGER__SERVERS__BASE_URL": json.dumps([server.base_url]),
            "PHOTO_TAGGER__SERVERS__CONCURRENCY": str(in_flight),
            "PHOTO_TAGGER__SERVERS__PREFLIGHT": "false",
        }
        library.snakemake("thumbs_all")
        killed = 0
        while killed < kills:
            asked, kept = server.stats.received, answers_kept(library)
            process = library.start("describe_all", "--nolock")
            wait_for_questions(server, asked, process)
            time.sleep(dice.uniform(0, 1.2))
            if process.poll() is not None:
                break
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
            time.sleep(0.05)
            lost = (server.stats.received - asked) - (answers_kept(library) - kept)
            assert 0 <= lost <= in_flight
        assert killed == kills
        server.latency = 0
        library.snakemake("describe_all", "--nolock")
        assert answers_kept(library) == 900
        assert server.stats.received - 900 <= kills * in_flight
    lines = [p.read_text().splitlines() for p in (library.results / "describe").rglob("*.jsonl")]
    assert sum(map(len, lines)) == 900


def answers_kept(library: Library) -> int:
    return sum(1 for _ in (library.work / "cache/describe").glob("*/[0-9a-f]*.json"))


def wait_for_questions(server: FaultServer, before: int, process: object) -> None:
    deadline = time.monotonic() + 60
    while server.stats.received == before and process.poll() is None:
        assert time.monotonic() < deadline, "nothing was asked"
        time.sleep(0.02)
