"""CLIP models through open_clip's public interface: load, embed images, embed labels.

torch and open_clip take seconds to import; this module imports them when a model is loaded.
Embeddings are float32 and as the model gives them; only label embeddings are normalised, because
prompts are averaged. Nothing is downloaded: see `models.fetch`.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from phototagger import models
from phototagger.errors import UserError
from phototagger.files import sha256_file
from phototagger.scratch import copied, place

if TYPE_CHECKING:
    import torch
    from PIL import Image

log = logging.getLogger(__name__)

TEXT_BATCH = 64
IMAGE_BATCH = {"cpu": 16, "cuda": 128}


@dataclass(frozen=True)
class Clip:
    """A loaded model, in evaluation mode, and what belongs to it."""

    name: str
    model: Any
    preprocess: "Callable[[Image.Image], torch.Tensor]"  # to float32 [3, H, W]
    tokenizer: Callable[..., "torch.Tensor"]
    device: str
    logit_scale: float  # multiplier of a cosine
    dimension: int
    image_size: int  # pixels


# ----------------------------------------------------------------------------------------- load


def choose_device(wanted: str | None) -> str:
    """`cuda` if it is there and not refused, else `cpu`; a warning if it was asked for in vain."""
    import torch

    if wanted == "cpu":
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    if wanted == "cuda":
        log.warning("clip.device is cuda, but torch finds no CUDA device; using the CPU")
    return "cpu"


def _open_clip() -> Any:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the hub's client is imported
    os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
    import open_clip

    return open_clip


def local_text_config(folder: Path) -> dict[str, Any]:
    """Model arguments that point a text tower saved beside the weights to where the folder is now.

    open_clip takes the tower's folder from its configuration as it stands, relative to the current
    folder; so without this a model could be used from one place only.
    """
    config = json.loads((folder / "open_clip_config.json").read_text("utf-8"))["model_cfg"]
    text = config["text_cfg"]
    if text.get("hf_model_name") != ".":
        return {}
    here = {"hf_model_name": str(folder), "hf_tokenizer_name": str(folder)}
    return {"text_cfg": text | here | {"hf_model_pretrained": False}}


def _ready(model: Any) -> Any:
    """In evaluation mode; with channels last, in which convolutions run up to twice as fast."""
    import torch

    return model.eval().to(memory_format=torch.channels_last)


def load_card_model(
    name: str,
    models_dir: Path | None = None,
    device: str | None = None,
    scratch: str | None = None,
) -> Clip:
    """Load a model by its card's name (see `models`), from local files only, whose digest is right.

    `scratch` is the folder on this computer's own disk for copies, if there is one.

    Raises UserError for an unknown name, and if the weights are not there, altered or do not fit.
    """
    models_dir = models_dir or models.default_models_dir()
    card = models.card(name, models_dir)
    path = _proven_weights(name, models_dir, scratch)
    open_clip = _open_clip()
    device = choose_device(device)
    if card.architecture is None:
        source = f"local-dir:{path.parent}"
        arguments: dict[str, Any] = {"pretrained_text": False, **local_text_config(path.parent)}
    else:
        source = card.architecture
        arguments = {"pretrained": str(path), "force_quick_gelu": card.quick_gelu}
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(
            source, device=device, **arguments
        )
    except Exception as error:  # whatever a reader of weights may think of
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{path}: cannot be loaded as {name} ({reason}); fetch it again or correct its card"
        ) from error
    return Clip(
        name,
        _ready(model),
        preprocess,
        open_clip.get_tokenizer(source),
        device,
        float(model.logit_scale.detach().exp()),
        card.embedding_dim,
        card.image_size,
    )


def _proven_weights(name: str, models_dir: Path, scratch: str | None) -> Path:
    """The weights file to load, on the node's own disk if `scratch` is set and that can be had."""
    recorded = models.weights(name, models_dir)
    path = models.weights_path(recorded, name, models_dir)
    if folder := place(scratch):
        source = path.parent if path.parent == models_dir / name else path
        copy = copied(source, folder)
        if copy and sha256_file(copy / path.name) == recorded.sha256:
            return copy / path.name
        if copy:  # either it or the original is not what was recorded; the latter is told of
            log.warning("%s: altered; removed, using the shared files", copy)
            shutil.rmtree(copy, ignore_errors=True)
    models.verify(name, models_dir)
    return path


def load_clip(
    model_name: str = "ViT-L-14", pretrained: str | None = "openai", device: str | None = None
) -> tuple[Any, Callable, Callable]:
    """Load a model as open_clip names it, or by a card's name: (model, preprocess, tokenizer).

    A model that has a card is loaded from the models folder; any other by open_clip from its own
    cache, or from `pretrained` if that is a file.
    """
    for card in models.list_models():
        if model_name in (card.name, card.architecture) and (
            pretrained == card.pretrained or card.architecture is None
        ):
            loaded = load_card_model(card.name, device=device)
            return loaded.model, loaded.preprocess, loaded.tokenizer
    open_clip = _open_clip()
    model, _, preprocess = open_clip.create_model_and_transforms(
        model_name, pretrained=pretrained, device=choose_device(device)
    )
    return _ready(model), preprocess, open_clip.get_tokenizer(model_name)


# --------------------------------------------------------------------------------------- images


class ImageEncoder:
    """Pixels to embeddings; halves its batch when memory runs out and goes on from there.

    Every batch is filled up to the same size: kernels are chosen by shape and round differently, so
    an embedding would else depend on how many others happened to be computed with it.
    """

    def __init__(self, model: Any, device: str, batch_size: int | None = None):
        self.model = model
        self.device = device
        self.batch_size = batch_size or IMAGE_BATCH[device.partition(":")[0]]

    def __call__(self, pixels: "torch.Tensor") -> np.ndarray:
        """Float32 [N, D], not normalised, of preprocessed pixels [N, 3, H, W].

        Raises torch.OutOfMemoryError (or RuntimeError) if not even one image fits.
        """
        parts: list[np.ndarray] = []
        done = 0
        while done < len(pixels):
            batch = pixels[done : done + self.batch_size]
            try:
                parts.append(self._forward(batch))
                done += len(batch)
            except RuntimeError as error:
                if not _out_of_memory(error) or self.batch_size == 1:
                    raise
                self._halve()
        return np.concatenate(parts)

    def _forward(self, pixels: "torch.Tensor") -> np.ndarray:
        import torch

        cuda = self.device.startswith("cuda")
        filled = pixels.new_zeros(self.batch_size, *pixels.shape[1:])
        filled[: len(pixels)] = pixels
        filled = filled.to(self.device, memory_format=torch.channels_last, non_blocking=True)
        with torch.inference_mode(), torch.autocast("cuda", enabled=cuda):
            features = self.model.encode_image(filled)
        return features[: len(pixels)].float().cpu().numpy()

    def _halve(self) -> None:
        import torch

        size = self.batch_size
        self.batch_size = size // 2
        log.warning("out of memory with %d images at once; going on with %d", size, size // 2)
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()


def _out_of_memory(error: RuntimeError) -> bool:
    import torch

    text = str(error).lower()
    known = "out of memory" in text or "can't allocate memory" in text
    return isinstance(error, torch.OutOfMemoryError) or known


def _open(image: "Path | str | Image.Image") -> "Image.Image":
    from PIL import Image, ImageOps

    if isinstance(image, Image.Image):
        return image
    with Image.open(image) as opened:
        return ImageOps.exif_transpose(opened)


def embed_images(
    paths: "Iterable[Path | str | Image.Image]",
    model: Any,
    preprocess: Callable,
    batch_size: int = 64,
    device: str | None = None,
) -> np.ndarray:
    """Embeddings of image files (or PIL images): float32 [N, D], not normalised.

    `device` is where the model is; by default it is found out. Files are opened upright.
    """
    import torch

    images = list(paths)
    encoder = ImageEncoder(model, device or _device_of(model), min(batch_size, len(images) or 1))
    parts = []
    for start in range(0, len(images), batch_size):
        batch = [preprocess(_open(image)) for image in images[start : start + batch_size]]
        parts.append(encoder(torch.stack(batch)))
    return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)


def _device_of(model: Any) -> str:
    return str(next(model.parameters()).device)


# --------------------------------------------------------------------------------------- labels


def embed_labels(
    labels: Sequence[str],
    model: Any,
    tokenizer: Callable,
    device: str | None = None,
    prompt: str | Sequence[str] = "a photo of {}",
) -> np.ndarray:
    """Embeddings of labels: float32 [M, D], normalised.

    With several prompts, each prompt's embedding is normalised, they are averaged, and the mean is
    normalised. `{}` in a prompt stands for the label.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    texts = [template.replace("{}", label) for label in labels for template in prompts]
    if not texts:
        return np.zeros((0, 0), np.float32)
    vectors = embed_texts(texts, model, tokenizer, device)
    means = vectors.reshape(len(labels), len(prompts), -1).astype(np.float64).mean(1)
    return (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)


def embed_texts(
    texts: Sequence[str], model: Any, tokenizer: Callable, device: str | None = None
) -> np.ndarray:
    """Embeddings of texts: float32 [N, D], normalised."""
    import torch

    device = device or _device_of(model)
    parts = []
    for start in range(0, len(texts), TEXT_BATCH):
        tokens = tokenizer(list(texts[start : start + TEXT_BATCH])).to(device)
        tokens = _without_padding(tokens, model)
        with torch.inference_mode(), torch.autocast("cuda", enabled=device.startswith("cuda")):
            features = model.encode_text(tokens)
        parts.append(torch.nn.functional.normalize(features.float(), dim=-1).cpu().numpy())
    return np.concatenate(parts)


def _without_padding(tokens: "torch.Tensor", model: Any) -> "torch.Tensor":
    """Tokens [N, L] without the columns that are all padding, if the text tower masks padding.

    Labels are a few of 64 tokens long: this takes a third of the time.
    """
    config = getattr(getattr(model, "text", None), "config", None)
    padding = getattr(config, "pad_token_id", None)
    if padding is None:
        return tokens
    return tokens[:, : max(int((tokens != padding).sum(1).max()), 1)]
