"""Photos in a bucket, results to a bucket, against OpenStack Swift's S3 API on loopback."""

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from phototagger import CLONE, buckets, plan
from phototagger.errors import UserError
from phototagger.library import Library as Proposals
from workflow.library import PROMISED, Library, make_library, make_photo

LAYER = CLONE / ".venv-s3"
SERVER = CLONE / ".venv-s3-server/bin/python"
KEYS = {"AWS_ACCESS_KEY_ID": "test:tester", "AWS_SECRET_ACCESS_KEY": "testing"}
PHOTOS = "s3://pictures/of us"
PODS = Path(__file__).parent / "pods"
CLONED = ("Snakefile", "scripts", "config", "registry", "envs", "profiles")

pytestmark = pytest.mark.skipif(
    not (SERVER.exists() and (LAYER / "ready").exists()), reason="make s3 s3-server"
)


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server's address, in the environment too, as is what this process lacks to talk to it."""
    folder = tmp_path_factory.mktemp("swift") / "store"
    script = Path(__file__).with_name("s3_server.py")
    with (folder.parent / "log").open("wb") as log:
        server = subprocess.Popen([SERVER, script, folder], stdout=log, stderr=log)
    deadline = time.monotonic() + 60
    while not (folder / "port").exists():
        assert server.poll() is None, (folder.parent / "log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    address = f"http://127.0.0.1:{(folder / 'port').read_text()}"
    (packages,) = (LAYER / "lib").glob("python*/site-packages")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(packages))
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": address}.items():
            patch.setenv(name, value)
        for bucket in ("pictures", "outputs"):
            buckets._client().create_bucket(Bucket=bucket)
        yield address
    buckets._client.cache_clear()
    server.terminate()
    server.wait(20)


@dataclass
class Stored(Library):
    """A library whose results go to a bucket."""

    run: str = ""

    def command(self, *arguments: str) -> list[str]:
        storage = ("--default-storage-provider", "s3", "--default-storage-prefix", self.run)
        command = super().command(*storage, *arguments)
        return [str(LAYER / "bin/python"), *command[1:]]

    def environment(self) -> dict[str, str]:
        return super().environment() | {"PHOTO_TAGGER__PHOTOS__ROOTS": f'["{PHOTOS}"]'}

    def promised(self) -> dict[str, str]:
        start = f"{buckets.split(self.run)[1]}/results/"
        keys = {item.key for item in buckets.listing(buckets.join(self.run, "results"))}
        found = {}
        for name in sorted(key.removeprefix(start) for key in keys):
            if name.split("/")[0] in PROMISED and not name.endswith(".snakemake_timestamp"):
                content = buckets.read(buckets.join(self.run, "results", name))
                found[name] = digest(content, name, PHOTOS)
        return found


def digest(content: bytes, name: str, root: str) -> str:
    """SHA-256; of the table with absolute paths, without the root that they begin with."""
    if name == "tags.csv":
        assert content.count(root.encode()) == content.count(b"\n") - 1
        content = content.replace(root.encode(), b"")
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(scope="module")
def local(endpoint, wiring, tmp_path_factory) -> Library:
    """A finished run over files; the bucket has the same photos, stored at the same times."""
    folder = tmp_path_factory.mktemp("local")
    photos = make_library(folder / "of us", 12, per_folder=7)
    make_photo(photos / "shoot 00/näher #1+2 %20.JPG", 99, (900, 700))
    (photos / "shoot 00/broken.jpg").write_bytes(b"no picture")
    for path in photos.rglob("*.*"):
        key = path.relative_to(photos).as_posix()
        buckets.write(PHOTOS, {key: path.read_bytes()})
    buckets.write(PHOTOS, {"notes.txt": b"", ".hidden/a.jpg": b"", "shoot 00/": b""})
    for item in buckets.listing(PHOTOS):
        path = photos.parent / item.key
        if path.is_file():
            os.utime(path, ns=(item.mtime_ns, item.mtime_ns))
    library = Library(folder / "work", photos, dict(wiring))
    library.snakemake()
    return library


def promised(library: Library) -> dict[str, str]:
    return {
        name: digest((library.results / name).read_bytes(), name, str(library.photos))
        for name in library.promised()
        if not name.endswith(".snakemake_timestamp")
    }


def may_hide_folders() -> bool:
    """Whether a job can be kept from seeing a folder."""
    unshare = shutil.which("unshare")
    return bool(unshare) and not subprocess.run([unshare, "-m", "true"], check=False).returncode


@dataclass
class InPods(Stored):
    """A library each of whose jobs has nothing but an image, and what it gets out of a bucket."""

    pods: Path = Path()

    def command(self, *arguments: str) -> list[str]:
        names = (*KEYS, "AWS_ENDPOINT_URL")
        pods = ("--executor", "pod", "--jobs", "2", "--envvars", *names)
        command = super().command(*pods, *arguments)
        here = command.index("--directory")  # which pods would be told, too
        return ["env", "--chdir", str(self.work), *command[:here], *command[here + 2 :]]

    def environment(self) -> dict[str, str]:
        given = super().environment()
        image = {"PATH": f"{LAYER / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": CLONE / "scripts"}
        hidden = {"PODS_HIDE": str(self.work)} if may_hide_folders() else {}
        return (
            given
            | {f"PODS_{name}": str(value) for name, value in image.items()}
            | hidden
            | {"PODS": str(self.pods), "PYTHONPATH": f"{given['PYTHONPATH']}:{PODS}"}
        )


def test_pods_that_share_nothing_but_a_bucket_make_what_a_local_run_makes(local, tmp_path):
    work = tmp_path / "clone"  # what Snakemake sends to a pod has to lie in the work directory
    work.mkdir()
    for name in CLONED:
        source = CLONE / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, work / name)
    (tmp_path / "pods").mkdir()
    library = InPods(
        work, local.photos, local.settings, work, run="s3://outputs/pods", pods=tmp_path / "pods"
    )
    library.snakemake()
    assert library.promised() == promised(local)
    assert not (work / "cache/thumbs").exists()  # nothing was made here
    assert library.computed("thumbs") == 13  # how many is known all the same


def test_a_run_from_bucket_to_bucket_and_a_changed_photo(local, tmp_path):
    before = list(buckets.listing(PHOTOS))
    stored = Stored(tmp_path / "work", local.photos, local.settings, run="s3://outputs/a/run")
    stored.snakemake()
    assert stored.promised() == promised(local)
    assert list(buckets.listing(PHOTOS)) == before  # photos are only read
    assert stored.nothing_to_be_done()
    with pytest.raises(UserError, match="photos in a bucket are only read"):
        Proposals.load(stored.results)

    # the last test here: from now on the bucket has other photos
    proposed = {name for name in stored.promised() if name.startswith("sidecars/")}
    buckets.write(PHOTOS, {"shoot 00/IMG_0000.jpg": make_photo(tmp_path / "n", 77).read_bytes()})
    buckets.remove(PHOTOS, ["of us/shoot 00/IMG_0001.jpg"])
    stored.clear_counts()
    stored.snakemake()
    assert stored.computed("thumbs") == 1  # the others were not even fetched
    now = {name for name in stored.promised() if name.startswith("sidecars/")}
    assert proposed - now == {"sidecars/shoot 00/IMG_0001.jpg.xmp"}


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3:///no bucket", "write s3://bucket/prefix"),
        ("s3://nowhere/at all", "no such bucket or object"),
    ],
)
def test_places_that_are_none_are_named(endpoint, url, message):
    with pytest.raises(UserError, match=message):
        list(buckets.listing(url))


def test_a_wrong_key_is_not_tried_again(endpoint, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    buckets._client.cache_clear()
    try:
        with pytest.raises(UserError, match="check AWS_ACCESS_KEY_ID"):
            list(buckets.listing(PHOTOS))
    finally:
        buckets._client.cache_clear()


def test_a_key_that_is_no_path_is_refused_unless_it_is_excluded(endpoint):
    place = "s3://pictures/odd"
    buckets.write(place, {"a/../b.jpg": b"x", "good.jpg": b"y"})
    roots = plan.resolve_roots([place], Path("/"))
    with pytest.raises(UserError, match="is no path; exclude a"):
        plan.scan(roots, plan.ScanOptions((".jpg",)))
    found = plan.scan(roots, plan.ScanOptions((".jpg",), exclude=("a/*",)))
    assert [(photo.rel_path, photo.size) for photo in found] == [("good.jpg", 1)]
