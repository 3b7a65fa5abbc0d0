"""Opens a source of any kind by its name."""

from refit.settings import NOTEBOOK
from refit.tables.sources.file_source import FileSource
from refit.tables.sources.notebook_source import NotebookSource
from refit.tables.sources.table_source import TableSource

KINDS: dict[str, type[TableSource]] = {
    NOTEBOOK: NotebookSource,
}
"""Sources that are not files: `scheme://` stands for all names that begin with it, any other key for itself."""


def open_source(url: str) -> TableSource:
    """Open a source as `data.source` names it; nothing is read yet."""
    scheme, sign, _ = url.partition("://")
    return KINDS.get(scheme + sign, FileSource)(url)


def digest_sources(source: str, test_source: str | None) -> tuple[str, str | None]:
    """Digests of `data.source` and, where there is one, `data.test_source`; raises DataError where one cannot be read."""
    return open_source(source).digest(), None if test_source is None else open_source(test_source).digest()
