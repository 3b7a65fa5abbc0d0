"""Faster replacements for some of PyTorch's operations in compiled steps."""

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch._ops import OpOverload

MEAN, NO_CLASS = 1, -100
"""How PyTorch's operations write that a loss is a mean, and that no class is left out."""


def write_out(x: Tensor) -> Tensor:
    """Have Inductor keep `x` in memory, row by row; else it may store it by columns, or compute it again wherever it is read."""
    strides = [math.prod(x.shape[place + 1 :]) for place in range(x.dim())]  # a matrix of one column may have others
    return x.contiguous().as_strided(x.shape, strides)


def multiplies_blocks() -> bool:
    """Whether fp32 products are made by `MULTIPLY`."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def list_functions() -> dict[OpOverload, list[str]]:
    """The C++ of registered operators, as Inductor takes it."""
    return {torch.ops.refit.multiply_blocks.default: [MULTIPLY]} if multiplies_blocks() else {}


@torch.library.custom_op("refit::multiply_blocks", mutates_args=())
def multiply_blocks(left: Tensor, right: Tensor) -> Tensor:
    """Multiply matrices that lie row by row; compiled by `MULTIPLY`."""
    return left.mm(right)


@multiply_blocks.register_fake
def _allocate_product(left: Tensor, right: Tensor) -> Tensor:
    return left.new_empty(left.shape[0], right.shape[1])


def _add_product(bias: Tensor, x: Tensor, weight: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """A linear layer whose bias is added in the loop of what follows; PyTorch's own copies it first, 1 µs of a small layer."""
    is_plain = beta == alpha == 1 and x.is_cpu and x.dtype == torch.float32
    return x.mm(weight) + bias if is_plain else NotImplemented


def _multiply(left: Tensor, right: Tensor) -> Tensor:
    """A product by blocks, of matrices laid out row by row."""
    is_plain = left.is_cpu and left.dtype == torch.float32 and left.numel() * right.numel() and multiplies_blocks()
    return torch.ops.refit.multiply_blocks(write_out(left), write_out(right)) if is_plain else NotImplemented


def _average_loss(log_shares: Tensor, y: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    """The loss of a batch and its number of rows; PyTorch's own looks for ignored classes, of which there are none."""
    is_plain = _is_plain_mean(log_shares, *options)
    return (-log_shares.gather(1, y.unsqueeze(1)).mean(), log_shares.new_full((), len(y))) if is_plain else NotImplemented


def _spread_gradient(gradient: Tensor, log_shares: Tensor, y: Tensor, *options: Any) -> Tensor:
    """The gradient of `_average_loss` in one loop; PyTorch's own first fills zeros, then writes to places among them."""
    if not _is_plain_mean(log_shares, *options):
        return cast(Tensor, NotImplemented)
    is_class = torch.arange(log_shares.shape[1], device=y.device) == y.unsqueeze(1)
    return torch.where(is_class, -gradient / len(y), 0.0)


def _is_plain_mean(log_shares: Tensor, weight: Tensor | None, reduction: int, ignored: int, *_: Tensor) -> bool:
    """Whether a loss is the mean over the rows of a batch, `(B, C)`, each of which counts as much as the others."""
    return log_shares.dim() == 2 and weight is None and reduction == MEAN and ignored == NO_CLASS


def _draw_mask(x: Tensor, p: float = 0.5, **_: object) -> Tensor:
    """Dropout's draws, by an operation that writes to no input; Inductor may move one that does behind its readers."""
    is_plain = x.is_cpu and p < 1  # p = 1 draws nothing
    return x.copy_(torch.ops.aten.native_dropout.default(x, 1 - p, True)[1]) if is_plain else NotImplemented


LIGHTER: dict[OpOverload, Callable[..., object]] = {
    torch.ops.aten.addmm.default: _add_product,
    torch.ops.aten.mm.default: _multiply,
    torch.ops.aten.nll_loss_forward.default: _average_loss,
    torch.ops.aten.nll_loss_backward.default: _spread_gradient,
    torch.ops.aten.bernoulli_.float: _draw_mask,
}
"""Replacements for PyTorch's operations, used unless they return `NotImplemented`."""

MULTIPLY = r"""
"C++" {
#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>
#include <algorithm>
}

extern "C" inline AOTITorchError aoti_torch_cpu_multiply_blocks(
    AtenTensorHandle left, AtenTensorHandle right, AtenTensorHandle* out) {
  constexpr int64_t INNER = 256, COLUMNS = 128;  // a block of `right` of 128 kB, which stays in the cache of a core
  constexpr int64_t FEWEST = 1000000;  // multiplications for which another thread pays
  constexpr int64_t FEWEST_ROWS = 16;
  int64_t *left_sizes, *right_sizes, *left_strides, *right_strides;
  void *out_data, *left_data, *right_data;
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(left, &left_sizes));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(right, &right_sizes));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(left, &left_strides));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(right, &right_strides));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(left, &left_data));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(right, &right_data));
  const int64_t m = left_sizes[0], k = left_sizes[1], n = right_sizes[1];
  if (left_strides[1] != 1 || right_strides[1] != 1) {
    return AOTI_TORCH_FAILURE;
  }
  const int64_t sizes[] = {m, n}, strides[] = {n, 1};
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      2, sizes, strides, aoti_torch_dtype_float32(), aoti_torch_device_type_cpu(), 0, out));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(*out, &out_data));
  at::parallel_for(0, m, std::max(FEWEST_ROWS, FEWEST / (k * n)), [&](int64_t first, int64_t last) {
    const float* rows = static_cast<float*>(left_data) + first * left_strides[0];
    float* results = static_cast<float*>(out_data) + first * n;
    for (int64_t column = 0; column < n; column += COLUMNS) {
      for (int64_t inner = 0; inner < k; inner += INNER) {
        at::native::cpublas::brgemm(
            last - first, std::min(COLUMNS, n - column), std::min(INNER, k - inner),
            left_strides[0], right_strides[0], n, /*add_C=*/inner > 0,
            rows + inner, static_cast<float*>(right_data) + inner * right_strides[0] + column, results + column);
      }
    }
  });
  return AOTI_TORCH_SUCCESS;
}
"""
"""C++ of `multiply_blocks`, by oneDNN's kernels for blocks of matrices, as the function that Inductor calls.

These kernels take 0.1 µs to begin. PyTorch's `mm` takes 0.5 by MKL, and 10 by oneDNN as a whole. MKL, PyTorch's choice, also uses
AVX-512 on Intel's processors only. Inductor puts the text between `extern` and `;` before a program: hence its first and last line.
"""
