import re

import pytest

from refit.errors import DataError
from refit.texts import MAX_LINE, SECRETS, hide_secrets, show_line

SECRET_URLS = [
    "s3://key:s3cret/x@bucket/x",
    "simplecache::s3://key:s3cret@bucket",
    "zip://a.csv::https://key:s3cret@host/a.zip",
    "ftp://:s3cret@host",
    "https://s3cret@host/x.csv",
    "HTTPS://key:p@s3cret@host/x.csv",
    "http://key:1234567@s3cret@host/x.csv",
    "http://key:s3#cret@host/x.csv",
    "https://host/x?sig=s3cret&a=1",
    "https://host/x.csv?ACCESS_TOKEN=s3cret",
    "https://host/x.csv?s3cret",
    "https://host/x.csv#s3cret",
    "s3://bucket/x.csv?Signature=s3cret",
    "gs://bucket/x.csv#key=s3cret",
]
PLAIN_URLS = [
    "x.csv",
    "what?=#.csv",
    "http://host:8080/a@b.csv",
    "http://[::1]:4200/api",
    "s3://bucket/a:b@c.csv",
    "s3://bucket/day-?/a=1/#2.csv",
    "abfs://box@account.net/x",
    "sftp://user@host/x",
    "zip://a.csv::https://host/a.zip",
]


@pytest.mark.parametrize("url", SECRET_URLS)
@pytest.mark.parametrize("text", ["{}", "expected '{}', found none", "{}: expected rows"])
def test_a_url_is_shown_without_user_query_and_fragment(url, text):
    shown = hide_secrets(text.format(url))
    assert "cret" not in shown
    assert re.sub(r"\S*://\S*", "", shown) == re.sub(r"\S*://\S*", "", text.format(url))
    assert url[: url.index("://")] in shown


@pytest.mark.parametrize("url", PLAIN_URLS)
def test_a_url_without_a_secret_is_shown_as_it_is(url):
    text = f"expected 'a@b', found {url}: is it a?b=c"
    assert hide_secrets(text) == text


@pytest.mark.parametrize(
    ("found", "shown"), [("\x1b[31mred", r"\x1b[31mred"), ("a\nb", r"a\nb"), ("a\u202eb", r"a\u202eb"), ("\udcff", r"\udcff")]
)
def test_what_would_move_or_colour_a_terminal_is_written_out(found, shown):
    assert show_line(f"é ☃ {found}") == f"é ☃ {shown}"


def test_a_long_line_keeps_its_beginning_and_its_end():
    shown = show_line(f"expected {'x' * 10**7}; mend it")
    assert len(shown) == MAX_LINE
    assert shown.startswith("expected xxx")
    assert shown.endswith("xxx; mend it")


@pytest.mark.parametrize("piece", ["://", "http://?", "a://b?", "://#/", "://a:", "a:://:/?=/", "://#/ "])
def test_no_more_than_a_line_of_a_long_text_is_searched_for_secrets_at_once(monkeypatch, piece):
    lengths, search = [], re.sub
    monkeypatch.setattr(re, "sub", lambda pattern, new, text: lengths.append(len(text)) or search(pattern, new, text))
    show_line(piece * 300_000)
    assert max(lengths) <= MAX_LINE
    assert sum(lengths) <= len(SECRETS) * 10 * MAX_LINE


def test_each_line_of_an_error_is_fit_to_be_shown():
    error = DataError("https://key:s3cret@host: expected rows", "column `a\nb`: \x1b[2J")
    assert str(error).splitlines() == ["https://…@host: expected rows", r"column `a\nb`: \x1b[2J"]
