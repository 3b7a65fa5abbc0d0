import itertools
import threading
import time

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from refit.data.loaders import build_evaluation_loader
from refit.errors import TrainingError
from refit.runtime import randomness
from refit.runtime.randomness import holding_generators
from refit.training.evaluation import compute_outputs, evaluate
from refit.training.objective import Classification

CPU = torch.device("cpu")


class Fixed(nn.Module):
    """Takes its inputs for logits."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def make_logits(num_rows: int, num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(num_rows)
    y = torch.randint(num_classes, (num_rows,), generator=generator)
    return torch.randn(num_rows, num_classes, generator=generator) * 2 + nn.functional.one_hot(y, num_classes), y


def score(logits: torch.Tensor, y: torch.Tensor):
    labels = [f"class {i}" for i in range(logits.shape[1])]
    return evaluate(Fixed(), build_evaluation_loader(logits, y), Classification((*labels,)), CPU, "fp32")


def calibration_error(probabilities: np.ndarray, y: np.ndarray) -> float:
    """Guo et al., 2017, equation 3, with its 15 bins."""
    confidence, is_right = probabilities.max(axis=1), probabilities.argmax(axis=1) == y
    edges = np.linspace(0, 1, 16)
    error = 0.0
    for low, high in itertools.pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            error += inside.mean() * abs(is_right[inside].mean() - confidence[inside].mean())
    return error


@pytest.mark.parametrize(("num_rows", "num_classes"), [(40, 2), (1000, 2), (500, 3), (2000, 10)])
def test_every_metric_is_that_of_scikit_learn(num_rows, num_classes):
    logits, y = make_logits(num_rows, num_classes)
    found = score(logits, y)
    probabilities = torch.softmax(logits.double(), dim=1).numpy()
    classes, predicted = y.numpy(), probabilities.argmax(axis=1)
    precision, recall, f1, support = sklearn_metrics.precision_recall_fscore_support(classes, predicted)
    auc = (
        sklearn_metrics.roc_auc_score(classes, probabilities[:, 1])
        if num_classes == 2
        else sklearn_metrics.roc_auc_score(classes, probabilities, multi_class="ovr", average="macro")
    )
    assert found.num_rows == num_rows
    assert found.num_correct == int((predicted == classes).sum())
    assert found.accuracy == pytest.approx(sklearn_metrics.accuracy_score(classes, predicted), abs=1e-12)
    assert found.loss == pytest.approx(sklearn_metrics.log_loss(classes, probabilities), rel=1e-5)
    assert found.roc_auc == pytest.approx(auc, abs=1e-6)
    assert found.calibration_error == pytest.approx(calibration_error(probabilities, classes), abs=1e-5)
    assert found.confusion == sklearn_metrics.confusion_matrix(classes, predicted).tolist()
    assert [entry.label for entry in found.classes] == [f"class {i}" for i in range(num_classes)]
    assert [entry.precision for entry in found.classes] == pytest.approx(precision.tolist(), abs=1e-6)
    assert [entry.recall for entry in found.classes] == pytest.approx(recall.tolist(), abs=1e-6)
    assert [entry.f1 for entry in found.classes] == pytest.approx(f1.tolist(), abs=1e-6)
    assert [entry.support for entry in found.classes] == support.tolist()


def test_ties_count_half_in_the_area_under_the_curve():
    logits, y = make_logits(200, 3)
    logits = logits.round()
    probabilities = torch.softmax(logits, dim=1)
    expected = sklearn_metrics.roc_auc_score(
        y.numpy(), probabilities.double().numpy(), multi_class="ovr", average="macro", labels=[0, 1, 2]
    )
    assert score(logits, y).roc_auc == pytest.approx(expected, abs=1e-6)


def test_a_perfect_model_scores_perfectly():
    y = torch.tensor([0, 1, 2, 2])
    found = score(nn.functional.one_hot(y, 3) * 100.0, y)
    assert (found.accuracy, found.num_correct, found.roc_auc) == (1.0, 4, 1.0)
    assert found.loss == pytest.approx(0, abs=1e-6)
    assert found.calibration_error == pytest.approx(0, abs=1e-6)


def test_a_model_that_is_sure_and_wrong_is_badly_calibrated():
    y = torch.tensor([0, 1, 0, 1])
    found = score(nn.functional.one_hot(1 - y, 2) * 100.0, y)
    assert (found.accuracy, found.roc_auc) == (0.0, 0.0)
    assert found.calibration_error == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("confidences", "error"), [((0.62, 0.68), (0.38 + 0.68) / 2), ((0.61, 0.66), (0.61 + 0.66 - 1) / 2)])
def test_confidence_is_compared_with_accuracy_in_fifteenths(confidences, error):
    """The first row is right, the second wrong; 0.667 lies between those of the first pair, and no fifteenth in the second pair."""
    confidence = torch.tensor(confidences)
    found = score(torch.stack([confidence, 1 - confidence], dim=1).log(), torch.tensor([0, 1]))
    assert found.calibration_error == pytest.approx(error, abs=1e-6)


def test_where_a_class_has_no_rows_there_is_no_area_under_the_curve():
    found = score(torch.randn(20, 3), torch.arange(20) % 2)
    assert found.roc_auc is None
    assert [entry.support for entry in found.classes] == [10, 10, 0]
    assert found.classes[2].recall == 0


def test_a_class_that_is_never_predicted_has_precision_zero_as_in_scikit_learn():
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    logits = torch.zeros(6, 3)
    logits[:, 0] = torch.arange(6.0) + 1
    found = score(logits, y)
    expected = sklearn_metrics.precision_recall_fscore_support(y.numpy(), np.zeros(6), zero_division=0)
    assert [entry.precision for entry in found.classes] == pytest.approx(expected[0].tolist())
    assert [entry.f1 for entry in found.classes] == pytest.approx(expected[2].tolist())


def test_one_row_can_be_scored():
    found = score(torch.tensor([[1.0, 2.0]]), torch.tensor([1]))
    assert (found.num_rows, found.accuracy, found.roc_auc) == (1, 1.0, None)


def test_batches_weigh_by_their_rows():
    logits, y = make_logits(101, 3)
    labels = ["a", "b", "c"]
    once = evaluate(Fixed(), build_evaluation_loader(logits, y), Classification((*labels,)), CPU, "fp32")
    in_parts = evaluate(Fixed(), DataLoader(TensorDataset(logits, y), batch_size=100), Classification((*labels,)), CPU, "fp32")
    assert in_parts == once


def test_scoring_is_in_evaluation_mode_draws_nothing_and_leaves_the_mode():
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 2))
    x, y = torch.randn(20, 3), torch.arange(20) % 2
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    before = torch.get_rng_state()
    for is_training in (True, False):
        model.train(is_training)
        first, classes = compute_outputs(model, build_evaluation_loader(x, y), CPU, "fp32")
        assert model.training is is_training
        with torch.no_grad():
            assert torch.equal(first, model.eval()(x))
        assert torch.equal(classes, y)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())


def test_a_thread_that_waits_for_the_generators_has_them_after_a_batch_at_the_latest():
    has_had_them = threading.Event()
    thread = threading.Thread(target=holding_generators()(has_had_them.set), daemon=True)
    with holding_generators():
        thread.start()
        while not randomness._turns.is_anyone_waiting():
            time.sleep(1e-4)
        score(*make_logits(20, 2))
        assert has_had_them.is_set()
    thread.join()


def test_logits_do_not_depend_on_where_the_rows_lie_in_memory():
    x, y, model = torch.randn(1000, 64), torch.zeros(1000, dtype=torch.int64), nn.Linear(64, 10)
    expected = compute_outputs(model, build_evaluation_loader(x, y), CPU, "fp32")[0]
    for offset in (1, 4, 8):
        moved = torch.empty(x.numel() + offset)[offset:].view_as(x).copy_(x)
        assert torch.equal(compute_outputs(model, build_evaluation_loader(moved, y), CPU, "fp32")[0], expected)


def test_logits_are_fp32_at_every_precision():
    model = nn.Linear(3, 2)
    loader = build_evaluation_loader(torch.randn(5, 3), torch.zeros(5, dtype=torch.int64))
    rounded, _ = compute_outputs(model, loader, CPU, "bf16")
    exact, _ = compute_outputs(model, loader, CPU, "fp32")
    assert rounded.dtype == exact.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0, atol=0.05)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_row_whose_logits_are_not_finite_is_named(bad):
    logits, y = make_logits(20, 3)
    logits[4, 1] = bad
    logits[11, 0] = bad
    message = r"row 5 of the evaluation rows: expected finite outputs, found \[.*(nan|inf).*\]; look for extreme values in the row"
    with pytest.raises(TrainingError, match=message):
        score(logits, y)
