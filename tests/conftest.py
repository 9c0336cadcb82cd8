"""Models and settings that several test files share."""

from pathlib import Path

import pytest
from workflow.library import LABELS

from phototagger import demo_clip, models


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One of the files with a cluster comes first: only one cluster runs at a time."""
    items.sort(key=lambda item: not item.path.match("slurm/test_pipeline.py"))


@pytest.fixture(scope="session")
def demo_models() -> Path:
    """The models folder with demo-clip in it, as `make setup` leaves it; built if it is not."""
    folder = models.default_models_dir()
    models.build_demo(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with the random test model `tiny-random-clip`."""
    folder = tmp_path_factory.mktemp("models")
    demo_clip.build(folder, demo_clip.TINY)
    return folder


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
