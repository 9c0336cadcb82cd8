# photo-tagger: folders of photos in; thumbnails, embeddings, labels, records, tables, sidecars out.
#
#   results/plan/        which photos there are, in shards         (made while this file is read)
#   results/<stage>/{shard}.*                                      one file per stage and shard
#   results/*.jsonl|csv|md|html                                    merged over all shards
#   results/logs/<rule>/{shard}.log, results/benchmarks/...        beside every job
#
# Photos are never inputs: a shard's listing is, its digest and the code's digest are params, and
# what is known about a photo is kept by its content in the cache.

from snakemake.utils import min_version

min_version("9.27")

from phototagger import clocks, gpus, pace, settings
from phototagger.machine import PATH as MACHINE
from phototagger.metrics import append_metrics
from phototagger.tasks import PATH as TASKS
from phototagger.workflow import prepare

RUN = prepare(config, workflow.is_main_process, workflow.storage_settings)
CONFIG = RUN.config


wildcard_constraints:
    shard=r"[0-9a-f]{10}",
    setup=r"[a-z0-9][a-z0-9._-]*",


# Limits of one machine: they hold for jobs that run on this one, not for how many a cluster may run
# at a time.
resource_scopes:
    gpu="local",
    asking="local",


# A group job on its node is not told the limits.
if not workflow.is_main_process:
    for name, most in gpus.limits().items():
        workflow.register_resource(name, most)


report: "config/report/workflow.rst"


# --- targets ---------------------------------------------------------------------------------


rule all:
    default_target: True
    input:
        "results/check.json",
        "results/report.html",
        "results/summary.md",
        "results/tags.csv",
        "results/tag_medoids.csv",
    localrule: True


rule thumbs_all:
    input:
        expand("results/thumbs/{shard}.parquet", shard=RUN.shard_names),
    localrule: True


rule embed_all:
    input:
        expand("results/embeddings/{shard}.parquet", shard=RUN.shard_names),
    localrule: True


rule score_all:
    input:
        expand("results/scores/{shard}.parquet", shard=RUN.shard_names),
    localrule: True


rule describe_all:
    input:
        expand(
            "results/describe/{setup}/{shard}.jsonl",
            setup=RUN.setups,
            shard=RUN.shard_names,
        ),
    localrule: True


rule sidecars_all:
    input:
        expand("results/sidecars-manifest/{shard}.tsv", shard=RUN.shard_names),
    localrule: True


# --- per shard: photo -> thumbnail -> embedding -> scores, answers -> record -> sidecar ----------


rule thumbs:
    input:
        listing=RUN.listed,
    output:
        table="results/thumbs/{shard}.parquet",
    log:
        "results/logs/thumbs/{shard}.log",
    benchmark:
        "results/benchmarks/thumbs/{shard}.tsv"
    priority: 2  # before embed, so that one embed job with the model loaded finds work for many
    conda:
        "envs/photo-tagger.yaml"
    threads: RUN.threads("thumbs")
    resources:
        **RUN.of_shard("thumbs"),
    params:
        machine=str(MACHINE),
        size=CONFIG.thumbs.size,
        quality=CONFIG.thumbs.quality,
        max_pixels=CONFIG.thumbs.max_pixels,
        max_bytes=CONFIG.thumbs.max_bytes,
        tagged_fields=list(CONFIG.tagged.fields),
        tagged_by=list(CONFIG.tagged.by),
        listing=RUN.listing,
        code=RUN.code("thumbs"),
    message:
        "Read the photos of shard {wildcards.shard} and make their thumbnails"
    script:
        "scripts/thumbs.py"


rule embed:
    input:
        thumbs="results/thumbs/{shard}.parquet",
    output:
        table="results/embeddings/{shard}.parquet",
    log:
        "results/logs/embed/{shard}.log",
    benchmark:
        "results/benchmarks/embed/{shard}.tsv"
    priority: 1  # before describe, whose server would keep the GPU
    conda:
        "envs/photo-tagger.yaml"
    threads: RUN.threads("embed")
    resources:
        **RUN.of_clip("embed"),
    params:
        machine=str(MACHINE),
        model=CONFIG.clip.model,
        model_digest=RUN.facts["model_digest"],
        size=CONFIG.thumbs.size,
        quality=CONFIG.thumbs.quality,
        listing=RUN.listing,
        code=RUN.code("embed"),
    message:
        "Embed the photos of shard {wildcards.shard} with {params.model}"
    script:
        "scripts/embed.py"


rule labels:
    output:
        labels="results/labels/labels.json",
        embeddings="results/labels/embeddings.parquet",
    log:
        "results/logs/labels.log",
    benchmark:
        "results/benchmarks/labels.tsv"
    conda:
        "envs/photo-tagger.yaml"
    threads: RUN.threads("labels")
    resources:
        **RUN.of_clip("labels"),
    params:
        machine=str(MACHINE),
        model=CONFIG.clip.model,
        model_digest=RUN.facts["model_digest"],
        pack=RUN.facts["pack"],
        templates=list(CONFIG.labels.templates),
        code=RUN.code("labels"),
    message:
        "Embed the labels with {params.model}"
    script:
        "scripts/labels.py"


rule score:
    input:
        embeddings="results/embeddings/{shard}.parquet",
        labels="results/labels/labels.json",
        label_embeddings="results/labels/embeddings.parquet",
    output:
        table="results/scores/{shard}.parquet",
    log:
        "results/logs/score/{shard}.log",
    benchmark:
        "results/benchmarks/score/{shard}.tsv"
    conda:
        "envs/photo-tagger.yaml"
    threads: RUN.threads("score")
    resources:
        **RUN.of_shard("score"),
    params:
        topk=CONFIG.score.topk,
        measure=CONFIG.score.measure,
        threshold=RUN.threshold,
        listing=RUN.listing,
        code=RUN.code("score"),
    message:
        "Score the photos of shard {wildcards.shard} against the labels"
    script:
        "scripts/score.py"


rule describe:
    input:
        thumbs="results/thumbs/{shard}.parquet",
        before=RUN.quoted,
    output:
        answers="results/describe/{setup}/{shard}.jsonl",
    log:
        "results/logs/describe/{setup}/{shard}.log",
    benchmark:
        "results/benchmarks/describe/{setup}/{shard}.tsv"
    conda:
        "envs/photo-tagger.yaml"
    threads: RUN.threads("describe")
    resources:
        **RUN.of_server("describe"),
    params:
        machine=str(MACHINE),
        tasks=str(TASKS),
        setup_digest=RUN.setup_digest,
        prompt_digest=RUN.prompt_digest,
        recipe=RUN.recipe,
        words=RUN.words,
        again=RUN.again,
        size=CONFIG.thumbs.size,
        quality=CONFIG.thumbs.quality,
        listing=RUN.listing,
        code=RUN.code("describe"),
    message:
        "Ask {wildcards.setup} about the photos of shard {wildcards.shard}"
    script:
        "scripts/describe.py"


rule record:
    input:
        listing=RUN.listed,
        thumbs="results/thumbs/{shard}.parquet",
        embeddings="results/embeddings/{shard}.parquet",
        scores="results/scores/{shard}.parquet",
        labels="results/labels/labels.json",
        described=RUN.answers,
    output:
        records="results/records/{shard}.jsonl",
        problems="results/problems/{shard}.csv",
    log:
        "results/logs/record/{shard}.log",
    benchmark:
        "results/benchmarks/record/{shard}.tsv"
    conda:
        "envs/photo-tagger.yaml"
    threads: RUN.threads("record")
    resources:
        **RUN.of_shard("record"),
    params:
        model=CONFIG.clip.model,
        setups=RUN.setups,
        listing=RUN.listing,
        code=RUN.code("record"),
    message:
        "Write the records of shard {wildcards.shard}"
    script:
        "scripts/record.py"


rule sidecars:
    input:
        records="results/records/{shard}.jsonl",
    output:
        manifest="results/sidecars-manifest/{shard}.tsv",
    log:
        "results/logs/sidecars/{shard}.log",
    benchmark:
        "results/benchmarks/sidecars/{shard}.tsv"
    priority: 1  # before what comes after all shards, with check, which waits for it, the longest
    conda:
        "envs/photo-tagger.yaml"
    threads: RUN.threads("sidecars")
    resources:
        **RUN.of_shard("sidecars"),
    params:
        machine=str(MACHINE),
        fields=dict(CONFIG.metadata.fields),
        carry_over=list(CONFIG.metadata.carry_over),
        listing=RUN.listing,
        code=RUN.code("sidecars"),
    message:
        "Propose the sidecars of shard {wildcards.shard}"
    script:
        "scripts/sidecars.py"


# --- over all shards ---------------------------------------------------------------------------


rule collect:
    input:
        records=expand("results/records/{shard}.jsonl", shard=RUN.shard_names),
        problems=expand("results/problems/{shard}.csv", shard=RUN.shard_names),
    output:
        records="results/records.jsonl",
        problems="results/problems.csv",
    log:
        "results/logs/collect.log",
    benchmark:
        "results/benchmarks/collect.tsv"
    conda:
        "envs/photo-tagger.yaml"
    threads: RUN.threads("collect")
    resources:
        **RUN.of_library("collect"),
    params:
        code=RUN.code("collect"),
    message:
        "Collect the records of all shards"
    script:
        "scripts/collect.py"


rule export:
    input:
        records="results/records.jsonl",
    output:
        table=report(
            "results/tags.csv", caption="config/report/tags.rst", category="Tables"
        ),
    log:
        "results/logs/export.log",
    benchmark:
        "results/benchmarks/export.tsv"
    conda:
        "envs/photo-tagger.yaml"
    threads: RUN.threads("export")
    resources:
        **RUN.of_library("export"),
    params:
        machine=str(MACHINE),
        roots=RUN.facts["roots"],
        run_id=RUN.run_id,
        model=CONFIG.clip.model,
        code=RUN.code("export"),
    message:
        "Export the table of tags"
    script:
        "scripts/export.py"


rule medoids:
    input:
        embeddings=expand("results/embeddings/{shard}.parquet", shard=RUN.shard_names),
        records="results/records.jsonl",
    output:
        folders=report(
            "results/folder_medoids.csv",
            caption="config/report/medoids.rst",
            category="Tables",
        ),
        tags="results/tag_medoids.csv",
    log:
        "results/logs/medoids.log",
    benchmark:
        "results/benchmarks/medoids.tsv"
    conda:
        "envs/photo-tagger.yaml"
    threads: RUN.threads("medoids")
    resources:
        **RUN.of_library("medoids"),
    params:
        tag_aware=CONFIG.medoids.tag_aware,
        min_size=CONFIG.medoids.min_size,
        code=RUN.code("medoids"),
    message:
        "Find the photo that stands for each folder"
    script:
        "scripts/medoids.py"


rule summary:
    input:
        records="results/records.jsonl",
        problems="results/problems.csv",
        medoids="results/folder_medoids.csv",
    output:
        summary=report(
            "results/summary.md",
            caption="config/report/summary.rst",
            category="Summaries",
        ),
        folders=directory("results/folders"),
    log:
        "results/logs/summary.log",
    benchmark:
        "results/benchmarks/summary.tsv"
    conda:
        "envs/photo-tagger.yaml"
    threads: RUN.threads("summary")
    resources:
        **RUN.of_library("summary"),
    params:
        machine=str(MACHINE),
        model=CONFIG.clip.model,
        labels=RUN.facts["labels"],
        size=CONFIG.thumbs.size,
        quality=CONFIG.thumbs.quality,
        code=RUN.code("summary"),
    message:
        "Summarise the library and each folder"
    script:
        "scripts/summary.py"


rule report:
    input:
        records="results/records.jsonl",
        problems="results/problems.csv",
        medoids="results/folder_medoids.csv",
    output:
        page=report(
            "results/report.html",
            caption="config/report/report.rst",
            category="Contact sheets",
        ),
    log:
        "results/logs/report.log",
    benchmark:
        "results/benchmarks/report.tsv"
    conda:
        "envs/photo-tagger.yaml"
    threads: RUN.threads("report")
    resources:
        **RUN.of_library("report"),
    params:
        machine=str(MACHINE),
        model=CONFIG.clip.model,
        run_id=RUN.run_id,
        size=CONFIG.thumbs.size,
        quality=CONFIG.thumbs.quality,
        max_photos=CONFIG.report.max_photos,
        per_folder=CONFIG.report.per_folder,
        code=RUN.code("report"),
    message:
        "Lay out the report"
    script:
        "scripts/report.py"


rule check:
    input:
        index=RUN.index,
        records="results/records.jsonl",
        problems="results/problems.csv",
        tags="results/tags.csv",
        medoids="results/folder_medoids.csv",
        manifests=branch(
            CONFIG.metadata.enabled,
            then=expand(
                "results/sidecars-manifest/{shard}.tsv", shard=RUN.shard_names
            ),
            otherwise=[],
        ),
    output:
        report="results/check.json",
    log:
        "results/logs/check.log",
    benchmark:
        "results/benchmarks/check.tsv"
    priority: 1  # the longest of the last ones, so not the last
    conda:
        "envs/photo-tagger.yaml"
    threads: RUN.threads("check")
    resources:
        **RUN.of_library("check"),
    params:
        run_id=RUN.run_id,
        fields=RUN.fields,
        switches=dict(CONFIG.metadata.fields),
        carry_over=list(CONFIG.metadata.carry_over),
        code=RUN.code("check"),
    message:
        "Check that every photo is accounted for"
    script:
        "scripts/check.py"


if workflow.is_main_process:
    clocks.set_back(
        path for rule in workflow.rules for path in settings.outputs_of(rule)
    )
    settings.age_what_was_forgotten(workflow.rules, RUN.by_wildcards)
    if RUN.stored:  # what Snakemake sends along to jobs that share no files with us
        workflow.configfiles.extend(RUN.files)


onstart:
    pace.lift(getattr(workflow, "scheduler", None))
    RUN.begin()


onsuccess:
    RUN.gather_counts()
    RUN.freeze()
    settings.remember(workflow.rules, RUN.by_wildcards, RUN.started, RUN.token)
    RUN.prune()
    append_metrics(RUN)
    RUN.end()


onerror:
    RUN.gather_counts()
    RUN.end()
