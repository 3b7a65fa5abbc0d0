"""Text that others wrote, made fit to be shown: no secrets of URLs, no control characters, not too long."""

import re
from collections.abc import Iterable

MAX_LINE = 2000
"""Characters of a line that are shown; of a longer one the beginning and the end, where a message says what to do."""
MAX_PART = 80
"""Characters of a name, a class or a cell that are shown in a line."""
NAMED_USERS = ("abfs", "abfss", "ftp", "hdfs", "sftp", "smb", "ssh")
"""Protocols whose user is a name, as in `abfs://container@account/`; elsewhere it is a token."""
PASSWORD = r"(://)[^/@]*:(?!\d+(?:/|$)).*(?=@)"
"""A user and all that is not a port after it, up to the last `@`, as a password may hold one, or a slash."""
TOKEN = "".join(f"(?<!{protocol})" for protocol in NAMED_USERS) + r"(://)[^/?#]+(?=@)"
HTTP_QUERY = r"([hH][tT][tT][pP][sS]?://[^?#]*)[?#].*"
OTHER_QUERY = r"(://[^?#]*(?:[?#][^?#=/]*/[^?#]*)*)[?#][^/=]*=.*"
"""A `?` that a `=` follows; the one in `s3://bucket/day-?/a=1` is the sign of a glob."""
SECRETS = (PASSWORD, TOKEN, HTTP_QUERY, OTHER_QUERY)
SECRET = "|".join(SECRETS)
"""What a URL holds besides protocol, host and path, whatever it is called. JavaScript reads this, too, in forms."""
UNSHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, ends of lines, changes of direction, and bytes that are no text."""


def has_secret(url: str) -> bool:
    """Whether a URL holds what may be a secret: a user, a query or a fragment."""
    return re.search(SECRET, url, re.DOTALL) is not None


def hide_secrets(text: str) -> str:
    """Replace user, query and fragment of every URL in a text by `…`."""
    if "://" not in text:
        return text
    return "".join(_hide_in_word(word) if "://" in word else word for word in re.split(r"(\s+)", text))


def shorten(text: str, limit: int, tail: int = 0) -> str:
    """Cut a text to `limit` characters, of which `tail` are its last ones."""
    if len(text) <= limit:
        return text
    return f"{text[: limit - tail - 1]}…{text[len(text) - tail :]}"


def escape_controls(text: str) -> str:
    r"""Write out what would move, colour or turn the text around it: a colour of terminals as `\x1b[31m`, a new line as `\n`."""
    return UNSHOWN.sub(lambda match: ascii(match[0])[1:-1], text)


def show_line(text: object, limit: int = MAX_LINE) -> str:
    """Return a text as one line for a terminal or a log: without secrets and control characters, a long one without its middle."""
    bounded = shorten(str(text), 10 * limit, 5 * limit)  # or megabytes would be searched for URLs
    return escape_controls(shorten(hide_secrets(bounded), limit, limit // 3))


def show(text: object) -> str:
    """Return a name, a class or a cell as a part of a line: as `show_line`, and short."""
    return show_line(text, MAX_PART)


def list_names(names: Iterable[str], limit: int = 30) -> str:
    """Name columns or classes in a message, the first `limit` of them."""
    names = list(names)
    return ", ".join(f"`{show(name)}`" for name in names[:limit]) + (
        f" and {len(names) - limit} more" if len(names) > limit else ""
    )


def _hide_in_word(word: str) -> str:
    url = word.rstrip("\"'`,;:.)")
    end = word[len(url) :]
    for part in SECRETS:
        url = re.sub(part, r"\1…", shorten(url, MAX_LINE))
    return url + end
