"""Models that several test files share; built once."""

from pathlib import Path

import pytest

from phototagger import demo_clip, models


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
