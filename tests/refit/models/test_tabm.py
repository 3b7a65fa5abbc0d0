import pytest
import torch
from torch import nn

from refit.data.signature import Signature, Target
from refit.models.building import build_model
from refit.models.tabm import WordDropout
from refit.settings import ModelSettings
from refit.training.objectives import build_objective

SETTINGS = ModelSettings(architecture="tabm", hidden_sizes=[8, 6], num_members=3, dropout=0.2)


def make_rows() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    y = torch.randint(3, (50,), generator=generator)
    return torch.randn(50, 4, generator=generator) + y[:, None], y


def test_each_member_is_a_perceptron_of_scaled_shared_weights():
    model = build_model(SETTINGS, Signature.of_numbers(4, 3)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    x, _ = make_rows()
    probabilities = []
    for member in range(3):
        layers = list[nn.Module]()
        for ours in (model.layers[0], model.layers[3]):
            linear = nn.Linear(ours.weight.shape[1], ours.weight.shape[0])
            scales = ours.output_scales[member][:, None] * ours.weight * ours.input_scales[member]
            linear.load_state_dict({"weight": scales, "bias": ours.bias[member]})
            layers += [linear, nn.ReLU()]
        last = nn.Linear(6, 3)
        last.load_state_dict({"weight": model.heads.weight[member].T, "bias": model.heads.bias[member]})
        probabilities.append(nn.Sequential(*layers, last)(x).softmax(dim=1))
    assert torch.allclose(model(x).softmax(dim=1), torch.stack(probabilities).mean(dim=0), atol=1e-5)
    assert torch.allclose(model(x).exp().sum(dim=1), torch.ones(50), atol=1e-5)


def test_dropout_leaves_out_its_share_in_training_alone():
    dropout, x = WordDropout(0.25), torch.full((1001, 7, 3), 3.0, requires_grad=True)
    torch.manual_seed(0)
    found = dropout(x)
    assert set(found.unique().tolist()) == {0.0, 4.0}
    assert (found == 0).double().mean().item() == pytest.approx(0.25, abs=0.01)
    found.sum().backward()
    assert torch.equal(x.grad * 3, found)
    assert torch.equal(dropout.eval()(x), x)


def test_numbers_are_the_mean_of_the_members():
    signature = Signature.of_numbers(4, 3).model_copy(update={"target": Target(name="y", kind="numbers", centers=[0.0])})
    model = build_model(SETTINGS.model_copy(update={"dropout": 0.0}), signature)
    x, y = make_rows()
    members = model.train()(x)
    assert members.shape == (50, 3, 1)
    assert torch.allclose(model.eval()(x), members.mean(dim=1))
    losses = [nn.functional.mse_loss(members[:, member, 0], y.float()) for member in range(3)]
    assert torch.allclose(build_objective(signature.target).loss(members, y.float()), torch.stack(losses).mean())
