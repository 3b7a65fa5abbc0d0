"""Loads saved models, which score raw rows."""

import io
import json
import re
from collections.abc import Callable
from os import PathLike, fspath
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from refit.code import digest_user_code
from refit.data.examples import Examples
from refit.data.inputs import count_examples
from refit.data.live_items import LiveItems, build_ordered_loader
from refit.errors import SettingsError, StoreError
from refit.makers import parse_record
from refit.models.building import build_for_weights, probe
from refit.registry import versions
from refit.registry.saving import FROZEN, SAMPLE
from refit.runtime.accelerators import CPU
from refit.settings import SettingsTree, resolve_settings
from refit.store.store import Store
from refit.training.checkpoints import digest_weights
from refit.training.evaluation import compute_outputs
from refit.training.objective import Classification
from refit.training.objectives import Quantiles, build_objective
from refit.training.tuning import Tuning

DEFAULTS = SettingsTree()
ROUNDING = 1e-3
"""Largest difference of logits, relative to the largest logit, between processors and thread counts. Other code differs more."""


class Model:
    """A trained model on the CPU, with the preparation of its rows.

    Rows are a polars or pandas frame, or a mapping of column names to lists. Columns may have any order; unknown ones are ignored.
    """

    def __init__(self, module: nn.Module, manifest: Examples, settings: SettingsTree, tuning: Tuning | None = None) -> None:
        self.module = module
        self.manifest = manifest
        self.settings = settings
        self.reference: str | None = None
        """Name and number of its version, as in `penguins@v3`, if it was loaded by a name."""
        self._find_now: Callable[[Model], Model] | None = None
        self.tuning = tuning or Tuning()
        self.objective = build_objective(manifest.signature.target, tuning=tuning)

    @property
    def classes(self) -> NDArray[Any]:
        """The classes, `(C,)`, as the target column writes them."""
        return Classification(tuple(self.manifest.classes)).labels

    def predict(self, rows: Any) -> NDArray[Any]:
        """Return what is predicted for each row: the likeliest class `(N,)`, as the target column writes it, labels or numbers.

        Raises:
            DataError: A column is missing or has a value that training would refuse.
        """
        return self.objective.predict(self.predict_logits(rows))

    def predict_proba(self, rows: Any) -> NDArray[np.float32]:
        """Return the probability of each class, `(N, C)`, in the order of `classes`; raises as `predict` does."""
        probabilities: NDArray[np.float32] = self.objective.answer(self.predict_logits(rows))[1].numpy()
        return probabilities

    def predict_quantiles(self, rows: Any) -> NDArray[np.float64]:
        """Return the quantiles of each row, `(N, Q)`, of the levels in `training.quantiles`; raises as `predict` does.

        Raises:
            SettingsError: The model does not tell quantiles.
        """
        if not isinstance(self.objective, Quantiles):
            raise SettingsError(
                "predict_quantiles: expected a model that was trained with training.loss `quantile`, found another; train it so"
            )
        quantiles: NDArray[np.float64] = self.objective.answer(self.predict_logits(rows))[1].numpy()
        return quantiles

    def predict_logits(self, rows: Any) -> Tensor:
        """Return the outputs before the softmax, `(N, C)`; raises as `predict` does."""
        x = self.manifest.prepare(rows)
        num_rows = len(x) if isinstance(x, LiveItems) else count_examples(x)
        loader = build_ordered_loader(x, torch.zeros(num_rows, dtype=torch.int64))
        return compute_outputs(self.module, loader, CPU, self.settings.compute.precision)[0]

    def refresh(self) -> "Model":
        """Return the model that the name it was loaded by means now: itself, unless another version has become the champion.

        A service calls it now and then, and goes on with what it returns. If nothing has changed, it reads one small file. Other
        threads may go on with this model, which never changes.

        Raises:
            StoreError: The store cannot be read, or the version is damaged.
            SettingsError: The model was loaded by a path; or as `load_model`.
        """
        if self._find_now is None:
            raise SettingsError(
                "refresh: expected a model that was loaded by a name such as penguins@champion, found one by a path"
            )
        return self._find_now(self)


REFERENCE = re.compile(r"[^/@]+@[^/@]+")
"""A version's name, which no path is."""


def load_model(path: str | PathLike[str], held_back: bool = False, trust: bool = False, *, store: str | None = None) -> Model:
    """Load a saved version, by its name as in `penguins@champion` or `penguins@v3`, or by its folder or the fsspec URL of one.

    Whoever can write to a store decides what a version there predicts, but runs no code on this machine. Weights are read as
    tensors only, and the factory that a version names is imported and called only if `model.factory` names it here, too, in the
    environment, `.env` or `refit.toml` of the working directory.

    Args:
        path: The version's name, or its folder, such as `refit-store/models/penguins/v3`.
        held_back: Take the weights that the scores are of, which have not learned from the test rows. They differ only if
            `training.refit_on_all` was set.
        trust: Call any factory that the version names, as the setting `store.trust` does.
        store: The store that a name is looked up in; None takes the setting `store.url`.

    Raises:
        StoreError: There is no such version, or it is damaged.
        SettingsError: The model's own factory is not trusted, cannot be imported here, or now builds another network, which needs
            other weights or gives other logits.
    """
    if REFERENCE.fullmatch(fspath(path)):
        named = Store(resolve_settings()[0].store.url if store is None else store)
        return _load_by_name(named, fspath(path), trust, held_back)
    folder, _, version = fspath(path).rstrip("/").rpartition("/")
    place = Store(folder or ".")
    if not place.exists(f"{version}/version.json"):
        raise StoreError(
            f"{fspath(path)}: expected the folder of a saved version, such as refit-store/models/NAME/v1, found none there;"
            " `refit models` lists versions, and the result of a training has its `model.path`"
        )
    return _load(place, version, None, trust, held_back)


def _load_by_name(store: Store, reference: str, trust: bool, held_back: bool) -> Model:
    """Load the version that a name means now, as a model that can find out what it means later."""
    name, number = found = versions.resolve_reference(store, reference)
    model = _load(store, versions.version_folder(name, number), None, trust, held_back)
    model.reference = f"{name}@v{number}"

    def find_now(known: Model) -> Model:
        is_same = versions.resolve_reference(store, reference) == found
        return known if is_same else _load_by_name(store, reference, trust, held_back)

    model._find_now = find_now
    return model


def load_version(store: Store, name: str, number: int, local: SettingsTree = DEFAULTS, held_back: bool = False) -> Model:
    """Load a version of the store, whose factory the `local` settings must name or trust; raises as `load_model` does."""
    return _load(store, versions.version_folder(name, number), local, local.store.trust, held_back)


def _load(store: Store, folder: str, local: SettingsTree | None, trust: bool, held_back: bool) -> Model:
    """Load a version. The settings of this machine are read only if `local` is None and a factory needs them."""
    path = store.location(folder)
    files = dict(versions.read_files(store, folder))
    try:
        settings = SettingsTree.model_validate_json(files["settings.json"])
        manifest = parse_record(files["manifest.json"])
        record = json.loads(files["version.json"])
        judged = record.get("held_back") if held_back else None
        tuning = Tuning.model_validate(record["tuning"]) if record.get("tuning") else None
        known, file = (record, "model.pt") if judged is None else (judged, "held_back.pt")
        expected = torch.tensor(known["probe"])
        sample, _ = manifest.read_sample(files.get(SAMPLE))
        weights = torch.load(io.BytesIO(files[file]), weights_only=True)
        if FROZEN in files:
            weights |= torch.load(io.BytesIO(files[FROZEN]), weights_only=True)
            weights = {name: weights[name] for name in record["tensors"]}
        if digest_weights(weights) != known["weights_digest"]:
            raise ValueError("other weights than were saved")
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, EOFError, UnpicklingError) as error:
        cause = "more than tensors in model.pt" if isinstance(error, UnpicklingError) else error  # torch advises to run them
        raise StoreError(f"{path}: expected a saved version, found a damaged one: {cause}; load another") from error
    if not trust:
        _refuse_unknown_functions(path, settings, manifest, local)
    module = build_for_weights(settings.model, manifest.signature)
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        builder, remedy = settings.model.factory, "restore that function"
        if builder is None:
            builder, remedy = f"`{settings.model.architecture}` of Refit", "load it with the Refit that saved it, or train anew"
        raise SettingsError(
            f"{path}: expected the network that it was saved from, as {builder} builds it, found another: {error}; {remedy}"
        ) from error
    found = torch.tensor(probe(module, sample))
    tolerance = ROUNDING * max(1.0, expected.nan_to_num(0, 0, 0).abs().max().item())
    if not torch.allclose(found, expected, rtol=0, atol=tolerance, equal_nan=True):
        raise SettingsError(
            f"{path}: expected the logits that it gave when it was saved, found others, as {_explain(record, settings)}; "
            "restore the code and packages it was saved with, or train again"
        )
    return Model(module, manifest, settings, tuning)


def _refuse_unknown_functions(path: str, settings: SettingsTree, manifest: Examples, local: SettingsTree | None) -> None:
    """Raise SettingsError unless the local settings name a version's functions or trust the store: it can name any function."""
    collate = None if manifest.source is None else manifest.source.collate
    functions = {"model.factory": settings.model.factory, "loader.collate": collate}
    functions = {setting: function for setting, function in functions.items() if function is not None}
    local = local or (resolve_settings()[0] if functions else DEFAULTS)
    if local.store.trust:
        return
    here = {"model.factory": local.model.factory, "loader.collate": local.loader.collate}
    for setting, function in functions.items():
        if here[setting] != function:
            known = f"`{here[setting]}`" if here[setting] else "none"
            raise SettingsError(
                f"{path}: expected a version of the {setting.partition('.')[2]} that {setting} names here, {known}, found one of"
                f" `{function}`, which would be called; if you know that function, set {setting} to `{function}`, or trust all"
                " versions of the store (--trust, trust=True, or the setting store.trust)"
            )


def _explain(record: dict[str, Any], settings: SettingsTree) -> str:
    """Say what has changed since a version was saved."""
    before = {"torch": record["torch"], **record["code"]}
    now = {"torch": torch.__version__, **digest_user_code(settings.model.factory)}
    changed = sorted(name.removeprefix("code.") for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    return f"{' and '.join(changed)} changed since" if changed else "its network draws random numbers or depends on something else"
