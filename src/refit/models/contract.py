"""Tries a user's model before it is trained: whether it keeps the contract, and which state no checkpoint would hold."""

import contextlib
import copy
import io
import pickle
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from refit.data.inputs import Inputs, apply_model, count_examples, map_tensors
from refit.data.signature import Signature
from refit.errors import SettingsError
from refit.models.building import build_model
from refit.runtime.randomness import putting_generators_back, seed_everything
from refit.settings import ModelSettings

NUM_ROWS = (1, 2, 33)
"""Numbers of rows that a model is tried with: a single one, and more than the widest registers hold."""


def check_contract(settings: ModelSettings, signature: Signature, sample: Inputs = None) -> None:
    """Try the model with 1, 2 and 33 rows, or with one item and with all of a sample, and refuse what could not be served.

    Args:
        settings: What to build.
        signature: What it is told.
        sample: Inputs of a few items of the user's own; not read for a table.

    Raises:
        SettingsError: It does not give float32 `(B, num_outputs)` for float32 `(B, num_inputs)`, or two passes over the same rows
            in evaluation mode under different seeds differ by a bit.
    """
    if settings.factory is None:
        return
    with _building(settings.model_copy(update={"num_members": None}), signature) as model:  # of an ensemble, one member
        for rows in _list_batches(signature, sample):
            one, other = (_score(model.eval(), settings.factory, rows, signature, seed) for seed in (0, 1))
            if not torch.equal(one.view(torch.int32), other.view(torch.int32)):  # as bits, so that NaN equals NaN
                raise SettingsError(
                    f"model.factory: expected the model of {settings.factory} to score the same rows alike whatever the seed, found"
                    " other logits in a second pass in evaluation mode, as if it drew random numbers there; give"
                    " functional.dropout `training=self.training`, or use nn.Dropout"
                )
        _score(model.train(), settings.factory, rows, signature, seed=0)


def _list_batches(signature: Signature, sample: Inputs) -> list[Inputs]:
    """List batches to try a model with."""
    if signature.tensors:
        return [map_tensors(lambda part: part[:1], sample), sample]
    return [torch.linspace(-1, 1, num_rows * signature.num_inputs).view(num_rows, signature.num_inputs) for num_rows in NUM_ROWS]


def find_unkept_state(settings: ModelSettings, signature: Signature, sample: Inputs = None) -> list[str]:
    """Name attributes that the model changes in every training pass but not in its `state_dict`, such as `layers.1.num_calls`.

    Neither checkpoints nor saved versions hold them. Two passes over the same rows tell them from attributes that are made once,
    or from the rows each time. Attributes that cannot be pickled are ignored.
    """
    if settings.factory is None:
        return []
    found = []
    with _building(settings, signature) as model:
        rows = sample if signature.tensors else torch.randn(2, signature.num_inputs)
        for _ in range(2):
            try:
                apply_model(model, rows)
            except Exception:
                return []  # training raises a better error
            found.append(_pickle_unkept(model))
    return [name for name, value in found[1].items() if value != found[0].get(name)]


@contextlib.contextmanager
def _building(settings: ModelSettings, signature: Signature) -> Iterator[nn.Module]:
    """Build a model to try; generators are put back, and its state, as a factory may return the same module again."""
    with putting_generators_back():
        model = build_model(settings, signature)
        state = copy.deepcopy(model.state_dict())
        try:
            yield model
        finally:
            model.load_state_dict(state, strict=False)  # it may have made more state when it was called
            model.train()


def _score(model: nn.Module, name: str, rows: Inputs, signature: Signature, seed: int) -> Tensor:
    """Logits of the rows, `(B, F)` to contiguous `(B, C)`; raises SettingsError where they are not."""
    seed_everything(seed)
    num_rows, num_outputs = count_examples(rows), signature.num_outputs
    mode = "training" if model.training else "evaluation"
    where = f"for {num_rows} row{'s' * (num_rows > 1)} in {mode} mode"
    try:
        with torch.no_grad():
            logits = apply_model(model, rows)
    except Exception as error:
        raise SettingsError(
            f"model.factory: expected the model of {name} to give logits {where}, found {type(error).__name__}: {error};"
            f" let it take any number of {f'items of {signature.describe_inputs()}' if signature.tensors else 'rows'}"
        ) from error
    shapes = [(num_rows, num_outputs), *([(num_rows,)] if signature.target.kind == "numbers" and num_outputs == 1 else [])]
    if not isinstance(logits, Tensor) or tuple(logits.shape) not in shapes or logits.dtype != torch.float32:
        found = f"{logits.dtype} of {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise SettingsError(
            f"model.factory: expected the model of {name} to give float32 logits of ({num_rows}, {num_outputs}) {where}, found"
            f" {found.removeprefix('torch.')}; keep rows as the first dimension, also a single one, which squeeze() drops, and"
            " return the logits alone"
        )
    return logits.contiguous()


class _ValuePickler(pickle.Pickler):
    """Writes tensors by their values alone; PyTorch's own way also writes how they are stored."""

    def persistent_id(self, value: object) -> object:
        if not isinstance(value, Tensor):
            return None
        return value.dtype, value.shape, value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _pickle_unkept(model: nn.Module) -> dict[str, bytes]:
    """Pickle what modules hold besides parameters and the buffers of their `state_dict`, by attribute name."""
    found, kept_buffers = dict[str, bytes](), model.state_dict().keys()
    of_every_module = vars(nn.Module()).keys()
    for path, module in model.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            continue
        prefix = f"{path}." if path else ""
        buffers = {name: buffer for name, buffer in module.named_buffers(recurse=False) if prefix + name not in kept_buffers}
        for name, value in {**vars(module), **buffers}.items():
            if name not in of_every_module and not callable(value):
                with contextlib.suppress(Exception):
                    _ValuePickler(pickled := io.BytesIO()).dump(value)
                    found[prefix + name] = pickled.getvalue()
    return found
