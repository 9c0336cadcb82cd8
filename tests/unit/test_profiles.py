"""Profiles: found by name, put on top of the default one, and harmless in a dry run."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from phototagger.cli import profiles, run, settings
from phototagger.cli.run import Request
from phototagger.cli.settings import Settings
from phototagger.errors import UserError

CLUSTER = {"executor": "slurm", "jobs": 50, "slurm-no-requeue": True, "config": {"score": 1}}


def make(folder: Path, content: object, name: str = "profile.yaml") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else yaml.safe_dump(content)
    (folder / name).write_text(text)
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a profile, a work directory with another, and the clone's."""
    make(tmp_path / "clone/profiles/slurm", CLUSTER)
    make(tmp_path / "clone/profiles/default", {"keep-going": True})
    make(tmp_path / "here/profiles/mine", {"resources": ["gpu=2"]})
    make(tmp_path / "work/profiles/theirs", {"executor": "cluster-generic"}, "profile.v9+.yaml")
    monkeypatch.setattr(profiles, "FOLDER", tmp_path / "clone/profiles")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def canonical(name: str) -> str:
    return profiles.canonical(name, Path("../work"))


def test_a_name_is_looked_up_here_in_the_work_directory_and_in_the_clone(here):
    assert canonical("mine") == str(here / "here/profiles/mine")
    assert canonical("theirs") == str(here / "work/profiles/theirs")
    assert canonical("slurm") == "slurm"  # a clone may move
    make(here / "here/profiles/slurm", {"jobs": 3})
    assert canonical("slurm") == str(here / "here/profiles/slurm")


def test_a_folder_or_file_is_a_profile_if_it_looks_like_a_path(here):
    make(here / "here/slurm", {"jobs": 4})
    assert canonical("slurm") == "slurm"
    assert canonical("./slurm") == str(here / "here/slurm")
    assert canonical("slurm/profile.yaml") == str(here / "here/slurm/profile.yaml")


def test_an_unknown_name_lists_the_valid_ones(here):
    with pytest.raises(UserError, match=r"--profile: unknown 'slrm'; valid are: .*") as error:
        canonical("slrm")
    assert str(error.value).endswith("valid are: default, mine, slurm, theirs")


@pytest.mark.parametrize("content", ["- a\n- b\n", "a: [", "\t"])
def test_a_profile_that_is_no_yaml_mapping_is_a_clear_error(content, here):
    make(here / "here/profiles/bad", content)
    with pytest.raises(UserError, match=r"bad/profile\.yaml"):
        profiles.load(str(here / "here/profiles/bad"))


def command(profile: str | None, cores: int | None = None, *extras: str) -> list[str]:
    name = profile and canonical(profile)
    request = Request(Settings(profile=name), [], cores, list(extras))
    return run.snakemake(request, Path("events"))


def values(words: list[str], option: str) -> list[str]:
    return [after for word, after in pairwise(words) if word == option]


def test_a_profile_goes_on_top_of_the_default_one(here):
    words = command("mine")
    default = str(run.CLONE / "profiles/default")
    mine = str(here / "here/profiles/mine/profile.yaml")
    assert values(words, "--profile") == [default, mine]
    assert values(words, "--workflow-profile") == ["none"]
    for profile in (None, "default"):
        words = command(profile)
        assert values(words, "--workflow-profile") == [default]
        assert "--profile" not in words


@pytest.mark.parametrize(
    ("arguments", "cores"),
    [
        ((None,), ["all"]),
        (("mine",), ["all"]),
        (("slurm",), []),
        (("theirs",), []),
        (("slurm", 3), ["3"]),
        ((None, None, "--executor", "slurm"), []),
        ((None, None, "--executor=slurm"), []),
        ((None, None, "-e", "local"), ["all"]),
    ],
)
def test_our_cores_limit_no_cluster(arguments, cores, here):
    assert values(command(*arguments), "--cores") == cores


def test_a_profile_for_this_machine_may_limit_cores_itself(here):
    make(here / "here/profiles/small", {"cores": 2})
    assert values(command("small"), "--cores") == []
    assert values(command("small", 1), "--cores") == ["1"]


def test_a_dry_run_needs_no_cluster_but_what_else_the_profile_says(here, monkeypatch):
    make(here / "here/profiles/far", {**CLUSTER, "configfile": "own.yaml", "executor": "slurm"})
    (here / "here/profiles/far/own.yaml").write_text("{}")
    seen = {}

    def child(words, env, *_):
        (path,) = [each for each in values(words, "--profile") if "profiles/default" not in each]
        seen.update(yaml.safe_load(Path(path).read_text()))
        seen["cores"] = values(words, "--cores")
        return 0, False

    monkeypatch.setattr(run, "run_child", child)
    monkeypatch.setattr(run, "read_shards", dict)
    run.dry_run(Request(Settings(profile=canonical("far")), []))
    beside = str(here / "here/profiles/far/own.yaml")
    assert seen == {"config": {"score": 1}, "configfile": beside, "cores": ["all"]}


def test_the_plugin_may_be_in_the_environment_for_clusters(here, monkeypatch):
    assert profiles.interpreter("local", "/our/python") == "/our/python"
    bin_folder = here / "clone/.venv-cluster/bin"
    monkeypatch.setattr(profiles, "CLUSTER", bin_folder)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"executor slurm: .*`make cluster` in .*run this again"):
        profiles.interpreter("slurm", "/our/python")
    with pytest.raises(UserError, match="install snakemake-executor-plugin-kubernetes"):
        profiles.interpreter("kubernetes", "/our/python")
    plugin = "lib/python3.11/site-packages/snakemake_executor_plugin_cluster_generic"
    (here / "clone/.venv-cluster" / plugin).mkdir(parents=True)
    assert profiles.interpreter("cluster-generic", "/our/python") == str(bin_folder / "python")


def test_a_profile_is_remembered_until_another_is_named(here, monkeypatch):
    monkeypatch.chdir(here / "work")
    settings.remember(Settings({}, ["/a"], None, "slurm"))
    assert run.recall(Settings()).profile == "slurm"
    assert run.recall(Settings(profile="default")).profile == "default"
    assert run.recall(Settings(roots=["/b"])).profile is None  # named photos: afresh
    content = json.loads(settings.COMMAND.read_text())
    del content["profile"]  # as older versions left it
    settings.COMMAND.write_text(json.dumps(content))
    assert run.recall(Settings()).profile is None


def test_our_own_profiles_can_be_read():
    for path in sorted((run.CLONE / "profiles").iterdir()):
        profile = profiles.load(path.name)
        assert not profiles.submits(profile.executor) or profile.limits_itself, path
