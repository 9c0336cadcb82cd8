"""The command `registry`: what it prints, and what it says of a registry that is not in order."""

import json
import re
from pathlib import Path

import pytest
from test_setups import MIGRATED, TINY, changed, shipped, verified

from phototagger import cli, setups

OWN = "mine_vllm"


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A work directory whose registry has one entry."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("PHOTO_TAGGER_MODELS", str(tmp_path / "models"))
    setups.write_entry(verified(OWN), Path("registry"))
    return tmp_path / "registry"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    """Run `photo-tagger registry ...`; gives exit status, standard output, lines of errors."""

    def registry(*arguments: str) -> tuple[int, str, list[str]]:
        with pytest.raises(SystemExit) as end:
            cli.main(["registry", *arguments])
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err.splitlines()

    return registry


def rewrite(folder: Path, entry: object, slug: str = OWN) -> None:
    """Put another entry in place and let the index follow, so that only the entry is wrong."""
    path = setups.entry_path(folder, slug)
    path.write_text(json.dumps(entry), "utf-8")
    index = setups.read_index(folder)
    try:
        index[slug] = setups.index_element(entry, setups._sha256(path)) | {"slug": slug}
    except (KeyError, TypeError):
        index[slug]["sha256"] = setups._sha256(path)
    (folder / "index.json").write_text(json.dumps(list(index.values())), "utf-8")


# ------------------------------------------------------------------------------------ commands


def test_list_shows_both_registries_and_no_tests(run):
    status, out, _ = run("list")
    assert status == 0
    assert OWN in out
    assert MIGRATED in out
    assert "success 2025-10-01" in out
    assert TINY not in out
    assert TINY in run("list", "--all")[1]


def test_list_as_json_is_for_a_role_in_order_of_priority(run):
    setups.write_entry(verified("low_vllm", roles={"alt": 1}), Path("registry"))
    setups.write_entry(verified("high_vllm", roles={"alt": 2, "caption": 1}), Path("registry"))
    found = json.loads(run("list", "--role", "alt", "--json")[1])
    assert [setup["slug"] for setup in found] == ["high_vllm", "low_vllm"]
    assert found[0]["roles"] == {"alt": 2, "caption": 1}
    assert len(found[0]["digest"]) == 64
    assert json.loads(run("list", "--role", "nobody", "--json")[1]) == []


def test_list_shows_what_can_be_used_and_names_the_rest(run, own):
    setups.write_entry(verified("good_vllm"), own)
    rewrite(own, changed(verified(OWN), tagger__base_url="http://127.0.0.1:99999/v1"))
    setups.entry_path(own, "torn_vllm").write_text("{")
    status, out, errors = run("list")
    assert status == 0
    assert "good_vllm" in out
    assert MIGRATED in out
    assert OWN not in out
    assert len(errors) == 2
    assert re.search(rf"left out: .*{OWN}\.json: tagger\.base_url: .* is no URL", errors[0])
    assert re.search(r"left out: .*torn_vllm\.json: cannot be read", errors[1])
    assert run("select", "--role", "caption")[:2] == (0, "good_vllm\n")


def test_list_of_a_role_that_nobody_has(run):
    status, out, _ = run("list", "--role", "narration")
    assert status == 0
    assert out == "no setup has the role 'narration'; there are: caption, description, keywords\n"


def test_list_registry_is_the_same_as_registry_list(run, capsys):
    wanted = run("list", "--json")[1]
    with pytest.raises(SystemExit):
        cli.main(["list-registry", "--json"])
    assert capsys.readouterr().out == wanted


def test_show_prints_the_entry(run):
    assert json.loads(run("show", TINY)[1]) == shipped(TINY)


def test_command_prints_the_line_as_recorded(run):
    assert run("command", MIGRATED)[1] == shipped(MIGRATED)["server"]["command"] + "\n"


def test_command_of_a_server_that_somebody_else_starts(run, own):
    remote = changed(
        verified("remote_openai"),
        server__backend="openai",
        server__command=None,
        server__host=None,
        server__port=None,
        server__flags={},
        tagger__base_url="https://models.example/v1",
    )
    setups.write_entry(remote, own)
    status, out, errors = run("command", "remote_openai")
    assert (status, out) == (2, "")
    assert "somebody else runs it at https://models.example/v1" in errors[0]


def test_select_prints_a_slug(run):
    assert run("select", "--role", "caption")[:2] == (0, f"{OWN}\n")
    status, _, errors = run("select", "--role", "narration")
    assert status == 2
    assert "registered are: caption, description, keywords" in errors[0]


def test_an_unknown_slug_is_a_usage_error(run):
    status, _, errors = run("show", "nope")
    assert status == 2
    assert "unknown 'nope'; valid are:" in errors[0]


def test_another_registry_can_be_named(run, tmp_path):
    setups.write_entry(verified("there_vllm"), tmp_path / "elsewhere")
    out = run("list", "--registry", str(tmp_path / "elsewhere"))[1]
    assert "there_vllm" in out
    assert OWN not in out
    assert run("list", "--registry", "nowhere")[0] == 2


def test_index_adds_entries_written_by_hand(run, own):
    path = setups.entry_path(own, "hand_vllm")
    path.write_text(json.dumps(verified("hand_vllm")), "utf-8")
    assert run("show", "hand_vllm")[0] == 2
    assert run("index")[:2] == (0, "registry/index.json: hand_vllm added\n")
    assert run("show", "hand_vllm")[0] == 0
    assert run("index")[1] == "registry/index.json: nothing added\n"


def test_index_does_not_cover_up_an_altered_entry(run, own):
    path = setups.entry_path(own, OWN)
    path.write_text(path.read_text("utf-8") + " ")
    status, _, errors = run("index")
    assert status == 1
    assert "was altered after it was recorded" in errors[0]


# ------------------------------------------------------------------------------------ validate


def test_validate_is_content_with_a_registry_in_order(run):
    status, out, errors = run("validate")
    assert (status, errors) == (0, [])
    assert f"{1 + len(setups.read_index(setups.REGISTRY))} setups" in out


WRONG = {  # what is changed: (key that is named, cause or way out)
    "no key": (
        {"tagger__models": {"caption": "x", "keywords": "x"}},
        "tagger.models",
        "is a required property",
    ),
    "unknown key": ({"model__size": 7}, "model", "unknown key 'size'; valid are: .*quantization"),
    "type": ({"server__gpus": "one"}, "server.gpus", "not of type 'integer'"),
    "slug": ({"slug": "other_vllm"}, "slug", "must equal the file's name"),
    "slug characters": ({"slug": "Mine"}, "slug", "does not match.*lower case"),
    "port": ({"server__port": 9}, "server.port", "is 9, the command says 24002; make them equal"),
    "host": ({"server__host": "::"}, "server.host", "the command says '127.0.0.1'"),
    "port of the URL": (
        {"tagger__base_url": "http://127.0.0.1:9/v1"},
        "tagger.base_url",
        "has port 9, the command says 24002",
    ),
    "host of the URL": (
        {"tagger__base_url": "http://10.0.0.1:24002/v1"},
        "tagger.base_url",
        "10.0.0.1 is not where the server listens",
    ),
    "url": ({"tagger__base_url": "http://127.0.0.1:24002"}, "tagger.base_url", "ends in /v1"),
    "port that cannot be": (
        {"tagger__base_url": "http://127.0.0.1:99999/v1"},
        "tagger.base_url",
        "127.0.0.1:99999/v1 is no URL; write it as",
    ),
    "IPv6 address": ({"tagger__base_url": "http://[::1/v1"}, "tagger.base_url", "is no URL"),
    "password": (
        {"tagger__base_url": "http://me:pw@127.0.0.1:24002/v1"},
        "tagger.base_url",
        "http://127.0.0.1:24002/v1 had a name or password",
    ),
    "password in no base URL": (
        {"tagger__base_url": "http://me:pw@127.0.0.1:24002"},
        "tagger.base_url",
        "'http://127.0.0.1:24002' does not match",
    ),
    "line break in the URL": (
        {"tagger__base_url": "http://127.0.0.1:24002/v1\n"},
        "tagger.base_url",
        "is no URL",
    ),
    "endless number": (
        {"server__start_timeout_s": float("inf")},
        "server.start_timeout_s",
        "is not a finite number",
    ),
    "no number": (
        {"request__extra_body": {"penalties": [float("nan")]}},
        "request.extra_body.penalties.0",
        "is not a finite number",
    ),
    "more answers than photos": (
        {"verification__stages__keywords": 4},
        "verification.stages.keywords",
        "is 4, verification.images_processed is 3",
    ),
    "seed in the body": (
        {"request__extra_body": {"seed": 1}},
        "request.extra_body.seed",
        "is set by the tagger itself; remove it",
    ),
    "model taken out of the body": (
        {"request__extra_body": {"model": None}},
        "request.extra_body.model",
        "remove it",
    ),
    "Ollama's tokens": (
        {"request__extra_body": {"options": {"num_ctx": 8192, "num_predict": 5}}},
        "request.extra_body.options.num_predict",
        "remove it",
    ),
    "secret": (
        {"server__command": "vllm serve x --api-key sk-secret"},
        "server.command",
        "has a secret in --api-key; keep it in the environment",
    ),
    "control character": (
        {"server__command": "vllm serve x\0y"},
        "server.command",
        "does not match.*without control characters",
    ),
    "line break at the end": ({"server__command": "vllm\n"}, "server.command", "does not match"),
    "model of a stage": (
        {"tagger__models__keywords": "x"},
        "tagger.models.keywords",
        "is 'x', model.served_model_name is 'qwen3",
    ),
    "value of a flag": (
        {"server__flags__max-model-len": 4096},
        "server.flags.max-model-len",
        "is 4096, the command says 8192",
    ),
    "flag too many": ({"server__flags__x": True}, "server.flags.x", "has no --x; remove it"),
    "pipe": ({"server__command": "vllm serve x | tee log"}, "server.command", "needs a shell"),
    "two lines": ({"server__command": "vllm\nserve"}, "server.command", "does not match"),
    "canary": ({"canary": False}, "purpose", "every other model has to prove that it sees"),
    "stage without answer": (
        {"verification__stages__keywords": 0},
        "verification.stages.keywords",
        "success needs all three stages",
    ),
    "no photos": ({"verification__images_processed": 0}, "verification.images_processed", "photos"),
    "no date": ({"verification__date_utc": None}, "verification.date_utc", "when it was run"),
    "no such date": ({"verification__date_utc": "2026-13-01T00:00:00Z"}, "verification", "UTC"),
    "no commit": ({"verification__git_commit": None}, "verification.git_commit", "schema 1.0"),
    "no environment": (
        {"verification__environment": None},
        "verification.environment",
        "on what it was run",
    ),
    "never shown to see": ({"verification__canary": None}, "verification.canary", "see pictures"),
    "no latency": ({"performance__stages": None}, "performance.stages", "how long each stage"),
    "reason without failure": (
        {"verification__failure_reason": "x"},
        "verification.failure_reason",
        "null unless status is failed",
    ),
    "failure without reason": (
        {"verification__status": "failed"},
        "verification.failure_reason",
        "has to say why",
    ),
    "photos although unverified": (
        {"verification__status": "unverified", "verification__date_utc": None},
        "verification.images_processed",
        "0 while status is unverified",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_entry_gives_one_line_with_file_key_and_cause(what, run, own):
    changes, key, cause = WRONG[what]
    rewrite(own, changed(verified(OWN), **changes))
    status, _, errors = run("validate")
    assert status == 1
    assert_one(errors, rf"^registry/entries/{OWN}\.json: {key}.*{cause}")
    assert not re.search("pw|sk-secret", errors[0])
    refused = run("show", OWN)
    assert (refused[0], refused[2][0].partition("json: ")[2]) == (
        2,
        errors[0].partition("json: ")[2],
    )


def test_what_may_stand_in_the_body(run, own):
    body = {"temperature": None, "seed": None, "top_k": 1, "options": {"num_ctx": 8192}}
    setups.write_entry(verified("body_vllm", request__extra_body=body), own)
    assert run("validate")[0] == 0


def assert_one(errors: list[str], pattern: str) -> None:
    assert len(errors) == 1, errors
    assert re.search(pattern, errors[0]), errors[0]


def test_a_flag_that_the_entry_does_not_list(run, own):
    entry = verified(OWN)
    del entry["server"]["flags"]["max-num-seqs"]
    rewrite(own, entry)
    assert_one(run("validate")[2], r"server\.flags: lacks max-num-seqs.*\(32\); add it")


def test_another_served_name_than_the_command_s(run, own):
    entry = verified(OWN)
    entry["model"]["served_model_name"] = "x"
    entry["tagger"]["models"] = dict.fromkeys(setups.STAGES, "x")
    rewrite(own, entry)
    assert_one(
        run("validate")[2], "model.served_model_name: is 'x', the command serves it as 'qwen"
    )


def test_an_entry_that_is_not_json(run, own):
    setups.entry_path(own, OWN).write_text("{")
    assert_one(run("validate")[2], rf"{OWN}\.json: cannot be read as JSON .*; mend or remove it")


def test_an_altered_entry(run, own):
    path = setups.entry_path(own, OWN)
    path.write_text(path.read_text("utf-8") + "\n")
    assert_one(
        run("validate")[2], rf"{OWN}\.json: was altered.*record a changed setup under another"
    )


def test_an_altered_entry_whose_digest_was_altered_with_it_still_has_to_be_right(run, own):
    rewrite(own, changed(verified(OWN), verification__stages__caption=0))
    assert_one(run("validate")[2], "success needs all three stages")


def test_an_entry_that_is_not_in_the_index(run, own):
    (own / "index.json").unlink()
    assert_one(
        run("validate")[2], rf"index\.json: {OWN}: is not listed; run: photo-tagger registry"
    )


def test_an_entry_that_is_gone(run, own):
    setups.entry_path(own, OWN).unlink()
    assert_one(run("validate")[2], rf"index\.json: {OWN}: its file .* is missing; restore it")


def test_an_index_that_says_something_else(run, own):
    element = setups.read_index(own)[OWN] | {"status": "failed"}
    (own / "index.json").write_text(json.dumps([element]))
    assert_one(run("validate")[2], r"status is 'failed', the entry says 'success'; restore")


def test_an_index_with_an_entry_twice(run, own):
    element = setups.read_index(own)[OWN]
    (own / "index.json").write_text(json.dumps([element, element]))
    assert_one(run("validate")[2], r"index\.json: slugs are not sorted or stand twice")


@pytest.mark.parametrize("content", ["", "{}", "[1]", '[{"slug": 1}]'])
def test_an_index_that_is_none(content, run, own):
    (own / "index.json").write_text(content)
    assert_one(run("validate")[2], r"^registry/index\.json: .*(mend or remove|restore)")


def test_paths_have_to_be_on_this_machine_only_if_asked(run, own, tmp_path):
    assert run("validate")[0] == 0
    status, _, errors = run("validate", "--paths")
    assert status == 1
    assert any(
        "local_path" in line and f"{tmp_path}/models/tiny-vlm does not exist" in line
        for line in errors
    )
    (tmp_path / "models/tiny-vlm").mkdir(parents=True)
    errors = run("validate", "--paths")[2]
    assert any("models/tiny-vlm/model.gguf does not exist" in line for line in errors)
    for name in ("model.gguf", "mmproj.gguf"):
        (tmp_path / "models/tiny-vlm" / name).touch()
    assert not any("tiny-vlm" in line for line in run("validate", "--paths")[2])


def test_a_failed_attempt_can_be_recorded(run, own):
    failed = changed(
        verified("failed_vllm"),
        verification__status="failed",
        verification__failure_reason="out of memory",
        verification__stages=dict.fromkeys(setups.STAGES, 0),
        verification__canary=None,
        performance__stages=None,
    )
    setups.write_entry(failed, own)
    assert run("validate")[0] == 0
    assert "failed 2026-11-21" in run("list")[1]
