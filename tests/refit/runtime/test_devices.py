import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from refit.errors import SettingsError
from refit.runtime import devices
from refit.runtime.devices import (
    autocast,
    choose_device,
    computing_on_one_thread,
    describe_device,
    describe_processor,
    prepare_compute,
    putting_defaults_back,
)
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


def test_threads_are_set_as_given():
    for num_threads in (1, 3, 2):
        prepare_compute(ComputeSettings(device="cpu", num_threads=num_threads))
        assert torch.get_num_threads() == num_threads


def test_where_no_threads_are_given_pytorch_has_those_that_it_chose_itself_whatever_a_run_before_had():
    script = (
        "import torch; own = torch.get_num_threads()\n"
        "from refit.runtime.devices import prepare_compute; from refit.settings import ComputeSettings\n"
        "for given in (None, own + 1, None, own + 2, own + 1, None):\n"
        "    prepare_compute(ComputeSettings(device='cpu', num_threads=given)); print(torch.get_num_threads() - own)\n"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert finished.stdout.split() == ["0", "1", "0", "2", "1", "0"]


def test_a_thread_that_starts_while_others_rest_gets_its_own_number():
    """PyTorch gives a new thread what any other was given last."""
    with computing_on_one_thread(), ThreadPoolExecutor(1) as threads:
        threads.submit(prepare_compute, ComputeSettings(device="cpu")).result()
        assert threads.submit(torch.get_num_threads).result() == devices.NUM_THREADS


def test_what_a_block_changes_for_the_whole_process_is_put_back_after_an_exception_too():
    def change() -> None:
        with putting_defaults_back():
            prepare_compute(ComputeSettings(device="cpu", num_threads=devices.NUM_THREADS + 1, matmul_precision="medium"))
            torch.set_default_dtype(torch.float64)
            raise ValueError("changed")

    before = torch.get_num_threads(), torch.get_float32_matmul_precision(), torch.get_default_dtype()
    with pytest.raises(ValueError, match="changed"):
        change()
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision(), torch.get_default_dtype()) == before


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
    assert torch.cpu.get_capabilities()["cpu_name"] in describe_processor(torch.device("cpu"), 2)


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
