"""Re-run like make: what a change makes stale, down to the single photo."""

import os
import shutil

import pytest

from workflow.library import LABELS, Library, make_library, make_photo

PHOTOS = 1000
SHARD = 64


@pytest.fixture(scope="module")
def thousand(tmp_path_factory, wiring) -> Library:
    """A finished library of 1,000 photos, changed by one test after the other."""
    base = tmp_path_factory.mktemp("thousand")
    settings = wiring | {"PHOTO_TAGGER__PLAN__SHARD_SIZE": "256"}
    library = Library(base / "work", make_library(base / "photos", PHOTOS), settings)
    library.snakemake()
    assert library.computed("thumbs") == library.computed("embed") == PHOTOS
    return library


def rerun(library: Library) -> tuple[int, int, int]:
    """Decodes, embeddings and stale shards of one more run, which leaves nothing to be done."""
    library.clear_counts()
    library.snakemake()
    counts = library.computed("thumbs"), library.computed("embed"), len(library.jobs("thumbs"))
    assert library.nothing_to_be_done()
    return counts


def test_a_touched_photo_costs_no_decode_and_no_embedding(thousand):
    os.utime(thousand.photos / "shoot 03/IMG_0130.jpg")
    assert rerun(thousand) == (0, 0, 1)


def test_a_renamed_photo_costs_no_decode_and_no_embedding(thousand):
    photo = thousand.photos / "shoot 03/IMG_0131.jpg"
    photo.rename(photo.with_name("renamed.jpg"))
    decodes, embeddings, stale = rerun(thousand)
    assert (decodes, embeddings) == (0, 0)
    assert 1 <= stale <= 2


def test_an_added_photo_costs_one_decode_and_one_embedding(thousand):
    make_photo(thousand.photos / "shoot 03/new.jpg", PHOTOS + 1)
    decodes, embeddings, stale = rerun(thousand)
    assert (decodes, embeddings) == (1, 1)
    assert 1 <= stale <= 2


def test_a_changed_photo_costs_one_decode_and_one_embedding(thousand):
    make_photo(thousand.photos / "shoot 07/IMG_0300.jpg", PHOTOS + 2)
    assert rerun(thousand) == (1, 1, 1)


def test_a_deleted_photo_costs_nothing_and_leaves_nothing(thousand):
    (thousand.photos / "shoot 09/IMG_0370.jpg").unlink()
    sidecar = thousand.results / "sidecars/shoot 09/IMG_0370.jpg.xmp"
    assert sidecar.exists()
    assert rerun(thousand) == (0, 0, 1)
    assert not sidecar.exists()
    assert "IMG_0370" not in (thousand.results / "records.jsonl").read_text()


def test_a_deleted_folder_takes_its_shards_and_their_outputs_along(thousand):
    shutil.rmtree(thousand.photos / "shoot 20")
    rerun(thousand)
    shards = {path.stem for path in (thousand.results / "plan/shards").iterdir()}
    for stage in ("thumbs", "embeddings", "scores", "records", "problems", "sidecars-manifest"):
        assert {path.stem for path in (thousand.results / stage).iterdir()} == shards
    assert not (thousand.results / "sidecars/shoot 20").exists()
    assert not (thousand.results / "folders/shoot 20").exists()


def test_another_threshold_decodes_and_embeds_nothing(library):
    library.snakemake()
    library.clear_counts()
    library.settings["PHOTO_TAGGER__SCORE__THRESHOLD"] = "0.5"
    library.snakemake()
    assert not library.rules_run() & {"thumbs", "embed", "labels"}
    assert library.rules_run() >= {"score", "record", "collect", "export", "sidecars", "check"}
    assert not list((library.results / "sidecars").rglob("*.xmp"))


def test_other_labels_re_embed_no_photo(library, tmp_path):
    library.snakemake()
    library.clear_counts()
    labels = tmp_path / "other.txt"
    labels.write_text(LABELS + "lighthouse\n")
    library.settings["PHOTO_TAGGER__LABELS__PATH"] = str(labels)
    library.snakemake()
    assert not library.rules_run() & {"thumbs", "embed"}
    assert library.rules_run() >= {"labels", "score", "record", "export"}


def test_a_lost_cache_or_snakemake_folder_makes_nothing_stale(library):
    library.snakemake()
    before = library.promised()
    shutil.rmtree(library.work / "cache")
    assert library.nothing_to_be_done()
    shutil.rmtree(library.work / ".snakemake")
    assert library.nothing_to_be_done()
    assert library.promised() == before


def test_a_lost_snakemake_folder_hides_no_changed_setting(library, tmp_path):
    library.snakemake()
    labels = tmp_path / "other.txt"
    labels.write_text("lighthouse\n" + LABELS)
    for setting, value, rules in (
        ("PHOTO_TAGGER__SCORE__TOPK", "3", {"score", "record", "export"}),
        ("PHOTO_TAGGER__LABELS__PATH", str(labels), {"labels", "score", "record", "export"}),
    ):
        shutil.rmtree(library.work / ".snakemake")
        library.clear_counts()
        library.settings[setting] = value
        library.snakemake()
        assert library.rules_run() >= rules
        assert not library.rules_run() & {"thumbs", "embed"}
        assert library.nothing_to_be_done()


def test_an_edited_module_reruns_exactly_its_users(library, tmp_path):
    clone = copy_clone(library, tmp_path / "clone")
    library.snakemake()
    before = library.promised()
    library.clear_counts()
    edit(clone / "scripts/phototagger/proposal.py", "\n# only a comment\n")
    assert library.nothing_to_be_done()
    edit(clone / "scripts/phototagger/proposal.py", "\nNEW_CONSTANT = 1\n")
    library.snakemake()
    assert library.rules_run() == {"sidecars", "check"}
    assert library.promised() == before


def test_a_clone_elsewhere_finds_everything_done_and_makes_the_same(library, tmp_path):
    library.snakemake()
    copy_clone(library, tmp_path / "elsewhere")
    assert library.nothing_to_be_done()
    twin = Library(tmp_path / "twin", library.photos, library.settings, library.clone)
    twin.snakemake()
    assert twin.promised() == library.promised()


def copy_clone(library: Library, target) -> object:
    for name in ("Snakefile", "config", "envs", "profiles", "registry", "scripts"):
        source = library.clone / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        target.mkdir(exist_ok=True)
        copy(source, target / name)
    for path in target.rglob("*.py"):
        os.utime(path)  # as git leaves them: new
    library.clone = target
    return target


def edit(path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)
