import re
from base64 import b64decode
from xml.etree import ElementTree

from refit.reports.curves import HEIGHT, MARGIN, MAX_POINTS, WIDTH, draw_curve


def read_lines(markdown: str) -> list[list[tuple[float, float]]]:
    svg = ElementTree.fromstring(b64decode(re.fullmatch(r"!\[loss by epoch\]\(data:image/svg\+xml;base64,(.*)\)", markdown)[1]))
    lines = svg.iter("{http://www.w3.org/2000/svg}polyline")
    return [[tuple(map(float, point.split(","))) for point in line.attrib["points"].split()] for line in lines]


def test_a_curve_has_a_point_an_epoch_from_left_to_right_as_high_as_its_loss():
    train, val = read_lines(draw_curve([2.0, 1.0, 0.0], [1.0, 1.0, 1.0]))
    assert [x for x, _ in train] == [MARGIN, WIDTH / 2, WIDTH - MARGIN]
    assert [y for _, y in train] == [MARGIN, HEIGHT / 2, HEIGHT - MARGIN]
    assert {y for _, y in val} == {HEIGHT / 2}


def test_a_curve_without_validation_has_one_line_and_of_one_epoch_is_a_dash():
    [[(left, y), (right, also_y)]] = read_lines(draw_curve([1.0], [None]))
    assert (left < right, y) == (True, also_y)


def test_a_curve_of_many_epochs_has_few_points_with_the_last_among_them():
    [line] = read_lines(draw_curve([1.0] * 4999 + [0.0], [None] * 5000))
    assert len(line) <= MAX_POINTS + 1
    assert line[-1] == (WIDTH - MARGIN, HEIGHT - MARGIN)
