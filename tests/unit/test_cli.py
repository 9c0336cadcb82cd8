"""The command line: arguments, exit codes, what is remembered, and the child process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from phototagger import names
from phototagger.cli import child, main, run, settings, status
from phototagger.cli.errors import FailedError
from phototagger.cli.settings import Settings, from_options, split_arguments
from phototagger.errors import UserError

COMMANDS = [*run.STAGES, "run", "status", "search", "labels", "models"]
SHARDS = ["0000000001", "0000000002"]

# Two shards of three photos through two stages, with the names of the real ones.
TOY = f"""
import json, os
from pathlib import Path
SHARDS = {SHARDS}
if os.environ.get("TOY_MISTAKE"):
    from phototagger.errors import UserError
    raise UserError(os.environ["TOY_MISTAKE"])
shards = [dict(name=n, digest=n, photos=3) for n in SHARDS]
Path("results/plan").mkdir(parents=True, exist_ok=True)
Path("results/plan/index.json").write_text(json.dumps(dict(run_id="r", shards=shards)))
Path("seen.json").write_text(Path(os.environ["PHOTO_TAGGER_OVERRIDES"]).read_text())
rule all:
    input: expand("results/embeddings/{{shard}}.txt", shard=SHARDS)
    default_target: True
    localrule: True
rule thumbs_all:
    input: expand("results/thumbs/{{shard}}.txt", shard=SHARDS)
    localrule: True
rule thumbs:
    output: "results/thumbs/{{shard}}.txt"
    params: value=os.environ.get("TOY_VALUE", "1")
    log: "results/logs/thumbs/{{shard}}.log"
    script: "step.py"
rule embed:
    input: "results/thumbs/{{shard}}.txt"
    output: "results/embeddings/{{shard}}.txt"
    log: "results/logs/embed/{{shard}}.log"
    script: "step.py"
"""
STEP = """
import os
from pathlib import Path
from phototagger.errors import UserError
from phototagger.job import job

if __name__ == "__main__":
    with job(snakemake) as stats:
        stats.photos, stats.computed, stats.cached = 3, 2, 1
        if os.environ.get("TOY_FAIL") == f"{snakemake.rule}-{snakemake.wildcards.shard}":
            raise UserError("the lens cap is on; take it off")
        Path(snakemake.output[0]).write_text("done")
"""


def photo_tagger(*arguments: str, code: int = 0) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert (ended.value.code or 0) == code


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    return tmp_path


@pytest.fixture
def toy(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A work directory's parent in which `run` means the toy pipeline, through real Snakemake."""
    (here / "Snakefile").write_text(TOY)
    (here / "step.py").write_text(STEP)
    for module in (run, settings):
        monkeypatch.setattr(module, "SNAKEFILE", here / "Snakefile")
    for module in (run, status):
        monkeypatch.setattr(module, "preflight", lambda *_: None)
    return here


# ------------------------------------------------------------------------------------- help, usage


def test_help_names_every_command(capsys):
    photo_tagger("--help")
    text = capsys.readouterr().out
    assert all(f"  {command}  " in text for command in COMMANDS)
    assert "demo " not in text.split("Commands:")[1]  # hidden


@pytest.mark.parametrize(
    "command",
    [[c] for c in COMMANDS]
    + [["labels", "check"]]
    + [["models", c] for c in ("list", "fetch", "build-demo", "verify")],
    ids=" ".join,
)
def test_every_command_says_what_it_does(command, capsys):
    photo_tagger(*command, "--help")
    usage, _, rest = capsys.readouterr().out.partition("\n\n")
    assert usage.startswith(f"Usage: photo-tagger {' '.join(command)}")
    assert " ".join(rest.split("\n\n")[0].split()).endswith(".")


def test_every_command_is_documented():
    text = (run.CLONE / "docs/cli.md").read_text("utf-8")
    assert all(f"photo-tagger {command}" in text for command in COMMANDS)


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from phototagger.cli import main\n"
        "try: main(['--help'])\n"
        "finally: print([m for m in ('torch', 'pandas', 'pyarrow', 'PIL', 'numpy', 'jsonschema')"
        " if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.endswith("[]\n")


def test_version(capsys):
    photo_tagger("--version")
    assert capsys.readouterr().out.startswith("photo-tagger 0.")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["run", "--topk", "many"], "--topk"),
        (["run", "--nonsense"], "--nonsense"),
        (["nonsense"], "nonsense"),
        (["run", "elsewhere"], "photo-tagger: elsewhere: no such folder or photo, and no target"),
        (["run", "photos", "--set", "score.topk"], "KEY=VALUE"),
        (["run", "photos", "--set", "score.tokp=7"], "valid are: measure, threshold, topk"),
        (["run", "photos", "--topk", "-1"], "score.topk"),
        (["run", "photos", "--labels", "elsewhere.txt"], "elsewhere.txt"),
        (["run", "photos", "--clip-model", "ViT-Z"], "ViT-B-32"),
        (["run", "photos", "--config-file", "none.yaml"], "none.yaml"),
        (["status", "--set", "nonsense.key=1"], "nonsense"),
        (["models", "fetch", "ViT-Z"], "valid are: ViT-B-32"),
        (["labels", "check", "elsewhere.txt"], "elsewhere.txt"),
        (["search"], "--like PHOTO"),
        (["search", "cat"], "no results here yet"),
        (["search", "cat", "--workdir", "elsewhere"], "no such folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_exit_status_2(arguments, complaint, here, capsys):
    photo_tagger(*arguments, code=2)
    said = capsys.readouterr().err
    assert complaint in said
    assert "Traceback" not in said


def test_a_name_that_is_not_unicode_can_be_complained_about(here, capfdbinary):
    photo_tagger("run", os.fsdecode(b"caf\xe9"), code=2)
    assert rb"photo-tagger: caf\xe9: no such folder" in capfdbinary.readouterr().err


# ---------------------------------------------------------------------------------------- settings


def test_arguments_are_photos_if_they_exist(here):
    (here / "embed").mkdir()
    (here / "results").mkdir()
    (here / "results/tags.csv").touch()
    assert split_arguments(["photos", "embed", "thumbs", "all", "results/tags.csv"]) == (
        ["photos", "embed"],
        ["thumbs_all", "all", "results/tags.csv"],
    )


def test_no_target_has_a_wildcard():
    assert {"all", "thumbs_all", "summary", "report"} <= set(settings.rules())
    assert not {"thumbs", "embed", "record"} & set(settings.rules())


def test_options_become_configuration(here):
    (here / "mine.txt").touch()
    given = from_options(
        {"score.topk": 7, "labels.path": "mine.txt", "photos.recursive": None},
        ["score.topk=8", "score.measure=probability", "photos.exclude=[a, b]"],
        ["photos"],
        None,
    )
    assert given.config == {
        "score": {"topk": 8, "measure": "probability"},
        "labels": {"path": str(here / "mine.txt")},
        "photos": {"exclude": ["a", "b"]},
    }
    assert given.roots == [str(here / "photos")]


def test_a_pack_keeps_its_name(here):
    assert from_options({"labels.path": "birds"}, [], [], None).config == {
        "labels": {"path": "birds"}
    }


@pytest.mark.parametrize(
    "name", ["a\nb", "tab\there", "back\\slash", os.fsdecode(b"caf\xe9"), "🐈"]
)
def test_any_name_survives_the_way_to_snakemake(name, here):
    environment = from_options({}, [], [name], None).environment(here / "overrides.json")
    overrides = json.loads(Path(environment["PHOTO_TAGGER_OVERRIDES"]).read_text())
    assert [names.decode(root) for root in overrides["roots"]] == [f"{here}/{name}"]


def test_new_options_go_on_top_of_remembered_ones(here):
    settings.remember(Settings({"score": {"topk": 3, "threshold": 0.2}}, ["/a"], "/c.yaml"))
    combined = run.recall(Settings({"score": {"topk": 9}}))
    assert combined == Settings({"score": {"topk": 9, "threshold": 0.2}}, ["/a"], "/c.yaml")


def test_naming_photos_starts_afresh(here):
    settings.remember(Settings({"score": {"topk": 3}}, ["/a"]))
    assert run.recall(Settings({}, ["/b"])) == Settings({}, ["/b"])


def test_a_broken_memory_is_a_clear_error(here):
    settings.COMMAND.parent.mkdir(parents=True)
    settings.COMMAND.write_text("{")
    with pytest.raises(UserError, match="name PHOTOS again"):
        settings.remembered()


def test_extras_come_last(here):
    request = run.Request(Settings(), ["thumbs_all"], 3, ["--forceall"])
    command = run.snakemake(request, Path("events"))
    assert command[-3:] == ["--nolock", "thumbs_all", "--forceall"]
    assert command[command.index("--cores") + 1] == "3"


# ------------------------------------------------------------------------------- real Snakemake


def test_run_remembers_and_then_is_up_to_date(toy, capsys, monkeypatch):
    photo_tagger("run", "photos", "--workdir", "W", "--topk", "7", "--", "--cores", "1")
    shown = capsys.readouterr().out
    assert "thumbs: 6 of 6 photos" in shown
    assert shown.count("│      6 │        4 │      2 │        0 │") == 2
    expected = {"config": {"score": {"topk": 7}}, "roots": [str(toy / "photos")]}
    assert json.loads((toy / "W/seen.json").read_text()) == expected

    os.chdir(toy)  # every command is a process of its own
    photo_tagger("status", "--workdir", "W")
    assert "Everything is up to date: 6 photos." in capsys.readouterr().out
    assert json.loads((toy / "W/seen.json").read_text()) == expected

    os.chdir(toy)
    monkeypatch.setenv("TOY_VALUE", "2")
    photo_tagger("run", "--dry-run", "--workdir", "W")
    shown = capsys.readouterr().out
    assert [line.split("│")[1:4] for line in shown.splitlines() if "embed" in line] == [
        [" embed    ", "      0 of 6 ", " follows from an earlier stage       "]
    ]


def test_a_failed_job_is_told_with_its_reason(toy, capsys, monkeypatch):
    monkeypatch.setenv("TOY_FAIL", f"embed-{SHARDS[1]}")
    photo_tagger("run", "photos", "--workdir", "W", code=1)
    told = capsys.readouterr()
    assert (
        f"failed: embed, shard {SHARDS[1]}: the lens cap is on; take it off "
        f"(log: results/logs/embed/{SHARDS[1]}.log)" in told.out
    )
    assert told.err == "photo-tagger: 1 job failed, see above; what is done is kept\n"
    assert (toy / f"W/results/embeddings/{SHARDS[0]}.txt").exists()


def test_a_mistake_found_by_the_snakefile_is_one_line(toy, capsys, monkeypatch):
    monkeypatch.setenv("TOY_MISTAKE", "photos: none there; look elsewhere")
    photo_tagger("run", "photos", "--workdir", "W", code=1)
    assert capsys.readouterr().err == "photo-tagger: photos: none there; look elsewhere\n"


# ---------------------------------------------------------------------------------- child process


def test_a_second_run_in_the_same_folder_is_refused(here):
    with child.locked():
        assert child.holder()["pid"] == os.getpid()
        with pytest.raises(FailedError, match=f"process {os.getpid()} on"), child.locked():
            pass
    assert child.holder() is None
    with child.locked():
        pass


# A parent that runs `sleep` (in a shell, so that there is a grandchild) under the lock.
PARENT = """
import sys
from pathlib import Path
from phototagger.cli.child import locked, run_child
with locked() as lock:
    print(run_child(["sh", "-c", sys.argv[1]], {}, Path("log"), lock, lambda stopping: None))
"""


def start_parent(script: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, script], stdout=subprocess.PIPE, text=True
    )
    wait_for(lambda: Path("ready").exists())
    return process


def wait_for(condition, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_whole_group(here, number):
    parent = start_parent("sleep 60 & echo $! >ready; wait")
    grandchild = int(Path("ready").read_text())
    parent.send_signal(number)
    assert parent.communicate(timeout=5)[0].strip().endswith("True)")
    wait_for(lambda: not alive(grandchild), 2)


def test_a_second_signal_kills(here):
    parent = start_parent("trap '' INT; echo $$ >ready; while :; do sleep 0.1; done")
    parent.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert parent.poll() is None
    parent.send_signal(signal.SIGINT)
    assert parent.communicate(timeout=5)[0].strip() == "(-9, True)"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
def test_a_killed_run_leaves_nothing_and_the_next_one_waits_for_that(here):
    parent = start_parent("trap 'sleep 1; exit' INT; echo $$ >ready; while :; do sleep 0.1; done")
    process = int(Path("ready").read_text())
    parent.kill()
    parent.wait()
    assert alive(process)
    with child.locked():
        assert not alive(process)
