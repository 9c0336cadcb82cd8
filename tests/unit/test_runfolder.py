"""Where jobs of a machine agree on model servers."""

import errno
import fcntl
import logging
import os
from pathlib import Path

import pytest

from phototagger import runfolder
from phototagger.errors import UserError
from phototagger.machine import Servers
from phototagger.runfolder import run_dir, shared_kind

MOUNTS = """\
22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
23 22 0:21 / /tmp rw shared:2 - tmpfs tmpfs rw
30 22 0:40 / {shared} rw,relatime shared:9 - nfs4 server:/home rw,vers=4.2
31 30 0:41 / {shared}/my\\040local rw - xfs /dev/sdb rw
"""


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks as if it was on NFS."""
    folder = tmp_path / "home"
    (folder / "my local").mkdir(parents=True)
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS.format(shared=folder))
    monkeypatch.setattr(runfolder, "_MOUNTS", mounts)
    return folder


def test_what_is_shared(shared: Path, monkeypatch: pytest.MonkeyPatch):
    assert shared_kind(shared) == "nfs4"
    assert shared_kind(shared / "not/yet/there") == "nfs4"
    assert shared_kind(shared / "my local/x") is None
    assert shared_kind(shared.with_name("homes")) is None
    assert shared_kind(Path("/tmp")) is None
    monkeypatch.setattr(runfolder, "_MOUNTS", shared / "none")
    assert shared_kind(shared) is None


def test_a_chosen_folder_that_others_see_is_told(shared: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        assert run_dir(Servers(run_dir=str(shared / "run"))) == shared / "run"
    assert "is on nfs4; name a folder of this node by servers.run_dir" in caplog.text


def test_on_a_node_it_is_not_the_login_node_s(shared: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(shared))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert run_dir(Servers(), create=True) == shared / "photo-tagger"
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(runfolder.tempfile, "gettempdir", lambda: str(shared))  # TMPDIR of the user
    folder = run_dir(Servers())
    assert folder.parent in (Path("/tmp"), Path("/var/tmp"))
    monkeypatch.setattr(runfolder.tempfile, "gettempdir", lambda: str(shared / "my local"))
    assert run_dir(Servers()).parent == shared / "my local"


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(UserError, match="locks cannot be kept there"):
        run_dir(Servers(run_dir=str(tmp_path / "run")))
