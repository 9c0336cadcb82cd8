"""Object storage: photos that lie in a bucket, and results that go to one.

A place is written `s3://bucket/prefix`. Needs the extra `s3`; nothing here imports boto3 before a
bucket is touched, so that a run on files does not wait for it. Credentials, region and endpoint
are those of every program that speaks S3: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`,
`AWS_REGION`, `AWS_ENDPOINT_URL` (for servers other than Amazon's), or `~/.aws`.

Photos in a bucket are only ever read.
"""

import os
import stat
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from phototagger.errors import TransientError, UserError
from phototagger.files import write_atomic
from phototagger.problems import PhotoProblem

SCHEME = "s3://"
_THREADS = 16
_DELETED_AT_ONCE = 1000  # keys per request, the protocol's limit
_NOT_THERE = ("404", "NoSuchKey", "NoSuchBucket")
_NOT_ALLOWED = ("403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch")


@dataclass(frozen=True, slots=True)
class Object:
    """One key of a listing. `mtime_ns`: when it was stored, by the server's clock."""

    key: str
    size: int
    mtime_ns: int


def is_bucket(place: str | os.PathLike[str]) -> bool:
    """Whether a place is in object storage."""
    return str(place).startswith(SCHEME)


def split(url: str) -> tuple[str, str]:
    """Bucket and key (or prefix, without slashes around it). Raises UserError."""
    bucket, _, key = url.removeprefix(SCHEME).partition("/")
    if not is_bucket(url) or not bucket:
        raise UserError(f"{url}: not a place in object storage; write s3://bucket/prefix")
    return bucket, key.strip("/")


def can_be_key(name: str) -> bool:
    """Whether a file name is text, and leaves some of a key's 1,024 bytes to the place it is in."""
    try:
        return len(name.encode()) < 800
    except UnicodeEncodeError:
        return False


def join(url: str, *parts: str) -> str:
    return "/".join([url.rstrip("/"), *parts])


@cache
def _client() -> Any:
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise UserError(
            "places that begin with s3:// need the extra s3; `make s3`, or "
            "pip install 'photo-tagger[s3]'"
        ) from error
    # Checksums that only Amazon's own servers understand are left out, as Snakemake's plugin does.
    config = Config(
        retries={"max_attempts": 5, "mode": "standard"},
        max_pool_connections=2 * _THREADS,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    return boto3.session.Session().client("s3", region_name=region, config=config)


def _errors() -> tuple[type[Exception], ...]:
    import boto3.exceptions
    import botocore.exceptions

    return (
        botocore.exceptions.ClientError,
        botocore.exceptions.BotoCoreError,
        boto3.exceptions.Boto3Error,
    )


def _code(error: Exception) -> str:
    return str(getattr(error, "response", {}).get("Error", {}).get("Code", ""))


def _failure(url: str, what: str, error: Exception) -> UserError:
    """What a person is told; a server that does not answer may do so later."""
    code = _code(error)
    if code in _NOT_THERE:
        return UserError(f"{url}: {what} (no such bucket or object); check the name")
    if code in _NOT_ALLOWED or "credentials" in str(error).lower():
        return UserError(f"{url}: {what} ({error}); check AWS_ACCESS_KEY_ID and its rights")
    return TransientError(f"{url}: {what} ({error}); check AWS_ENDPOINT_URL and the network")


# --------------------------------------------------------------------------------------- reading


def listing(url: str) -> Iterator[Object]:
    """Everything below a place, in the server's order; 1,000 objects per request.

    Raises UserError.
    """
    client, (bucket, prefix) = _client(), split(url)
    pages = client.get_paginator("list_objects_v2").paginate(
        Bucket=bucket, Prefix=f"{prefix}/" if prefix else ""
    )
    try:
        for page in pages:
            for item in page.get("Contents", ()):
                # whole microseconds: a float of seconds would lose some
                modified = item["LastModified"]
                seconds = int(modified.replace(microsecond=0).timestamp())
                mtime_ns = seconds * 10**9 + modified.microsecond * 1000
                yield Object(item["Key"], item["Size"], mtime_ns)
    except _errors() as error:
        raise _failure(url, "cannot be listed", error) from error


@contextmanager
def fetched(url: str) -> Iterator[Path]:
    """An object as a file that is removed afterwards; its name keeps the ending.

    Raises PhotoProblem if it is not there or may not be read, TransientError if the server fails.
    """
    client, (bucket, key) = _client(), split(url)
    suffix = Path(key).suffix
    with tempfile.NamedTemporaryFile(prefix="photo-tagger-", suffix=suffix) as file:
        try:
            client.download_fileobj(bucket, key, file)
        except _errors() as error:
            if _code(error) in _NOT_THERE:
                raise PhotoProblem("missing", "the object does not exist") from error
            if _code(error) in _NOT_ALLOWED:
                raise PhotoProblem("unreadable", "the object may not be read") from error
            raise _failure(url, "cannot be read", error) from error
        file.flush()
        yield Path(file.name)


def listed_stat(size: int, mtime_ns: int) -> os.stat_result:
    """What a listing says of an object, in the form in which it is known of files."""
    seconds = mtime_ns // 10**9
    values = (stat.S_IFREG | 0o444, 0, 0, 1, 0, 0, size, seconds, seconds, seconds)
    return os.stat_result(values, {"st_mtime_ns": mtime_ns})


def read(url: str) -> bytes:
    """A small object. Raises UserError."""
    bucket, key = split(url)
    try:
        return _client().get_object(Bucket=bucket, Key=key)["Body"].read()
    except _errors() as error:
        raise _failure(url, "cannot be read", error) from error


# --------------------------------------------------------------------------------------- writing


def write(url: str, contents: Mapping[str, bytes]) -> None:
    """Store small objects below a place, by name. Each is whole or not there. Raises UserError."""
    client, (bucket, prefix) = _client(), split(url)

    def put(item: tuple[str, bytes]) -> None:
        client.put_object(Bucket=bucket, Key=f"{prefix}/{item[0]}".lstrip("/"), Body=item[1])

    try:
        with ThreadPoolExecutor(_THREADS) as pool:
            for _ in pool.map(put, contents.items()):
                pass
    except _errors() as error:
        raise _failure(url, "cannot be written", error) from error


def remove(url: str, keys: Iterable[str]) -> None:
    """Remove objects of the bucket of a place, by their whole keys. Raises UserError."""
    client, (bucket, _) = _client(), split(url)
    gone = list(keys)
    try:
        for first in range(0, len(gone), _DELETED_AT_ONCE):
            some = [{"Key": key} for key in gone[first : first + _DELETED_AT_ONCE]]
            client.delete_objects(Bucket=bucket, Delete={"Objects": some, "Quiet": True})
    except _errors() as error:
        raise _failure(url, "cannot be removed from", error) from error


# --------------------------------------------------------------------------------------- results


def prune(url: str, shards: Collection[str], setups: Collection[str], *, sidecars: bool) -> int:
    """Remove what `prune.prune` removes of files, below the place that results go to.

    That is what belongs to vanished shards and setups, and proposed sidecars that no manifest
    lists. Returns how many objects were removed.
    """
    from phototagger.prune import SHARD_OUTPUTS

    _, prefix = split(url)
    start = f"{prefix}/results/" if prefix else "results/"
    current, asked = set(shards), set(setups)
    gone, proposed = [], []
    for item in listing(join(url, "results")):
        folder, *rest = item.key.removeprefix(start).split("/")
        stem = rest[-1].partition(".")[0] if rest else ""
        if folder == "sidecars":
            proposed.append(item.key)
        elif (folder in SHARD_OUTPUTS and stem not in current) or (
            folder == "describe" and (stem not in current or rest[0] not in asked)
        ):
            gone.append(item.key)
    if proposed:
        manifests = [join(url, "results/sidecars-manifest", f"{name}.tsv") for name in shards]
        wanted = _wanted(manifests, f"{start}sidecars") if sidecars else set()
        gone += [key for key in proposed if key not in wanted]
    remove(url, gone)
    return len(gone)


def _wanted(manifests: Iterable[str], folder: str) -> set[str]:
    from phototagger.manifest import read_manifest, sidecar_path

    def of_one(manifest: str) -> list[str]:
        with tempfile.NamedTemporaryFile() as file:
            Path(file.name).write_bytes(read(manifest))
            rows = list(read_manifest(Path(file.name)))
        return [
            sidecar_path(Path(folder), row.rel_path).as_posix()
            for row in rows
            if row.sidecar_sha256
        ]

    with ThreadPoolExecutor(_THREADS) as pool:
        return {key for keys in pool.map(of_one, manifests) for key in keys}


# --------------------------------------------------------------------------- beside Snakemake's own

_COPIES = (".snakemake", "storage", "s3")  # where Snakemake keeps copies: bucket/key below it


def url_of_local_copy(path: Path) -> str | None:
    """Where Snakemake stores a file once its job is done; None if it does not."""
    parts = path.parts
    for first in range(len(parts) - len(_COPIES)):
        if parts[first : first + len(_COPIES)] == _COPIES:
            return SCHEME + "/".join(parts[first + len(_COPIES) :])
    return None


def fetch_new(url: str, folder: Path, suffix: str) -> None:
    """Files below a place that are missing or older below `folder`, with the server's times.

    Raises UserError.
    """
    _, prefix = split(url)

    def fetch(item: Object) -> None:
        path = folder / item.key.removeprefix(f"{prefix}/")
        if not path.exists() or path.stat().st_mtime_ns < item.mtime_ns:
            write_atomic(path, read(join(SCHEME + split(url)[0], item.key)))
            os.utime(path, ns=(item.mtime_ns, item.mtime_ns))

    found = [item for item in listing(url) if item.key.endswith(suffix)]
    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(fetch, found):
            pass


def find_folders_that_are_new() -> None:
    """Have Snakemake's plugin look again whether an output that is a folder is there.

    snakemake-storage-plugin-s3 0.3.6 remembers that it was not before the job made it, and a job in
    a pod is then said to have left nothing.
    """
    try:
        from snakemake_storage_plugin_s3 import StorageObject
    except ImportError:  # said by Snakemake
        return
    exists = StorageObject.exists
    if getattr(exists, "looks_again", False):
        return

    def look_again(self: Any) -> bool:
        self._is_dir = None
        return exists(self)

    look_again.looks_again = True  # type: ignore[attr-defined]
    StorageObject.exists = look_again
