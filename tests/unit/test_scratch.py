"""Copies of model files on a node's own disk, and weights that are not what they should be."""

import json
import multiprocessing
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from phototagger import models, scratch, setups
from phototagger.clip import _proven_weights
from phototagger.demo_clip import TINY
from phototagger.errors import UserError
from phototagger.files import sha256_file
from phototagger.scratch import copied, place, ready_for
from phototagger.setup_weights import weights_sha256

FORK = multiprocessing.get_context("fork")
SLUG = "tiny-vlm_llama.cpp"
OWNER = f"photo-tagger-{os.getuid()}"


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """Our folder on a node's own disk."""
    return place(str(tmp_path / "node disk"))


@pytest.fixture
def shared(tiny_models: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_models, tmp_path / "shared")


def test_variables_are_those_of_the_node(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("NODE_DISK", str(tmp_path))
    assert place("$NODE_DISK/models") == tmp_path / "models" / OWNER
    assert place(None) is None
    monkeypatch.delenv("NODE_DISK")
    assert place("$NODE_DISK/models") is None
    assert "scratch: $NODE_DISK/models is no folder on this node" in caplog.text


def test_a_folder_that_others_can_write_to_is_not_used(tmp_path, caplog):
    (tmp_path / OWNER).mkdir()
    (tmp_path / OWNER).chmod(0o777)
    assert place(str(tmp_path)) is None
    assert "others can write to it" in caplog.text
    (tmp_path / OWNER).rmdir()
    (tmp_path / OWNER).symlink_to("/")
    assert place(str(tmp_path)) is None


def copy_and_note(source: Path, node: Path, notes: Path) -> None:
    real = scratch._copy

    def noted(*args: object) -> None:
        (notes / str(os.getpid())).touch()
        real(*args)

    scratch._copy = noted
    assert copied(source, node).is_dir()


def test_one_job_copies_and_the_others_wait_for_it(shared, node, tmp_path):
    notes = tmp_path / "notes"
    notes.mkdir()
    workers = [
        FORK.Process(target=copy_and_note, args=(shared / TINY, node, notes)) for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert len(list(notes.iterdir())) == 1
    [copy] = node.glob(f"{TINY}-*")
    for path in (shared / TINY).iterdir():
        assert sha256_file(copy / path.name) == sha256_file(path)
    assert list(node.glob(".copying-*")) == []


def test_other_weights_are_another_copy(shared, node):
    first = copied(shared / TINY, node)
    assert copied(shared / TINY, node) == first
    os.utime(shared / TINY / "model.safetensors", (1000, 1000))
    assert copied(shared / TINY, node) != first


def test_copiers_of_other_models_are_left_alone(shared, node):
    other = shutil.copytree(shared / TINY, shared / f"{TINY}-[2]")
    under_way = node / f".copying-{copied(other, node).name}-0"
    under_way.mkdir()
    copy = copied(shared / TINY, node)
    assert under_way.is_dir()
    shutil.rmtree(copy)
    killed = node / f".copying-{copy.name}-0"
    killed.mkdir()
    assert copied(shared / TINY, node) == copy
    assert not killed.exists()


def test_a_full_disk_leaves_the_shared_files(shared, node, caplog, monkeypatch):
    def full(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(scratch, "_copy_file", full)
    setting = str(node.parent)
    weights = shared / TINY / "model.safetensors"
    assert _proven_weights(TINY, shared, setting) == weights
    assert "No space left on device" in caplog.text
    assert "using the shared files" in caplog.text
    assert list(node.glob(f"{TINY}-*")) == []
    monkeypatch.undo()
    assert _proven_weights(TINY, shared, setting).is_relative_to(node)


def test_a_disk_that_is_too_small_is_not_filled_first(shared, node, caplog, monkeypatch):
    usage = shutil.disk_usage(node)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert copied(shared / TINY, node) is None
    assert "1,000 free" in caplog.text


def test_an_altered_copy_is_replaced_by_the_shared_files(shared, node, caplog):
    path = _proven_weights(TINY, shared, str(node.parent))
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\0\1"[:1])
        file.seek(200)
        file.write(b"changed")
    assert _proven_weights(TINY, shared, str(node.parent)) == shared / TINY / path.name
    assert "altered; removed" in caplog.text
    assert _proven_weights(TINY, shared, str(node.parent)).is_relative_to(node)


@pytest.mark.parametrize("setting", [False, True], ids=["shared", "scratch"])
def test_altered_weights_name_file_and_digests(shared, node, setting):
    recorded = models.weights(TINY, shared)
    weights = shared / TINY / recorded.file
    with weights.open("r+b") as file:
        file.seek(200)
        file.write(b"changed")
    with pytest.raises(UserError) as caught:
        _proven_weights(TINY, shared, str(node.parent) if setting else None)
    text = str(caught.value)
    assert str(weights) in text
    assert recorded.sha256 in text
    assert sha256_file(weights) in text
    assert "photo-tagger models" in text


# ---------------------------------------------------------------------------------- model servers


@pytest.fixture
def vlm(tmp_path: Path) -> Path:
    """A models folder with what the tests' setup names in it, though it is no model."""
    folder = tmp_path / "models"
    (folder / "tiny-vlm").mkdir(parents=True)
    for name in ("model.gguf", "mmproj.gguf"):
        (folder / "tiny-vlm" / name).write_text(name)
    return folder


def recorded(vlm: Path, digest: str | None) -> setups.Setup:
    setup = setups.load(SLUG)
    entry = json.loads(json.dumps(setup.entry))
    entry["model"]["weights_sha256"] = digest
    return replace(setup, entry=entry)


def test_servers_get_the_copies_and_the_same_command_whether_there_is_room_or_not(
    vlm, node, monkeypatch, tmp_path
):
    files = [vlm / "tiny-vlm/model.gguf", vlm / "tiny-vlm/mmproj.gguf"]
    setup = recorded(vlm, weights_sha256(files))
    env = {"PHOTO_TAGGER_MODELS": str(vlm)}
    ready_for([setup], str(node.parent), env)
    ours = Path(env["PHOTO_TAGGER_MODELS"])
    assert ours.is_relative_to(node)
    assert (ours / "tiny-vlm/model.gguf").read_text() == "model.gguf"
    assert (ours / "tiny-vlm").resolve().is_relative_to(node)
    monkeypatch.setattr(scratch, "copied", lambda *_: None)
    again = {"PHOTO_TAGGER_MODELS": str(vlm)}
    ready_for([setup], str(node.parent), again)
    assert again == env
    assert (ours / "tiny-vlm").resolve() == vlm / "tiny-vlm"


def test_without_scratch_nothing_changes(vlm):
    env = {"PHOTO_TAGGER_MODELS": str(vlm)}
    ready_for([recorded(vlm, None)], None, env)
    assert env == {"PHOTO_TAGGER_MODELS": str(vlm)}


def test_weights_that_are_not_those_recorded_are_refused(vlm):
    with pytest.raises(UserError, match="altered"):
        ready_for([recorded(vlm, "0" * 64)], None, {"PHOTO_TAGGER_MODELS": str(vlm)})


def test_on_a_node_of_a_cluster_no_hub_is_asked(vlm):
    env = {"PHOTO_TAGGER_MODELS": str(vlm), "SLURM_JOB_ID": "7", "TRANSFORMERS_OFFLINE": "0"}
    ready_for([recorded(vlm, None)], None, env)
    assert env["HF_HUB_OFFLINE"] == "1"
    assert env["TRANSFORMERS_OFFLINE"] == "0"  # a person knows better
