"""The rule `labels` with the demo model: what is written, and that it means something."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from labels import labels
from score import compare

from phototagger import CLONE
from phototagger.clip import embed_images, load_card_model
from phototagger.errors import UserError
from phototagger.job import Stats
from phototagger.labels import load_pack
from phototagger.machine import Machine
from phototagger.plan import Roots
from phototagger.vectors import read_vectors

MODEL = "demo-clip"
TEMPLATES = ["a photo of a {}", "{}"]
PHOTOGRAPHIC = CLONE / "config/labels/photographic"


@pytest.fixture(scope="session")
def machine(demo_models) -> Machine:
    return Machine(Roots([]), Path("cache"), demo_models, PHOTOGRAPHIC, "cpu", 8)


@pytest.fixture(scope="session")
def clip(demo_models):
    return load_card_model(MODEL, demo_models, "cpu")


def run(folder: Path, pack: Path, machine: Machine, templates=TEMPLATES, stats=None) -> dict:
    options = {"templates": templates, "model": MODEL, "machine": machine, "stats": stats}
    outputs = folder / "labels.json", folder / "embeddings.parquet"
    labels(pack, *outputs, digests={"pack": "p", "model": "m", "code": "c"}, **options)
    return json.loads(outputs[0].read_text("utf-8"))


@pytest.fixture(scope="session")
def photographic(machine, tmp_path_factory) -> Path:
    """The labels of the pack that ships, with the configured templates."""
    folder = tmp_path_factory.mktemp("photographic")
    import yaml

    config = yaml.safe_load((CLONE / "config/config.yaml").read_text("utf-8"))
    run(folder, PHOTOGRAPHIC, machine, config["labels"]["templates"])
    return folder


@pytest.fixture
def pack(tmp_path) -> Path:
    folder = tmp_path / "pack"
    folder.mkdir()
    (folder / "animals.txt").write_text("animal:\n\tcat\n\t\t{kitty}\n\t[dog]\n", "utf-8")
    (folder / "styles.txt").write_text("macro\nclose-up\n", "utf-8")
    (folder / "prompts.yaml").write_text("styles: ['{} photography']\n", "utf-8")
    (folder / "thresholds.yaml").write_text(
        "groups: {styles: +0.02}\nlabels: {cat: 0.5, macro: -0.01}\n", "utf-8"
    )
    (folder / "synonyms.yaml").write_text("- [macro, close-up]\n", "utf-8")
    return folder


def test_what_is_written(pack, tmp_path, machine, clip):
    stats = Stats()
    content = run(tmp_path, pack, machine, stats=stats)
    assert list(content) == ["pack", "model", "logit_scale", "labels"]
    assert content["pack"] == load_pack(pack).digest
    assert content["model"] == MODEL
    assert content["logit_scale"] == pytest.approx(27.0, abs=1e-3)
    cat, dog, macro, close_up = content["labels"]
    assert cat == {
        "label": "cat",
        "group": "animals",
        "path": ["animal", "cat"],
        "threshold": 0.5,
        "group_threshold": None,
        "synonym_group": None,
        "synonyms": ["kitty"],
        "export": True,
    }
    assert dog["export"] is False
    assert macro["threshold"] == "-0.01"
    assert macro["group_threshold"] == close_up["group_threshold"] == "+0.02"
    assert macro["synonym_group"] == close_up["synonym_group"] == "macro"
    assert stats.extra == {"labels": 4}
    metadata = pq.read_schema(tmp_path / "embeddings.parquet").metadata
    assert metadata[b"phototagger.model"] == b"m"


def test_embeddings_are_open_clips(pack, tmp_path, machine, clip):
    """Per template normalised, averaged, normalised; a group's templates instead of the global."""
    import torch

    run(tmp_path, pack, machine)
    ids, vectors = read_vectors(tmp_path / "embeddings.parquet", "label")
    assert ids == ["cat", "dog", "macro", "close-up"]
    assert vectors.dtype == np.float32

    def direct(*texts: str) -> np.ndarray:
        with torch.inference_mode():
            features = [clip.model.encode_text(clip.tokenizer([text]))[0].numpy() for text in texts]
        mean = np.mean([vector / np.linalg.norm(vector) for vector in features], axis=0)
        return mean / np.linalg.norm(mean)

    expected = [
        direct("a photo of a cat", "cat"),
        direct("a photo of a dog", "dog"),
        direct("macro photography"),
        direct("close-up photography"),
    ]
    assert np.abs(vectors - np.array(expected)).max() < 1e-5


def test_twice_the_same_bytes(pack, tmp_path, machine):
    contents = set()
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        run(folder, pack, machine)
        files = ("labels.json", "embeddings.parquet")
        contents.add(b"".join((folder / file).read_bytes() for file in files))
    assert len(contents) == 1


def test_refusals_leave_nothing_behind(pack, tmp_path, machine):
    folder = tmp_path / "out"
    with pytest.raises(UserError, match=r"labels\.templates: template 'photo' has no"):
        run(folder, pack, machine, ["{}", "photo"])
    (pack / "animals.txt").write_text("cat|dog\n", "utf-8")
    with pytest.raises(UserError, match=r"animals\.txt:1"):
        run(folder, pack, machine)
    assert not folder.exists()


WANTED = {
    "skimage/data/chelsea.png": {"cat"},
    "skimage/data/rocket.jpg": {"rocket"},
    "skimage/data/coffee.png": {"coffee", "cup"},
    "skimage/data/astronaut.png": {"person"},
    "skimage/data/camera.png": {"tripod", "camera"},
    "skimage/data/motorcycle_left.png": {"motorcycle"},
    "sklearn/datasets/images/china.jpg": {"building"},
    "sklearn/datasets/images/flower.jpg": {"flower"},
}


def test_photos_are_what_they_show(photographic, clip):
    """The best label must be a right one and reach the thresholds of the card."""
    import skimage
    from PIL import Image

    from phototagger.models import card

    site = Path(skimage.__file__).parents[1]
    images = [Image.open(site / name).convert("RGB") for name in WANTED]
    vectors = embed_images(images, clip.model, clip.preprocess, 8, "cpu")
    ids, text = read_vectors(photographic / "embeddings.parquet", "label")
    scores = compare(vectors, text, clip.logit_scale)
    thresholds = card(MODEL).thresholds
    for row, (name, wanted) in enumerate(WANTED.items()):
        best = scores.order[row, 0]
        assert ids[best] in wanted, (name, [ids[j] for j in scores.order[row, :5]])
        assert scores.cosine[row, best] >= thresholds.cosine, name
        assert scores.probability[row, best] >= thresholds.probability, name
