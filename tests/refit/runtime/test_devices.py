import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from refit.errors import SettingsError
from refit.runtime import accelerators, devices
from refit.runtime.devices import (
    Work,
    autocast,
    check_compute,
    choose_device,
    computing_on,
    computing_on_one_thread,
    describe_choice,
    describe_device,
    describe_processor,
    describe_processors,
    prepare_compute,
    putting_defaults_back,
)
from refit.settings import ComputeSettings

LARGE = Work(num_parameters=100_000, batch_size=256, num_rows=1_000_000)
SMALL = Work(num_parameters=500, batch_size=256, num_rows=1_000_000)


def choose(device: str, work: Work = SMALL, **compute) -> torch.device:
    return choose_device(ComputeSettings(device=device, **compute), work)


@pytest.fixture
def _alone(monkeypatch):
    """No accelerator, whatever this machine has."""
    monkeypatch.setattr(devices, "list_accelerators", list)


def test_the_cpu_can_always_be_chosen():
    assert choose("cpu", LARGE) == torch.device("cpu")


@pytest.mark.usefixtures("_alone")
def test_without_an_accelerator_auto_is_the_cpu():
    assert choose("auto", LARGE) == torch.device("cpu")


@pytest.mark.parametrize(
    ("work", "chosen"),
    [
        (LARGE, "standin:0"),
        (SMALL, "cpu"),
        (LARGE._replace(batch_size=39), "cpu"),
        (LARGE._replace(batch_size=40), "standin:0"),
        (LARGE._replace(num_rows=9_999), "cpu"),
        (LARGE._replace(num_rows=10_000), "standin:0"),
    ],
)
def test_auto_takes_an_accelerator_where_a_step_and_an_epoch_are_large(standin, work, chosen):  # noqa: ARG001
    assert str(choose("auto", work)) == chosen
    assert str(choose("standin", work)) == "standin:0"
    told = describe_choice(ComputeSettings(device="auto"), work)
    assert told.startswith(chosen)
    assert told.endswith("million rows times parameters; an accelerator pays from 4 and 1,000 on")


def test_a_device_that_is_named_needs_no_reason(standin):  # noqa: ARG001
    assert describe_choice(ComputeSettings(device="standin:1"), SMALL) == "standin:1 (Stand-in)"


@pytest.mark.usefixtures("_alone")
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:3", "mps"])
def test_a_device_that_is_not_here_is_refused_and_never_replaced(name):
    message = (
        rf"compute\.device: expected a device of this machine, found '{name}', but only the CPU is here;"
        " use `auto` or `cpu`, or set compute.when_missing to `cpu`"
    )
    with pytest.raises(SettingsError, match=message):
        choose(name)


@pytest.mark.usefixtures("_alone")
def test_a_device_that_is_not_here_is_replaced_and_told_where_that_is_allowed():
    settings = ComputeSettings(device="cuda", when_missing="cpu")
    assert choose_device(settings, LARGE) == torch.device("cpu")
    assert check_compute(settings) == ["compute.device: cuda is not here; training on the CPU, as compute.when_missing is `cpu`"]


def test_a_device_that_nobody_knows_is_refused():
    with pytest.raises(SettingsError, match=r"compute\.device: expected `auto`, `cpu`, `cuda`, .*, found 'gpu'"):
        choose("gpu", when_missing="cpu")


def test_a_number_beyond_the_last_device_is_refused(standin):  # noqa: ARG001
    with pytest.raises(
        SettingsError, match=r"found 'standin:99', but cpu, standin:0, standin:1 are here; use `auto` or `standin:0`"
    ):
        choose("standin:99")


@pytest.mark.usefixtures("_alone")
def test_a_gpu_whose_driver_is_broken_is_told_or_refused_under_auto(monkeypatch, tmp_path):
    (tmp_path / "0000:00:1e.0").mkdir()
    monkeypatch.setattr(accelerators, "NVIDIA", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "init", raise_no_driver)
    found = "an NVIDIA GPU that does not work: Found no NVIDIA driver on your system"
    assert check_compute(ComputeSettings(device="auto")) == [f"compute.device: training on the CPU, found {found}"]
    with pytest.raises(
        SettingsError, match=f"expected an accelerator that PyTorch can use, .* found {found}; mend it, or use `cpu`"
    ):
        check_compute(ComputeSettings(device="auto", when_missing="fail"))
    with pytest.raises(SettingsError, match=f"found 'cuda', but {found}; use"):
        check_compute(ComputeSettings(device="cuda"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert check_compute(ComputeSettings(device="auto")) == []


def raise_no_driver() -> None:
    raise RuntimeError("Found no NVIDIA driver on your system\nand more")


def test_bf16_that_a_device_emulates_is_told(standin, monkeypatch):  # noqa: ARG001
    monkeypatch.setattr(devices, "emulates_bf16", lambda device: device.type != "cpu")
    told = "compute.precision: standin:0 (Stand-in) emulates bf16, which is slower than fp32"
    assert check_compute(ComputeSettings(device="standin", precision="bf16")) == [told]
    assert check_compute(ComputeSettings(device="cpu", precision="bf16")) == []


def test_compiling_for_a_gpu_needs_triton(standin, monkeypatch):  # noqa: ARG001
    monkeypatch.setattr(devices, "can_compile", lambda device: device.type == "cpu")
    with pytest.raises(
        SettingsError, match=r"expected Triton for 'compiled' on standin:0, found no package `triton`; install it, or"
    ):
        check_compute(ComputeSettings(device="standin", engine="compiled"))
    check_compute(ComputeSettings(device="standin", engine="auto"))


def test_an_accelerator_computes_the_same_bits_each_time_and_the_cpu_as_ever():
    cudnn = torch.backends.cudnn

    def read() -> list[object]:
        return [get() for get, _ in devices.DETERMINISM]

    before = read()
    with computing_on(torch.device("mps"), ComputeSettings()):
        assert torch.are_deterministic_algorithms_enabled()
        assert (cudnn.deterministic, cudnn.benchmark) == (True, False)
        assert not cudnn.allow_tf32, "as matmul_precision is highest"
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert read() == before
    with computing_on(torch.device("mps"), ComputeSettings(deterministic=False, matmul_precision="high")):
        assert not torch.are_deterministic_algorithms_enabled()
        assert cudnn.allow_tf32
    with computing_on(torch.device("cpu"), ComputeSettings()):
        assert read() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("switch", "precision"),
    [("torch.backends.cuda.matmul", "tf32"), ("torch.backends", "tf32"), ("torch.backends.cudnn.conv", "ieee")],
)
def test_pytorch_s_newer_switches_of_fp32_are_obeyed_by_no_run_and_put_back(switch, precision):
    script = (
        "import torch; from refit.runtime.devices import computing_on, prepare_compute, putting_defaults_back\n"
        f"from refit.settings import ComputeSettings; torch.backends.{switch}fp32_precision = {precision!r}\n"
        "names = ('matmul', 'conv', 'rnn')\n"
        "read = lambda: [torch._C._get_fp32_precision_getter('cuda', name) for name in names]\n"
        "before = read()\n"
        "with putting_defaults_back(), computing_on(torch.device('mps'), ComputeSettings()):\n"
        "    prepare_compute(ComputeSettings())\n"
        "    print({*read()} & {'tf32'}, torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, read() == before)\n"
        "print(read() == before)"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert found == "set() highest False False\nTrue\n"


def test_what_the_user_has_set_for_determinism_is_put_back_and_costs_nothing_within():
    with putting_defaults_back(devices.DETERMINISM):
        torch._C._set_deterministic_algorithms(True, warn_only=True)
        with computing_on(torch.device("mps"), ComputeSettings()):
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
            assert not torch.utils.deterministic.fill_uninitialized_memory
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.utils.deterministic.fill_uninitialized_memory
    script = (
        "import sys, torch; from refit.runtime.devices import computing_on; from refit.settings import ComputeSettings\n"
        "with computing_on(torch.device('mps'), ComputeSettings()): print('torch._inductor.config' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "False\n"


def test_the_processors_that_bits_may_depend_on_are_described(standin):
    cpu = describe_processor(torch.device("cpu"), 2)
    given = {"num_threads": 2}
    assert describe_processors(ComputeSettings(device="cpu", deterministic=False, **given)) == cpu
    assert describe_processors(ComputeSettings(device="standin:1", **given)) == "standin Stand-in"
    assert describe_processors(ComputeSettings(device="auto", **given)) == f"{cpu} or standin Stand-in"
    assert describe_processors(ComputeSettings(device="standin", deterministic=False)) == "standin Stand-in, not deterministic"
    standin.is_on = False
    assert describe_processors(ComputeSettings(device="auto", **given)) == cpu


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
    prepare_compute(ComputeSettings(device="cpu"))


def test_the_cpu_is_described_with_its_threads():
    torch.set_num_threads(1)
    assert describe_device(torch.device("cpu")) == "cpu (1 threads)"


def test_bf16_rounds_the_forward_pass_and_fp32_does_not():
    layer, x = torch.nn.Linear(3, 4), torch.rand(2, 3)
    with autocast(torch.device("cpu"), "bf16"):
        assert layer(x).dtype == torch.bfloat16
    with autocast(torch.device("cpu"), "fp32"):
        assert torch.equal(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))
