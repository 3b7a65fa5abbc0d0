import numpy as np
import pytest
import torch
from torch import nn

from refit.data.signature import InputColumn, Signature, Target
from refit.models.building import build_model
from refit.models.embeddings import CATEGORY_WIDTH, NUMBER_WIDTH, InputLayer, NormalScores, Periodic, PiecewiseLinear
from refit.settings import ModelSettings


def sign(*columns: InputColumn) -> Signature:
    return Signature(columns=list(columns), target=Target(name="y", classes=["no", "yes", "maybe"]))


NUMBER = InputColumn(name="age", kind="numeric", inputs=["age", "age is missing"], quantiles=[[-1.0, 0.0, 0.5, 2.0], []])
ONE_HOT = InputColumn(name="kind", kind="categorical", inputs=["kind=a", "kind is other"])
CODED = InputColumn(name="town", kind="categorical", inputs=["town"], num_codes=12)
TEXT = InputColumn(name="note", kind="text", inputs=[f"note[{place}]" for place in range(4)], num_ngrams=9)
MIXED = sign(TEXT, NUMBER, ONE_HOT, CODED)
X = torch.tensor([[3.0, 1, 0, 0, 0.25, 0, 1, 0, 4], [0, 0, 0, 0, -9, 1, 0, 1, 11]])


def test_a_number_is_encoded_by_how_far_it_has_come_through_each_interval():
    embedding = PiecewiseLinear([[-1.0, 0.0, 0.5, 2.0], [0.0, 10.0]], 5)
    with torch.no_grad():
        embedding.pieces.normal_()
    x = torch.tensor([[0.25, 2.5], [-3.0, 99.0], [1.25, -1.0]])
    edges = np.array([-1.0, 0.0, 0.5, 2.0])
    of_first = np.stack([np.interp(x[:, 0], edges[place : place + 2], [0, 1]) for place in range(3)], axis=1)
    encoded = torch.zeros(3, 2, 3)
    encoded[:, 0] = torch.tensor(of_first)
    encoded[:, 1, 0] = torch.tensor([0.25, 1, 0])
    clipped = x / (1 + (x / 3) ** 2).sqrt()
    expected = clipped[:, :, None] * embedding.weight + embedding.bias + torch.einsum("bnt,ntd->bnd", encoded, embedding.pieces)
    assert torch.allclose(embedding(x), expected, atol=1e-6)


def test_a_number_is_embedded_by_cosines_beside_its_robustly_scaled_value():
    quantiles = [[0.0, 1, 2, 4, 100], [5.0, 5, 5, 5, 7]]
    embedding = Periodic(quantiles)
    x = torch.tensor([[3.0, 5], [-50, 6]])
    scaled = (x - torch.tensor([2.0, 5])) / torch.tensor([4.0 - 1, (7 - 5) / 2])  # scikit-learn's RobustScaler, or half the range
    clipped = scaled / (1 + (scaled / 3) ** 2).sqrt()
    cosines = torch.cos(2 * torch.pi * clipped[:, :, None] * embedding.frequencies + embedding.phases)
    expected = torch.cat([torch.einsum("bnf,nfd->bnd", cosines, embedding.weight) + embedding.bias, clipped[:, :, None]], dim=2)
    assert torch.allclose(embedding(x), expected, atol=1e-5)


def test_numbers_of_any_distribution_become_normal_scores():
    numbers = torch.rand(10_000, 1).log()
    scores = NormalScores([numbers.quantile(torch.linspace(0, 1, 49)).tolist()])
    found = scores(numbers)[:, 0, 0]
    assert found.mean().item() == pytest.approx(0, abs=0.03)
    assert found.std().item() == pytest.approx(1, abs=0.1)
    assert (found[numbers[:, 0].argsort()].diff() >= 0).all()
    assert torch.equal(scores(numbers - 100)[:, 0, 0], scores(numbers.min().expand(10_000, 1))[:, 0, 0]), "below all is the least"


def test_equal_numbers_have_the_score_of_their_middle():
    scores = NormalScores([[0.0, 0, 0, 0, 1, 2, 3, 4]])
    assert scores(torch.zeros(1, 1)).item() == pytest.approx(torch.special.ndtri(torch.tensor(0.25)).item())


def test_what_comes_around_again_is_a_place_on_a_circle():
    hours = InputColumn(
        name="at", kind="numeric", inputs=["at", "at is missing"], means=[12.0, 0], stds=[6.0, 1], periods=[24.0, 0]
    )
    inputs = InputLayer(sign(hours), "none")
    midnight, late, morning = inputs((torch.tensor([[0.0, 0], [24, 0], [6, 0]]) - torch.tensor([12.0, 0])) / torch.tensor([6.0, 1]))
    assert torch.allclose(midnight[2:], torch.tensor([0.0, 1]), atol=1e-6)
    assert torch.allclose(late[2:], midnight[2:], atol=1e-6)
    assert torch.allclose(morning[2:], torch.tensor([1.0, 0]), atol=1e-6)


def test_columns_of_every_kind_are_taken_in_and_texts_reach_the_logits_directly_too():
    model = build_model(ModelSettings(hidden_sizes=[8], number_embedding="piecewise"), MIXED)
    inputs = model.inputs
    assert inputs.width == NUMBER_WIDTH + 1 + 2 + CATEGORY_WIDTH + 16
    (town,), (note,) = inputs.categories, inputs.texts
    bag = nn.functional.embedding_bag(X[:, :4].long(), note.vectors.weight, mode="sum", padding_idx=0)
    texts = 3 * bag / (X[:, :4] > 0).sum(1, keepdim=True).clamp(min=1).sqrt()
    numbers = inputs.numbers(X[:, 4:5]).flatten(1)
    embedded = torch.cat([X[:, 5:8], numbers, town(X[:, 8].long()), texts], dim=1)
    first, _, last = model.layers
    assert torch.allclose(model(X), last(torch.relu(first(embedded))) + texts @ model.direct.weight.T, atol=1e-6)


def test_other_and_missing_categories_begin_at_zero():
    (town,) = build_model(ModelSettings(), sign(CODED)).inputs.categories
    assert town.weight[-2:].abs().sum() == 0
    assert (town.weight[:-2] != 0).all()


def test_an_mlp_of_plain_numbers_is_a_plain_sequence_of_layers():
    """Its bits are those of the plain loop, and faster steps know it."""
    layers = build_model(ModelSettings(hidden_sizes=[8]), sign(NUMBER, ONE_HOT))
    assert [type(layer).__name__ for layer in layers] == ["Linear", "ReLU", "Linear"]


@pytest.mark.parametrize(
    "settings", [{"architecture": "resnet"}, {"architecture": "tabm", "num_members": 4}, {"architecture": "realmlp"}, {}]
)
@pytest.mark.parametrize("number_embedding", ["none", "robust", "quantile", "piecewise", "periodic"])
def test_every_network_takes_every_kind_of_column_one_row_at_a_time(settings, number_embedding):
    model = build_model(ModelSettings(hidden_sizes=[8, 4], number_embedding=number_embedding, dropout=0.1, **settings), MIXED)
    model.eval()
    rows = torch.cat([model(row[None]) for row in X])
    assert rows.shape == (2, 3)
    assert torch.allclose(model(X), rows, atol=1e-5)
