"""Libraries for the workflow tests."""

from pathlib import Path

import pytest

from workflow.library import Library, make_library


@pytest.fixture
def library(tmp_path: Path, wiring: dict[str, str]) -> Library:
    """A fresh library of 100 photos."""
    photos = make_library(tmp_path / "photos", 100)
    return Library(tmp_path / "work", photos, dict(wiring))
