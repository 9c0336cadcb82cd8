"""Snakemake profiles by name: where jobs run. `default` is this machine.

A profile goes on top of `profiles/default`, key by key, so it need only say what is different.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from phototagger import CLONE
from phototagger.errors import UserError, one_of

FOLDER = CLONE / "profiles"
DEFAULT = FOLDER / "default"
CLUSTER = CLONE / ".venv-cluster/bin"  # has the executor plugins; see `make cluster`
OF_CLUSTER = ("slurm", "cluster-generic")  # plugins that `make cluster` installs
_HERE = ("local", "dryrun", "touch")  # executors that submit nothing
_FILES = ("profile.yaml", "profile.v*+.yaml", "config.yaml", "config.v*+.yaml")
# What a dry run must not know: it would load the executor's plugin, which may ask a controller.
_OF_EXECUTION = {"executor", "e", "jobs", "j", "cores", "c"}


@dataclass(frozen=True)
class Profile:
    """A profile's file, and what it says."""

    path: Path
    settings: dict[str, Any]

    @property
    def executor(self) -> str:
        return str(self.settings.get("executor", self.settings.get("e", "local")))

    @property
    def limits_itself(self) -> bool:
        """Whether it says how many jobs or cores there may be at a time."""
        return bool(self.settings.keys() & (_OF_EXECUTION - {"executor", "e"}))

    def write_for_dry_run(self, folder: Path) -> Path:
        """The profile without what concerns its executor, as a file in `folder`."""
        own = f"{self.executor}-"
        kept = {
            key: self._placed(value)
            for key, value in self.settings.items()
            if key not in _OF_EXECUTION and not key.startswith(own)
        }
        path = folder / "profile.yaml"
        path.write_text(yaml.safe_dump(kept, allow_unicode=True), "utf-8")
        return path

    def _placed(self, value: Any) -> Any:
        """A path in the profile's folder keeps its meaning, as Snakemake reads it."""
        beside = self.path.parent / value if isinstance(value, str) and value else None
        return str(beside) if beside and beside.exists() else value


def canonical(name: str, workdir: Path) -> str:
    """What to remember of `--profile NAME|DIR`: the name of one of ours, else an absolute path.

    Looked up as a path, in ./profiles, in the work directory's profiles, and in the clone's; raises
    UserError that lists the valid ones if it is not there.
    """
    here = Path("profiles"), workdir / "profiles"
    places = [folder / name for folder in here]
    if os.sep in name or Path(name).is_file():  # a bare name is not any folder here
        places.insert(0, Path(name))
    for path in places:
        if _file(path):
            return os.path.abspath(path)
    load(name, extra=here)
    return name


def load(name: str, extra: Sequence[Path] = ()) -> Profile:
    """The profile of that canonical name. Raises UserError if there is none or it is no YAML."""
    path = _file(Path(name)) if Path(name).is_absolute() else _file(FOLDER / name)
    if path is None:
        valid = {each.name for folder in (*extra, FOLDER) for each in _profiles(folder)}
        raise one_of("--profile", name, sorted(valid))
    try:
        settings = yaml.safe_load(path.read_text("utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read ({reason}); mend the YAML") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path}: has no `key: value` lines; see {DEFAULT}")
    return Profile(path, settings)


def submits(executor: str) -> bool:
    """Whether jobs go to a batch system."""
    return executor not in _HERE


def interpreter(executor: str, current: str) -> str:
    """The Python that has the executor's plugin: `current`, or the one that `make cluster` made.

    Raises UserError if neither has it.
    """
    if not submits(executor):
        return current
    from importlib.util import find_spec

    module = f"snakemake_executor_plugin_{executor.replace('-', '_')}"
    if find_spec(module):
        return current
    if any(CLUSTER.parent.glob(f"lib/python*/site-packages/{module}")):
        return str(CLUSTER / "python")
    plugin = f"snakemake-executor-plugin-{executor}"
    if executor in OF_CLUSTER:
        way_out = f"`make cluster` in {CLONE} installs it; then run this again"
    else:
        way_out = f"install {plugin} beside Snakemake"
    raise UserError(f"executor {executor}: its plugin is not installed; {way_out}")


def _file(path: Path) -> Path | None:
    """The YAML file of a profile, which may be named itself or by its folder."""
    if path.is_file() and path.suffix in (".yaml", ".yml"):
        return path
    found = (each for pattern in _FILES for each in sorted(path.glob(pattern)))
    return next(found, None) if path.is_dir() else None


def _profiles(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if _file(path)] if folder.is_dir() else []
