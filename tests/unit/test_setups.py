import copy
import errno
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from phototagger import CLONE, setups
from phototagger.errors import UserError

SCHEMA = json.loads(setups.SCHEMA.read_text("utf-8"))
MIGRATED = "qwen2.5-vl-7b-awq_vllm"
TINY = "tiny-vlm_llama.cpp"


def shipped(slug: str) -> dict:
    return json.loads(setups.entry_path(setups.REGISTRY, slug).read_text("utf-8"))


def changed(entry: dict, **changes) -> dict:
    """A copy with other values; keys are dotted paths with __ for the dot."""
    entry = copy.deepcopy(entry)
    for path, value in changes.items():
        *parents, last = path.split("__")
        part = entry
        for key in parents:
            part = part[key]
        part[last] = value
    return entry


def verified(slug: str = "mine_vllm", **changes) -> dict:
    """What a successful trial would record."""
    entry = shipped("qwen3-vl-8b-instruct-fp8_vllm")
    counts = {"caption": 3, "keywords": 3, "description": 3}
    latency = {stage: {"p50_s": 0.5, "p95_s": 0.9} for stage in counts}
    environment = {"os": "Linux", "python": "3.11", "server_version": "0.12", "gpus": []}
    entry = changed(
        entry,
        slug=slug,
        verification__status="success",
        verification__date_utc="2026-11-21T10:00:00Z",
        verification__git_commit="0123abc",
        verification__images_processed=3,
        verification__stages=counts,
        verification__canary="passed",
        verification__environment=environment,
        performance__stages=latency,
    )
    return changed(entry, **changes)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A registry with one entry, the migrated one under another name."""
    folder = tmp_path / "registry"
    setups.write_entry(shipped(MIGRATED) | {"slug": "mine_vllm"}, folder)
    return folder


def properties(schema: dict, path: str = "") -> list[tuple[str, dict]]:
    """Every property below a schema."""
    found = []
    for name, part in schema.get("properties", {}).items():
        found += [(f"{path}.{name}", part), *properties(part, f"{path}.{name}")]
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            found += properties(schema[key], f"{path}[]")
    return found


# ---------------------------------------------------------------------------------- what ships


def test_the_schema_is_valid_and_describes_every_key():
    Draft202012Validator.check_schema(SCHEMA)
    every = [*properties(SCHEMA), *properties(SCHEMA["$defs"]["latency"], "latency")]
    assert len(every) > 60
    assert [name for name, part in every if not part.get("description")] == []


def test_the_registry_that_ships_is_in_order():
    assert setups.validate(own=setups.REGISTRY) == []


def test_only_what_was_really_run_is_a_success():
    ready = [setup.slug for setup in setups.list_setups(test=True) if setup.status == "success"]
    assert ready == [MIGRATED, TINY]
    assert {setup.backend for setup in setups.list_setups()} >= {
        "vllm",
        "lmdeploy",
        "ollama",
        "llama.cpp",
    }
    for setup in setups.list_setups():
        assert setup.slug == MIGRATED or setup.entry["notes"].startswith("Not verified: never run")


def test_the_migrated_entry_says_what_was_recorded():
    entry = shipped(MIGRATED)
    assert entry["server"]["command"] == (
        "nohup uv run vllm serve ~/ai-models/weights/existing/Qwen2.5-VL-7B-Instruct-AWQ "
        "--served-model-name qwen2.5-vl-7b-awq --host 0.0.0.0 --port 24001 --trust-remote-code "
        "--max-model-len 4096 --enforce-eager > vllm_qwen2.5_vl_7b_awq.log 2>&1 &"
    )
    assert entry["migrated_from"] == "1.0"
    assert entry["verification"]["date_utc"] == "2025-10-01T00:00:00Z"
    assert entry["verification"]["images_processed"] == 22
    assert entry["verification"]["git_commit"] is None


def test_the_migrated_entry_is_never_edited():
    recorded = setups.read_index(setups.REGISTRY)[MIGRATED]["sha256"]
    assert recorded == "b71eba3cd0e53cff7c8cc5a0919d0ad5fcf1e36052bc01b3abe91a03ddf8b32e"


def test_setups_do_not_share_a_port():
    ports = [setup.entry["server"]["port"] for setup in setups.list_setups(test=True)]
    assert len(ports) == len(set(ports))


def test_the_setup_of_the_tests():
    setup = setups.load(TINY)
    assert (setup.purpose, setup.canary, setup.model) == ("test", False, "tiny-vlm")
    assert setup.base_url == "http://127.0.0.1:24080/v1"
    assert (setup.health, setup.structured_output) == ("/health", "json_schema")
    assert setup.image.max_edge == 112
    assert len(setup.digest) == 64
    assert TINY not in [each.slug for each in setups.list_setups()]


# ------------------------------------------------------------------------------ load and select


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UserError, match=f"unknown 'nope'; valid are: .*{MIGRATED}"):
        setups.load("nope")


@pytest.mark.parametrize("slug", ["../index", "../../etc/passwd", "", "a/b", "."])
def test_a_name_is_no_way_out_of_the_registry(slug):
    with pytest.raises(UserError, match="setup: unknown"):
        setups.load(slug)


def test_the_work_directory_comes_before_the_clone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    entry = changed(shipped(TINY), request__concurrency=2)
    setups.write_entry(entry, Path("registry"))
    assert setups.load(TINY).concurrency == 2
    assert setups.load(MIGRATED).model == "qwen2.5-vl-7b-awq"
    assert len(setups.list_setups(test=True)) == len(setups.read_index(setups.REGISTRY))


def test_in_the_clone_itself_entries_are_there_once(monkeypatch):
    monkeypatch.chdir(CLONE)
    assert setups.folders() == [setups.REGISTRY]


def test_select_takes_the_working_setup_with_the_highest_priority(own):
    assert setups.select("caption", own).slug == "mine_vllm"  # as good as the clone's: by slug
    setups.write_entry(verified("b_vllm", roles={"caption": 50, "alt": 1}), own)
    setups.write_entry(verified("a_vllm", roles={"caption": 50}), own)
    assert setups.select("caption", own).slug == "a_vllm"
    assert setups.select("alt", own).slug == "b_vllm"
    assert setups.select("keywords", own).slug == "mine_vllm"


def test_a_role_without_a_working_setup_lists_the_roles_that_have_one():
    with pytest.raises(
        UserError, match=r"'narration'.*registered are: caption, description, keywords"
    ):
        setups.select("narration")


# ------------------------------------------------------------------------------------- ad hoc


def test_a_server_from_the_command_line():
    setup = setups.adhoc("vllm", "http://127.0.0.1:1/v1/", None)
    assert (setup.slug, setup.model, setup.command) == ("adhoc-vllm", None, None)
    assert setup.base_url == "http://127.0.0.1:1/v1"
    assert (setup.adhoc, setup.canary, setup.structured_output) == (True, True, "json_schema")
    assert setups.adhoc("openai", "x", "gpt-5-mini").slug == "adhoc-openai-gpt-5-mini"


def test_models_whose_names_look_alike_are_told_apart():
    names = ["Qwen/Qwen2.5-VL", "qwen-qwen2.5-vl", "qwen:qwen2.5-vl", "../x", "模型", "/" * 300]
    slugs = [setups.adhoc("ollama", "u", name).slug for name in names]
    assert len(set(slugs)) == len(names)
    assert all("/" not in slug and len(slug) < 90 for slug in slugs)


def test_an_unknown_backend_lists_the_known_ones():
    with pytest.raises(
        UserError, match=r"describe\.backend: unknown 'triton'; valid are: llama\.cpp"
    ):
        setups.adhoc("triton", "http://x/v1", None)


# ------------------------------------------------------------------------------------- digests


@pytest.mark.parametrize(
    "changes",
    [
        {"server__port": 1, "server__host": "x", "tagger__base_url": "http://x:1/v1"},
        {"notes": "other", "roles": {"a": 1}, "slug": "other", "purpose": "test"},
        {"verification__status": "success", "performance__tokens_per_s": 5},
        {"request__concurrency": 1, "server__start_timeout_s": 1, "model__local_path": "/x"},
    ],
)
def test_what_does_not_shape_an_answer_is_not_in_the_digest(changes):
    entry = shipped(MIGRATED)
    assert setups.shaping_digest(changed(entry, **changes)) == setups.shaping_digest(entry)


def test_neither_is_how_the_command_is_wrapped():
    entry = shipped(MIGRATED)
    command = entry["server"]["command"]
    for other in (
        command.replace("nohup uv run ", "").replace(" > vllm_qwen2.5_vl_7b_awq.log 2>&1 &", ""),
        command.replace("24001", "1").replace("0.0.0.0", "127.0.0.1"),
    ):
        same = changed(entry, server__command=other)
        assert setups.shaping_digest(same) == setups.shaping_digest(entry)


@pytest.mark.parametrize(
    "changes",
    [
        {"model__revision": "abc"},
        {"model__weights_sha256": "0" * 64},
        {"server__backend": "sglang"},
        {"server__command": "vllm serve x --max-model-len 4097"},
        {"server__command": "VLLM_BATCH_INVARIANT=1 vllm serve x"},
        {"request__extra_body": {"chat_template_kwargs": {"enable_thinking": False}}},
        {"request__structured_output": "none"},
        {"request__image__max_edge": 512},
    ],
)
def test_what_shapes_an_answer_is_in_the_digest(changes):
    entry = changed(shipped(MIGRATED), server__command="vllm serve x --max-model-len 4096")
    assert setups.shaping_digest(changed(entry, **changes)) != setups.shaping_digest(entry)


def test_digests_of_servers_from_the_command_line_tell_models_apart_but_not_addresses():
    digest = setups.adhoc("vllm", "http://a/v1", "m").digest
    assert setups.adhoc("vllm", "http://b/v1", "m").digest == digest
    assert setups.adhoc("vllm", "http://a/v1", "n").digest != digest
    assert setups.adhoc("ollama", "http://a/v1", "m").digest != digest


# ---------------------------------------------------------------------------- append only


def test_entries_are_written_once(own):
    with pytest.raises(UserError, match="never edited; choose another slug"):
        setups.write_entry(verified(), own)
    assert setups.load("mine_vllm", own).entry["migrated_from"] == "1.0"


def test_an_altered_entry_is_neither_used_nor_taken_into_the_index(own):
    path = setups.entry_path(own, "mine_vllm")
    path.write_text(
        path.read_text("utf-8").replace('"images_processed": 22', '"images_processed": 23')
    )
    before = (own / "index.json").read_bytes()
    for attempt in (lambda: setups.load("mine_vllm", own), lambda: setups.reindex(own)):
        with pytest.raises(UserError, match=r"mine_vllm\.json: was altered after it was recorded"):
            attempt()
    assert (own / "index.json").read_bytes() == before


def test_an_entry_that_is_not_in_the_index_is_not_used_until_it_is(own):
    (own / "index.json").unlink()
    with pytest.raises(
        UserError, match=r"index\.json: mine_vllm: is not listed; run: photo-tagger"
    ):
        setups.load("mine_vllm", own)
    assert setups.reindex(own) == ["mine_vllm"]
    assert setups.load("mine_vllm", own).status == "success"
    assert setups.reindex(own) == []


def test_the_index_can_be_made_again_from_the_entries(tmp_path):
    for path in setups.REGISTRY.glob("entries/*.json"):
        copied = setups.entry_path(tmp_path, path.stem)
        copied.parent.mkdir(exist_ok=True)
        copied.write_bytes(path.read_bytes())
    setups.reindex(tmp_path)
    assert (tmp_path / "index.json").read_bytes() == (setups.REGISTRY / "index.json").read_bytes()


WRITER = """
import json, sys
from pathlib import Path
from phototagger import setups
from phototagger.errors import UserError
entry, folder, number = json.load(open(sys.argv[1])), Path(sys.argv[2]), sys.argv[3]
setups.content_problems(entry, Path("x.json"))  # loads the schema
print("ready", flush=True)
sys.stdin.readline()
for turn in range(5):
    setups.write_entry(entry | {"slug": f"own-{number}-{turn}"}, folder)
    try:
        setups.write_entry(entry | {"slug": f"shared-{turn}", "notes": number}, folder)
        print("won", turn, flush=True)
    except UserError as error:
        assert "never edited" in str(error), error
"""


def test_processes_that_write_at_the_same_time_lose_and_overwrite_nothing(tmp_path):
    (tmp_path / "entry.json").write_text(json.dumps(verified()))
    folder = tmp_path / "registry"
    line = [sys.executable, "-c", WRITER, str(tmp_path / "entry.json"), str(folder)]
    pipe = subprocess.PIPE
    writers = [
        subprocess.Popen([*line, str(n)], stdin=pipe, stdout=pipe, text=True) for n in range(4)
    ]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("\n")
        writer.stdin.flush()
    told = [writer.communicate(timeout=60)[0] for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * 4
    won = {line: str(n) for n, text in enumerate(told) for line in text.splitlines()}
    assert sum(len(text.splitlines()) for text in told) == len(won) == 5  # one winner each
    for turn in range(5):
        assert setups.load(f"shared-{turn}", folder).entry["notes"] == won[f"won {turn}"]
    assert len(setups.read_index(folder)) == 4 * 5 + 5
    assert setups.validate(own=folder) == []
    left = {path.name for path in folder.rglob("*") if path.suffix != ".json"}
    assert left == {"entries", ".lock"}


@pytest.mark.parametrize("links", [True, False])
def test_an_entry_that_appears_while_writing_is_kept(links, own, monkeypatch):
    if not links:  # as on exFAT

        def link(*_):
            raise PermissionError(errno.EPERM, "no hard links here")

        monkeypatch.setattr(setups.os, "link", link)
    path = setups.entry_path(own, "mine_vllm")
    before = path.read_bytes()
    monkeypatch.setattr(setups, "check_free", lambda *_: None)
    with pytest.raises(UserError, match="never edited"):
        setups.write_entry(verified(), own)
    assert path.read_bytes() == before
    setups.write_entry(verified("other_vllm"), own)
    assert setups.load("other_vllm", own).status == "success"


def test_without_its_element_of_the_index_no_entry_is_left(own, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(setups, "write_if_changed", full)
    with pytest.raises(OSError, match="No space left"):
        setups.write_entry(verified("other_vllm"), own)
    assert [path.name for path in (own / "entries").iterdir()] == ["mine_vllm.json"]


def test_a_name_in_the_index_is_taken_though_its_file_is_gone(own):
    setups.entry_path(own, "mine_vllm").unlink()
    before = (own / "index.json").read_bytes()
    with pytest.raises(UserError, match=r"is missing, though .*index\.json lists it"):
        setups.write_entry(verified(), own)
    assert (own / "index.json").read_bytes() == before
    assert list((own / "entries").iterdir()) == []


def test_hidden_files_are_no_entries(own):
    (own / "entries/._mine_vllm.json").write_bytes(b"\0\5\x16\7")
    (own / "entries/.json").write_text("{")
    assert setups.validate(own=own) == []
    assert setups.reindex(own) == []
    assert not [slug for slug, _ in setups.entry_files(own) if slug.startswith(".")]


def test_a_bad_neighbour_stops_neither_load_nor_select_nor_add(own, caplog):
    setups.entry_path(own, "bad_vllm").write_text("{")
    with caplog.at_level(logging.WARNING):
        assert setups.select("caption", own).slug == "mine_vllm"
    assert "bad_vllm.json: cannot be read as JSON" in caplog.text
    assert setups.load("mine_vllm", own).status == "success"
    setups.write_entry(verified("other_vllm"), own)
    assert "bad_vllm" not in setups.read_index(own)
    with pytest.raises(UserError, match=r"bad_vllm\.json"):
        setups.load("bad_vllm", own)


@pytest.mark.parametrize("slug", ["", "Mine", ".x", "../x", "a/b", "x\n", "adhoc-vllm", "a" * 101])
def test_a_slug_that_cannot_be_one(slug, tmp_path):
    with pytest.raises(UserError, match=r"slug: .* cannot be one"):
        setups.write_entry(verified() | {"slug": slug}, tmp_path)
    assert list(tmp_path.iterdir()) == []
    setups.check_slug("a" * 100)


def test_the_length_of_a_slug_is_that_of_the_schema():
    assert SCHEMA["properties"]["slug"]["maxLength"] == setups.MAX_SLUG


def test_a_folder_that_cannot_be_written_is_known_beforehand(tmp_path, monkeypatch):
    setups.check_writable(tmp_path / "new/registry")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: is no folder"):
        setups.check_writable(tmp_path / "file")
    monkeypatch.setattr(setups.os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(UserError, match="cannot be written; allow it"):
        setups.check_writable(tmp_path / "new/registry")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_wrong_entry_is_not_written(tmp_path):
    with pytest.raises(UserError, match=r"server\.port"):
        setups.write_entry(verified(server__port=9), tmp_path)
    assert list(tmp_path.rglob("*.json")) == []


def test_it_starts_fast():
    heavy = ("httpx", "PIL", "torch", "jsonschema", "jinja2", "simplemma", "numpy")
    code = f"import sys, phototagger.setups; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
