import subprocess
import sys

import pytest
import torch
from stand_in import FIRST, SECOND

from refit.runtime import accelerators
from refit.runtime.accelerators import (
    CPU,
    can_compile,
    emulates_bf16,
    is_short_of_memory,
    list_accelerators,
    measure_free_memory,
    name_accelerator,
    taking_turns,
)
from refit.runtime.randomness import capture_random_state, restore_random_state, seed_everything, set_device


def test_accelerators_are_found_while_they_are_there(standin):
    assert list_accelerators()[-2:] == [FIRST, SECOND]
    assert name_accelerator(FIRST) == "Stand-in"
    standin.is_on = False
    assert FIRST not in list_accelerators()


def test_a_mac_s_accelerator_has_the_name_of_its_chip(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "get_name", lambda: "Apple M3")
    assert name_accelerator(torch.device("mps:0")) == "Apple M3"


def test_free_memory_includes_what_pytorch_keeps_and_does_not_use(standin, monkeypatch):
    standin.memory, standin.used = 1000, 700
    assert measure_free_memory(FIRST) == 300
    monkeypatch.setattr(standin, "memory_reserved", lambda _: 600)
    monkeypatch.setattr(standin, "memory_allocated", lambda _: 200)
    assert measure_free_memory(FIRST) == 700


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        torch.AcceleratorError("CUDA error: CUDA-capable device(s) is/are busy or unavailable"),
    ],
    ids=repr,
)
def test_errors_that_pass_when_others_leave_a_device_are_known(error):
    assert is_short_of_memory(error)


@pytest.mark.parametrize("error", [None, RuntimeError("device-side assert"), MemoryError("out of memory")], ids=repr)
def test_other_errors_are_not(error):
    assert not is_short_of_memory(error)


def test_the_state_of_an_accelerator_goes_on_wherever_it_is_put_back(standin):  # noqa: ARG001
    set_device(SECOND)
    seed_everything(3)
    torch.rand(7, device=SECOND)
    state = capture_random_state()
    expected = torch.rand(5, device=SECOND).cpu()
    set_device(FIRST)
    restore_random_state(state)
    assert torch.equal(torch.rand(5, device=FIRST).cpu(), expected)


def test_a_run_on_the_cpu_keeps_and_disturbs_no_state_of_an_accelerator(standin):
    set_device(None)
    before = standin.get_rng_state(FIRST)
    state = capture_random_state()
    assert state["accelerator"] is None
    torch.rand(5, device=FIRST)
    drawn = standin.get_rng_state(FIRST)
    restore_random_state(state)
    assert torch.equal(standin.get_rng_state(FIRST), drawn)
    assert not torch.equal(before, drawn)


def test_the_driver_names_a_gpu_without_waking_it(monkeypatch, tmp_path):
    monkeypatch.setattr(accelerators, "NVIDIA", tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "asked CUDA")
    for bus, model in (("0000:00:1e.0", "NVIDIA H200"), ("0000:00:1f.0", "NVIDIA H200")):
        (tmp_path / bus).mkdir()
        (tmp_path / bus / "information").write_text(f"Model: \t\t {model}\nIRQ:   \t\t 10\n")
    assert name_accelerator(torch.device("cuda:0")) == "NVIDIA H200"
    (tmp_path / bus / "information").write_text("Model: \t\t Tesla T4\n")
    assert name_accelerator(torch.device("cuda:0")) == "asked CUDA"


def test_only_a_gpu_needs_triton_and_emulates_bf16(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    kinds = [torch.device(kind) for kind in ("cpu", "mps", "cuda")]
    assert [can_compile(kind) for kind in kinds] == [True, True, False]
    assert [emulates_bf16(kind) for kind in kinds] == [False, False, True]


HOLD = (
    "import sys, torch, stand_in; stand_in.register()\n"
    "from refit.runtime.accelerators import taking_turns\n"
    "with taking_turns(torch.device('standin:0'), sys.argv[1] == 'alone', print):\n"
    "    print('held', flush=True); sys.stdin.read()\n"
)


@pytest.mark.parametrize(("other", "is_alone", "waits"), [("", False, False), ("", True, True), ("alone", False, True)])
def test_runs_share_a_device_unless_one_has_to_be_alone(standin, monkeypatch, tmp_path, other, is_alone, waits):  # noqa: ARG001
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", HOLD, other], stdin=pipe, stdout=pipe, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        told = []

        def leave() -> None:
            told.append("waited")
            holder.kill()  # a process that dies lets go

        with taking_turns(FIRST, is_alone, leave):
            assert bool(told) == waits
        with taking_turns(CPU, True, leave):
            assert bool(told) == waits
        holder.kill()
