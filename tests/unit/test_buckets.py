"""Places in object storage, as far as no server is needed (else: tests/workflow)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from phototagger import CLONE, buckets
from phototagger.cli.settings import split_arguments
from phototagger.config import load
from phototagger.errors import TransientError, UserError
from phototagger.library import Library
from phototagger.machine import Machine
from phototagger.plan import Root, Roots, resolve_roots
from phototagger.workflow import Run, find_stored


class Storage:
    def __init__(self, provider: str | None, prefix: str | None):
        self.default_storage_provider = provider
        self.default_storage_prefix = prefix


def machine(roots: Roots, **changes) -> Machine:
    here = Path("cache"), CLONE / "models", CLONE / "config/labels/photographic"
    return Machine(roots, *here, "cpu", None, **changes)


def test_a_run_on_files_does_not_load_boto3():
    code = "import sys, phototagger.workflow; assert not {'boto3', 'botocore'} & sys.modules.keys()"
    environment = os.environ | {"PYTHONPATH": str(CLONE / "scripts")}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_roots_are_folders_and_places_in_buckets(tmp_path):
    (tmp_path / "here").mkdir()
    roots = resolve_roots(["here", "s3://archive/2024/", "s3://archive"], tmp_path)
    assert [root.name for root in roots.roots] == ["here", "2024", "archive"]
    assert roots.url("2024/a b/c#.jpg") == "s3://archive/2024/a b/c#.jpg"
    assert roots.url("archive/x.jpg") == roots.address("archive/x.jpg") == "s3://archive/x.jpg"
    assert roots.url("here/x.jpg") is None
    assert roots.address("here/x.jpg") == str(tmp_path / "here/x.jpg")
    assert roots.in_buckets == ["s3://archive/2024", "s3://archive"]
    with roots.file("here/x.jpg") as path:
        assert path == tmp_path / "here/x.jpg"
    with pytest.raises(UserError, match="only read"):
        roots.locate("2024/x.jpg")
    roots.check_mounted("2024/x.jpg")  # no folder that could be


@pytest.mark.parametrize("url", ["s3://", "s3:///key", "/s3", "https://host/key"])
def test_what_is_no_place_in_a_bucket_is_refused(url):
    with pytest.raises(UserError, match="write s3://bucket/prefix"):
        buckets.split(url)


def test_a_listing_says_of_an_object_what_a_stat_says_of_a_file():
    info = buckets.listed_stat(12, 1_700_000_000_123_456_000)
    assert (info.st_size, info.st_mtime_ns) == (12, 1_700_000_000_123_456_000)


def test_not_every_file_name_can_be_a_key():
    assert buckets.can_be_key("shoot 01/näher #1.jpg.xmp")
    assert not buckets.can_be_key("shoot/\udcff.jpg.xmp")  # a byte that is not UTF-8
    assert not buckets.can_be_key("ä" * 500)


def test_results_go_to_s3_or_to_files():
    assert find_stored(None) is None
    assert find_stored(Storage(None, None)) is None
    assert find_stored(Storage("s3", "s3://results/2024/")) == "s3://results/2024"
    for provider, prefix in (("gcs", "gcs://results"), ("s3", None), ("fs", "/shared")):
        with pytest.raises(UserError, match="results can go to S3 only"):
            find_stored(Storage(provider, prefix))


def test_a_bucket_that_is_gone_does_not_keep_a_run_from_ending(monkeypatch, caplog):
    def gone(*_: object) -> None:
        raise TransientError("s3://results: cannot be listed")

    monkeypatch.setattr(buckets, "fetch_new", gone)
    Run(load(None, {}, {}), [], "", {}, 0.2).gather_counts()
    assert caplog.text == ""
    Run(load(None, {}, {}), [], "", {}, 0.2, stored="s3://results").gather_counts()
    assert "counts of jobs that ran elsewhere are missing: s3://results" in caplog.text


def test_what_snakemake_sends_to_a_bucket_is_known_by_its_local_copy():
    log = Path(".snakemake/storage/s3/results/2024/results/logs/thumbs/ab.log")
    assert buckets.url_of_local_copy(log) == "s3://results/2024/results/logs/thumbs/ab.log"
    assert buckets.url_of_local_copy(Path("results/logs/thumbs/ab.log")) is None


def test_a_reader_finds_what_is_in_a_clone_in_its_own(tmp_path):
    path = tmp_path / "machine.json"
    machine(Roots([Root("a", "s3://archive")]), stored="s3://results").write(path)
    written = json.loads(path.read_text())
    elsewhere = json.loads(path.read_text().replace(str(CLONE), "/opt/photo-tagger"))
    path.write_text(json.dumps(elsewhere))
    found = Machine.load(path)
    assert (str(found.models), str(found.labels)) == (written["models"], written["labels"])
    assert found.stored == "s3://results"
    path.write_text(json.dumps(elsewhere | {"models": "/mnt/models"}))
    assert Machine.load(path).models == Path("/mnt/models")


def test_nothing_is_proposed_to_be_written_into_a_bucket(tmp_path):
    results = tmp_path / "results"
    machine(Roots([Root("2024", "s3://archive/2024")])).write(results / "plan/machine.json")
    (results / "audit").mkdir()
    frozen = {"run_id": "x", "config": {"photos": {"extensions": [".jpg"]}}}
    (results / "audit/config.json").write_text(json.dumps(frozen))
    with pytest.raises(UserError, match="s3://archive/2024: photos in a bucket are only read"):
        Library.load(results)


def test_the_command_line_takes_places_in_buckets():
    assert split_arguments(["s3://archive/2024"]) == (["s3://archive/2024"], [])


def test_without_the_extra_one_is_told_what_to_install(monkeypatch):
    buckets._client.cache_clear()
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(UserError, match="make s3"):
        list(buckets.listing("s3://archive/2024"))
