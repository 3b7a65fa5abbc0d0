import math
from typing import get_args

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, SequentialLR
from torch.utils.data import DataLoader, TensorDataset

from refit.data.loaders import build_train_loader
from refit.data.signature import Signature
from refit.errors import SettingsError
from refit.settings import ModelSettings, OptimizerSettings, resolve_settings
from refit.training.checkpoints import digest_weights, load_state, save_state
from refit.training.loop import TrainingState, build_training_state, train_epoch
from refit.training.objective import Classification
from refit.training.optimizers import build_learning_rate, build_optimizer, group_parameters, set_regularization, take_step

CPU = torch.device("cpu")
NUM_EPOCHS = 3
X, Y = torch.randn(23, 4, generator=torch.Generator().manual_seed(1)), torch.arange(23) % 3


def train_plainly(optimizer: type[torch.optim.Optimizer], **options) -> str:
    """Digest of the weights that a plain loop gives."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))
    plain = optimizer(model.parameters(), **options)
    for _ in range(NUM_EPOCHS):
        for x, y in DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True):
            plain.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            plain.step()
    return digest_weights(model.state_dict())


@pytest.mark.parametrize("is_interrupted", [False, True])
@pytest.mark.parametrize(
    "kind",
    [getattr(torch.optim, name) for name in ("NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop")],
)
def test_any_optimizer_trains_with_the_bits_of_a_plain_loop_even_if_it_is_interrupted(kind, is_interrupted, store):
    settings = OptimizerSettings(name=kind.__name__.lower(), lr=0.05, weight_decay=0.1)

    def build() -> TrainingState:
        model = ModelSettings(hidden_sizes=[8], dropout=0.3)
        return build_training_state(model, settings, Signature.of_numbers(4, 3), seed=0, device=CPU)

    state, loader, num_pauses = build(), build_train_loader(X, Y, 4, drop_last=False), 0
    while state.epoch < NUM_EPOCHS:
        if train_epoch(state, loader, lambda _: settings.lr, device=CPU, should_pause=lambda: is_interrupted) is None:
            num_pauses += 1
            checkpoint, state = save_state(state, store), build()
            torch.manual_seed(1234)
            load_state(checkpoint, state, store)
    assert num_pauses == (5 * NUM_EPOCHS if is_interrupted else 0)
    assert digest_weights(state.model.state_dict()) == train_plainly(kind, lr=0.05, weight_decay=0.1)


def test_a_weight_decay_that_the_optimizer_has_not_is_refused():
    build_optimizer(OptimizerSettings(name="rprop"), [torch.zeros(1, requires_grad=True)])
    with pytest.raises(SettingsError, match=r"optimizer\.weight_decay: expected 0, as rprop has none, found 0\.1; leave it 0"):
        build_optimizer(OptimizerSettings(name="rprop", weight_decay=0.1), [torch.zeros(1, requires_grad=True)])


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_groups_of_parameters_have_their_own_options_and_their_rates_follow_the_schedule(name, store):
    """As under PyTorch's own scheduler, and from a checkpoint too."""
    settings = OptimizerSettings(name=name, lr=0.25, weight_decay=0.1)
    kind = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[name]

    def build() -> tuple[nn.Module, list[dict]]:
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        return model, [{"params": [model.weight]}, {"params": [model.bias], "lr": 0.7, "weight_decay": 0.0}]

    model, groups = build()
    plain = kind(groups, lr=0.25, weight_decay=0.1)
    scheduler = LambdaLR(plain, lambda step: 0.5**step)
    for _ in range(2):
        for x, y in DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True):
            plain.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            plain.step()
            scheduler.step()
    expected = digest_weights(model.state_dict())

    found, loader = None, build_train_loader(X, Y, 4, drop_last=False)
    for _ in range(2):
        checkpoint = None if found is None else save_state(found, store)
        model, groups = build()
        found = TrainingState(model, build_optimizer(settings, groups), Classification(()))
        if checkpoint is not None:
            load_state(checkpoint, found, store)
        train_epoch(found, loader, lambda step: 0.25 * 0.5**step, device=CPU)
    assert digest_weights(found.model.state_dict()) == expected


def rates_of(scheduler: torch.optim.lr_scheduler.LRScheduler, num_steps: int) -> list[float]:
    """What PyTorch's own scheduler sets for each step."""
    rates = []
    for _ in range(num_steps):
        rates.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    return rates


def make_sgd(lr: float) -> torch.optim.SGD:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)


@pytest.mark.parametrize("settings", [{"name": "sgd", "momentum": 0.9}, {"name": "sgd"}, {"name": "adam"}, {"name": "adamw"}])
def test_the_optimizer_is_pytorchs_own_with_the_settings_given(settings):
    given = OptimizerSettings(lr=0.3, weight_decay=0.01, **settings)
    optimizer = build_optimizer(given, [torch.zeros(1, requires_grad=True)])
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[given.name]
    assert type(optimizer) is kind
    momentum = {"momentum": given.momentum} if given.name == "sgd" else {}
    expected = kind([torch.zeros(1, requires_grad=True)], lr=0.3, weight_decay=0.01, **momentum).param_groups[0]
    found = optimizer.param_groups[0]
    assert {key: found[key] for key in found if key != "params"} == {key: expected[key] for key in expected if key != "params"}


def test_a_constant_rate_is_constant():
    rate = build_learning_rate(OptimizerSettings(lr=0.3), 10)
    assert {rate(step) for step in range(25)} == {0.3}


@pytest.mark.parametrize("num_steps", [1, 2, 7, 100])
def test_the_cosine_is_pytorchs_own(num_steps):
    rate = build_learning_rate(OptimizerSettings(lr=0.3, schedule="cosine"), num_steps)
    expected = rates_of(CosineAnnealingLR(make_sgd(0.3), T_max=num_steps), num_steps)
    assert [rate(step) for step in range(num_steps)] == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("warmup_steps", [1, 4, 10])
def test_the_warm_up_is_pytorchs_linear_one(warmup_steps):
    rate = build_learning_rate(OptimizerSettings(lr=0.3, warmup_steps=warmup_steps), 12)
    scheduler = LinearLR(make_sgd(0.3), start_factor=1 / (warmup_steps + 1), total_iters=warmup_steps)
    assert [rate(step) for step in range(12)] == pytest.approx(rates_of(scheduler, 12), rel=1e-9)


def test_the_warm_up_goes_over_into_the_cosine_as_in_pytorchs_sequence():
    rate = build_learning_rate(OptimizerSettings(lr=0.3, warmup_steps=5, schedule="cosine"), 20)
    optimizer = make_sgd(0.3)
    scheduler = SequentialLR(
        optimizer, [LinearLR(optimizer, 1 / 6, total_iters=5), CosineAnnealingLR(optimizer, T_max=15)], milestones=[5]
    )
    assert [rate(step) for step in range(20)] == pytest.approx(rates_of(scheduler, 20), rel=1e-9, abs=1e-12)


def test_the_rate_is_the_full_one_right_after_the_warm_up():
    rate = build_learning_rate(OptimizerSettings(lr=0.3, warmup_steps=5, schedule="cosine"), 20)
    assert rate(4) < rate(5) == 0.3 > rate(6)


def test_the_cosine_ends_at_zero_and_stays_there():
    rate = build_learning_rate(OptimizerSettings(lr=0.3, schedule="cosine"), 10)
    assert rate(9) > 0
    assert [rate(10), rate(11), rate(1000)] == pytest.approx([0, 0, 0], abs=1e-12)


@pytest.mark.parametrize("warmup_steps", [10, 11, 50])
def test_a_warm_up_as_long_as_the_run_or_longer_stays_finite_and_below_the_rate(warmup_steps):
    rate = build_learning_rate(OptimizerSettings(lr=0.3, warmup_steps=warmup_steps, schedule="cosine"), 10)
    rates = [rate(step) for step in range(10)]
    assert all(math.isfinite(r) and 0 < r <= 0.3 for r in rates)
    assert rates == sorted(rates)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("StepLR", {"step_size": 3, "gamma": 0.5}),
        ("MultiStepLR", {"milestones": [2, 5]}),
        ("ExponentialLR", {"gamma": 0.9}),
        ("CosineAnnealingWarmRestarts", {"T_0": 4}),
        ("PolynomialLR", {"total_iters": 6}),
        ("OneCycleLR", {"max_lr": 0.3, "total_steps": 12, "cycle_momentum": False}),
    ],
)
@pytest.mark.parametrize("by", ["epoch", "step"])
def test_a_scheduler_of_pytorch_gives_its_own_rates_at_any_step(name, options, by):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    scheduler, expected = getattr(lr_scheduler, name)(optimizer, **options), []
    for _ in range(12):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(expected) < 12:
            scheduler.step()
    settings = OptimizerSettings(lr=0.1, schedule=name, schedule_options=options, schedule_by=by)
    rate = build_learning_rate(settings, 12 * 5, steps_an_epoch=5)
    every = 5 if by == "epoch" else 1
    assert rate(11 * every) == expected[11], "the last first, as after an interruption"
    assert [rate(step) for step in range(12 * every)] == [lr for lr in expected for _ in range(every)]


def test_what_is_no_schedule_is_refused():
    for settings, message in {
        ("LambdaLR", "{}"): r"expected `constant`, `cosine` or a scheduler .*, found 'LambdaLR'",
        ("ReduceLROnPlateau", "patient=3"): r"expected options of ReduceLROnPlateau, found \{'patient': 3\}",
        ("StepsLR", "{}"): "found 'StepsLR'",
        ("StepLR", "step=3"): r"optimizer\.schedule_options: expected options of StepLR, found \{'step': 3\}: .*unexpected keyword",
        ("OneCycleLR", "max_lr=0.1 total_steps=3"): "found one that changes the momentum, too; add `?.cycle_momentum",
    }.items():
        name, options = settings[0], dict(pair.split("=") for pair in settings[1].strip("{}").split())
        given = {key: float(value) if "." in value else int(value) for key, value in options.items()}
        with pytest.raises(SettingsError, match=message):
            build_learning_rate(OptimizerSettings(lr=0.1, schedule=name, schedule_options=given), 10)


@pytest.mark.parametrize("name", get_args(OptimizerSettings.model_fields["name"].annotation))
def test_a_step_that_leaves_the_compiler_out_has_the_bits_of_pytorchs(name):
    ours, theirs = ([torch.nn.Parameter(torch.arange(1.0, 7).view(2, 3)), torch.nn.Parameter(torch.ones(3))] for _ in range(2))
    optimizers = [build_optimizer(OptimizerSettings(name=name, lr=0.1), parameters) for parameters in (ours, theirs)]
    for number in range(1, 4):
        for parameter in (*ours, *theirs):
            parameter.grad = parameter.detach() / number
        take_step(optimizers[0])
        optimizers[1].step()
    assert all(map(torch.equal, ours, theirs))


def test_a_scheduler_that_goes_by_the_loss_has_no_steps():
    settings = OptimizerSettings(lr=0.1, schedule="ReduceLROnPlateau", schedule_by="step")
    with pytest.raises(SettingsError, match=r"optimizer\.schedule_by: expected `epoch`, as ReduceLROnPlateau goes by the loss of"):
        build_learning_rate(settings, 10)


@pytest.mark.parametrize("warmup_steps", [0, 3])
def test_a_scheduler_that_goes_by_the_loss_has_the_rates_of_pytorchs_after_any_epochs(warmup_steps):
    losses, options = [1.0, 0.9, 0.95, 0.91, 0.9, 0.5, 0.6, 0.7, 0.8], {"patience": 1, "factor": 0.3, "min_lr": 0.004}
    optimizer = make_sgd(0.1)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, **options)
    settings = OptimizerSettings(lr=0.1, schedule="ReduceLROnPlateau", schedule_options=options, warmup_steps=warmup_steps)
    for num_epochs in range(len(losses)):
        rate = build_learning_rate(settings, 50, steps_an_epoch=5, losses=losses[:num_epochs])
        steps = range(max(warmup_steps, 5 * num_epochs), 5 * num_epochs + 5)
        assert {rate(step) for step in steps} == {optimizer.param_groups[0]["lr"]}
        scheduler.step(losses[num_epochs])
    assert rate(1) == pytest.approx(0.1 * 2 / 4 if warmup_steps else optimizer.param_groups[0]["lr"])


def test_options_are_those_of_the_class_and_others_are_refused():
    weights = [torch.zeros(2, requires_grad=True)]
    built = build_optimizer(OptimizerSettings(name="adam", options={"betas": [0.8, 0.9], "amsgrad": True}), weights)
    assert (built.defaults["betas"], built.defaults["amsgrad"]) == ((0.8, 0.9), True)
    for options, message in {
        "beta": r"optimizer\.options: expected options of Adam that are no settings, `betas`.*, found `beta`; correct",
        "lr": r"that are no settings, .*found `lr`",
    }.items():
        with pytest.raises(SettingsError, match=message):
            build_optimizer(OptimizerSettings(name="adam", options={options: 0.1}), weights)
    with pytest.raises(SettingsError, match=r"expected values that Adam takes, found .*eps.*Invalid epsilon"):
        build_optimizer(OptimizerSettings(name="adam", options={"eps": -1.0}), weights)


def test_patterns_of_names_give_parameters_other_rates_and_frozen_ones_are_in_no_group():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[0].bias.requires_grad = False
    settings = OptimizerSettings(lr=0.1, weight_decay=0.5, lr_factors={"0.*": 0.1}, weight_decay_factors={"*.bias": 0})
    groups = group_parameters(settings, module)
    shown = [(group["lr"], group["weight_decay"], [id(it) for it in group["params"]]) for group in groups]
    assert shown == [
        (0.1 * 0.1, 0.5, [id(module[0].weight)]),
        (0.1, 0.5, [id(module[1].weight)]),
        (0.1, 0.0, [id(module[1].bias)]),
    ]
    with pytest.raises(
        SettingsError, match=r"optimizer\.lr_factors: expected patterns of names of parameters .*`0\.weight`.*`2\.\*`"
    ):
        group_parameters(OptimizerSettings(lr_factors={"2.*": 0.1}), module)


def test_dropout_and_weight_decay_fall_in_the_second_half_as_in_a_plain_loop():
    shares = [1, 1, 1, (1 + math.cos(math.pi / 2)) / 2]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))
    plain = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    for share in shares:
        model[2].p, plain.param_groups[0]["weight_decay"] = 0.3 * share, 0.1 * share
        for x, y in DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True):
            plain.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            plain.step()
    settings = OptimizerSettings(lr=0.05, weight_decay=0.1)
    state = build_training_state(ModelSettings(hidden_sizes=[8], dropout=0.3), settings, Signature.of_numbers(4, 3), 0, CPU)
    for epoch in range(4):
        set_regularization(state.model, state.optimizer, epoch / 4)
        train_epoch(state, build_train_loader(X, Y, 4, drop_last=False), lambda _: 0.05, device=CPU)
    assert digest_weights(state.model.state_dict()) == digest_weights(model.state_dict())


def test_compiled_steps_are_refused_where_dropout_and_weight_decay_change():
    with pytest.raises(SettingsError, match=r"compute\.engine: expected `eager` or `auto`, .* found `compiled`"):
        resolve_settings({"training": {"regularization": "flat_cosine"}, "compute": {"engine": "compiled"}})
