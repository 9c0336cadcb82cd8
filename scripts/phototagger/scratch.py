"""Model files on the disk of the node that uses them, and proof that they are the right ones.

Weights lie in a shared folder, put there on a computer that has a network. With `scratch` set, the
first job on a node copies those it needs to the node's own disk; later ones find them there. A copy
is a folder of our own, named by what the original looked like, and whole or not there at all. If it
cannot be made, the shared files are used, with a warning: nothing but speed depends on it.

    <scratch>/photo-tagger-<uid>/<model>-<key>/      a copy
    <scratch>/photo-tagger-<uid>/models-<key>/       links to copies, in the place of the shared
                                                     folder, for the commands of model servers
"""

import glob
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from phototagger import allocation, commandline, setup_weights
from phototagger.files import CHUNK, sha256_file
from phototagger.flocks import wait_for_lock
from phototagger.models import default_models_dir
from phototagger.runfolder import private
from phototagger.setups import Setup

log = logging.getLogger(__name__)

MODELS = "PHOTO_TAGGER_MODELS"
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
_PATIENCE = 1800.0  # seconds to wait for another job that copies; then the shared files are used
_ROOM = 256 << 20  # bytes that a copy leaves free


def place(setting: str | None) -> Path | None:
    """Our folder on this node's disk, from `scratch` as it was configured; None if there is none.

    Variables are those of the node's environment ($SLURM_TMPDIR), not of where the run was planned.
    """
    if not setting:
        return None
    folder = os.path.expanduser(os.path.expandvars(setting))
    if "$" in folder or not os.path.isabs(folder):
        log.warning("scratch: %s is no folder on this node; using the shared model files", setting)
        return None
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        return private(Path(folder) / f"photo-tagger-{os.getuid()}")
    except OSError as error:
        log.warning("scratch: %s: %s; using the shared model files", folder, error.strerror)
        return None


# --------------------------------------------------------------------------------------- copies


def copied(source: Path, scratch: Path) -> Path | None:
    """The copy of a file or folder, made if need be; None (with a warning) if there can be none."""
    try:
        files = sorted(_walk(source))
        described = [[str(rel), info.st_size, info.st_mtime_ns] for rel, _, info in files]
        key = hashlib.sha256(json.dumps([str(source), described]).encode()).hexdigest()[:16]
        target = scratch / f"{source.name}-{key}"
        if target.is_dir():
            return target
        with _one_copier(scratch / f".{source.name}.lock") as alone:
            if target.is_dir():
                return target
            if not alone:
                log.warning("%s: another job is still copying; using the shared files", target)
                return None
            _copy(files, target, sum(info.st_size for _, _, info in files))
    except OSError as error:
        log.warning(
            "%s: cannot be copied to %s (%s); using the shared files",
            source,
            scratch,
            error.strerror or error,
        )
        return None
    return target


def _walk(source: Path) -> Iterable[tuple[Path, Path, os.stat_result]]:
    """(path in the copy, path of the original, stat) of every file; of a link, what it leads to."""
    if source.is_file():
        yield Path(source.name), source, source.stat()
        return
    for folder, _, names in os.walk(source, followlinks=True):
        for name in names:
            path = Path(folder, name)
            yield path.relative_to(source), path, path.stat()


@contextmanager
def _one_copier(lock: Path) -> Iterator[bool]:
    """Between the jobs of a node: the disk is the node's own, so its locks hold."""
    with lock.open("a") as file:
        yield wait_for_lock(file.fileno(), _PATIENCE)


def _copy(files: Sequence[tuple[Path, Path, Any]], target: Path, size: int) -> None:
    begun = f".copying-{target.name}-"  # other models' copiers have locks of their own
    for left in target.parent.glob(f"{glob.escape(begun)}*"):  # of a job that was killed
        shutil.rmtree(left, ignore_errors=True)
    free = shutil.disk_usage(target.parent).free
    if free < size + min(_ROOM, size):
        raise OSError(28, f"{size:,} bytes are needed and {free:,} free")
    temporary = target.with_name(f"{begun}{uuid.uuid4().hex}")
    try:
        for rel, path, info in files:
            copy = temporary / rel
            copy.parent.mkdir(parents=True, exist_ok=True)
            digest = _copy_file(path, copy)
            if sha256_file(copy) != digest:
                raise OSError(5, f"{copy} is not what was read from {path}")
            os.utime(copy, ns=(info.st_mtime_ns, info.st_mtime_ns))
        temporary.rename(target)
        log.info("copied %s bytes of model files to %s", f"{size:,}", target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _copy_file(source: Path, target: Path) -> str:
    """Copy the bytes; returns their SHA-256."""
    digest = hashlib.sha256()
    with source.open("rb") as reading, target.open("xb") as writing:
        while chunk := reading.read(16 * CHUNK):
            digest.update(chunk)
            writing.write(chunk)
    return digest.hexdigest()


# ------------------------------------------------------------------------------- model servers


def ready_for(
    setups: Sequence[Setup],
    setting: str | None,
    env: MutableMapping[str, str] = os.environ,
) -> None:
    """Before servers of these setups are started here: check weights, and copy them to `scratch`.

    Sets $PHOTO_TAGGER_MODELS in `env`; only what a setup's command names below that variable can
    be copied. On a node of a cluster, model hubs are not asked (unless HF_HUB_OFFLINE=0 is set):
    what a node cannot reach would be waited for.

    Raises UserError if weights are not those that a setup was recorded with.
    """
    if allocation.current(env):
        for name in OFFLINE:
            env.setdefault(name, "1")
    started = [setup for setup in setups if setup.command]
    shared = default_models_dir(env.get(MODELS))
    for setup in started:
        setup_weights.check(setup, {**env, MODELS: str(shared)})
    names = sorted({name for setup in started for name in _names(setup)})
    names = [name for name in names if (shared / name).exists()]
    scratch = place(setting)
    if scratch and names:
        with suppress(OSError):
            env[MODELS] = str(_mirror(shared, names, scratch))


def _names(setup: Setup) -> Iterable[str]:
    """Folders (or files) of the models folder that a setup's command names."""
    for word in commandline.parse(setup.command).argv:
        for variable in (f"${MODELS}/", f"${{{MODELS}}}/"):
            _, found, rest = word.partition(variable)
            if found and rest:
                yield rest.split("/")[0]


def _mirror(shared: Path, names: Sequence[str], scratch: Path) -> Path:
    """A folder of links to copies, the same one for every job that needs the same models.

    Its name must not depend on whether a copy could be made: a running server is known by its
    command.
    """
    key = hashlib.sha256(json.dumps([str(shared), *names]).encode()).hexdigest()[:16]
    mirror = scratch / f"models-{key}"
    mirror.mkdir(exist_ok=True)
    for name in names:
        target = copied(shared / name, scratch) or shared / name
        if (shared / name).is_file() and target != shared / name:
            target = target / name
        link = mirror / f".{uuid.uuid4().hex}"
        link.symlink_to(target)
        link.replace(mirror / name)
    return mirror
