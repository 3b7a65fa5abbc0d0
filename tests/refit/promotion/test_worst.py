import pytest
import torch

from refit.data.signature import Signature, Target, TensorSpec
from refit.promotion.worst import is_image, scale_image


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ([3, 32, 32], "float32", True),
        ([1, 8, None], "uint8", True),
        ([28, 28], "float64", True),
        ([4, 32, 32], "float32", False),
        ([32, 3], "float32", False),
        ([32], "float32", False),
        ([3, 5, 32, 32], "float32", False),
        ([28, 28], "int64", False),
    ],
)
def test_a_tensor_of_one_or_three_colours_or_none_looks_like_an_image(shape, dtype, expected):
    tensors = {"x": TensorSpec(dtype=dtype, shape=shape)}
    assert is_image(Signature(columns=[], target=Target(name="y"), tensors=tensors)) == expected


def test_several_tensors_are_no_image():
    spec = TensorSpec(dtype="float32", shape=[8, 8])
    assert not is_image(Signature(columns=[], target=Target(name="y"), tensors={"x.0": spec, "x.1": spec}))


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (torch.tensor([[[0, 255], [51, 0]]], dtype=torch.uint8), [[0.0, 1.0], [0.2, 0.0]]),
        (torch.tensor([[0.0, 0.5], [0.25, 0.0]]), [[0.0, 0.5], [0.25, 0.0]]),
        (torch.tensor([[-1.0, 3.0], [1.0, 1.0]]), [[0.0, 1.0], [0.5, 0.5]]),
        (torch.full((2, 2), -3.0), [[0.0, 0.0], [0.0, 0.0]]),
    ],
)
def test_pixels_are_shown_from_0_to_1(image, expected):
    assert scale_image(image).tolist() == expected


def test_large_images_are_thinned_out():
    assert scale_image(torch.zeros(3, 500, 130)).shape == (63, 17, 3)
