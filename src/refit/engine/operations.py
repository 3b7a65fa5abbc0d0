"""What is compiled in place of some of PyTorch's operations, as it takes less time."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch._ops import OpOverload


def write_out(x: Tensor) -> Tensor:
    """Have Inductor keep `x` in memory, row by row; else it may lay columns out, or compute `x` anew wherever it is read."""
    x = x.contiguous()
    return x.as_strided(x.shape, x.stride())


def multiplies_blocks() -> bool:
    """Whether fp32 products are made by `MULTIPLY`."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def list_functions() -> list[str]:
    """The C++ that a program on this processor has in place of PyTorch's functions, as Inductor takes it."""
    return [KEEP, MULTIPLY] if multiplies_blocks() else [KEEP]


def _add_product(bias: Tensor, x: Tensor, weight: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """A linear layer whose bias goes into the loop of what follows; PyTorch's own copies it first, which costs small ones 1 µs."""
    is_plain = beta == alpha == 1 and x.is_cpu and x.dtype == torch.float32
    return x.mm(weight) + bias if is_plain else NotImplemented


def _multiply(left: Tensor, right: Tensor) -> Tensor:
    """A product of matrices that lie row by row, as `MULTIPLY` takes them."""
    is_laid_out = left.is_contiguous() and right.is_contiguous()
    is_plain = left.is_cpu and left.dtype == torch.float32 and multiplies_blocks()
    return write_out(left).mm(write_out(right)) if is_plain and not is_laid_out else NotImplemented


def _average_loss(log_shares: Tensor, y: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    """The loss of a batch and its rows, without the classes to ignore that PyTorch looks for: there are none."""
    return -log_shares.gather(1, y.unsqueeze(1)).mean(), log_shares.new_full((), len(y))


def _spread_gradient(gradient: Tensor, log_shares: Tensor, y: Tensor, *_: object) -> Tensor:
    """The gradient of `_average_loss` in one loop; PyTorch's own first fills zeros, then writes to places among them."""
    is_class = torch.arange(log_shares.shape[1], device=y.device) == y.unsqueeze(1)
    return torch.where(is_class, -gradient / len(y), 0.0)


def _draw_mask(x: Tensor, p: float = 0.5, **_: object) -> Tensor:
    """The draws of dropout, by an operation that writes to no input; those that do, Inductor may move behind their readers."""
    is_plain = x.is_cpu and p < 1  # others are not drawn
    return x.copy_(torch.ops.aten.native_dropout.default(x, 1 - p, True)[1]) if is_plain else NotImplemented


LIGHTER: dict[OpOverload, Callable[..., object]] = {
    torch.ops.aten.addmm.default: _add_product,
    torch.ops.aten.mm.default: _multiply,
    torch.ops.aten.nll_loss_forward.default: _average_loss,
    torch.ops.aten.nll_loss_backward.default: _spread_gradient,
    torch.ops.aten.bernoulli_.float: _draw_mask,
}
"""What is compiled in place of PyTorch's operations: `compute_gradients` takes means, and classes are never left out."""

KEEP = r"""
"C++" {
#include <ATen/core/TensorBase.h>

static AOTITorchError keep(
    at::TensorBase& kept, int64_t ndim, const int64_t* sizes, const int64_t* strides,
    int32_t type, int32_t device_type, int32_t device, AtenTensorHandle* out) {
  constexpr size_t LARGEST = 65536;  // bytes; larger ones take longer to fill than to make
  if (kept.defined() && kept.use_count() == 1 && kept.storage().use_count() == 1) {  // nobody has it, nor a view
    return aoti_torch_new_tensor_handle(reinterpret_cast<AtenTensorHandle>(&kept), out);
  }
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(ndim, sizes, strides, type, device_type, device, out));
  const at::TensorBase& made = *reinterpret_cast<at::TensorBase*>(*out);
  if (made.nbytes() <= LARGEST) {
    kept = made;
  }
  return AOTI_TORCH_SUCCESS;
}
#define aoti_torch_empty_strided(...) [&] { static at::TensorBase kept; return keep(kept, __VA_ARGS__); }()
}
"""
"""C++ that a program calls instead of PyTorch's `empty_strided`: each place in it keeps its tensor, if small, from call to call.

Small steps take a sixth less time. A program runs in one thread at a time, and `static` has it keep its own when another is loaded.
The system unloads none, so that what it keeps stays as long as the process. Inductor puts the text between `extern` and `;` before
a program: hence how it begins and ends.
"""

MULTIPLY = r"""
"C++" {
#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>
#include <algorithm>

inline AOTITorchError multiply(AtenTensorHandle out, AtenTensorHandle left, AtenTensorHandle right) {
  constexpr int64_t INNER = 256, COLUMNS = 128;  // a block of `right` of 128 kB, which stays in the cache of a core
  constexpr int64_t FEWEST = 1000000;  // multiplications for which another thread pays
  constexpr int64_t FEWEST_ROWS = 16;
  int32_t type;
  int64_t *left_sizes, *right_sizes, *out_strides, *left_strides, *right_strides;
  void *out_data, *left_data, *right_data;
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(out, &type));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(left, &left_sizes));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(right, &right_sizes));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(out, &out_strides));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(left, &left_strides));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(right, &right_strides));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(out, &out_data));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(left, &left_data));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(right, &right_data));
  const bool is_plain = type == aoti_torch_dtype_float32() && out_strides[1] == 1 && left_strides[1] == 1 && right_strides[1] == 1;
  const int64_t m = left_sizes[0], k = left_sizes[1], n = right_sizes[1];
  if (!is_plain || m * k * n == 0) {
    return aoti_torch_cpu_mm_out(out, left, right);
  }
  at::parallel_for(0, m, std::max(FEWEST_ROWS, FEWEST / (k * n)), [&](int64_t first, int64_t last) {
    const float* rows = static_cast<float*>(left_data) + first * left_strides[0];
    float* results = static_cast<float*>(out_data) + first * out_strides[0];
    for (int64_t column = 0; column < n; column += COLUMNS) {
      for (int64_t inner = 0; inner < k; inner += INNER) {
        at::native::cpublas::brgemm(
            last - first, std::min(COLUMNS, n - column), std::min(INNER, k - inner),
            left_strides[0], right_strides[0], out_strides[0], /*add_C=*/inner > 0,
            rows + inner, static_cast<float*>(right_data) + inner * right_strides[0] + column, results + column);
      }
    }
  });
  return AOTI_TORCH_SUCCESS;
}
#define aoti_torch_cpu_mm_out multiply
}
"""
"""C++ that a program calls instead of PyTorch's `mm`, by oneDNN's kernels for blocks of matrices.

Its kernels take 0.1 µs to begin; PyTorch's `mm` by MKL takes 0.5, and by oneDNN as a whole 10. MKL, PyTorch's choice, also leaves
AVX-512 to Intel's processors.
"""
