"""One Slurm for the tests of a file, on this machine."""

from collections.abc import Iterator

import pytest

from .cluster import Cluster, cluster
from .runs import end_all


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Nodes `cpu1` and `gpu1` with CPUs enough, and two GPUs on the second."""
    with cluster(tmp_path_factory.mktemp("slurm")) as running:
        try:
            yield running
        finally:
            end_all()


@pytest.fixture(autouse=True)
def _no_run_outlives_its_test() -> Iterator[None]:
    yield
    end_all()
