import json
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from phototagger import models
from phototagger.errors import UserError
from phototagger.files import sha256_file

SCHEMA = json.loads(models.SCHEMA.read_text("utf-8"))
CARDS = sorted(models.REGISTRY.glob("*.json"))


def own_card(folder: Path, name: str, /, **changes) -> None:
    """A user's card for a local checkpoint."""
    card = json.loads((models.REGISTRY / "ViT-B-32.json").read_text("utf-8"))
    card |= {"name": name, "sha256": None, "source": {"kind": "file", "checkpoint": "w.bin"}}
    (folder / "cards").mkdir(exist_ok=True)
    (folder / "cards" / f"{name}.json").write_text(json.dumps(card | changes), "utf-8")


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """A models folder with the card of a local checkpoint."""
    (tmp_path / "w.bin").write_bytes(b"weights")
    own_card(tmp_path, "mine")
    return tmp_path


def described(schema: dict, path: str = "") -> list[str]:
    """The properties of a schema that have no description."""
    missing = []
    for name, part in schema.get("properties", {}).items():
        if not part.get("description"):
            missing.append(f"{path}.{name}")
        missing += described(part, f"{path}.{name}")
        for choice in part.get("oneOf", []):
            missing += described(choice, f"{path}.{name}")
    return missing


def test_schema_is_valid_and_describes_every_key():
    Draft202012Validator.check_schema(SCHEMA)
    assert described(SCHEMA) == []
    assert set(SCHEMA["properties"]) == set(models.Card.__dataclass_fields__)


@pytest.mark.parametrize("path", CARDS, ids=lambda p: p.stem)
def test_cards_satisfy_the_schema(path: Path):
    data = json.loads(path.read_text("utf-8"))
    assert not list(Draft202012Validator(SCHEMA).iter_errors(data))
    assert data["name"] == path.stem


@pytest.mark.parametrize("key", ["name", "sha256", "thresholds", "source"])
def test_schema_refuses_a_card_without(key: str):
    data = json.loads((models.REGISTRY / "ViT-B-32.json").read_text("utf-8"))
    del data[key]
    assert list(Draft202012Validator(SCHEMA).iter_errors(data))


def test_listed_are_those_for_people(tmp_path: Path):
    assert [c.name for c in models.list_models(tmp_path)] == ["ViT-B-32", "ViT-L-14", "demo-clip"]
    assert models.card("tiny-random-clip", tmp_path).purpose == "test"
    assert "not CLIP" in models.card("demo-clip", tmp_path).description


def test_unknown_model_lists_the_known():
    with pytest.raises(UserError, match="unknown 'vit'; valid are: ViT-B-32, ViT-L-14, demo-clip"):
        models.card("vit")


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("demo-clip", "photo-tagger models build-demo"),
        ("ViT-L-14", "photo-tagger models fetch ViT-L-14"),
    ],
)
def test_missing_model_names_the_command(tmp_path: Path, name: str, command: str):
    with pytest.raises(UserError, match=f"{name} is not in .*; run: {command}$"):
        models.weights_digest(name, tmp_path)


def test_models_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("PHOTO_TAGGER_MODELS", raising=False)
    assert models.default_models_dir() == models.CLONE / "models"
    monkeypatch.setenv("PHOTO_TAGGER_MODELS", str(tmp_path))
    assert models.default_models_dir() == tmp_path
    assert models.default_models_dir("/somewhere") == Path("/somewhere")


def test_local_checkpoint(local: Path):
    recorded = models.fetch("mine", local)
    assert recorded.sha256 == sha256_file(local / "w.bin")
    assert models.weights_path(recorded, "mine", local) == local / "w.bin"
    assert models.verify("mine", local) == recorded
    assert "mine" in [c.name for c in models.list_models(local)]


def test_digest_follows_weights_and_card(local: Path):
    models.fetch("mine", local)
    first = models.weights_digest("mine", local)
    assert models.weights_digest("mine", local) == first
    own_card(local, "mine", quick_gelu=True)
    assert models.weights_digest("mine", local) != first
    own_card(local, "mine", description="other words only")
    assert models.weights_digest("mine", local) == first
    (local / "w.bin").write_bytes(b"WEIGHTS")
    models.fetch("mine", local)
    assert models.weights_digest("mine", local) != first


def test_wrong_digest_is_refused(local: Path):
    own_card(local, "mine", sha256="0" * 64)
    with pytest.raises(UserError, match="the card of mine says 0000"):
        models.fetch("mine", local)
    with pytest.raises(UserError, match="photo-tagger models fetch mine"):
        models.weights_digest("mine", local)


def test_changed_weights_are_noticed(local: Path):
    models.fetch("mine", local)
    (local / "w.bin").write_bytes(b"changed")
    models.weights_digest("mine", local)  # same size: only hashing tells
    with pytest.raises(UserError, match="recorded was"):
        models.verify("mine", local)
    (local / "w.bin").write_bytes(b"longer than before")
    with pytest.raises(UserError, match="missing or changed"):
        models.weights_digest("mine", local)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding_dim": 0}, "embedding_dim: 0 is less than"),
        ({"colour": "red"}, "Additional properties are not allowed"),
        ({"name": "other"}, "it must equal the file's name"),
    ],
)
def test_own_card_is_checked(local: Path, changes: dict, message: str):
    own_card(local, "mine", **changes)
    with pytest.raises(UserError, match=message):
        models.card("mine", local)


def test_broken_files_are_one_line(local: Path):
    models.fetch("mine", local)
    (local / "mine" / "weights.json").write_text("{", "utf-8")
    with pytest.raises(UserError, match=r"weights\.json: unreadable"):
        models.weights_digest("mine", local)
    (local / "cards" / "mine.json").write_text("[", "utf-8")
    with pytest.raises(UserError, match=r"mine\.json: not a model card"):
        models.card("mine", local)


def test_fetch_without_network_says_so(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from phototagger import errors, models\n"
        "try: models.fetch('ViT-B-32', Path(sys.argv[1]))\n"
        "except errors.UserError as error: print(error); sys.exit(3)"
    )
    done = run(code, str(tmp_path), HF_HUB_OFFLINE="1")
    assert done.returncode == 3, done.stderr
    assert done.stdout.startswith("ViT-B-32: laion/CLIP-ViT-B-32-laion2B-s34B-b79K cannot be fetch")
    assert done.stdout.count("\n") == 1
    assert not (tmp_path / "ViT-B-32" / "weights.json").exists()


def test_starts_without_torch(demo_models: Path):
    code = (
        "import sys; from pathlib import Path; from phototagger import models\n"
        "models.list_models(); print(models.weights_digest('demo-clip', Path(sys.argv[1])))\n"
        "print([m for m in ('torch', 'open_clip', 'huggingface_hub', 'numpy') if m in sys.modules])"
    )
    done = run(code, str(demo_models))
    digest, modules = done.stdout.split("\n")[:2]
    assert len(digest) == 64
    assert modules == "[]"


def run(code: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    import os

    scripts = str(Path(models.__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | {"PYTHONPATH": scripts} | env,
        capture_output=True,
        text=True,
    )
