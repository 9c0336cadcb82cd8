"""What the Snakefile needs to know before it can name a single file: configuration, plan, digests.

`prepare` is called while the Snakefile is parsed. The main process scans and writes the plan; a job
that parses the Snakefile again on another node only reads what was written.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from phototagger import CLONE, names, plan
from phototagger.answers import words_digest
from phototagger.codedigest import rule_digest
from phototagger.config import Config, load, merge
from phototagger.errors import UserError, one_of
from phototagger.files import write_if_changed
from phototagger.labels import load_pack
from phototagger.machine import Machine
from phototagger.models import card, default_models_dir, weights_digest
from phototagger.prompts import FIELDS
from phototagger.server import make_way
from phototagger.tasks import PATH as TASKS
from phototagger.tasks import VERDICTS, Task, plan_tasks, quoted, sha256_json
from phototagger.tokencache import TokenCache

PLAN = Path("results/plan")
INDEX = PLAN / "index.json"
AGAIN = PLAN / "again.json"  # shards with photos that a model server failed on
FROZEN = PLAN / "config.json"
AUDIT = Path("results/audit/config.json")
OVERRIDES = "PHOTO_TAGGER_OVERRIDES"  # environment: the command line's layer, as a JSON file
CONFIG_FILE = "PHOTO_TAGGER_CONFIG"  # environment: the file's layer, instead of config/config.yaml

REPORT = [
    CLONE / "config/report" / name
    for name in ("report.html.jinja", "base.html.jinja", "tile.html.jinja", "page.css", "filter.js")
]
RECORD_SCHEMA = CLONE / "config/schema/record.schema.json"
DATA = {"report": REPORT, "check": [RECORD_SCHEMA]}


@dataclass(frozen=True)
class Run:
    """The values that rules are wired with."""

    config: Config
    shards: list[plan.Shard]
    run_id: str
    facts: Mapping[str, Any]  # model_digest, pack, labels, roots, setups
    threshold: float
    tasks: Mapping[str, Task] = field(default_factory=dict)  # by setup
    started: float = field(default_factory=time.time)

    @cached_property
    def shard_names(self) -> list[str]:
        """In path order."""
        return [shard.name for shard in self.shards]

    @cached_property
    def _listings(self) -> dict[str, str]:
        return {shard.name: shard.digest for shard in self.shards}

    def listing(self, wildcards: Any) -> str:
        """Digest of a shard's listing; as a param it shows a listing rewritten in mid-run."""
        return self._listings.get(wildcards.shard, "")

    def code(self, rule: str) -> str:
        return rule_digest(rule, DATA.get(rule, ()))

    # ------------------------------------------------------ the rule `describe`, by its wildcards

    @property
    def setups(self) -> list[str]:
        """Slugs of the setups that are asked, in the order of their fields."""
        return list(self.tasks)

    @property
    def fields(self) -> list[str]:
        """What is asked for: caption, keywords, description or some of them."""
        return [name for name in FIELDS if any(name in t.prompts for t in self.tasks.values())]

    def answers(self, wildcards: Any) -> list[str]:
        """All answers about the photos of a shard."""
        return [f"results/describe/{setup}/{wildcards.shard}.jsonl" for setup in self.tasks]

    def quoted(self, wildcards: Any) -> list[str]:
        """The answers of other setups that a setup's questions quote."""
        others = quoted(self.tasks, wildcards.setup) if wildcards.setup in self.tasks else []
        return [f"results/describe/{setup}/{wildcards.shard}.jsonl" for setup in others]

    def setup_digest(self, wildcards: Any) -> str:
        return self._of_setup(wildcards, "setup_digest")

    def prompt_digest(self, wildcards: Any) -> str:
        return self._of_setup(wildcards, "prompt_digest")

    def recipe(self, wildcards: Any) -> str:
        return self._of_setup(wildcards, "recipe")

    def _of_setup(self, wildcards: Any, fact: str) -> str:
        return self.facts["setups"].get(wildcards.setup, {}).get(fact, "")

    def again(self, wildcards: Any) -> str:
        """Another value after every run in which a server failed on photos of the shard."""
        return self._again.get(f"{wildcards.setup}/{wildcards.shard}", "")

    @cached_property
    def _again(self) -> dict[str, str]:
        return _asked_again()

    def gpus_of(self, wildcards: Any) -> int:
        """GPUs that a setup's server takes on the machine of its job."""
        task = self.tasks.get(wildcards.setup)
        ours = task and task.setup.command and not self.config.servers.base_url
        return task.setup.gpus if ours else 0

    @property
    def by_wildcards(self) -> dict[str, str]:
        """Digests of params that depend on wildcards, by rule (see `settings`)."""
        return {"describe": sha256_json(self.facts["setups"])}

    @cached_property
    def words(self) -> str:
        """Digest of the word lists by which answers are judged and keywords cleaned."""
        return words_digest()

    # ---------------------------------------------------------------------------------- resources

    def scaled(self, base: int, per_photo: float) -> int:
        """What a job on the largest shard there is may take: megabytes, or minutes."""
        largest = max((shard.photos for shard in self.shards), default=0)
        return int(base + per_photo * largest)

    def begin(self) -> None:
        """Forget what the last run found out about model servers."""
        shutil.rmtree(VERDICTS, ignore_errors=True)

    def end(self) -> None:
        """Stop servers that nobody uses; have the next run ask again what one failed on."""
        if not self.tasks:
            return
        make_way(self.config.servers)
        failed = {
            f"{counts.parent.name}/{counts.stem}": f"again-{self.started:.0f}"
            for counts in Path("results/logs/describe").glob("*/*.json")
            if counts.stat().st_mtime >= self.started
            and json.loads(counts.read_text("utf-8"))["extra"].get("server_failed")
        }
        if failed:
            write_if_changed(AGAIN, json.dumps(_asked_again() | failed, indent=1) + "\n")

    def freeze(self) -> None:
        """Leave the configuration where it says what made the results; a dry run does not."""
        write_if_changed(AUDIT, FROZEN.read_bytes())

    @property
    def gpu(self) -> int:
        """GPUs an embed job holds: one if it was asked for, or if there is one to take."""
        device = self.config.clip.device
        found = any(Path("/dev").glob("nvidia[0-9]*"))
        return int(device == "cuda" or (device == "auto" and found))


def prepare(overrides: Mapping[str, Any], main: bool) -> Run:
    """Read the configuration, and make (or, in a job, read) the plan.

    `overrides` are Snakemake's own --config and --configfile values.
    """
    if not main:
        return _read()
    config, roots = read_config(overrides, os.environ)
    models_dir = default_models_dir(config.clip.models_dir)
    model = card(config.clip.model, models_dir)
    model_digest = weights_digest(model.name, models_dir)
    labels = find_labels(config.labels.path)
    pack = load_pack(labels)
    Machine(
        roots,
        Path(config.cache),
        models_dir,
        labels,
        config.clip.device,
        config.clip.batch_size,
        config.servers,
    ).write()
    tasks = plan_tasks(config.describe, config.servers, _vocabulary(config.describe.vocabulary))
    content = {slug: task.as_dict() for slug, task in tasks.items()}
    write_if_changed(TASKS, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    options = plan.ScanOptions(
        config.photos.extensions,
        config.photos.recursive,
        config.photos.exclude,
        config.photos.max_images,
    )
    by = config.tagged.by if config.tagged.fields else ()
    tokens = TokenCache(Path(config.cache), roots, config.photos.extensions, by)
    avoid = own_folders(roots, Path(config.cache))
    photos = plan.scan(roots, options, avoid, tokens.of_folder)
    tokens.save()
    if not photos:
        where = ", ".join(root.path for root in roots.roots)
        raise UserError(f"{where}: no photos there; check photos.extensions and photos.recursive")
    size = plan.effective_shard_size(len(photos), config.plan.shard_size)
    shards = plan.write_shards(PLAN / "shards", plan.partition(photos, size))
    threshold = config.score.threshold
    facts = {
        "model_digest": model_digest,
        "pack": pack.digest,
        "labels": labels.name,
        "roots": plan.digest(repr(roots.roots).encode()),
        "setups": {slug: _digests(task) for slug, task in tasks.items()},
    }
    if threshold is None:
        threshold = getattr(model.thresholds, config.score.measure)
    run_id = _run_id(config, shards, facts)
    frozen = {"run_id": run_id, "threshold": threshold, "facts": facts, "config": config.as_dict()}
    write_if_changed(FROZEN, json.dumps(frozen, indent=1, ensure_ascii=False) + "\n")
    plan.write_index(INDEX, shards, run_id)
    return Run(config, shards, run_id, facts, threshold, tasks)


def read_config(overrides: Mapping[str, Any], env: Mapping[str, str]) -> tuple[Config, plan.Roots]:
    """The configuration of this work directory and its roots."""
    given: dict[str, Any] = {}
    roots = None
    if path := env.get(OVERRIDES):
        command = json.loads(Path(path).read_text("utf-8"))
        given, roots = command["config"], command.get("roots")
    config = load(config_file(env), env, merge(given, overrides))
    if roots is not None:
        config = replace(config, photos=replace(config.photos, roots=tuple(roots)))
        roots = [names.decode(root) for root in roots]
    return config, plan.resolve_roots(roots or config.photos.roots, Path.cwd())


def config_file(env: Mapping[str, str]) -> Path:
    """$PHOTO_TAGGER_CONFIG, else config/config.yaml here, else the one beside the Snakefile."""
    if path := env.get(CONFIG_FILE):
        return Path(path)
    here = Path("config/config.yaml")
    return here if here.exists() else CLONE / here


def find_labels(name: str, key: str = "labels.path") -> Path:
    """A label file or pack by path or by name; `key` is where the name was given."""
    places = [
        Path(name),
        CLONE / name,
        Path("config/labels") / name,
        CLONE / "config/labels" / name,
    ]
    for path in places:
        if path.exists():
            return path.resolve()
    packs = {
        path.name
        for folder in (Path("config/labels"), CLONE / "config/labels")
        if folder.is_dir()
        for path in folder.iterdir()
        if path.is_dir() or path.suffix == ".txt"
    }
    raise one_of(f"{key}: label file or pack", name, sorted(packs))


def own_folders(roots: plan.Roots, cache: Path) -> list[Path]:
    """Folders that are never scanned: the work directory, or, if that is itself a root (or a root
    lies in it), what this program makes there."""
    work = Path.cwd().resolve()
    made = [work / "results", work / "cache", work / ".snakemake", cache.resolve()]
    inside = any(Path(names.decode(r.path)).resolve().is_relative_to(work) for r in roots.roots)
    return made if inside else [*made, work]


def _read() -> Run:
    frozen = json.loads(FROZEN.read_text("utf-8"))
    shards, run_id = plan.read_index(INDEX)
    config = load(None, {}, json.loads(json.dumps(frozen["config"])))
    planned = json.loads(TASKS.read_text("utf-8"))
    tasks = {slug: Task.from_dict(task) for slug, task in planned.items()}
    return Run(config, shards, run_id, frozen["facts"], frozen["threshold"], tasks)


def _asked_again() -> dict[str, str]:
    try:
        return json.loads(AGAIN.read_text("utf-8"))
    except (OSError, ValueError):
        return {}


def _digests(task: Task) -> dict[str, Any]:
    return {
        "setup_digest": task.setup.digest,
        "prompt_digest": task.prompt_digest,
        "recipe": task.recipe,
        "fields": list(task.prompts),
        "profile": task.profile,
    }


def _vocabulary(name: str | None) -> tuple[Path, str] | None:
    if name is None:
        return None
    path = find_labels(name, "describe.vocabulary")
    return path, load_pack(path).digest


def _run_id(config: Config, shards: list[plan.Shard], facts: Mapping[str, str]) -> str:
    """Digest of all that shapes the results; where things lie does not."""
    shaping = config.as_dict()
    del shaping["photos"]["roots"]
    for key in ("device", "batch_size", "models_dir"):
        del shaping["clip"][key]
    del shaping["cache"], shaping["labels"]["path"], shaping["servers"]
    del shaping["describe"]  # in the digests of its setups
    for key in ("mode", "naming", "iptc"):  # of what is applied, not of what is proposed
        del shaping["metadata"][key]
    content = {
        "config": shaping,
        "shards": [[shard.name, shard.digest] for shard in shards],
        "facts": {key: value for key, value in facts.items() if key != "roots"},
    }
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
