"""What the Snakefile needs to know before it can name a single file: configuration, plan, digests.

`prepare` is called while the Snakefile is parsed. The main process scans and writes the plan; a job
that parses the Snakefile again on another node only reads what was written.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from phototagger import CLONE, buckets, gpus, names, plan, resources, runtoken
from phototagger.answers import words_digest
from phototagger.codedigest import SCRIPTS, rule_digest
from phototagger.config import Config, load, merge
from phototagger.errors import UserError, one_of
from phototagger.files import explained, write_if_changed
from phototagger.job import read_counts
from phototagger.labels import load_pack
from phototagger.machine import PATH as MACHINE
from phototagger.machine import Machine
from phototagger.models import card, default_models_dir, weights, weights_digest
from phototagger.prompts import FIELDS
from phototagger.prune import prune
from phototagger.server import make_way
from phototagger.setups import Setup
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
    facts: Mapping[str, Any]  # model_digest, weights_mb, pack, labels, roots, setups
    threshold: float
    tasks: Mapping[str, Task] = field(default_factory=dict)  # by setup
    codes: Mapping[str, str] = field(default_factory=dict)  # digest of its code, by rule
    started: float = field(default_factory=time.time)
    token: str = field(default_factory=runtoken.new)
    stored: str | None = None  # s3://... below which outputs go (--default-storage-prefix)

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

    def listed(self, wildcards: Any) -> list[str]:
        """A shard's listing as an input. Not where outputs go to a bucket: it never does, jobs get
        it along with the Snakefile, and its digest is a param anyway."""
        return [] if self.stored else [f"results/plan/shards/{wildcards.shard}.tsv"]

    @property
    def index(self) -> list[str]:
        """The index of the plan as an input; see `listed`."""
        return [] if self.stored else [str(INDEX)]

    @property
    def files(self) -> list[Path]:
        """What jobs read of the plan, for those that have no work directory in common with us."""
        found = [INDEX, FROZEN, TASKS, AGAIN, MACHINE, *(PLAN / "shards").glob("*.tsv")]
        return [path for path in found if path.exists()]

    def gather_counts(self) -> None:
        """Have the counts of jobs that ran elsewhere among those of jobs that ran here.

        If they cannot be had, a warning says so: what made a run fail must not keep it from ending.
        """
        if not self.stored:
            return
        url = buckets.join(self.stored, "results/logs")
        try:
            buckets.fetch_new(url, Path("results/logs"), ".json")
        except UserError as error:
            logging.warning("counts of jobs that ran elsewhere are missing: %s", error)

    def prune(self) -> None:
        """Remove results that no part of the plan asks for any more."""
        sidecars = self.config.metadata.enabled
        if self.stored:
            buckets.prune(self.stored, self.shard_names, self.setups, sidecars=sidecars)
        else:
            prune(self.shard_names, self.setups, sidecars=sidecars)

    def code(self, rule: str) -> str:
        return self.codes[rule]

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

    @property
    def by_wildcards(self) -> dict[str, str]:
        """Digests of params that depend on wildcards, by rule (see `settings`)."""
        return {"describe": sha256_json(self.facts["setups"])}

    @cached_property
    def words(self) -> str:
        """Digest of the word lists by which answers are judged and keywords cleaned."""
        return words_digest()

    # ---------------------------------------------------------------------------------- resources

    @cached_property
    def _largest(self) -> int:
        """Photos in the plan's largest shard."""
        return max((shard.photos for shard in self.shards), default=0)

    def threads(self, rule: str) -> int:
        return resources.NEEDS[rule].threads

    def of_shard(self, rule: str) -> dict[str, resources.Resource]:
        """What a job on a shard takes (see `resources`)."""
        return resources.of(rule, self._largest)

    def of_library(self, rule: str) -> dict[str, resources.Resource]:
        """What a job on all photos takes."""
        return resources.of(rule, sum(shard.photos for shard in self.shards))

    def of_clip(self, rule: str) -> dict[str, Any]:
        """What a job with the CLIP model takes."""
        megabytes = self.facts.get("weights_mb", 0)
        loaded = resources.WEIGHTS_COPIES * megabytes
        needs = resources.of(rule, self._largest, lambda wildcards: loaded, disk=megabytes)
        return needs | {"gpu": self._clip_gpus, "gpu_model": self._clip_gpu_model}

    @property
    def _clip_gpus(self) -> int:
        """One if a GPU was asked for, or if there is one to take on the machine that plans.

        For nodes that have what this machine has not, a profile says so: set-resources.
        """
        clip = self.config.clip
        if clip.device == "auto":
            return int(bool(clip.gpu_model or gpus.visible()))
        return int(clip.device == "cuda")

    @property
    def _clip_gpu_model(self) -> str | None:
        return None if self.config.clip.device == "cpu" else self.config.clip.gpu_model

    def of_server(self, rule: str) -> dict[str, Any]:
        """What a job takes that asks a model server, which runs where the job does."""
        needs = resources.of(
            rule, self._largest, lambda wildcards: self._server_memory(wildcards.setup)
        )
        return needs | {
            "gpu": lambda wildcards: self._server_gpus(wildcards.setup),
            "gpu_model": lambda wildcards: self._server_gpu_model(wildcards.setup),
            "asking": 1,
        }

    def _own(self, setup: str) -> Setup | None:
        """The setup, if we are the ones to start its server."""
        task = self.tasks.get(setup)
        ours = task and task.setup.command and not self.config.servers.base_url
        return task.setup if ours else None

    def _server_gpus(self, setup: str) -> int:
        started = self._own(setup)
        return started.gpus if started else 0

    def _server_gpu_model(self, setup: str) -> str | None:
        return self.config.servers.gpu_model if self._server_gpus(setup) else None

    def _server_memory(self, setup: str) -> int:
        if self._own(setup) is None:
            return 0
        return resources.SERVER_PER_GPU * self._server_gpus(setup) or resources.SERVER_ON_CPU

    @explained()
    def begin(self) -> None:
        """Say which run it is, and forget what the last one found out about model servers."""
        runtoken.publish(self.token)
        shutil.rmtree(VERDICTS, ignore_errors=True)

    @explained()
    def end(self) -> None:
        """Stop servers that nobody uses; have the next run ask again what one failed on."""
        if not self.tasks:
            return
        make_way(self.config.servers)
        failed = {
            f"{path.parent.name}/{path.stem}": f"again-{self.started:.0f}"
            for path in Path("results/logs/describe").glob("*/*.json")
            if self._failed_on(path)
        }
        if failed:
            write_if_changed(AGAIN, json.dumps(_asked_again() | failed, indent=1) + "\n")

    def _failed_on(self, path: Path) -> bool:
        """Whether a server failed on photos of the job of this run that left these counts."""
        counts = read_counts(path)
        if not counts.get("extra", {}).get("server_failed"):
            return False
        return runtoken.belongs(counts, path.stat().st_mtime, self.token, self.started)

    @explained()
    def freeze(self) -> None:
        """Leave the configuration where it says what made the results; a dry run does not."""
        write_if_changed(AUDIT, FROZEN.read_bytes())


@explained()
def prepare(overrides: Mapping[str, Any], main: bool, storage: Any = None) -> Run:
    """Read the configuration, and make (or, in a job, read) the plan.

    `overrides` are Snakemake's own --config and --configfile values, `storage` its settings of
    where outputs go.
    """
    stored = find_stored(storage)
    if not main:
        return replace(_read(), stored=stored)
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
        config.scratch,
        stored,
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
        "weights_mb": round(weights(model.name, models_dir).bytes / 1e6),
        "roots": plan.digest(repr(roots.roots).encode()),
        "setups": {slug: _digests(task) for slug, task in tasks.items()},
    }
    if threshold is None:
        threshold = getattr(model.thresholds, config.score.measure)
    run_id = _run_id(config, shards, facts)
    codes = {path.stem: _code(path.stem) for path in sorted(SCRIPTS.glob("*.py"))}
    frozen = {
        "run_id": run_id,
        "threshold": threshold,
        "facts": facts,
        "codes": codes,
        "config": config.as_dict(),
    }
    write_if_changed(FROZEN, json.dumps(frozen, indent=1, ensure_ascii=False) + "\n")
    plan.write_index(INDEX, shards, run_id)
    return Run(config, shards, run_id, facts, threshold, tasks, codes, stored=stored)


def find_stored(storage: Any) -> str | None:
    """The place in a bucket that outputs go to; None for files.

    Raises UserError for other storage: proposed sidecars, which no rule declares, go there, too.
    """
    provider = getattr(storage, "default_storage_provider", None)
    if provider is None:
        return None
    prefix = storage.default_storage_prefix
    if provider != "s3" or not buckets.is_bucket(prefix or ""):
        raise UserError(
            f"--default-storage-provider {provider}: results can go to S3 only; "
            "--default-storage-provider s3 --default-storage-prefix s3://bucket/run"
        )
    buckets.find_folders_that_are_new()
    return prefix.rstrip("/")


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
    tops = [names.decode(root.path) for root in roots.roots]
    files = [Path(top) for top in tops if not buckets.is_bucket(top)]
    inside = any(path.resolve().is_relative_to(work) for path in files)
    return made if inside else [*made, work]


def _read() -> Run:
    frozen = json.loads(FROZEN.read_text("utf-8"))
    shards, run_id = plan.read_index(INDEX)
    config = load(None, {}, json.loads(json.dumps(frozen["config"])))
    planned = json.loads(TASKS.read_text("utf-8"))
    tasks = {slug: Task.from_dict(task) for slug, task in planned.items()}
    facts, threshold, codes = frozen["facts"], frozen["threshold"], frozen["codes"]
    return Run(config, shards, run_id, facts, threshold, tasks, codes)


def _code(rule: str) -> str:
    return rule_digest(rule, DATA.get(rule, ()))


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
    for key in ("device", "batch_size", "models_dir", "gpu_model"):
        del shaping["clip"][key]
    del shaping["cache"], shaping["scratch"], shaping["labels"]["path"], shaping["servers"]
    del shaping["describe"]  # in the digests of its setups
    for key in ("mode", "naming", "iptc"):  # of what is applied, not of what is proposed
        del shaping["metadata"][key]
    content = {
        "config": shaping,
        "shards": [[shard.name, shard.digest] for shard in shards],
        "facts": {k: v for k, v in facts.items() if k not in ("roots", "weights_mb")},
    }
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
