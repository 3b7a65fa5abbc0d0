"""Networks beside those of the packages that their papers came with; the extra `bench` brings these."""

import pytest
import torch

from refit.data.signature import InputColumn, Signature, Target
from refit.models.building import build_model
from refit.models.embeddings import PiecewiseLinear
from refit.models.realmlp import MixedActivation
from refit.settings import ModelSettings

QUANTILES = [[-2.0, -1, 0, 1, 3], [-1.0, -0.5, 0.25, 0.5, 2]]


def test_numbers_are_encoded_as_rtdl_num_embeddings_does_within_the_train_rows_range():
    rtdl = pytest.importorskip("rtdl_num_embeddings", exc_type=ImportError)
    ours = PiecewiseLinear(QUANTILES, 5)
    theirs = rtdl.PiecewiseLinearEmbeddings([torch.tensor(edges) for edges in QUANTILES], 5, activation=False, version="B")
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    with torch.no_grad():
        ours.pieces.normal_()
        ours.weight.zero_()  # ours clips the number itself
        theirs.linear0.weight.zero_()
        theirs.linear0.bias.copy_(ours.bias)
        theirs.linear.weight.copy_(ours.pieces)
    x = torch.rand(50, 2) * torch.tensor([5.0, 3]) - torch.tensor([2.0, 1])
    assert torch.allclose(ours(x), theirs(x), atol=1e-5)


def test_the_ensemble_is_that_of_the_tabm_package():
    tabm = pytest.importorskip("tabm", exc_type=ImportError)
    columns = [InputColumn(name=f"x{place}", kind="numeric", inputs=[f"x{place}"]) for place in range(4)]
    signature = Signature(columns=columns, target=Target(name="y", classes=[0, 1, 2]))
    ours = build_model(ModelSettings(architecture="tabm", hidden_sizes=[8, 8], num_members=3), signature)
    theirs = tabm.TabM.make(n_num_features=4, cat_cardinalities=[], d_out=3, k=3, n_blocks=2, d_block=8, dropout=0.0)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    with torch.no_grad():
        for mine, block in zip((ours.layers[0], ours.layers[2]), theirs.backbone.blocks, strict=True):
            for name, value in {"weight": "weight", "r": "input_scales", "s": "output_scales", "bias": "bias"}.items():
                getattr(block[0], name).copy_(getattr(mine, value).normal_())
        theirs.output.weight.copy_(ours.heads.weight)
        theirs.output.bias.copy_(ours.heads.bias)
    x = torch.randn(20, 4)
    assert torch.allclose(ours.train()(x), theirs(x), atol=1e-5)
    assert torch.allclose(ours.eval()(x).softmax(dim=1), theirs(x).softmax(dim=2).mean(dim=1), atol=1e-5)


def test_the_activation_is_that_of_pytabkit():
    layers = pytest.importorskip("pytabkit.models.nn_models.tabr", exc_type=ImportError)
    ours, theirs = MixedActivation(6, "mish"), layers.ParametricMishActivationLayer(6)
    with torch.no_grad():
        theirs.weight.copy_(ours.weight.normal_())
    x = torch.randn(20, 6)
    assert torch.allclose(ours(x), theirs(x), atol=1e-5)
