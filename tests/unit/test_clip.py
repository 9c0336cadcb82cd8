import logging
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from phototagger import clip, demo_clip, models
from phototagger.demo_clip import TINY
from phototagger.errors import UserError

LABELS = ["cat", "dog", "rocket", "cup", "coffee", "person", "portrait"]
LABELS += ["mountain", "car", "bird", "flower", "building", "boat"]


@pytest.fixture(scope="module")
def demo(demo_models: Path) -> clip.Clip:
    return clip.load_card_model("demo-clip", demo_models, "cpu")


@pytest.fixture(scope="module")
def tiny(tiny_models: Path) -> clip.Clip:
    return clip.load_card_model(TINY, tiny_models, "cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """cat, rocket, coffee, astronaut as JPEG; and one smaller than a model's input."""
    folder = tmp_path_factory.mktemp("photos")
    paths = []
    for name in ("cat", "rocket", "coffee", "astronaut"):
        paths.append(folder / f"{name}.jpg")
        Image.fromarray(getattr(skimage.data, name)()).save(paths[-1], quality=90)
    paths.append(folder / "small.jpg")
    Image.fromarray(skimage.data.cat()).resize((45, 30)).save(paths[-1])
    return paths


def direct(name: str, models_dir: Path, paths: list[Path]) -> np.ndarray:
    """What open_clip itself gives, one image at a time."""
    import open_clip

    folder = models_dir / name
    model, _, preprocess = open_clip.create_model_and_transforms(
        f"local-dir:{folder}", pretrained_text=False, **clip.local_text_config(folder)
    )
    model.eval()
    with torch.no_grad():
        rows = [model.encode_image(preprocess(Image.open(path))[None]) for path in paths]
    return torch.cat(rows).numpy()


def test_embeddings_are_open_clips_own(demo: clip.Clip, demo_models: Path, photos: list[Path]):
    ours = clip.embed_images(photos, demo.model, demo.preprocess, batch_size=2)
    theirs = direct("demo-clip", demo_models, photos)
    assert ours.dtype == np.float32
    assert ours.shape == (len(photos), demo.dimension)
    assert np.abs(ours - theirs).max() <= 1e-5
    norms = np.linalg.norm(ours, axis=1)
    assert np.abs(norms - 1).min() > 0.01, "image embeddings are not normalised"


def test_meaning(demo: clip.Clip, photos: list[Path]):
    images = clip.embed_images(photos[:4], demo.model, demo.preprocess)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    labels = clip.embed_labels(LABELS, demo.model, demo.tokenizer)
    best = [LABELS[i] for i in (images @ labels.T).argmax(1)]
    assert best[:2] == ["cat", "rocket"]
    assert best[2] in ("cup", "coffee")
    assert best[3] in ("person", "portrait")


def test_card_agrees_with_the_model(demo: clip.Clip, tiny: clip.Clip, demo_models: Path):
    for loaded in (demo, tiny):
        card = models.card(loaded.name, demo_models)
        picture = Image.new("RGB", (300, 200), "teal")
        assert loaded.preprocess(picture).shape == (3, card.image_size, card.image_size)
        vector = clip.embed_images([picture], loaded.model, loaded.preprocess)
        assert vector.shape == (1, card.embedding_dim)
        assert loaded.logit_scale == pytest.approx(card.logit_scale, rel=1e-5)


def test_templates_are_normalised_before_averaging(tiny: clip.Clip):
    templates = ["a photo of a {}", "{}", "a very blurred picture that shows some {} at night"]
    ours = clip.embed_labels(["cat", "tree"], tiny.model, tiny.tokenizer, prompt=templates)
    for row, label in zip(ours, ["cat", "tree"], strict=True):
        with torch.no_grad():
            raw = tiny.model.encode_text(tiny.tokenizer([t.format(label) for t in templates]))
        each = raw / raw.norm(dim=-1, keepdim=True)
        mean = each.mean(0) / each.mean(0).norm()
        assert np.abs(row - mean.numpy()).max() < 1e-6
        unnormalised = raw.mean(0) / raw.mean(0).norm()
        assert np.abs(row - unnormalised.numpy()).max() > 1e-6
    assert ours.dtype == np.float32
    assert np.linalg.norm(ours, axis=1) == pytest.approx([1, 1])


def test_braces_in_a_label_are_only_text(tiny: clip.Clip):
    vectors = clip.embed_labels(["{0}", "a {b"], tiny.model, tiny.tokenizer)
    assert np.isfinite(vectors).all()


def test_nothing_in_nothing_out(tiny: clip.Clip):
    assert len(clip.embed_images([], tiny.model, tiny.preprocess)) == 0
    assert len(clip.embed_labels([], tiny.model, tiny.tokenizer)) == 0


def test_orientation_is_honoured(tiny: clip.Clip, tmp_path: Path):
    picture = Image.fromarray(skimage.data.coffee())
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = tmp_path / "turned.png"
    picture.transpose(Image.Transpose.ROTATE_90).save(turned, exif=exif)
    upright = tmp_path / "upright.png"
    picture.save(upright)
    one, other = clip.embed_images([turned, upright], tiny.model, tiny.preprocess)
    assert np.array_equal(one, other)


@pytest.mark.parametrize("name", ["tiny", "demo"])
def test_an_embedding_does_not_depend_on_its_batch(name: str, request: pytest.FixtureRequest):
    """To the bit: what is computed after a kill must equal what would have been computed before."""
    loaded = request.getfixturevalue(name)
    size = loaded.image_size
    pixels = torch.randn(9, 3, size, size, generator=torch.Generator().manual_seed(1))
    encoder = clip.ImageEncoder(loaded.model, "cpu", 8)
    together = encoder(pixels)
    assert np.array_equal(together, np.concatenate([encoder(one[None]) for one in pixels]))
    assert np.array_equal(together[::-1], encoder(pixels.flip(0)))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_batch_is_halved_when_memory_runs_out(tiny: clip.Clip, error: type[RuntimeError], caplog):
    """A fault that cannot be caused on purpose on a CPU: the model refuses more than 3 images."""
    sizes: list[int] = []

    class Small:
        def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
            sizes.append(len(pixels))
            if len(pixels) > 3:
                raise error("CUDA out of memory. Tried to allocate 2.00 GiB")
            return tiny.model.encode_image(pixels)

    pixels = torch.randn(11, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    encoder = clip.ImageEncoder(Small(), "cpu", 8)
    ours = encoder(pixels)
    assert sizes == [8, 4, 2, 2, 2, 2, 2, 2]  # no image is embedded twice
    assert encoder.batch_size == 2
    assert np.abs(ours - clip.ImageEncoder(tiny.model, "cpu", 1)(pixels)).max() < 1e-6
    assert "going on with 2" in caplog.text


def test_other_errors_and_one_image_too_many_are_not_swallowed(tiny: clip.Clip):
    class Broken:
        def __init__(self, message: str):
            self.message = message

        def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
            raise RuntimeError(self.message)

    pixels = torch.zeros(4, 3, 64, 64)
    for message in ("shapes do not match", "out of memory"):
        with pytest.raises(RuntimeError, match=message):
            clip.ImageEncoder(Broken(message), "cpu", 4)(pixels)


def test_device(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [clip.choose_device(d) for d in (None, "auto", "cpu", "cuda")] == ["cpu"] * 4
    assert caplog.text.count("using the CPU") == 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [clip.choose_device(d) for d in (None, "auto", "cpu", "cuda")] == [
        "cuda",
        "cuda",
        "cpu",
        "cuda",
    ]


def test_load_clip_takes_card_names(demo_models: Path, photos: list[Path], monkeypatch):
    monkeypatch.setenv("PHOTO_TAGGER_MODELS", str(demo_models))
    model, preprocess, tokenizer = clip.load_clip("demo-clip", device="cpu")
    assert clip.embed_images(photos[:1], model, preprocess, device="cpu").shape == (1, 512)
    assert clip.embed_labels(["cat"], model, tokenizer, device="cpu").shape == (1, 512)


def test_load_clip_without_the_weights_says_what_to_run(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PHOTO_TAGGER_MODELS", str(tmp_path))
    with pytest.raises(UserError, match="run: photo-tagger models fetch ViT-L-14"):
        clip.load_clip()


def test_local_checkpoint_of_an_open_clip_architecture(tmp_path: Path, photos: list[Path]):
    """The way hub models are loaded: architecture by name, weights from a file."""
    import json

    import open_clip

    (tmp_path / "small-vit.json").write_text(json.dumps(demo_clip.TINY_CONFIG), "utf-8")
    open_clip.add_model_config(tmp_path / "small-vit.json")
    torch.manual_seed(3)
    own, _, preprocess = open_clip.create_model_and_transforms("small-vit", force_quick_gelu=True)
    torch.save(own.state_dict(), tmp_path / "w.pt")
    card = json.loads((models.REGISTRY / "ViT-B-32.json").read_text("utf-8"))
    card |= {"name": "mine", "architecture": "small-vit", "quick_gelu": True, "sha256": None}
    card |= {"embedding_dim": 32, "source": {"kind": "file", "checkpoint": "w.pt"}}
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "mine.json").write_text(json.dumps(card), "utf-8")
    models.fetch("mine", tmp_path)
    loaded = clip.load_card_model("mine", tmp_path, "cpu")
    ours = clip.embed_images(photos[:1], loaded.model, loaded.preprocess)
    with torch.no_grad():
        theirs = own.eval().encode_image(preprocess(Image.open(photos[0]))[None]).numpy()
    assert np.abs(ours - theirs).max() <= 1e-5

    (tmp_path / "w.pt").write_bytes(b"no weights at all")
    models.fetch("mine", tmp_path)
    with pytest.raises(UserError, match=r"w\.pt: cannot be loaded as mine"):
        clip.load_card_model("mine", tmp_path, "cpu")


def test_quiet(tiny_models: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        clip.load_card_model(TINY, tiny_models, "cpu")
    assert caplog.text == ""
