"""The command line: arguments, exit codes, what is remembered, and the child process."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from phototagger import names, prompts, server, setups
from phototagger.cli import child, describing, main, run, settings, status
from phototagger.cli.errors import FailedError
from phototagger.cli.options import CONFIGURED, option_name
from phototagger.cli.settings import Settings, from_options, split_arguments
from phototagger.config import SCHEMA, flatten, load
from phototagger.errors import UserError

COMMANDS = [*run.STAGES, "run", "status", "why", "search", "diff", "apply", "undo"]
COMMANDS += ["labels", "models", "prompts"]
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
    + [["models", c] for c in ("list", "fetch", "build-demo", "verify")]
    + [["prompts", c] for c in ("list", "show")],
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
        "finally: print([m for m in ('torch', 'pandas', 'pyarrow', 'PIL', 'numpy', 'jsonschema',"
        " 'httpx', 'jinja2', 'simplemma', 'py3langid') if m in sys.modules])"
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
        (["run", "photos", "--image-exts", "jpg,*.png"], "'*.png' is no file name ending"),
        (
            ["run", "photos", "--fields", "caption,tags"],
            "valid are: caption, description, keywords",
        ),
        (["run", "photos", "--setup", "none-such"], "unknown 'none-such'"),
        (["run", "photos", "--keyword-role", "juggler"], "'juggler'"),
        (
            ["run", "photos", "--setup", "s", "--model", "m"],
            "--model) and describe.setup (--setup)",
        ),
        (["run", "photos", "--temperature", "9"], "describe.temperature"),
        (["run", "photos", "--backend", "magic"], "describe.backend"),
        (["run", "photos", "--model", "m"], "describe.model (--model): which server?"),
        (["run", "photos", "--base-url", "127.0.0.1:8000"], "servers.base_url"),
        (["run", "photos", "--max-keywords", "5"], "--max-keywords): no model is asked"),
        (["run", "photos", "--set", "servers.idle=5"], "--set servers.idle): no model is asked"),
        (["run", "photos", "--set", "describe=5"], "command line: describe: 5 is not of type"),
        (["run", "photos", "--api-key-env", "NO_SUCH"], "no variable of that name is set"),
        (["scan", "photos", "--api-key-env", "NO_SUCH"], "no variable of that name is set"),
        (["sidecars", "photos", "--no-meta"], "makes nothing"),
        (["prompts", "show", "none-such"], "unknown 'none-such'"),
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


# -------------------------------------------------------- options for captions and model servers

URL = "http://127.0.0.1:8000/v1"
OPTIONS = {
    "--recursive": ("photos.recursive", True),
    "--no-recursive": ("photos.recursive", False),
    "--image-exts jpg,.PNG": ("photos.extensions", [".jpg", ".png"]),
    "--max-images 5": ("photos.max_images", 5),
    "--labels birds": ("labels.path", "birds"),
    "--clip-model ViT-B-32": ("clip.model", "ViT-B-32"),
    "--threshold 0.3": ("score.threshold", 0.3),
    "--topk 7": ("score.topk", 7),
    "--setup one": ("describe.setup", "one"),
    "--caption-setup one": ("describe.caption_setup", "one"),
    "--keyword-setup one": ("describe.keywords_setup", "one"),
    "--description-setup one": ("describe.description_setup", "one"),
    "--caption-role caption": ("describe.caption_role", "caption"),
    "--keyword-role keywords": ("describe.keywords_role", "keywords"),
    "--description-role narration": ("describe.description_role", "narration"),
    "--fields keywords,caption": ("describe.fields", ["caption", "keywords"]),
    "--prompt-profile travel": ("describe.profile", "travel"),
    "--language de": ("describe.language", "de"),
    "--overwrite": ("describe.overwrite", True),
    "--no-overwrite": ("describe.overwrite", False),
    "--max-keywords 20": ("describe.max_keywords", 20),
    "--vocabulary birds": ("describe.vocabulary", "birds"),
    "--strict": ("describe.strict", True),
    "--no-strict": ("describe.strict", False),
    "--max-new-tokens 256": ("describe.max_new_tokens", 256),
    "--temperature 0": ("describe.temperature", 0.0),
    "--top-p 0.9": ("describe.top_p", 0.9),
    "--seed 3": ("describe.seed", 3),
    f"--base-url {URL} --base-url http://b/v1": ("servers.base_url", [URL, "http://b/v1"]),
    "--backend vllm": ("describe.backend", "vllm"),
    "--model m": ("describe.model", "m"),
    "--caption-model m": ("describe.caption_model", "m"),
    "--keyword-model m": ("describe.keywords_model", "m"),
    "--description-model m": ("describe.description_model", "m"),
    "--api-key-env THE_KEY": ("servers.api_key_env", "THE_KEY"),
    "--concurrency 64": ("servers.concurrency", 64),
    "--timeout 2.5": ("servers.timeout", 2.5),
    "--preflight": ("servers.preflight", True),
    "--skip-preflight": ("servers.preflight", False),
    "--meta": ("metadata.enabled", True),
    "--no-meta": ("metadata.enabled", False),
    "--naming stem": ("metadata.naming", "stem"),
    "--metadata-mode embed": ("metadata.mode", "embed"),
    "--skip-tagged rating,caption,rating": ("tagged.fields", ["rating", "caption"]),
    "--skip-tagged ,": ("tagged.fields", []),
    "--tagged-by photo-tagger": ("tagged.by", ["photo-tagger"]),
}


@pytest.fixture
def asked(here, monkeypatch):
    """Runs a command up to the start of Snakemake; gives its Request."""
    requests = []
    monkeypatch.setattr(run, "execute", lambda request, keep: requests.append(request))
    monkeypatch.setenv("THE_KEY", "secret-3141")

    def ask(*arguments: str) -> run.Request:
        os.chdir(here)
        photo_tagger(*arguments)
        return requests.pop()

    return ask


@pytest.mark.parametrize("stage", ["run", "describe"])
@pytest.mark.parametrize("words", OPTIONS)
def test_an_option_is_a_key_of_the_configuration(words, stage, asked):
    key, value = OPTIONS[words]
    section, name = key.split(".")
    layer = asked(stage, "photos", *words.split()).settings.config
    said = {key: value for key, value in flatten(layer) if value is not None}
    assert said == {key: value}
    read = getattr(getattr(load(None, {}, layer), section), name)
    assert read == (tuple(value) if isinstance(value, list) else value)


def test_options_outrank_environment_and_file(here, asked, monkeypatch):
    file = here / "mine.yaml"
    file.write_text("describe: {max_keywords: 1, seed: 1, language: fr}\nservers: {timeout: 1}")
    monkeypatch.setenv("PHOTO_TAGGER__DESCRIBE__MAX_KEYWORDS", "2")
    monkeypatch.setenv("PHOTO_TAGGER__DESCRIBE__SEED", "2")
    words = f"--config-file {file} --max-keywords 3 --timeout 3 --fields caption"
    given = asked("run", "photos", *words.split()).settings
    config = settings.read_config(given, run.child_environment(given))
    describe = config.describe
    assert (describe.max_keywords, describe.seed, describe.language) == (3, 2, "fr")
    assert (config.servers.timeout, describe.fields) == (3, ("caption",))


def test_every_option_was_looked_at_and_has_a_key_of_the_schema():
    assert {option.key for option in CONFIGURED} == {key for key, _ in OPTIONS.values()}
    sections = json.loads(SCHEMA.read_text("utf-8"))["properties"]
    for option in CONFIGURED:
        section, name = option.key.split(".")
        assert name in sections[section]["properties"]


def test_options_stand_under_headings(capsys):
    photo_tagger("run", "--help")
    text = capsys.readouterr().out
    headings = [line for line in text.splitlines() if line.endswith(":") and line[0] != " "]
    assert headings[0] == "Arguments:"
    assert headings[-3:] == ["Captions, keywords and descriptions:", "Model servers:", "Metadata:"]
    shown = text.split("Model servers:")[1].split("Metadata:")[0]
    assert "--base-url URL" in shown and "--setup" not in shown
    assert all(option.name.partition("/")[0] in text for option in CONFIGURED)
    assert max(map(len, text.splitlines())) <= 80


def test_the_stage_describe_has_a_target(asked):
    assert asked("describe", "photos").targets == ["describe_all"]
    assert asked("run", "photos", "describe").targets == ["describe_all"]


def test_option_names_for_messages():
    assert option_name("servers.preflight") == "--preflight"
    assert option_name("describe.keywords_setup") == "--keyword-setup"
    assert option_name("servers.idle") == "--set servers.idle"


def test_paths_become_absolute_and_names_stay(here, asked):
    (here / "mine.txt").touch()
    (here / "mine.yaml").touch()
    (here / "travel").mkdir()
    words = ("--vocabulary", "mine.txt", "--prompt-profile", "mine.yaml", "--labels", "mine.txt")
    layer = asked("run", "photos", *words).settings.config
    assert layer["describe"] == {
        "vocabulary": str(here / "mine.txt"),
        "profile": str(here / "mine.yaml"),
    }
    layer = asked("run", "photos", "--prompt-profile", "travel").settings.config
    assert layer["describe"] == {"profile": "travel"}  # not the folder of that name


@pytest.mark.parametrize(
    ("below", "words", "above"),
    [
        ({"caption_role": "r"}, "--caption-setup s", {"caption_setup": "s", "caption_role": None}),
        ({"caption_setup": "s"}, "--caption-role r", {"caption_setup": None, "caption_role": "r"}),
        ({"setup": "s"}, f"--model m --base-url {URL}", {"setup": None, "model": "m"}),
        ({"setup": "s"}, f"--backend vllm --base-url {URL}", {"setup": None, "backend": "vllm"}),
        ({"model": "m"}, "--setup s", {"setup": "s", "model": None}),
        (
            {"keywords_role": "r"},
            f"--keyword-model m --base-url {URL}",
            {"keywords_role": None, "keywords_model": "m"},
        ),
        ({"caption_setup": "c"}, "--setup s", {"setup": "s", "caption_setup": "c"}),
    ],
    ids=str,
)
def test_naming_one_takes_back_the_others_of_a_lower_layer(below, words, above, asked):
    layer = asked("run", "photos", *words.split()).settings.config
    env = {f"PHOTO_TAGGER__DESCRIBE__{k.upper()}": v for k, v in below.items()}
    merged = vars(load(None, env, layer).describe)
    assert {key: merged[key] for key in above} == above
    settings.remember(Settings({"describe": below}, ["/a"]))
    asked_again = asked("run", *words.split()).settings.config["describe"]
    assert {key: asked_again.get(key) for key in above} == above


@pytest.mark.parametrize(
    ("words", "one", "other"),
    [
        ("--caption-setup s --caption-role r", "--caption-setup", "--caption-role"),
        ("--keyword-role r --keyword-model m", "--keyword-role", "--keyword-model"),
        ("--setup s --model m", "--model", "--setup"),
        ("--setup s --backend vllm", "--backend", "--setup"),
        ("--setup s --description-model m", "--description-model", "--setup"),
    ],
)
def test_options_that_contradict(words, one, other, here, capsys):
    photo_tagger("run", "photos", *words.split(), code=2)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"({one}) and " in said and f"({other}) exclude each other" in said


@pytest.fixture
def registry(monkeypatch):
    """Two setups, one role, whatever is in the registry."""
    known = {
        name: setups.Setup(name, "tagging", "vllm", name, None, URL) for name in ("one", "two")
    }

    def load_setup(slug):
        if slug not in known:
            raise UserError(f"setup: unknown {slug!r}")
        return known[slug]

    def select(role):
        if role != "caption":
            raise UserError(f"role: no working setup for {role!r}")
        return known["one"]

    monkeypatch.setattr(setups, "load", load_setup)
    monkeypatch.setattr(setups, "select", select)


def check(**layers: dict) -> None:
    """`describing.check` of a command line's layer over the environment's."""
    below = {
        f"PHOTO_TAGGER__{key.replace('.', '__').upper()}": json.dumps(value)
        for key, value in flatten(layers.get("below", {}))
    }
    layer = layers.get("layer", {})
    describing.check(load(None, below, layer), layer)


@pytest.mark.parametrize(
    "layer",
    [
        {},
        {"describe": {"setup": "one"}},
        {"describe": {"setup": "one", "caption_role": "caption"}},
        {"describe": {"caption_setup": "two"}},  # and nothing else is asked for
        {"describe": {"setup": "two"}, "servers": {"base_url": [URL]}},
        {"describe": {"backend": "vllm", "model": "m"}, "servers": {"base_url": [URL]}},
        {"servers": {"base_url": ["http://[::1]:80/v1/", "https://h/api/v1"]}},
        {"describe": {"setup": "one", "vocabulary": "photographic", "strict": True}},
    ],
    ids=str,
)
def test_settings_that_make_sense(layer, registry):
    check(layer=layer)
    check(below=layer)


@pytest.mark.parametrize(
    ("layer", "complaint"),
    [
        ({"describe": {"setup": "three"}}, "unknown 'three'"),
        ({"describe": {"setup": "one", "keywords_setup": "three"}}, "unknown 'three'"),
        ({"describe": {"setup": "one", "keywords_role": "x"}}, "no working setup for 'x'"),
        ({"describe": {"setup": "one", "caption_model": "m"}}, "(--caption-model) and"),
        ({"describe": {"caption_setup": "one", "caption_role": "caption"}}, "exclude each other"),
        ({"describe": {"keywords_model": "m"}}, "(--keyword-model): which server?"),
        ({"describe": {"setup": "one", "profile": "none-such"}}, "unknown 'none-such'"),
        ({"describe": {"setup": "one", "language": "xx"}}, "unknown 'xx'"),
        ({"describe": {"setup": "one", "vocabulary": "none"}}, "describe.vocabulary: label file"),
        ({"describe": {"setup": "one", "strict": True}}, "name one with --vocabulary"),
        ({"describe": {"fields": ["keywords"], "caption_setup": "one"}}, "--keyword-setup"),
    ],
    ids=str,
)
def test_settings_that_do_not(layer, complaint, registry):
    for source in ("layer", "below"):
        with pytest.raises(UserError, match=re.escape(complaint)) as raised:
            check(**{source: layer})
        assert "\n" not in str(raised.value)


def test_a_field_named_on_the_command_line_must_have_somebody_who_answers(registry):
    describe = {"caption_setup": "one", "fields": ["caption", "keywords"]}
    check(below={"describe": describe})
    with pytest.raises(UserError, match=r"no setup is named for keywords; .* --keyword-setup"):
        check(layer={"describe": describe})


def test_only_options_must_not_be_idle(registry):
    check(below={"describe": {"max_keywords": 5}, "servers": {"idle": 5}})
    check(layer={"describe": {"max_keywords": 5}}, below={"describe": {"setup": "one"}})
    with pytest.raises(UserError, match="--max-keywords"):
        check(layer={"describe": {"max_keywords": 5, "caption_role": None}})
    with pytest.raises(UserError, match="which server"):
        check(layer={"describe": {"backend": "vllm"}})


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http://h",
        "http://h/",
        "http://h:99999/v1",
        "http://h:port/v1",
        "http://[::1/v1",
        "http://h:0/v1",
        "http://name:swordfish@h/v1",
        "http://name:swordfish@h:99999/v1",
        "https://h/v1?key=swordfish",
        "ftp://h/v1",
    ],
)
def test_no_url_of_a_server(url):
    with pytest.raises(UserError, match=r"--base-url\): ") as raised:
        setups.check_url(url)
    assert "write it as http" in str(raised.value)
    assert "swordfish" not in str(raised.value)


def test_the_key_is_never_written_nor_repeated(toy, asked, monkeypatch, capsys):
    monkeypatch.undo()
    monkeypatch.chdir(toy)
    photo_tagger("run", "photos", "--api-key-env", "sk_live_swordfish", code=2)
    assert "swordfish" not in capsys.readouterr().err
    assert not [path for path in toy.rglob("*") if path.name.endswith(".json")]


def test_the_key_must_be_there_when_a_server_is_asked(registry):
    here = Settings({"servers": {"api_key_env": "THE_KEY", "base_url": [URL]}})
    config = load(None, {}, here.config)
    for targets in ([], ["describe_all"], ["results/tags.csv"], ["thumbs_all", "export"]):
        with pytest.raises(UserError, match="--api-key-env"):
            settings.preflight_servers(config, {}, targets)
        settings.preflight_servers(config, {"THE_KEY": "x"}, targets)
    settings.preflight_servers(config, {}, ["thumbs_all", "score_all"])
    describing.check(config, here.config)  # all that `status` looks at


def test_profiles_are_listed_and_shown(here, capsys):
    photo_tagger("prompts", "list")
    listed = capsys.readouterr().out
    assert "default" in listed and "keywords" in listed
    photo_tagger("prompts", "show", "default")
    shown = capsys.readouterr().out
    profile = prompts.load_profile("default")
    assert shown.startswith(f"default: {profile.description}")
    for field, prompt in profile.prompts.items():
        assert f"\n{field} (max_tokens {prompt.max_tokens}, " in shown
        assert all(line.strip() in shown for line in prompt.user.splitlines())


def test_the_stage_describe_needs_somebody_to_ask():
    config = load(None, {}, {})
    settings.preflight_servers(config, {}, [])
    with pytest.raises(UserError, match=r"describe: no model is asked .* --setup"):
        settings.preflight_servers(config, {}, ["describe_all"])


# ------------------------------------------------------------------------------- real Snakemake


def test_run_remembers_and_then_is_up_to_date(toy, capsys, monkeypatch):
    monkeypatch.setattr(server, "stop_idle", lambda servers: pytest.fail("no model is named"))
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


def test_what_was_asked_for_is_remembered_without_the_key(toy, capsys, monkeypatch):
    stopped = []
    monkeypatch.setattr(server, "stop_idle", lambda servers: stopped.append(servers) or ["one"])
    monkeypatch.setenv("THE_KEY", "secret-3141")
    words = f"--base-url {URL} --fields keywords --api-key-env THE_KEY --no-meta --skip-preflight"
    photo_tagger("run", "photos", "--workdir", "W", *words.split())
    expected = {
        "servers": {"base_url": [URL], "api_key_env": "THE_KEY", "preflight": False},
        "describe": {"fields": ["keywords"]},
        "metadata": {"enabled": False},
    }
    assert json.loads((toy / "W/results/plan/command.json").read_text())["config"] == expected
    assert json.loads((toy / "W/seen.json").read_text())["config"] == expected
    assert "model server stopped: one\n" in capsys.readouterr().out
    assert [servers.base_url for servers in stopped] == [(URL,)]

    again = run.recall(Settings({"describe": {"max_keywords": 5}})).config
    assert again == {**expected, "describe": {"fields": ["keywords"], "max_keywords": 5}}
    kept = [path for path in toy.rglob("*") if path.is_file() and not path.is_symlink()]
    assert kept and not [path for path in kept if b"secret-3141" in path.read_bytes()]


@pytest.mark.parametrize("ending", ["failure", "interrupt"])
def test_servers_are_stopped_however_a_run_ends(ending, toy, capsys, monkeypatch):
    calls = []

    def stop_idle(servers):
        calls.append(servers)
        raise UserError("the server does not stop")  # must not hide how the run ended

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(server, "stop_idle", stop_idle)
    monkeypatch.setenv("TOY_FAIL", f"embed-{SHARDS[1]}")
    if ending == "interrupt":
        monkeypatch.setattr(run, "run_child", interrupted)
    code = {"failure": 1, "interrupt": 130}[ending]
    photo_tagger("run", "photos", "--workdir", "W", "--base-url", URL, code=code)
    said = capsys.readouterr().err
    assert len(calls) == 1
    assert "the server does not stop" in said
    assert ("1 job failed" in said) == (ending == "failure")


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
