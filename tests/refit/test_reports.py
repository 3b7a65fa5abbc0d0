import struct

import pytest
from matplotlib.image import imread

from refit.reports import MAX_LABELLED_CLASSES, draw_confusion, draw_losses, render_fields, render_table


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
