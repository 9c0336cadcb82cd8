import os

import pytest


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch):
    """A killed process loses nothing of what it wrote; waiting for the disk shows nothing here."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
