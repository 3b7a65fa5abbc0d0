"""Renders foreign text and figures as escaped Markdown, and Markdown as one HTML page."""

import html
import re
from collections.abc import Mapping, Sequence

from markdown_it import MarkdownIt

from refit.texts import escape_controls, shorten

MAX_NAME_LENGTH = 60
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --line: #d0d7de; --shade: #f3f5f7; --link: #0969da }}
@media (prefers-color-scheme: dark) {{ :root {{ --line: #3d444d; --shade: #1f242b; --link: #6cb6ff }} }}
body {{ max-width: 52rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.55 system-ui, sans-serif }}
h1, h2 {{ line-height: 1.25; overflow-wrap: anywhere }}
h2 {{ margin-top: 2.2rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line) }}
a {{ color: var(--link) }}
table {{ display: block; overflow-x: auto; width: max-content; max-width: 100%; border-collapse: collapse }}
th, td {{ padding: .3rem .8rem; border: 1px solid var(--line); text-align: left; font-variant-numeric: tabular-nums }}
th {{ background: var(--shade); white-space: nowrap }}
code {{ padding: .1rem .3rem; border-radius: 4px; background: var(--shade); font-size: 90%; overflow-wrap: break-word }}
@media (max-width: 30rem) {{
  th, td {{ padding: .2rem .35rem; font-size: 80% }}
  th {{ white-space: normal }}
  td:first-child {{ min-width: 6rem; overflow-wrap: anywhere }}
}}
img {{ max-width: 100%; border-radius: 6px; background: white }}
</style>
</head>
<body>
{body}</body>
</html>
"""


def render_html(markdown: str, title: str) -> str:
    """Render Markdown as one self-contained page; HTML in it is shown as text."""
    return PAGE.format(title=html.escape(title), body=MarkdownIt("js-default").render(markdown))


def render_name(name: object, max_length: int = MAX_NAME_LENGTH) -> str:
    """Render a name from data as a shortened code span, so that a link, picture or tag in it stays text."""
    return quote(shorten(str(name), max_length))


def render_caution(text: str | None) -> str:
    """Render a warning as one sentence; empty if there is none."""
    return f"**Caution:** {render_text(text)}." if text else ""


def render_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Render a Markdown table; floats with four decimals."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(_render_cell(cell) for cell in line)} |" for line in lines)


def render_fields(fields: Mapping[str, object]) -> str:
    """Render a Markdown list of names and values."""
    return "\n".join(f"- **{name}**: {_render_cell(value)}" for name, value in fields.items())


def render_text(text: str) -> str:
    """Render one line of text: code spans are kept, all other Markdown is escaped."""
    parts = re.split(r"(`[^`]+`)", escape_controls(" ".join(text.split())))
    return "".join(part if i % 2 else re.sub(r"[\\\[\]<*_`|]", r"\\\g<0>", part) for i, part in enumerate(parts))


def quote(text: str) -> str:
    """Render a code span, with a fence longer than any in the text."""
    text = escape_controls(" ".join(text.split()))
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if not text or "`" in (text[0], text[-1]) else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _render_cell(value: object) -> str:
    if value is None:
        return "-"
    text = f"{value:.4f}" if isinstance(value, float) else str(value)
    text = text.replace("\\|", "\\ |")  # Markdown dialects differ on two backslashes before a bar
    return text.replace("|", "\\|").replace("\n", " ")
