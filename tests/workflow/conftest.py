"""Libraries for the workflow tests. Random weights where only the wiring matters."""

from pathlib import Path

import pytest

from workflow.library import LABELS, Library, make_library


@pytest.fixture(scope="session")
def wiring(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Settings of runs in which nothing needs a meaning: tiny model, few labels, small shards."""
    labels = tmp_path_factory.mktemp("labels") / "few.txt"
    labels.write_text(LABELS)
    return {
        "PHOTO_TAGGER__CLIP__MODEL": "tiny-random-clip",
        "PHOTO_TAGGER__CLIP__MODELS_DIR": str(tiny_models),
        "PHOTO_TAGGER__LABELS__PATH": str(labels),
        "PHOTO_TAGGER__SCORE__THRESHOLD": "-0.05",
        "PHOTO_TAGGER__PLAN__SHARD_SIZE": "64",
    }


@pytest.fixture
def library(tmp_path: Path, wiring: dict[str, str]) -> Library:
    """A fresh library of 100 photos."""
    photos = make_library(tmp_path / "photos", 100)
    return Library(tmp_path / "work", photos, dict(wiring))
