"""A server with workers for the tests of one file, and a home for Prefect for one test."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import Site, make_home


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, prefect_database: Path) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("site"), prefect_database)
    try:
        yield site
    finally:
        site.cut_power()
        for name in ("server", "worker"):  # shown where a test failed
            print(name, site.log(name).read_text(errors="replace")[-8000:] if site.log(name).exists() else "")


@pytest.fixture
def prefect_home(tmp_path: Path, prefect_database: Path) -> str:
    return make_home(tmp_path, prefect_database)
