from dataclasses import replace

import pytest

from phototagger import config, prompts, setups
from phototagger.errors import UserError
from phototagger.machine import Servers
from phototagger.setups import Setup
from phototagger.tasks import Task, plan_tasks, quoted

DEFAULT = config.load(None, {}, {}).describe
NOWHERE = Servers()
HERE = Servers(base_url=("http://127.0.0.1:9/v1",))


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {
        slug: Setup(slug, "tagging", "vllm", slug, "serve", "http://127.0.0.1:1/v1", digest=slug)
        for slug in ("small", "large", "words")
    }
    monkeypatch.setattr(setups, "load", known.__getitem__)
    monkeypatch.setattr(setups, "select", lambda role: known["words"])


def planned(servers: Servers = NOWHERE, **values) -> dict[str, Task]:
    return plan_tasks(replace(DEFAULT, **values), servers)


def test_nothing_is_asked_unless_a_model_is_named():
    assert planned() == {}


def test_one_setup_answers_everything(registry: None):
    (task,) = planned(setup="small").values()
    assert list(task.prompts) == ["caption", "keywords", "description"]
    assert list(planned(setup="small", fields=("keywords",))["small"].prompts) == ["keywords"]


def test_a_field_may_have_its_own_setup_or_role(registry: None):
    found = planned(setup="small", keywords_role="keywords", description_setup="large")
    assert {slug: list(task.prompts) for slug, task in found.items()} == {
        "small": ["caption"],
        "words": ["keywords"],
        "large": ["description"],
    }
    assert list(planned(keywords_setup="large")["large"].prompts) == ["keywords"]


def test_a_setup_waits_for_the_answers_its_questions_quote(registry: None):
    found = planned(setup="small", description_setup="large")
    assert quoted(found, "large") == ["small"]
    assert quoted(found, "small") == []


def test_setups_that_would_wait_for_each_other(registry: None, monkeypatch: pytest.MonkeyPatch):
    profile = prompts.load_profile("default")
    quoting = replace(profile.prompts["keywords"], user="{{ caption }}?")
    description = replace(profile.prompts["description"], user="{{ keywords|join }}?")
    texts = {**profile.prompts, "keywords": quoting, "description": description}
    monkeypatch.setattr(prompts, "load_profile", lambda _: replace(profile, prompts=texts))
    with pytest.raises(UserError, match="large, small wait for each other"):
        planned(setup="small", keywords_setup="large")


@pytest.mark.parametrize(
    ("values", "servers", "message"),
    [
        ({"model": "x"}, Servers(), "describe.model: needs servers.base_url"),
        ({"setup": "small", "caption_model": "x"}, HERE, "caption_model: the setup says"),
        ({"caption_setup": "small", "caption_role": "caption"}, HERE, "name one of the two"),
    ],
)
def test_contradictions(registry: None, values: dict, servers: Servers, message: str):
    with pytest.raises(UserError, match=message):
        planned(servers, **values)


def test_a_server_without_a_setup():
    found = planned(HERE, backend="llama.cpp", model="one", keywords_model="two")
    assert [(task.setup.model, list(task.prompts)) for task in found.values()] == [
        ("one", ["caption", "description"]),
        ("two", ["keywords"]),
    ]
    assert all(task.setup.adhoc and task.setup.command is None for task in found.values())


def test_a_model_that_nobody_named_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9/v1/models.* start the server"):
        planned(HERE)


def test_nought_is_nought_however_it_is_written(registry: None):
    recipes = {planned(setup="small", temperature=x, top_p=1)["small"].recipe for x in (0, 0.0)}
    assert len(recipes) == 1


def test_credentials_in_a_url_are_refused():
    with pytest.raises(UserError) as error:
        planned(Servers(base_url=("http://me:secret@host:1/v1",)), model="m")
    assert "secret" not in str(error.value)


def test_what_shapes_answers_is_in_the_recipe(registry: None):
    (task,) = planned(setup="small").values()
    others = [
        planned(setup="small", **values)["small"]
        for values in (
            {"temperature": 0.9},
            {"max_keywords": 3},
            {"profile": "narrative"},
            {"seed": 1},
            {"language": "de"},
            {"fields": ("caption",)},
            {"context": ("folder",)},
            {"overwrite": True},
        )
    ]
    recipes = {task.recipe, *(other.recipe for other in others)}
    assert len(recipes) == len(others) + 1
    moved = replace(task, setup=replace(task.setup, base_url="http://elsewhere:1/v1"))
    assert moved.recipe == task.recipe


def test_a_task_survives_json(registry: None):
    import json

    (task,) = planned(setup="small", context=("date",)).values()
    again = Task.from_dict(json.loads(json.dumps(task.as_dict())))
    assert again == task
    assert again.recipe == task.recipe
