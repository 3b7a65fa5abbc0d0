import pytest
import torch

from refit.devices import (
    autocast,
    choose_device,
    computing_on_one_thread,
    describe_device,
    describe_processor,
    prepare_compute,
)
from refit.errors import SettingsError
from refit.settings import ComputeSettings

needs_cpu_only = pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="an accelerator is here")


def test_the_cpu_can_always_be_chosen():
    assert choose_device("cpu") == torch.device("cpu")


@needs_cpu_only
def test_without_an_accelerator_auto_is_the_cpu():
    assert choose_device("auto") == torch.device("cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_with_cuda_auto_is_its_first_device():
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda:0")


@needs_cpu_only
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:3", "mps"])
def test_a_device_that_is_not_here_is_refused_and_never_replaced(name):
    message = rf"compute\.device: expected a device of this machine, found '{name}', but only the CPU is here; use `auto` or `cpu`"
    with pytest.raises(SettingsError, match=message):
        choose_device(name)


def test_a_number_beyond_the_last_device_is_refused():
    with pytest.raises(SettingsError, match=r"compute\.device: expected a device of this machine, found 'cuda:99'"):
        choose_device("cuda:99")


def test_threads_are_set_as_given_and_left_where_none_are():
    prepare_compute(ComputeSettings(device="cpu", num_threads=1))
    assert torch.get_num_threads() == 1
    prepare_compute(ComputeSettings(device="cpu", num_threads=2))
    assert torch.get_num_threads() == 2
    assert prepare_compute(ComputeSettings(device="cpu")) == torch.device("cpu")
    assert torch.get_num_threads() == 2


def test_threads_rest_and_come_back():
    prepare_compute(ComputeSettings(device="cpu", num_threads=2))
    with computing_on_one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def test_the_precision_of_matrix_products_is_set_as_given():
    prepare_compute(ComputeSettings(device="cpu", matmul_precision="medium"))
    assert torch.get_float32_matmul_precision() == "medium"
    prepare_compute(ComputeSettings(device="cpu"))
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_processor_is_told_from_another_of_the_same_instruction_set():
    assert torch.cpu.get_capabilities()["cpu_name"] in describe_processor(torch.device("cpu"))


@pytest.mark.parametrize("engine", ["compiled", "auto"])
def test_an_engine_that_compiles_needs_a_compiler(engine, monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    message = rf"compute\.engine: expected a C\+\+ compiler for '{engine}', found no (g|clang)\+\+; install it, or use `eager`"
    with pytest.raises(SettingsError, match=message):
        prepare_compute(ComputeSettings(device="cpu", engine=engine))
    assert prepare_compute(ComputeSettings(device="cpu")) == torch.device("cpu")


def test_the_cpu_is_described_with_its_threads():
    torch.set_num_threads(1)
    assert describe_device(torch.device("cpu")) == "cpu (1 threads)"


def test_bf16_rounds_the_forward_pass_and_fp32_does_not():
    layer, x = torch.nn.Linear(3, 4), torch.rand(2, 3)
    with autocast(torch.device("cpu"), "bf16"):
        assert layer(x).dtype == torch.bfloat16
    with autocast(torch.device("cpu"), "fp32"):
        assert torch.equal(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))
