"""Makes foreign text safe to show: without secrets in URLs and control characters, and not too long."""

import re
from collections.abc import Iterable

MAX_LINE = 2000
"""Most characters of a line that are shown. A longer line loses its middle, as its end often says what to do."""
MAX_PART = 80
"""Most characters of a name, a class or a cell that are shown in a line."""
NAMED_USERS = ("abfs", "abfss", "ftp", "hdfs", "sftp", "smb", "ssh")
"""Protocols in which the user is a name, as in `abfs://container@account/`. In others it may be a token."""
PASSWORD = r"(://)[^/@]*:(?!\d+(?:/|$)).*(?=@)"
"""User and password, up to the last `@`, as a password may contain `@` or a slash. A port is not a password."""
TOKEN = "".join(f"(?<!{protocol})" for protocol in NAMED_USERS) + r"(://)[^/?#]+(?=@)"
HTTP_QUERY = r"([hH][tT][tT][pP][sS]?://[^?#]*)[?#].*"
OTHER_QUERY = r"(://[^?#]*(?:[?#][^?#=/]*/[^?#]*)*)[?#][^/=]*=.*"
"""A query has a `?` followed by a `=`. The `?` in `s3://bucket/day-?/a=1` belongs to a glob."""
SECRETS = (PASSWORD, TOKEN, HTTP_QUERY, OTHER_QUERY)
SECRET = "|".join(SECRETS)
"""Any part of a URL besides protocol, host and path. JavaScript reads this pattern, too, in forms."""
UNSHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, line ends, changes of direction, and bytes that are not text."""


def has_secret(url: str) -> bool:
    """Whether a URL may hold a secret: a user, a query or a fragment."""
    return re.search(SECRET, url, re.DOTALL) is not None


def hide_secrets(text: str) -> str:
    """Replace the user, query and fragment of every URL in a text by `…`."""
    if "://" not in text:
        return text
    return "".join(_hide_in_word(word) if "://" in word else word for word in re.split(r"(\s+)", text))


def shorten(text: str, limit: int, tail: int = 0) -> str:
    """Cut a text to `limit` characters, of which `tail` are its last ones."""
    if len(text) <= limit:
        return text
    return f"{text[: limit - tail - 1]}…{text[len(text) - tail :]}"


def escape_controls(text: str) -> str:
    r"""Escape characters that move, colour or turn the text around them: a terminal colour as `\x1b[31m`, a new line as `\n`."""
    return UNSHOWN.sub(lambda match: ascii(match[0])[1:-1], text)


def show_line(text: object, limit: int = MAX_LINE) -> str:
    """Return a text as one line for a terminal or a log: without secrets and control characters, and shortened in the middle."""
    bounded = shorten(str(text), 10 * limit, 5 * limit)  # megabytes of text would take long to search for URLs
    return escape_controls(shorten(hide_secrets(bounded), limit, limit // 3))


def show(text: object) -> str:
    """Return a name, a class or a cell to be part of a line: like `show_line`, but shorter."""
    return show_line(text, MAX_PART)


def list_names(names: Iterable[str], limit: int = 30) -> str:
    """List the first `limit` columns or classes, for a message."""
    names = list(names)
    return ", ".join(f"`{show(name)}`" for name in names[:limit]) + (
        f" and {len(names) - limit} more" if len(names) > limit else ""
    )


def say_score(score: str) -> str:
    """Write the name of a score as people do."""
    return score.replace("_", " ").replace("f1", "F1")


def count(number: int, noun: str) -> str:
    """A number of things, whose noun takes an `s`: `1 row`, `1,200 rows`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _hide_in_word(word: str) -> str:
    url = word.rstrip("\"'`,;:.)")
    end = word[len(url) :]
    for part in SECRETS:
        url = re.sub(part, r"\1…", shorten(url, MAX_LINE))
    return url + end
