import importlib
import sys

import pytest
import torch
from torch import nn

from refit.data.own_functions import import_anew
from refit.data.signature import InputColumn, Signature, Target
from refit.errors import SettingsError
from refit.models.building import build_model, check_options
from refit.models.contract import check_contract, find_unkept_state
from refit.models.mlp import ACTIVATIONS, build_mlp
from refit.settings import ModelSettings


@pytest.fixture
def write_factory(monkeypatch, request, tmp_path):
    """Write a module with a factory into a folder of `sys.path` and return its name."""
    monkeypatch.syspath_prepend(tmp_path)
    written = []

    def write(body: str) -> str:
        name = f"networks_{len(written)}_{abs(hash(request.node.name))}"
        (tmp_path / f"{name}.py").write_text(body)
        importlib.invalidate_caches()
        written.append(name)
        return f"{name}:build"

    yield write
    for name in written:
        sys.modules.pop(name, None)


def refused(factory: str) -> str:
    with pytest.raises(SettingsError) as caught:
        build_model(ModelSettings(factory=factory), Signature.of_numbers(3, 2))
    return str(caught.value)


def test_the_mlp_is_the_plain_sequence_of_layers_to_the_bit():
    torch.manual_seed(0)
    model = build_model(ModelSettings(hidden_sizes=[30, 20]), Signature.of_numbers(2, 2))
    torch.manual_seed(0)
    relu = nn.ReLU(inplace=True)
    plain = nn.Sequential(nn.Linear(2, 30), relu, nn.Linear(30, 20), relu, nn.Linear(20, 2))
    assert str([*model]) == str([*plain])
    assert list(model.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), plain.state_dict().values(), strict=True))


def test_without_hidden_layers_it_is_linear():
    assert [
        type(layer)
        for layer in build_mlp(Signature.of_numbers(4, 3), ModelSettings(hidden_sizes=[], activation="relu", dropout=0.5))
    ] == [nn.Linear]


def test_an_unknown_architecture_is_refused_with_those_that_there_are():
    with pytest.raises(SettingsError, match=r"model\.architecture: expected one of mlp\b.*, found 'rnn'; .* set model\.factory"):
        build_model(ModelSettings(architecture="rnn"), Signature.of_numbers(4, 3))


def test_dropout_follows_each_hidden_activation_and_nothing_else():
    kinds = [
        type(layer)
        for layer in build_mlp(Signature.of_numbers(4, 3), ModelSettings(hidden_sizes=[8, 8], activation="tanh", dropout=0.25))
    ]
    assert kinds == [nn.Linear, nn.Tanh, nn.Dropout, nn.Linear, nn.Tanh, nn.Dropout, nn.Linear]
    assert [
        layer.p
        for layer in build_mlp(Signature.of_numbers(4, 3), ModelSettings(hidden_sizes=[8, 8], activation="tanh", dropout=0.25))
        if isinstance(layer, nn.Dropout)
    ] == [
        0.25,
        0.25,
    ]


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_every_activation_of_the_settings_is_pytorchs_of_that_name(name):
    functions = {"relu": torch.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh}
    function = functions.get(name) or getattr(nn.functional, name)
    model = build_model(ModelSettings(hidden_sizes=[8], activation=name), Signature.of_numbers(4, 3))
    x = torch.randn(5, 4)
    assert torch.equal(model(x), model[2](function(model[0](x))))


def test_the_settings_offer_the_activations_that_there_are():
    assert set(ModelSettings.model_fields["activation"].annotation.__args__) == set(ACTIVATIONS)


def test_a_factory_is_found_on_the_path_and_given_both_widths(write_factory):
    name = write_factory(
        "from torch import nn\ndef build(num_inputs, num_outputs):\n    return nn.Linear(num_inputs, num_outputs)\n"
    )
    model = build_model(ModelSettings(factory=name), Signature.of_numbers(3, 2))
    assert isinstance(model, nn.Linear)
    assert (model.in_features, model.out_features) == (3, 2)


WIDE = """
from torch import nn

class Width(int):
    pass

def build(num_inputs, num_outputs, width: int = 4, bias: bool = True, kind: "Kind" = None):
    return nn.Sequential(nn.Linear(num_inputs, width, bias), nn.Linear(width, num_outputs))

def by_signature(signature, width):
    return build(signature.num_inputs, signature.num_outputs, width)
"""


@pytest.mark.parametrize("function", ["build", "by_signature"])
def test_a_factory_gets_its_options_beside_what_it_is_told(write_factory, function):
    name = write_factory(WIDE.replace(': "Kind"', "")).replace("build", function)
    model = build_model(ModelSettings(factory=name, options={"width": 7}), Signature.of_numbers(3, 2))
    assert (model[0].in_features, model[0].out_features, model[1].out_features) == (3, 7, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"widht": 7},
            "model.options: expected arguments that {} takes, which has `num_inputs`, .*, found `widht`; correct the name",
        ),
        ({"width": "wide"}, "model.options.width: expected int, as {} is annotated, found 'wide': Input should be a valid integer"),
        ({"bias": 3}, "model.options.bias: expected bool, as {} is annotated, found 3"),
    ],
)
def test_options_that_a_factory_does_not_take_are_refused_before_it_is_called(write_factory, options, message):
    name = write_factory(WIDE.replace(': "Kind"', ""))
    with pytest.raises(SettingsError, match=message.format(name)):
        check_options(ModelSettings(factory=name, options=options))


def test_options_of_a_factory_whose_annotations_cannot_be_read_are_given_as_they_are(write_factory):
    check_options(ModelSettings(factory=write_factory(WIDE), options={"width": "wide"}))
    check_options(ModelSettings())


def test_trying_a_factorys_model_draws_nothing_and_leaves_it_in_training_mode(write_factory):
    name = write_factory(
        "from torch import nn\n"
        "def build(num_inputs, num_outputs):\n"
        "    return nn.Sequential(nn.Linear(num_inputs, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, num_outputs))\n"
    )
    torch.manual_seed(0)
    model = build_model(ModelSettings(factory=name), Signature.of_numbers(3, 2))
    found = torch.get_rng_state()
    torch.manual_seed(0)
    expected = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    assert torch.equal(found, torch.get_rng_state())
    assert all(module.training for module in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), expected.state_dict().values(), strict=True))


def test_changed_code_is_imported_anew_by_all_that_import_it(write_factory, tmp_path):
    code = "from torch import nn\nfrom own_widths import WIDTH\ndef build(i, o):\n    return nn.Linear(i, o)\n"
    names = write_factory(code), write_factory(code)
    for width, order in ((3, names[:1]), (30, names[::-1]), (300, names)):
        (tmp_path / "own_widths.py").write_text(f"WIDTH = {width}\n")
        for name in order:
            import_anew({"model.factory": name})
            assert width == sys.modules[name.partition(":")[0]].WIDTH
    kept = sys.modules[names[0].partition(":")[0]]
    import_anew({"model.factory": names[0]})
    assert sys.modules[names[0].partition(":")[0]] is kept
    assert sys.modules["torch"] is torch


def test_a_missing_module_is_refused():
    assert refused("absent_networks:build").startswith(
        "model.factory: expected a function that can be imported, found 'absent_networks:build': ModuleNotFoundError"
    )


def test_a_missing_function_is_refused(write_factory):
    module = write_factory("").partition(":")[0]
    assert "has no attribute 'absent'" in refused(f"{module}:absent")


def test_a_module_that_fails_on_import_is_refused(write_factory):
    name = write_factory("1 / 0\n")
    assert refused(name).startswith(f"model.factory: expected a function that can be imported, found '{name}': ZeroDivisionError")


def test_a_factory_that_raises_is_refused(write_factory):
    name = write_factory("def build(num_inputs, num_outputs):\n    raise KeyError('width')\n")
    assert refused(name).startswith(
        f"model.factory: expected {name}(3, 2) to return a model, found KeyError: 'width'; correct the function,"
    )


def test_a_factory_of_other_parameters_is_refused(write_factory):
    name = write_factory("def build(a, b, c):\n    pass\n")
    assert f"expected {name}(3, 2) to return a model, found TypeError" in refused(name)


@pytest.mark.parametrize(("body", "kind"), [("None", "NoneType"), ("[1]", "list"), ("__import__('torch').nn.Linear", "type")])
def test_a_factory_that_returns_no_module_is_refused(write_factory, body, kind):
    name = write_factory(f"def build(num_inputs, num_outputs):\n    return {body}\n")
    assert refused(name).startswith(f"model.factory: expected {name} to return a torch.nn.Module, found {kind}")


def test_what_is_no_function_is_refused(write_factory):
    assert "TypeError" in refused(write_factory("build = 3\n"))


def test_a_model_that_takes_another_width_is_refused(write_factory):
    name = write_factory("from torch import nn\ndef build(num_inputs, num_outputs):\n    return nn.Linear(7, num_outputs)\n")
    assert refused(name).startswith(f"model.factory: expected the model of {name} to take float32 rows of 3 numbers, found Runtime")


@pytest.mark.parametrize("place", ["where it is imported", "where it builds"])
def test_what_a_factory_sets_for_the_whole_process_is_put_back(write_factory, place):
    """The next model of the process would be another by it."""
    change = (
        "torch.set_default_dtype(torch.float64), torch.set_float32_matmul_precision('medium'),"
        " torch.set_num_threads(torch.get_num_threads() + 1)"
    )
    imported, built = (change, "None") if place == "where it is imported" else ("None", change)
    name = write_factory(
        f"import torch\n{imported}\n"
        f"def build(num_inputs, num_outputs):\n    {built}\n"
        "    return torch.nn.Linear(num_inputs, num_outputs, dtype=torch.float32)\n"
    )
    before = torch.get_default_dtype(), torch.get_float32_matmul_precision(), torch.get_num_threads()
    build_model(ModelSettings(factory=name), Signature.of_numbers(3, 2))
    assert (torch.get_default_dtype(), torch.get_float32_matmul_precision(), torch.get_num_threads()) == before


def test_a_model_of_another_precision_is_refused_whatever_the_default_is(write_factory):
    name = write_factory(
        "import torch\n"
        "def build(num_inputs, num_outputs):\n"
        "    torch.set_default_dtype(torch.float64)\n    return torch.nn.Linear(num_inputs, num_outputs)\n"
    )
    assert f"expected the model of {name} to take float32 rows of 3 numbers" in refused(name)


def test_a_model_with_sparse_gradients_is_refused(write_factory):
    name = write_factory(
        "from torch import nn\n"
        "class Bag(nn.Module):\n"
        "    def __init__(self, num_outputs):\n"
        "        super().__init__()\n        self.bag = nn.EmbeddingBag(9, num_outputs, sparse=True)\n"
        "    def forward(self, x):\n        return self.bag(x.long())\n"
        "def build(num_inputs, num_outputs):\n    return Bag(num_outputs)\n"
    )
    assert refused(name) == f"model.factory: expected dense gradients in {name}, found sparse ones of bag; leave out `sparse=True`"


def test_a_model_of_a_signature_that_gives_another_width_is_told_where_the_width_is(write_factory):
    name = write_factory("from torch import nn\ndef build(signature):\n    return nn.Linear(signature.num_inputs, 1)\n")
    assert refused(name).endswith("found (2, 1); use the signature.num_outputs that the function is given")


def test_a_model_that_gives_another_width_is_refused(write_factory):
    name = write_factory("from torch import nn\ndef build(num_inputs, num_outputs):\n    return nn.Linear(num_inputs, 1)\n")
    assert refused(name) == (
        f"model.factory: expected the model of {name} to give (2, 2) numbers for 2 rows, found (2, 1); "
        "use the num_outputs that the function is given"
    )


def test_a_model_that_gives_no_tensor_is_refused(write_factory):
    name = write_factory(
        "from torch import nn\n"
        "class Pair(nn.Module):\n    def forward(self, x):\n        return x, x\n"
        "def build(num_inputs, num_outputs):\n    return Pair()\n"
    )
    assert refused(name).endswith("found a tuple; return the logits alone")


def test_a_model_with_nothing_to_train_is_refused(write_factory):
    name = write_factory(
        "from torch import nn\n"
        "def build(num_inputs, num_outputs):\n    return nn.Linear(num_inputs, num_outputs).requires_grad_(False)\n"
    )
    assert refused(name) == (
        f"model.factory: expected parameters to train in the model of {name}, found none that require a gradient"
    )


FORGETFUL = """
import torch
from torch import nn

class Layer(nn.Module):
    def __init__(self, num_inputs, num_outputs):
        super().__init__()
        self.linear = nn.Linear(num_inputs, num_outputs)
        self.norm = nn.BatchNorm1d(num_outputs)
        self.generator = torch.Generator()
        self.num_calls, self.mask, self.output, self.history = 0, None, None, []
        self.register_buffer("average", torch.zeros(num_outputs), persistent=False)
        self.register_buffer("total", torch.zeros(num_outputs))

    def forward(self, x):
        if self.mask is None:
            self.mask = torch.ones_like(x)
        self.output = self.norm(self.linear(self.mask * x))
        self.total += self.output.detach().mean(0)
        if self.training:
            {change}
        return self.output

def build(num_inputs, num_outputs):
    return nn.Sequential(nn.Linear(num_inputs, num_inputs), nn.Dropout(0.0), Layer(num_inputs, num_outputs))
"""


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("pass", []),
        ("self.num_calls += 1", ["2.num_calls"]),
        ("self.history.append(len(x))", ["2.history"]),
        ("torch.rand(1, generator=self.generator)", ["2.generator"]),
        ("self.average += x.mean()", ["2.average"]),
        ("1 / 0", []),
    ],
)
def test_what_a_model_changes_in_training_and_no_state_dict_has_is_found_by_name(write_factory, change, expected):
    """Not what its `state_dict` has, nor what it makes once, or anew from the rows."""
    settings = ModelSettings(factory=write_factory(FORGETFUL.format(change=change)))
    before = torch.get_rng_state()
    assert find_unkept_state(settings, Signature.of_numbers(3, 2)) == expected
    assert torch.equal(torch.get_rng_state(), before)


OWN = """
import torch
from torch import nn
from torch.nn import functional

class Network(nn.Module):
    def __init__(self, num_inputs, num_outputs):
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(num_inputs), nn.Linear(num_inputs, num_outputs)

    def forward(self, x):
        logits = self.linear(self.norm(x))
        return {result}

shared = Network(3, 2)

def build(num_inputs, num_outputs):
    return {built}
"""


def write_own(write_factory, result: str, built: str = "Network(num_inputs, num_outputs)") -> ModelSettings:
    return ModelSettings(factory=write_factory(OWN.format(result=result, built=built)))


@pytest.mark.parametrize(
    "result",
    [
        "functional.dropout(logits, 0.3)",
        "logits + torch.randn(())",
        "logits + __import__('random').random()",
        "logits + __import__('numpy').random.rand()",
    ],
)
def test_a_model_that_draws_while_it_scores_is_refused(write_factory, result):
    message = (
        r"expected the model of \S+ to score the same rows alike whatever the seed, found other logits in a second pass .*; give"
        r" functional\.dropout `training=self\.training`, or use nn\.Dropout"
    )
    with pytest.raises(SettingsError, match=message):
        check_contract(write_own(write_factory, result), Signature.of_numbers(3, 2))


@pytest.mark.parametrize(
    "result",
    [
        "logits",
        "functional.dropout(logits, 0.3, self.training)",
        "nn.Dropout(0.3).train(self.training)(logits)",
        "logits * torch.nan",
    ],
)
def test_a_model_that_draws_in_training_alone_is_taken(write_factory, result):
    check_contract(write_own(write_factory, result), Signature.of_numbers(3, 2))


@pytest.mark.parametrize(
    ("result", "found"),
    [
        ("logits.squeeze()", r"\(1, 2\) for 1 row in evaluation mode, found float32 of \(2,\); keep .* which squeeze\(\) drops"),
        ("logits[:2]", r"\(33, 2\) for 33 rows in evaluation mode, found float32 of \(2, 2\)"),
        ("logits.double()", r"\(1, 2\) for 1 row in evaluation mode, found float64 of \(1, 2\)"),
        ("(logits, logits) if self.training else logits", r"\(33, 2\) for 33 rows in training mode, found tuple"),
    ],
)
def test_a_model_that_gives_other_than_a_row_of_float32_a_row_is_refused(write_factory, result, found):
    with pytest.raises(SettingsError, match=r"expected the model of \S+ to give float32 logits of " + found):
        check_contract(write_own(write_factory, result), Signature.of_numbers(3, 2))


def test_a_model_that_fails_on_a_number_of_rows_is_refused(write_factory):
    with pytest.raises(SettingsError, match=r"give logits for 33 rows in evaluation mode, found RuntimeError: .*; let it take any"):
        check_contract(write_own(write_factory, "logits if len(x) < 3 else logits.view(2, 2)"), Signature.of_numbers(3, 2))


def test_trying_a_model_leaves_generators_and_the_statistics_of_a_module_that_a_factory_gives_again(write_factory):
    settings = write_own(write_factory, "functional.dropout(logits, 0.3, self.training)", built="shared")
    model = build_model(settings, Signature.of_numbers(3, 2))
    before, state = torch.get_rng_state(), {name: value.clone() for name, value in model.state_dict().items()}
    check_contract(settings, Signature.of_numbers(3, 2))
    find_unkept_state(settings, Signature.of_numbers(3, 2))
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def sign_texts() -> Signature:
    """A number between two texts."""
    texts = [InputColumn(name=name, kind="text", inputs=[f"{name}[{i}]" for i in range(4)], num_ngrams=9) for name in ("a", "b")]
    columns = [texts[0], InputColumn(name="size", kind="numeric", inputs=["size"]), texts[1]]
    return Signature(columns=columns, target=Target(name="y", classes=["no", "yes"]))


def test_a_factory_of_sizes_alone_is_refused_where_there_are_texts(write_factory):
    name = write_factory(
        "from torch import nn\ndef build(num_inputs, num_outputs):\n    return nn.Linear(num_inputs, num_outputs)\n"
    )
    message = (
        r"model\.factory: expected .* to take the Signature, as the inputs of `a`, `b` are numbers of words, found .* without it"
    )
    with pytest.raises(SettingsError, match=message):
        build_model(ModelSettings(factory=name), sign_texts())


def test_a_factory_of_sizes_alone_is_refused_where_categories_are_codes(write_factory):
    name = write_factory(
        "from torch import nn\ndef build(num_inputs, num_outputs):\n    return nn.Linear(num_inputs, num_outputs)\n"
    )
    coded = InputColumn(name="town", kind="categorical", inputs=["town"], num_codes=12)
    signature = Signature(columns=[coded], target=Target(name="y", classes=["no", "yes"]))
    message = r"model\.factory: expected .* to take the Signature, as the inputs of `town` are codes of .* set data\.max_one_hot"
    with pytest.raises(SettingsError, match=message):
        build_model(ModelSettings(factory=name), signature)


def test_a_factory_of_a_signature_sees_the_texts(write_factory):
    name = write_factory(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, signature):\n"
        "        super().__init__()\n"
        "        self.signature = signature\n"
        "        (self.first, _) = (nn.Embedding(it.num_ngrams + 1, signature.num_outputs) for it in signature.texts)\n"
        "    def forward(self, x):\n"
        "        others, texts = self.signature.split_texts(x)\n"
        "        return self.first(texts[0]).sum(dim=1) + others\n"
        "def build(signature):\n"
        "    return Net(signature)\n"
    )
    model = build_model(ModelSettings(factory=name), sign_texts())
    check_contract(ModelSettings(factory=name), sign_texts())
    assert model(torch.zeros(3, 9)).shape == (3, 2)
