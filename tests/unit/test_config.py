"""The configuration: layers, defaults, and errors that list what is valid."""

import json

import pytest
import yaml
from jsonschema import Draft202012Validator

from phototagger import CLONE, workflow
from phototagger.config import SCHEMA, defaults, flatten, load, parse_set, schema
from phototagger.errors import UserError


def test_the_shipped_file_says_the_defaults():
    shipped = yaml.safe_load((CLONE / "config/config.yaml").read_text())
    assert dict(flatten(shipped)) == dict(flatten(defaults(schema())))


def test_every_key_has_a_description_and_a_default():
    Draft202012Validator.check_schema(json.loads(SCHEMA.read_text()))

    def visit(part):
        assert part["description"]
        if part.get("type") == "object":
            assert part["additionalProperties"] is False
            for sub in part["properties"].values():
                visit(sub)
        else:
            assert "default" in part

    visit(schema())


def test_precedence_is_default_file_environment_command_line(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("score: {topk: 2, threshold: 0.2}\nthumbs: {size: 256}\n")
    env = {"PHOTO_TAGGER__SCORE__TOPK": "3", "PHOTO_TAGGER__CACHE": "/c", "PHOTO_TAGGER_X": "1"}
    config = load(file, env, {"score": {"topk": 4}})
    assert (config.score.topk, config.score.threshold) == (4, 0.2)
    assert (config.thumbs.size, config.thumbs.quality, config.cache) == (256, 85, "/c")
    assert load(file, env, {}).score.topk == 3
    assert load(file, {}, {}).score.topk == 2
    assert load(None, {}, {}).score.topk == 5


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"scor": {}}, "unknown 'scor'; valid are: cache, clip, describe, labels,"),
        ({"score": {"treshold": 1}}, "score: key: unknown 'treshold'; valid are: measure, thresh"),
        ({"score": {"topk": 0}}, "score.topk: 0 is less than the minimum of 1"),
        ({"clip": {"device": "tpu"}}, "clip.device: 'tpu' is not one of"),
        ({"photos": {"roots": "x"}}, "photos.roots: 'x' is not of type 'array'"),
        ({"labels": {"templates": ["no place"]}}, "labels.templates.0"),
    ],
)
def test_a_wrong_key_or_value_is_one_line_that_lists_what_is_valid(layer, message):
    with pytest.raises(UserError) as error:
        load(None, {}, layer)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_errors_name_their_source(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("score: {topk: many}\n")
    with pytest.raises(UserError, match=r"mine\.yaml: score\.topk: 'many'"):
        load(file, {}, {})
    with pytest.raises(UserError, match="environment: score"):
        load(None, {"PHOTO_TAGGER__SCORE__NO": "1"}, {})
    file.write_text("a: [")
    with pytest.raises(UserError, match=r"mine\.yaml: is not valid YAML"):
        load(file, {}, {})
    with pytest.raises(UserError, match=r"other\.yaml: cannot be read"):
        load(tmp_path / "other.yaml", {}, {})


def test_set_reads_yaml():
    assert parse_set("score.topk=7") == {"score": {"topk": 7}}
    assert parse_set("photos.exclude=[a/*, b]") == {"photos": {"exclude": ["a/*", "b"]}}
    assert parse_set("score.threshold=null") == {"score": {"threshold": None}}
    with pytest.raises(UserError, match="write KEY=VALUE"):
        parse_set("score.topk")


def test_an_unknown_label_pack_lists_the_valid_ones():
    with pytest.raises(UserError, match=r"unknown 'nothere'; valid are: .*photographic"):
        workflow.find_labels("nothere")


def test_labels_are_found_by_path_or_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text("boat\n")
    assert workflow.find_labels("mine.txt") == tmp_path / "mine.txt"
    assert workflow.find_labels("photographic") == CLONE / "config/labels/photographic"
