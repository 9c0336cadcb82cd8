"""Weights of the registry's setups: fetched where there is a network, checked where they are used.

What `fetch` puts into a folder is listed there in `weights.json`: {file: [bytes, SHA-256]}. A node
compares that (or the one SHA-256 that a setup was recorded with) before it starts a server. What
was right on a node, and looks the same, is not read again there.
"""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from phototagger import commandline
from phototagger.errors import UserError
from phototagger.files import sha256_file, write_atomic
from phototagger.runfolder import private
from phototagger.setups import Setup
from phototagger.statcache import StatCache

LISTED = "weights.json"
WEIGHTS = (".gguf", ".safetensors", ".bin", ".pt", ".pth")

Listed = Mapping[str, tuple[int, str]]


def local_path(setup: Setup, env: Mapping[str, str]) -> Path | None:
    """Where a setup's weights lie on this computer; None if its server finds them itself."""
    local = setup.entry.get("model", {}).get("local_path")
    return Path(commandline.parse(f"x {local}", env).argv[1]) if local else None


# ------------------------------------------------------------------------------------- checking


def check(setup: Setup, env: Mapping[str, str]) -> None:
    """Compare a setup's weights with what was recorded; nothing to do if nothing was.

    Raises UserError naming the file, both digests and the way out.
    """
    path = local_path(setup, env)
    if path is None:
        return
    try:
        if expected := setup.entry["model"].get("weights_sha256"):
            _check_recorded(setup, path, expected, env)
        if path.is_dir():
            _check_listed(setup, path)
    except OSError as error:
        raise UserError(
            f"{error.filename or path}: {(error.strerror or str(error)).lower()} on "
            f"{os.uname().nodename}; {_way_out(setup)}"
        ) from error


def _check_recorded(setup: Setup, path: Path, expected: str, env: Mapping[str, str]) -> None:
    words = commandline.parse(setup.command, env).argv if setup.command else ()
    files = list(dict.fromkeys(file for word in words for file in weight_files(word)))
    if not files:
        path.stat()
        return
    for file in {path, *files} if not path.is_dir() else files:
        file.stat()  # missing ones first
    found = weights_sha256(files, _sha256)
    if found != expected:
        names = ", ".join(file.name for file in files)
        of = "" if len(files) == 1 else f" of {names}"
        raise UserError(
            f"{path}: SHA-256{of} is {found}, recorded for {setup.slug} is {expected}; a file is "
            f"cut off or altered: {_way_out(setup)}"
        )


def _check_listed(setup: Setup, folder: Path) -> None:
    try:
        listed = json.loads((folder / LISTED).read_text("utf-8"))
    except FileNotFoundError:
        return
    except ValueError as error:
        raise UserError(f"{folder / LISTED}: unreadable ({error}); {_way_out(setup)}") from error
    for name, (size, expected) in listed.items():
        file = folder / name
        found_size = file.stat().st_size
        if found_size != size:
            raise UserError(
                f"{file}: {found_size:,} bytes instead of {size:,}, so its SHA-256 is not "
                f"{expected}; the file is cut off: {_way_out(setup)}"
            )
        if (found := _sha256(file)) != expected:
            raise UserError(
                f"{file}: SHA-256 is {found}, recorded when it was fetched was {expected}; "
                f"the file is altered: {_way_out(setup)}"
            )


def weight_files(word: str) -> list[Path]:
    """The files of weights that a word of a command stands for: one, or those of a folder."""
    path = Path(re.sub(r"^--?[\w-]+=", "", word))
    if path.suffix in WEIGHTS and path.is_file():
        return [path]
    # A bare word is a command or a value, not a folder of the current directory.
    if os.sep not in str(path) or not path.is_dir():
        return []
    return sorted(file for file in path.iterdir() if file.suffix in WEIGHTS and file.is_file())


def weights_sha256(files: Sequence[Path], sha256: Callable[[Path], str] = sha256_file) -> str:
    """Digest of one file, or of the sorted lines `<sha256>  <name>` of several."""
    digests = [(path.name, sha256(path)) for path in files]
    if len(digests) == 1:
        return digests[0][1]
    lines = sorted(f"{digest}  {name}\n" for name, digest in digests)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _way_out(setup: Setup) -> str:
    if setup.entry["model"].get("repo_id"):
        return f"run: photo-tagger models fetch --setup {setup.slug}"
    return f"put the weights of {setup.slug} there"


def _sha256(path: Path) -> str:
    info = path.stat()
    try:
        folder = private(Path(tempfile.gettempdir()) / f"photo-tagger-{os.getuid()}-seen")
    except OSError:  # somebody else's: what stands there proves nothing
        return sha256_file(path)
    with StatCache(folder) as seen:
        found = seen.get(path, info)
        if found is None:
            found = sha256_file(path)
            seen.put(path, info, found)
    return found


# ------------------------------------------------------------------------------------- fetching


def fetch(setup: Setup, env: Mapping[str, str]) -> tuple[Path, Listed]:
    """Fetch the files of a setup's repository that its server needs; returns where they are.

    Into the folder of its `local_path`, else into the hub's own cache (HF_HOME). An interrupted
    download is continued by the next one. Raises UserError.
    """
    model = setup.entry.get("model", {})
    repo, revision = model.get("repo_id"), model.get("revision")
    if not repo:
        raise UserError(f"{setup.slug}: its entry names no model.repo_id to fetch from")
    path = local_path(setup, env)
    wanted = sorted(_named_files(setup, path, env)) if path else []
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import HfApi, snapshot_download

    try:
        told = HfApi().model_info(repo, revision=revision, files_metadata=True)
        folder = Path(
            snapshot_download(
                repo, revision=told.sha, local_dir=path, allow_patterns=wanted or None
            )
        )
    except Exception as error:  # the hub client raises many kinds; all of them mean the same here
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise UserError(
            f"{setup.slug}: {repo} cannot be fetched from the hub ({reason}); check the network "
            "(and HF_HUB_OFFLINE), or fetch it on another computer and copy its folder"
        ) from error
    listed = _listed(folder, {file.rfilename: file.lfs for file in told.siblings})
    if path:
        write_atomic(folder / LISTED, json.dumps(listed, indent=1) + "\n")
    check(setup, env)
    return folder, listed


def _named_files(setup: Setup, path: Path, env: Mapping[str, str]) -> Iterator[str]:
    """Files below `path` that the command names: of a repository of many quantisations, those."""
    if not setup.command:
        return
    for word in commandline.parse(setup.command, env).argv:
        value = Path(word.partition("=")[2] if word.startswith("--") else word)
        if value != path and value.is_relative_to(path):
            yield value.relative_to(path).as_posix()


def _listed(folder: Path, told: Mapping[str, object]) -> Listed:
    """Size and SHA-256 of the files that are here, compared with the hub's where it has one."""
    listed = {}
    for name, lfs in sorted(told.items()):
        path = folder / name
        if not path.is_file():
            continue
        digest, expected = sha256_file(path), getattr(lfs, "sha256", None)
        if expected and digest != expected:
            path.unlink()
            raise UserError(f"{path}: SHA-256 is {digest}, the hub says {expected}; fetch it again")
        listed[name] = (path.stat().st_size, digest)
    return listed
