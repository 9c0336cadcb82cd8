"""Weights of a setup: fetched with a network, checked without."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from typer.testing import CliRunner

from phototagger import setup_weights, setups
from phototagger.cli import models as cli
from phototagger.errors import UserError
from phototagger.files import sha256_file
from phototagger.setup_weights import check, fetch

TINY = "tiny-vlm_llama.cpp"
GGUF = "qwen3-vl-8b-instruct-q4_k_m_llama.cpp"
MODEL = "Qwen3VL-8B-Instruct-Q4_K_M.gguf"
MMPROJ = "mmproj-Qwen3VL-8B-Instruct-F16.gguf"


@pytest.fixture(autouse=True)
def own_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "node").mkdir()
    monkeypatch.setattr(setup_weights.tempfile, "gettempdir", lambda: str(tmp_path / "node"))


@dataclass
class Hub:
    """What the hub's client would do with a network."""

    files: dict[str, bytes]
    digests: dict[str, str]
    asked: list[dict]

    def model_info(self, repo: str, **_: object) -> SimpleNamespace:
        lfs = {name: SimpleNamespace(sha256=d) for name, d in self.digests.items()}
        siblings = [SimpleNamespace(rfilename=n, lfs=lfs.get(n)) for n in self.files]
        return SimpleNamespace(sha="1" * 40, siblings=siblings)

    def download(self, repo: str, **asked: object) -> str:
        self.asked.append(asked)
        folder = Path(asked["local_dir"])
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            if asked["allow_patterns"] is None or name in asked["allow_patterns"]:
                (folder / name).write_bytes(content)
        return str(folder)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub({MODEL: b"weights", MMPROJ: b"eyes", "another.gguf": b"x"}, {}, [])
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.download)
    return hub


def test_only_what_the_command_names_is_fetched_and_listed(hub, tmp_path):
    env = {"PHOTO_TAGGER_MODELS": str(tmp_path)}
    folder, listed = fetch(setups.load(GGUF), env)
    assert folder == tmp_path / "qwen3-vl-8b-instruct-gguf"
    assert hub.asked[0]["allow_patterns"] == sorted([MODEL, MMPROJ])
    assert hub.asked[0]["revision"] == "1" * 40
    assert listed[MODEL] == (7, sha256_file(folder / MODEL))
    assert set(json.loads((folder / "weights.json").read_text())) == {MODEL, MMPROJ}
    check(setups.load(GGUF), env)


@pytest.mark.parametrize(
    ("content", "said"), [(b"wei", "3 bytes instead of 7"), (b"WEIGHTS", "SHA-256 is")]
)
def test_a_file_that_was_cut_off_or_altered(hub, tmp_path, content, said):
    env = {"PHOTO_TAGGER_MODELS": str(tmp_path)}
    folder, listed = fetch(setups.load(GGUF), env)
    (folder / MODEL).write_bytes(content)
    with pytest.raises(UserError) as caught:
        check(setups.load(GGUF), env)
    text = str(caught.value)
    assert text.startswith(f"{folder / MODEL}: ")
    assert said in text
    assert listed[MODEL][1] in text
    assert f"photo-tagger models fetch --setup {GGUF}" in text


def test_a_download_that_is_not_what_the_hub_has(hub, tmp_path):
    hub.digests[MODEL] = "0" * 64
    with pytest.raises(UserError, match="the hub says 0000"):
        fetch(setups.load(GGUF), {"PHOTO_TAGGER_MODELS": str(tmp_path)})
    assert not (tmp_path / "qwen3-vl-8b-instruct-gguf" / MODEL).exists()


def test_without_a_network_or_a_repository(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="cannot be fetched from the hub"):
        fetch(setups.load(GGUF), {"PHOTO_TAGGER_MODELS": str(tmp_path)})
    with pytest.raises(UserError, match="names no model"):
        fetch(setups.load(TINY), {"PHOTO_TAGGER_MODELS": str(tmp_path)})


def test_the_command(hub, tmp_path):
    run = CliRunner().invoke
    result = run(cli.app, ["fetch", "--setup", GGUF, "--models-dir", str(tmp_path)])
    assert f"{GGUF}: 2 files, 11 bytes, digests checked" in result.output
    assert "name a CLIP model" in str(run(cli.app, ["fetch"]).exception)


def test_digests_that_others_may_have_put_there_are_not_believed(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_text("weights")
    right = setup_weights._sha256(path)
    seen = next((tmp_path / "node").iterdir())
    for file in seen.rglob("*.json"):
        file.write_text(file.read_text().replace(right, "0" * 64))
    assert setup_weights._sha256(path) == "0" * 64  # ours: not read again
    seen.chmod(0o777)
    assert setup_weights._sha256(path) == right


def test_weights_of_a_setup_that_were_cut_off(tmp_path):
    """Of one file, recorded in the setup's own entry."""
    expected = "0" * 64
    path = tmp_path / "tiny-vlm/model.gguf"
    path.parent.mkdir()
    path.write_text("weights")
    setup = setups.load(TINY)
    model = setup.entry["model"] | {"weights_sha256": expected}
    one = replace(setup, entry={**setup.entry, "model": model})
    with pytest.raises(UserError) as caught:
        check(one, {"PHOTO_TAGGER_MODELS": str(tmp_path)})
    text = str(caught.value)
    assert text.startswith(f"{path}: SHA-256 is {sha256_file(path)}, recorded for {TINY}")
    assert expected in text
    path.unlink()
    with pytest.raises(UserError, match=r"no such file or directory on .*; put the weights"):
        check(one, {"PHOTO_TAGGER_MODELS": str(tmp_path)})
