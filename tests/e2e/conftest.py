"""A server with workers for the tests of one file."""

from collections.abc import Iterator

import pytest
from servers import Site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("site"))
    try:
        yield site
    finally:
        site.stop()
        for name in ("server", "worker"):  # shown where a test failed
            print(name, site.log(name).read_text(errors="replace")[-8000:] if site.log(name).exists() else "")
