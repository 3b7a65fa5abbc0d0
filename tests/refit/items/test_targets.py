import pytest
import torch

from refit.data.signature import Target
from refit.items.targets import MAX_PROFILED, profile_targets


def test_classes_are_profiled_by_their_items():
    (found,) = profile_targets(Target(name="target", classes=["cat", "dog", "owl"]), torch.tensor([1, 0, 1, 1]))
    assert (found.name, found.num_rows, found.counts) == ("target", 4, {"dog": 3, "cat": 1})


def test_each_label_is_profiled_by_the_items_that_have_it():
    target = Target(name="target", kind="labels", classes=["old", "large"], centers=[0.5, 1.0])
    found = profile_targets(target, torch.tensor([[0.0, 1.0], [1.0, 1.0]]))
    assert [(profile.name, profile.counts) for profile in found] == [("old", {"false": 1, "true": 1}), ("large", {"true": 2})]


@pytest.mark.parametrize(("shape", "names"), [((9,), ["target"]), ((9, 2), ["target 1", "target 2"]), ((9, 20, 20), None)])
def test_numbers_are_profiled_by_their_distribution(shape, names):
    y = torch.randn(shape)
    found = profile_targets(Target(name="target", kind="numbers", centers=[0.0]), y)
    assert [profile.name for profile in found] == (names or [f"target {place}" for place in range(1, MAX_PROFILED + 1)])
    assert (found[0].marks[0], found[0].marks[-1]) == (y.reshape(9, -1)[:, 0].min(), y.reshape(9, -1)[:, 0].max())


def test_a_step_without_targets_has_no_profile():
    assert profile_targets(Target(name="loss", kind="none"), torch.zeros(3)) == []
