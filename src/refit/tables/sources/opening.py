"""Opens a source of any kind by its name."""

from refit.settings import NOTEBOOK, DataSettings
from refit.tables.sources.data_file import Like
from refit.tables.sources.dialects import UNKNOWN, read_given
from refit.tables.sources.file_source import FileSource
from refit.tables.sources.notebook_source import NotebookSource
from refit.tables.sources.table_source import TableSource

KINDS: dict[str, type[TableSource]] = {
    NOTEBOOK: NotebookSource,
}
"""Sources that are not files: `scheme://` stands for all names that begin with it, any other key for itself."""


def open_source(url: str, settings: DataSettings | None = None, like: Like | None = None) -> TableSource:
    """Open a source; nothing is read yet.

    Args:
        url: The source as `data.source` names it.
        settings: What they say of how CSV files are written counts; None leaves all of it to the files.
        like: What CSV files must be written like, such as those that a model learned from.
    """
    scheme, sign, _ = url.partition("://")
    if kind := KINDS.get(scheme + sign):
        return kind(url)
    if settings is None:
        return FileSource(url, UNKNOWN, like)
    named = frozenset([settings.target, *(settings.features or ())]) - {DataSettings().target}
    return FileSource(url, read_given(settings), like, named, settings.union)


def digest_sources(source: str, test_source: str | None) -> tuple[str, str | None]:
    """Digests of `data.source` and, where there is one, `data.test_source`; raises DataError where one cannot be read."""
    return open_source(source).digest(), None if test_source is None else open_source(test_source).digest()
