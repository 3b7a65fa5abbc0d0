import base64
import functools
import re
import struct
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from matplotlib.image import imread

from refit.reports.figures import MAX_LABELLED_CLASSES, draw_confusion, draw_images, draw_losses, embed_png
from refit.reports.markdown import MAX_NAME_LENGTH, render_fields, render_html, render_name, render_table
from refit.reports.run_report import (
    MAX_COLUMNS_SHOWN,
    MAX_EPOCHS_SHOWN,
    MAX_SLICES_SHOWN,
    DriftRow,
    EpochRow,
    RunReport,
    SliceRow,
    WorstRow,
    render_run_report,
)

pytestmark = pytest.mark.pictures

EPOCHS = [EpochRow(epoch, 1 / epoch, 1.1 / epoch, 0.5, 0.26) for epoch in range(1, 4)]
REPORT = RunReport(
    headline="penguins@v8 is the champion now",
    reason="accuracy is 0.03 higher on `test`",
    scores={"penguins@v8": {"accuracy": 0.97, "ROC AUC": 0.99}, "penguins@v7": {"accuracy": 0.94}},
    worse_slices=[SliceRow("island = Dream", 25, 0.92, 0.96)],
    not_judged=["island = Torgersen"],
    epochs=EPOCHS,
    best_epoch=2,
    confusion=[[3, 1], [0, 4]],
    labels=["a", "b"],
    worst=[WorstRow("cats/7.png", "cat", "dog", 0.01, "probability of the truth"), WorstRow("cats/9.png", "cat", "dog", 0.02, "")],
    worst_png=draw_images([np.eye(4), np.ones((4, 4, 3))], ["cat → dog", "$x$"]),
    rows_before={"train": 240, "val": 51},
    rows_now={"train": 280, "test": 60},
    drifts=[
        DriftRow("year", None, None, "added", None, 0.5),
        DriftRow("mass", 0.391, 0.135, "shifted", 0.0, 0.0, [f"c{number}" for number in range(7)]),
    ],
    versions={"penguins@v8": "/store/_penguins_/v8", "card": "https://example.org/v8?a=1"},
    earlier_looks=3,
)
HOSTILE = [
    "<script>alert(1)</script>",
    "![x](http://evil.example/x.png)",
    "[x](http://evil.example)",
    "a|b",
    "a\\|![x](http://evil.example/x.png)",
    "\\",
    "`",
    "a`b``c```![x](http://evil.example/x.png)",
    "`![x](http://evil.example/x.png)`",
    "<http://evil.example>",
    "two\n\n# lines",
    "",
    " ",
    "$x$ *b* _i_ &lt;",
    "x" * 500,
    "javascript:alert(1)",
    "``<img src=http://evil.example/x.png>`",
]


def read_size(png: bytes) -> tuple[int, int]:
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert png[12:16] == b"IHDR"
    assert png[-8:-4] == b"IEND"
    return struct.unpack(">II", png[16:24])


@pytest.mark.parametrize(
    ("train_losses", "val_losses"),
    [([0.5], [None]), ([0.5, 0.4, 0.3], [None, None, None]), ([0.5, 0.4], [0.6, 0.7]), ([1.0] * 500, [1.0] * 500)],
)
def test_the_losses_are_a_png_of_six_by_three_and_a_half_inches(train_losses, val_losses):
    assert read_size(draw_losses(train_losses, val_losses)) == (720, 420)


@pytest.mark.parametrize(("num_images", "height"), [(1, 204), (4, 204), (12, 612)])
def test_images_are_drawn_in_rows_of_four(num_images, height):
    images = [np.random.default_rng(0).random((8, 6, 3))] * num_images
    assert read_size(draw_images(images, ["\x1b[31m cat $x$ → dog"] * num_images)) == (720, height)


def test_validation_losses_change_the_picture():
    assert draw_losses([0.5, 0.4], [0.6, 0.7]) != draw_losses([0.5, 0.4], [None, None])


@pytest.mark.parametrize(
    "labels",
    [["0", "1"], ["$x$", "a|b", "猫"], ["$", "\\frac{"], ["_^{}%#", "a" * 60], [f"c{i}" for i in range(MAX_LABELLED_CLASSES + 5)]],
)
def test_the_confusion_matrix_is_a_png_whatever_the_classes_are_called(labels, tmp_path):
    confusion = [[i * j for j in range(len(labels))] for i in range(len(labels))]
    png = draw_confusion(confusion, labels, "test")
    width, height = read_size(png)
    assert 300 <= height < width <= 1400
    (tmp_path / "confusion.png").write_bytes(png)
    pixels = imread(tmp_path / "confusion.png")
    assert pixels.shape[:2] == (height, width)
    assert len({tuple(pixel) for pixel in pixels[height // 2]}) > 2  # something is drawn


def test_a_confusion_matrix_of_zeros_can_be_drawn():
    read_size(draw_confusion([[0, 0], [0, 0]], ["a", "b"], "test"))


def test_a_table_has_four_decimals_and_keeps_its_columns_apart():
    table = render_table(["a|b", "c"], [("x|y", 0.123456), ("two\nlines", None), (3, 1)])
    assert table.splitlines() == [
        "| a\\|b | c |",
        "| --- | --- |",
        "| x\\|y | 0.1235 |",
        "| two lines | - |",
        "| 3 | 1 |",
    ]


def test_fields_are_a_list_of_names_and_values():
    assert render_fields({"name": "x", "score": 0.5, "none": None}) == "- **name**: x\n- **score**: 0.5000\n- **none**: -"


def parse(markdown: str) -> list[Token]:
    """The block tokens as GitHub's dialect has them, with HTML as a renderer that lets it through would see it."""
    return MarkdownIt("commonmark").enable("table").parse(markdown)


def inline(tokens: list[Token]) -> list[Token]:
    return [child for token in tokens for child in token.children or []]


def read_tables(markdown: str) -> list[list[list[str]]]:
    """Tables as rows of the text in their cells."""
    tables: list[list[list[str]]] = []
    tokens = parse(markdown)
    for i, token in enumerate(tokens):
        if token.type == "table_open":
            tables.append([])
        elif token.type == "tr_open":
            tables[-1].append([])
        elif token.type in ("td_open", "th_open"):
            tables[-1][-1].append("".join(child.content for child in tokens[i + 1].children or []))
    return tables


class Page(HTMLParser):
    """The tags and attributes of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


def test_whose_scores_they_are_is_said_of_a_candidate_that_was_trained_on_all_rows():
    told = "The candidate predicts with weights retrained on all rows. These scores are of the weights before."
    assert told in render_run_report(replace(REPORT, is_refitted=True))
    assert told not in render_run_report(REPORT)


def test_the_best_epoch_is_marked():
    plain, marked = (draw_losses([0.5, 0.4, 0.3], [0.6, 0.5, 0.7], best) for best in (None, 2))
    assert read_size(marked) == read_size(plain)
    assert marked != plain


def test_a_png_is_embedded_as_an_image_that_markdown_accepts():
    png = draw_losses([0.5], [None])
    images = [token for token in inline(parse(embed_png(png, "loss [by] epoch"))) if token.type == "image"]
    assert [token.content for token in images] == ["loss \\[by\\] epoch"]
    kind, data = str(images[0].attrs["src"]).split(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data) == png


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_shown_as_it_is_and_does_nothing(name):
    shown = " ".join(name.split())
    for markdown in (render_name(name), f"text {render_name(name)} text"):
        code = [token for token in inline(parse(markdown)) if token.type != "text"]
        assert [token.type for token in code] == ["code_inline"]
        content = code[0].content.strip()
        assert content == shown or (len(content) == MAX_NAME_LENGTH and content[-1] == "…" and name.startswith(content[:-1]))


def test_a_name_does_not_move_the_terminal_that_shows_its_file():
    assert render_name("\x1b]0;title\x07\x1b[2J\u202ea") == r"`\x1b]0;title\x07\x1b[2J\u202ea`"
    assert r"\x1b[2J" in render_run_report(RunReport(headline="\x1b[2Jkept", reason="`\x1b[2J`"))
    assert "\x1b" not in render_run_report(RunReport(headline="\x1b[2Jkept", reason="`\x1b[2J`"))


def test_long_labels_do_not_make_a_picture_large():
    labels = ["x" * 200_000, "y" * 200_000]
    plain = draw_confusion([[1, 0], [0, 1]], [label[:23] + "…" for label in labels], "test")
    assert draw_confusion([[1, 0], [0, 1]], labels, "test") == plain


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_stays_in_its_cell(name):
    [table] = read_tables(render_table([render_name(name), "b"], [(render_name(name), 1), (2, render_name(name))]))
    assert [len(row) for row in table] == [2, 2, 2]
    assert (table[1][1], table[2][0]) == ("1", "2")
    types = {token.type for token in inline(parse(render_table(["a", "b"], [(render_name(name), 1)])))}
    assert types == {"text", "code_inline"}


def test_all_sections_of_a_report_come_in_order():
    headings = re.findall(r"^#+ .*", render_run_report(REPORT), re.MULTILINE)
    assert headings == [
        "# penguins@v8 is the champion now",
        "## Scores",
        "## Worse than the champion",
        "## Confusion matrix",
        "## Worst items of test",
        "## Data",
        "## Versions",
        "## Earlier looks at the test rows",
        "## Epochs",
    ]


def test_a_report_cautions_against_a_model_of_little_use_right_after_the_reason():
    text = render_run_report(RunReport(headline="m@v1", reason="no better", caution="it loses", earlier_looks=0))
    assert text.startswith("# m@v1\n\nno better\n\n**Caution:** it loses.\n\n## ")


def test_a_report_without_news_is_its_headline():
    assert render_run_report(RunReport(headline="nothing new")) == "# nothing new\n"
    assert render_run_report(RunReport(headline="kept m@v1", reason="no better")) == "# kept m@v1\n\nno better\n"


def test_tables_of_a_report_hold_what_it_was_given():
    scores, slices, worst, rows, drifts, versions, epochs = read_tables(render_run_report(REPORT))
    assert scores == [
        ["metric", "difference", "penguins@v8", "penguins@v7"],
        ["accuracy", "+0.0300", "0.9700", "0.9400"],
        ["ROC AUC", "-", "0.9900", "-"],
    ], "the difference where a narrow screen shows it"
    assert "Too few rows to tell whether it is worse: `island = Torgersen`." in render_run_report(REPORT)
    assert slices[1] == ["island = Dream", "-0.0400", "0.9200", "0.9600", "25"]
    assert worst[0] == ["item", "truth", "predicted", "probability of the truth"]
    assert worst[1] == ["cats/7.png", "cat", "dog", "0.0100"]
    assert rows == [["rows of", "before", "now"], ["train", "240", "280"], ["val", "51", "-"], ["test", "-", "60"]]
    assert drifts[1:] == [
        ["year", "-", "-", "added", "-\u00a0→\u00a050.0%", "-"],
        ["mass", "0.391", "0.135", "shifted", "-", "c0, c1, c2, c3, c4 and 2 more"],
    ]
    assert versions[1:] == [["penguins@v8", "/store/_penguins_/v8"], ["card", "https://example.org/v8?a=1"]]
    assert epochs[1:] == [
        ["1", "1.0000", "1.1000", "0.5000", "0.26"],
        ["2, kept", "0.5000", "0.5500", "0.5000", "0.26"],
        ["3", "0.3333", "0.3667", "0.5000", "0.26"],
    ]


def test_a_first_model_has_no_difference():
    [table] = read_tables(render_run_report(RunReport(headline="m@v1", scores={"m@v1": {"accuracy": 0.9}})))
    assert table == [["metric", "m@v1"], ["accuracy", "0.9000"]]


def test_a_url_is_a_link_and_a_path_is_code():
    tokens = inline(parse(render_run_report(REPORT)))
    assert [token.attrs["href"] for token in tokens if token.type == "link_open"] == ["https://example.org/v8?a=1"]
    assert "/store/_penguins_/v8" in [token.content for token in tokens if token.type == "code_inline"]


@pytest.mark.parametrize(("num_epochs", "best"), [(1, 1), (20, 20), (21, 21), (21, 2), (100, 64), (1000, None)])
def test_of_many_epochs_the_first_the_last_the_best_and_some_between_are_shown(num_epochs, best):
    epochs = [replace(EPOCHS[0], epoch=epoch) for epoch in range(1, num_epochs + 1)]
    text = render_run_report(RunReport(headline="m@v1", epochs=epochs, best_epoch=best))
    shown = [int(row[0].removesuffix(", kept")) for row in read_tables(text)[0][1:]]
    assert shown == sorted(set(shown))
    assert {1, num_epochs, best or 1} <= set(shown)
    assert min(num_epochs, MAX_EPOCHS_SHOWN) / 2 <= len(shown) <= MAX_EPOCHS_SHOWN
    assert (f"{len(shown)} of {num_epochs} epochs" in text) == (num_epochs > MAX_EPOCHS_SHOWN)
    even = [epoch for epoch in shown if epoch not in (num_epochs, best)] or [1]
    assert even == list(range(1, even[-1] + 1, even[1] - 1 if len(even) > 1 else 1)), "at an even step"


def test_of_many_columns_and_slices_the_first_are_shown_and_the_rest_counted():
    drifts = [DriftRow(f"c{i}", 1 / (i + 1), 0.1, "shifted", 0, 0) for i in range(MAX_COLUMNS_SHOWN + 5)]
    slices = [SliceRow(f"s{i}", 9, 0.1, 0.2) for i in range(MAX_SLICES_SHOWN + 1)]
    text = render_run_report(RunReport(headline="m@v2", drifts=drifts, worse_slices=slices))
    assert [len(table) - 1 for table in read_tables(text)] == [MAX_SLICES_SHOWN, MAX_COLUMNS_SHOWN]
    assert "And 1 more slices.\n" in text
    assert "And 5 more columns.\n" in text


@pytest.mark.parametrize(("looks", "words"), [(0, "no candidate before."), (1, "1 candidate before."), (7, "7 candidates before.")])
def test_a_report_says_how_often_the_test_rows_were_looked_at(looks, words):
    assert f"have judged {words}" in render_run_report(RunReport(headline="m@v1", earlier_looks=looks))


@functools.cache
def render_hostile(name: str) -> str:
    """A report in which everything that data or people name is called the same."""
    everywhere: dict[str, Any] = {"headline": f"kept {name}", "reason": f"column {name} is worse, and `{name}` too"}
    report = replace(
        REPORT,
        **everywhere,
        scores={name: {"accuracy": 0.5}, "x": {"accuracy": 0.4}},
        worse_slices=[SliceRow(name, 3, 0.1, 0.2)],
        labels=[name, name],
        worst=[WorstRow(name, name, name, 0.1, "score")],
        drifts=[DriftRow(name, 0.3, 0.1, "shifted", 0, 0, [name, name])],
        versions={name: name},
    )
    return render_run_report(report)


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_becomes_a_link_a_picture_or_a_tag(name):
    markdown = render_hostile(name)
    tokens = parse(markdown)
    assert {token.type for token in tokens}.isdisjoint({"html_block", "fence", "code_block"})
    assert {token.type for token in inline(tokens)} <= {"text", "text_special", "code_inline", "image"}
    images = [str(token.attrs["src"]) for token in inline(tokens) if token.type == "image"]
    assert len(images) == 3
    assert all(source.startswith("data:image/png;base64,") for source in images)
    assert [len(table[0]) for table in read_tables(markdown)] == [4, 5, 4, 3, 5, 2, 5]
    assert all(len(row) == len(table[0]) for table in read_tables(markdown) for row in table)


@pytest.mark.parametrize("name", HOSTILE)
def test_the_page_is_one_file_in_which_scripts_are_text(name):
    page = Page(render_html(render_hostile(name), name))
    assert page.tags.count("img") == 3
    assert {"script", "link", "iframe", "object", "a", "svg"}.isdisjoint(page.tags)
    assert all(value.startswith("data:image/png;base64,") for name, value in page.attributes if name == "src")
    assert not [name for name, _ in page.attributes if name.startswith("on") or name == "href"]
    assert page.tags.count("table") == 7


def test_a_page_has_its_title_and_lets_no_html_of_the_text_through():
    page = render_html("# a <b>c</b>\n\n<script>alert(1)</script>\n", "x </title><script>")
    assert "<title>x &lt;/title&gt;&lt;script&gt;</title>" in page
    assert "<h1>a &lt;b&gt;c&lt;/b&gt;</h1>" in page
    assert "script" not in Page(page).tags
    assert "default-src 'none'" in page
