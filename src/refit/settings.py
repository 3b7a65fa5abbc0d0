"""The settings tree. Values come from the command line, the environment, `.env`, `refit.toml` or the defaults.

Flows take the plain `SettingsTree`; `resolve_settings` makes complete and checked `Settings` from the given values.
"""

import codecs
import contextlib
import difflib
import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, ErrorDetails
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from refit.errors import SettingsError
from refit.texts import SECRET, has_secret, list_names, say_score

SETTINGS_FILE = Path("refit.toml")
NOTEBOOK = "notebook"
"""The name of the built-in table. It comes from a notebook, and its results are the notebook's."""
PRESETS: dict[str, dict[str, Any]] = {
    "notebook": {
        "loader.batch_size": 2,
        "loader.drop_last": True,
        "model.hidden_sizes": [16, 16],
        "optimizer.name": "sgd",
        "optimizer.lr": 1.0,
        "training.num_epochs": 3,
        "training.patience": None,
        "training.baseline": "none",
    },
    "table": {  # chosen by validation loss in benchmarks/tables.py
        "model.architecture": "tabm",
        "model.number_embedding": "piecewise",
        "model.hidden_sizes": [128, 128],
        "model.dropout": 0.1,
        "optimizer.lr": 0.002,
        "optimizer.weight_decay": 0.0003,
        "training.num_epochs": 200,
        "training.patience": "auto",
    },
    "realmlp": {
        "loader.batch_size": 256,
        "model.architecture": "realmlp",
        "model.number_embedding": "periodic",
        "model.hidden_sizes": [256, 256, 256],
        "model.activation": "selu",
        "model.dropout": 0.15,
        "optimizer.lr": 0.04,
        "optimizer.options": {"betas": [0.9, 0.95]},
        "optimizer.weight_decay": 0.02,
        "optimizer.schedule": "coslog4",
        "training.label_smoothing": 0.1,
        "training.regularization": "flat_cosine",
        "training.num_epochs": 256,
        "training.patience": None,
    },
    "plain": {},
}
"""Defaults that differ from those of the fields, by dotted name."""
LR_OF_SGD = 0.01
ROWS_OF_A_BATCH = "256, or 32 below 5,000 train rows"
ENV_PREFIX = "REFIT_"
SPAN = r"[1-9]\d{0,5}(s|min|h|d|w)"
"""A span of time: seconds, minutes, hours, days or weeks."""
SPAN_OF_A_KIND = r"(-?[\d.]+)\s*([a-zA-Z]+)"
"""Text that may be meant as a span."""
MODEL_NAME = r"^[a-z0-9][a-z0-9_-]*$"
FACTORY = r"^[\w.]+:\w+$"
SCHEDULE = r"^(constant|cosine|coslog4|[A-Z]\w+)$"
LOSS = r"^([\w.]+:\w+|cross_entropy|squared|absolute|huber|quantile|binary)$"
DEVICE = r"^(auto|cpu|[a-z]+(:\d+)?)$"
PATTERNS = {
    f"^{SPAN}$": "a span of time such as `14d`",
    MODEL_NAME: "lower-case letters, digits, `-` and `_`, a letter or digit first",
    FACTORY: "`package.module:function`",
    SCHEDULE: "`constant`, `cosine`, `coslog4`, or a class of torch.optim.lr_scheduler such as `StepLR`",
    LOSS: "`cross_entropy`, `squared`, `absolute`, `huber`, `quantile`, `binary`, or `package.module:function`",
    DEVICE: "`auto`, `cpu`, `cuda`, `cuda:N` or `mps`",
}
"""What each pattern asks for, in words."""
MAX_NAME_LENGTH = 64
BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}


def _read_list(value: Any) -> Any:
    """Parse a JSON list from the environment or the command line, where cyclopts wraps it in another list."""
    if isinstance(value, str) and value.startswith("["):
        with contextlib.suppress(json.JSONDecodeError):
            return json.loads(value)
    is_nested = isinstance(value, list) and len(value) == 1 and isinstance(value[0], list)
    return value[0] if is_nested else value


def _read_object(value: Any) -> Any:
    """Parse a JSON object, or a TOML table, from the environment or the command line, and refuse what JSON cannot hold."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        with contextlib.suppress(json.JSONDecodeError):
            return json.loads(value)
        with contextlib.suppress(tomllib.TOMLDecodeError):  # as `refit.toml` has it
            value = tomllib.loads(f"value = {value}")["value"]
    try:
        json.dumps(value)
    except TypeError as error:
        raise ValueError(f"expected numbers, texts, true, false, and lists of them, found other values: {error}") from error
    return value


def _read_size(value: Any) -> Any:
    """Return a share as float, a number of rows as int, a span as text. The environment and the command line give all as text."""
    if isinstance(value, str) and re.fullmatch(SPAN, value):
        return value
    size = value
    for kind in (float, int):  # a text that is a whole number is both, and ends as int
        with contextlib.suppress(ValueError):
            size = kind(value) if isinstance(value, str) else value
    is_share = isinstance(size, int | float) and not isinstance(size, bool) and 0 <= size < 1
    if not is_share and (type(size) is not int or size < 1):
        remedy = _explain_span(str(value))
        raise ValueError(
            f"expected a share in [0, 1), a number of rows, or a span of time such as `14d`, found {value!r}; {remedy}"
        )
    return float(size) if is_share else size


def _explain_span(text: str) -> str:
    """Say how to fix a text that is not a span but may be meant as one."""
    match = re.fullmatch(SPAN_OF_A_KIND, text.strip())
    if match is None:
        return "name one of these"
    number, unit = match.groups()
    if not re.fullmatch("(s|min|h|d|w)", unit):
        return "the unit of a span is `s`, `min`, `h`, `d` or `w`"
    if not number.strip("0."):
        return "write `0` for no rows"
    if not number.isdecimal():
        return "take a whole number of a smaller unit, such as `36h` for one and a half days"
    if len(number.lstrip("0")) > 6:
        return "take at most 6 digits, of a larger unit if need be"
    return f"write it as `{number.lstrip('0')}{unit}`"


def _read_patience(value: object) -> object:
    """Read a number of epochs, maybe from text, and refuse one below 1."""
    number = int(value) if isinstance(value, str) and value.strip().isdecimal() else value
    if number not in (None, "auto") and (type(number) is not int or number < 1):
        raise ValueError(f"expected a whole number of at least 1, `auto` or none, found {value!r}; change it")
    return number


def refuse_secret(url: str) -> str:
    """Return the URL unchanged; raise ValueError if it has a user, a query or a fragment."""
    if has_secret(url):
        raise ValueError(
            f"expected a URL without a secret, found a user, a query or a fragment in {url.partition('://')[0]}://…;"
            " put it into environment variables of the machine that runs, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY,"
            " or FSSPEC_HTTP"
        )
    return url


def check_url(url: str, where: str) -> None:
    """Raise SettingsError for a URL that may hold a secret; `where` names the argument."""
    try:
        refuse_secret(url)
    except ValueError as error:
        raise SettingsError(f"{where}: {error}") from error


def _refuse_empty(url: str) -> str:
    if not url.strip():
        raise ValueError("expected a path or URL, found an empty text, as from a variable that is not set; name one")
    return url


def _read_separator(sign: str | None) -> str | None:
    """Return a single sign; a tab may be written in words, as shells make it hard to type."""
    sign = {"tab": "\t", "\\t": "\t"}.get(sign or "", sign)
    if sign is not None and (len(sign) != 1 or not sign.isascii() or sign in '"\r\n'):
        raise ValueError(f"expected one sign such as `;`, or `tab`, found {sign!r}; name one")
    return sign


def _check_encoding(name: str | None) -> str | None:
    with contextlib.suppress(LookupError):
        return None if name is None else codecs.lookup(name).name
    raise ValueError(f"expected an encoding that Python knows, such as `utf-8`, `cp1252` or `utf-16`, found {name!r}; name one")


Url = Annotated[
    str, AfterValidator(_refuse_empty), AfterValidator(refuse_secret), Field(json_schema_extra={"pattern": f"^(?!.*({SECRET}))"})
]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Size = Annotated[
    Annotated[str, Field(pattern=f"^{SPAN}$")] | Annotated[int, Field(ge=1)] | Annotated[float, Field(ge=0, lt=1)],
    BeforeValidator(_read_size),
]
"""A part of the rows: a share, a number of rows, or a span of time."""
TextList = Annotated[list[str], BeforeValidator(_read_list)]


Options = Annotated[dict[str, Any], BeforeValidator(_read_object)]
"""Keyword arguments of a user's function."""


class Section(BaseModel):
    """One part of the tree: frozen, and strict about names."""

    # Errors hide their input: logs show them, and a URL may hold a secret. `explain_validation` shows it where that is safe.
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False, hide_input_in_errors=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _read_text(cls, value: Any, info: ValidationInfo) -> Any:
        """Read `none` and `None` as None: the command line and the environment have no other way to write it."""
        if value in ("none", "None") and type(None) in get_args(cls.model_fields[str(info.field_name)].annotation):
            return None
        return value

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Build the schema of an empty form, as the form would send a filled-in default as a given value."""
        schema = handler.resolve_ref_schema(handler(core_schema))
        for name, field in cls.model_fields.items():
            shown = schema["properties"][name]
            default = shown.pop("default")
            if not isinstance(field.default, Section):
                shown["description"] = f"{describe_field(field)} Default: {'none' if default is None else json.dumps(default)}."
            if shown.get("type") == "boolean":
                del shown["type"]  # it would become a switch, which cannot be left open
                shown["enum"] = [True, False]
        return schema


def describe_field(field: FieldInfo) -> str:
    """Return the sentence of a setting, followed by its choices and bounds unless the sentence names them."""
    sentence = field.description or ""
    choices = [choice for choice in get_args(field.annotation) if isinstance(choice, str)]
    if any(choice not in sentence for choice in choices):
        sentence += f" One of {', '.join(f'`{choice}`' for choice in choices)}."
    bounds = _describe_bounds(field.metadata)
    if bounds and " in [" not in sentence:
        sentence += f" {bounds.capitalize()}."
    return sentence


def _describe_bounds(metadata: Iterable[Any]) -> str:
    rules = [(sign, getattr(rule, sign)) for rule in metadata for sign in BOUNDS if hasattr(rule, sign)]
    bounds = [f"{BOUNDS[sign]} {f'2^{bound.bit_length() - 1}' if bound == 2**63 else f'{bound:g}'}" for sign, bound in rules]
    return " and ".join(bounds)


class DataSettings(Section):
    """Where the rows come from, and how they are split."""

    source: Url = NOTEBOOK
    """A CSV or Parquet file, a folder or glob of them (a path or any fsspec URL), or `notebook`, the built-in toy table."""
    target: str = "y"
    """The column to predict: classes (strings, whole numbers or booleans), or numbers."""
    task: Literal["auto", "classification", "regression"] = "auto"
    """`regression` predicts numbers, `classification` one of the target's values; `auto` chooses by these and says why."""
    features: Annotated[list[str] | None, BeforeValidator(_read_list)] = None
    """The columns to learn from; None takes all but the target, the time column of a `time` split, row numbers and ids."""
    exclude: TextList = []
    """Columns not to learn from."""
    kinds: Annotated[dict[str, Literal["number", "category", "date", "text"]], BeforeValidator(_read_object)] = {}
    """What columns hold, such as `{"zip": "category"}`: `number`, `category`, `date` or `text`. Others are found by their cells."""
    formats: Annotated[dict[str, str], BeforeValidator(_read_object)] = {}
    """How columns write dates, such as `{"sold": "%d/%m/%Y"}`, or numbers (`1.234,5`); others are read in the only way there is."""
    max_one_hot: int | None = Field(9, ge=0)
    """Columns of more categories are one input, a code that the network embeds; None gives each category an input of its own."""
    null_values: TextList = ["", "NA", "N/A", "NaN", "nan", "null", "NULL"]
    """Texts that mean a missing value."""
    separator: Annotated[str | None, AfterValidator(_read_separator)] = None
    """The sign between the cells of a CSV file, or `tab`; None finds it: a comma, a semicolon, a tab or a bar."""
    encoding: Annotated[str | None, AfterValidator(_check_encoding)] = None
    """The encoding of a CSV file's text, such as `cp1252`; None finds it: UTF-8 if possible, else by its letters."""
    header: bool | None = None
    """Whether the first row of a CSV file holds the names; None finds it. Without one, columns are `column_1` and so on."""
    union: bool = False
    """Whether files of a folder or glob may lack columns that others have; their values are missing there."""
    test_source: Url | None = None
    """Separate files that hold the test rows; None takes the test rows from `source`."""
    val: Size | None = None
    """Rows for validation: a share in [0, 1), a number, or a span such as `14d`; None means 0.15, and 0 for the notebook table."""
    test: Size | None = None
    """Rows for the test: a share in [0, 1), a number, or a span; None means 0.15, or 0 if `test_source` is set."""
    split: Literal["random", "time"] = "random"
    """`random`: seeded and stratified by class. `time`: the newest rows are for the test, those before them for validation."""
    time_column: str | None = None
    """The column of date-times or numbers that orders a `time` split. Spans (`90min`, `12h`, `14d`, `8w`) need date-times."""
    window: Size | None = None
    """How many of the newest train rows of a `time` split to train on: a share in [0, 1), a number, or a span; None takes all."""
    gap: Size | None = None
    """Rows left out before validation and before the test of a `time` split: a share in [0, 1), a number, or a span."""
    split_by: Literal["rows", "features"] = "rows"
    """`rows` splits row by row; `features` puts all rows with equal features into the same split."""
    group_column: str | None = None
    """A column such as a customer number: all rows with the same value go into the same split. It is not used as a feature."""
    factory: str | None = Field(None, pattern=FACTORY)
    """Your own data sets instead of a table, `package.module:function`; it returns one, or a mapping of `train`, `val`, `test`."""
    options: Options = {}
    """Keyword arguments that this function is called with, such as `{"folder": "images"}`."""
    inputs: TextList = []
    """Files, folders or globs that your data sets read. They are data: if none of them changes, nothing is trained."""
    predict_factory: str | None = Field(None, pattern=FACTORY)
    """Your own function that makes a data set of the source to score, `package.module:function`, called as `function(source)`."""
    cache: bool = False
    """Whether items, which must not be random then, are read once and kept as tensors in the store."""
    max_bad_items: int = Field(0, ge=0)
    """Items of your data sets that are left out if they cannot be used, at most. With 1 or more, all are read once to find them."""


class LoaderSettings(Section):
    """How rows become batches."""

    batch_size: int | None = Field(None, ge=1)
    """Rows in a training batch; None means 256, or 32 below 5,000 train rows."""
    drop_last: bool = False
    """Whether to leave out a last, shorter training batch."""
    num_workers: int = Field(0, ge=0, le=1024)
    """Processes that read the items of your own data set; 0 reads them while nothing is computed. No bit depends on it."""
    prefetch_factor: int = Field(2, ge=1)
    """Batches that each of these processes reads ahead."""
    pin_memory: bool = False
    """Whether batches are copied to a GPU from memory that the system cannot move, while it computes."""
    persistent_workers: bool = False
    """Whether these processes live on between epochs."""
    collate: str | None = Field(None, pattern=FACTORY)
    """Your own function that makes a batch of a list of items, `package.module:function`, as `collate_fn` of a DataLoader."""
    sampler: str | None = Field(None, pattern=FACTORY)
    """Your own weights of the train rows, `package.module:function`: called with their targets, it returns one weight for each."""


class ModelSettings(Section):
    """The network."""

    architecture: str = "mlp"
    """The network that Refit builds: `mlp`, a perceptron; `tabm`, an ensemble of them; `realmlp`; `resnet`, of residual blocks."""
    number_embedding: Literal["none", "robust", "quantile", "piecewise", "periodic"] = "none"
    """How numbers enter: standardized (`none`), clipped (`robust`), as normal scores (`quantile`), `piecewise` or `periodic`."""
    num_members: int | None = Field(None, ge=1, le=256)
    """Networks trained together, whose answers are averaged; None means 8 for `tabm`, whose members share weights, else 1."""
    hidden_sizes: Annotated[list[Annotated[int, Field(ge=1)]], BeforeValidator(_read_list)] = [64, 64]
    """Units in each hidden layer, first to last; an empty list gives a linear model."""
    activation: Literal["relu", "leaky_relu", "elu", "gelu", "silu", "selu", "mish", "sigmoid", "tanh"] = "relu"
    """The function after each hidden layer."""
    dropout: Fraction = 0.0
    """Chance that a unit is zeroed after each hidden activation, in [0, 1)."""
    factory: str | None = Field(None, pattern=FACTORY)
    """Your own model, `package.module:function`, called as `function(num_inputs, num_outputs)` or `function(signature)`."""
    options: Options = {}
    """Keyword arguments that your function is called with as well, such as `{"width": 64}`."""
    weights: Url | None = None
    """A file of weights to start from, by `torch.save` or safetensors; those whose names or shapes differ are new."""


class OptimizerSettings(Section):
    """How the parameters are updated."""

    name: Literal[
        "sgd", "adam", "adamw", "nadam", "radam", "adamax", "adagrad", "adadelta", "adafactor", "asgd", "rmsprop", "rprop"
    ] = "adamw"
    """The PyTorch optimizer."""
    options: Options = {}
    """More options of its class, such as `{"betas": [0.9, 0.95]}` or `{"nesterov": true}`."""
    lr: float = Field(0.001, gt=0, lt=1e38)
    """Learning rate; with a schedule, its highest value. With sgd: 0.01."""
    momentum: float = Field(0.0, ge=0, lt=1)
    """Momentum of SGD and RMSprop, in [0, 1)."""
    weight_decay: float = Field(0.0, ge=0, lt=1e38)
    """Weight decay: an L2 penalty in SGD and Adam, decoupled in AdamW."""
    schedule: str = Field("constant", pattern=SCHEDULE)
    """The learning rate after the warm-up: `constant`, `cosine` (a half, to 0), `coslog4` (four), or PyTorch's, as `StepLR`."""
    schedule_options: Options = {}
    """Options of a scheduler of PyTorch, such as `{"step_size": 10}`."""
    schedule_by: Literal["epoch", "step"] = "epoch"
    """When PyTorch's goes on: after each `epoch` or `step`. `ReduceLROnPlateau` goes by the val loss, or else the train loss."""
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the learning rate rises linearly to `lr`."""
    lr_factors: Annotated[dict[str, float], BeforeValidator(_read_object)] = {}
    """Factors of the learning rate by patterns of parameter names, such as `{"encoder.*": 0.1}`; the first that matches counts."""
    weight_decay_factors: Annotated[dict[str, float], BeforeValidator(_read_object)] = {}
    """Factors of the weight decay by patterns of parameter names, such as `{"*.bias": 0}`."""


class TrainingSettings(Section):
    """How long and how carefully to train."""

    num_epochs: int = Field(100, ge=1)
    """Passes over the train rows, at most. The best epoch by validation loss, or the last, is saved."""
    patience: Annotated[int | Literal["auto"] | None, BeforeValidator(_read_patience)] = 10
    """Epochs without a lower validation loss until training stops; `auto`: 16, or 32 if an epoch has few batches; None: never."""
    loss: str | None = Field(None, pattern=LOSS)
    """`cross_entropy` (classes), `squared`, `absolute`, `huber`, `quantile` (numbers), `binary` (labels), or `module:function`."""
    quantiles: Annotated[list[Annotated[float, Field(gt=0, lt=1)]], BeforeValidator(_read_list)] = [0.1, 0.5, 0.9]
    """The quantiles that the loss `quantile` learns, ascending, each in (0, 1); 0.5, the median, is predicted."""
    step: str | None = Field(None, pattern=FACTORY)
    """Your own step, `package.module:function`, called as `function(model, batch)`, which returns the loss of a batch."""
    class_weights: Annotated[
        Literal["balanced"] | dict[str, Annotated[float, Field(gt=0, lt=1e38)]] | None, BeforeValidator(_read_object)
    ] = None
    """Weights of classes in the loss, each more than 0: `balanced`, by their rarity, or as `{"fraud": 10}`; None weighs none."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the truth of a row, in [0, 1), that is spread over all classes in the loss; numbers have none."""
    regularization: Literal["constant", "flat_cosine"] = "constant"
    """How dropout and weight decay go over the epochs: `constant`, or `flat_cosine`, to 0 from half of them on, in plain steps."""
    monitor: Literal["loss", "accuracy", "balanced_accuracy", "macro_f1", "f1", "average_precision"] = "loss"
    """What the best epoch and patience go by on validation rows: `loss`, or a score of classes; `f1` is of the rarer of two."""
    tune_threshold: bool = False
    """Whether the rarer of two classes is predicted from the probability on that gives the best F1, or `monitor`, of validation."""
    calibrate: bool = False
    """Whether probabilities of classes are calibrated by a temperature that is fitted to validation rows."""
    metrics: TextList = []
    """More metrics, `package.module:function`, each called as `function(outputs, target)`, such as those of torchmetrics."""
    accumulate_batches: int = Field(1, ge=1)
    """Batches whose gradients are combined into one step, weighted by rows as if they were one large batch."""
    max_grad_norm: float | None = Field(None, gt=0)
    """Gradients with a larger 2-norm are scaled down to it; None does not clip."""
    epochs_per_task: int = Field(1, ge=1)
    """Epochs in one Prefect task run. More save time if an epoch takes milliseconds; each still has its checkpoint and result."""
    timeout_seconds: float | None = Field(None, gt=0)
    """Seconds after which the run stops with a checkpoint, from which the next run continues; None sets no limit."""
    warm_start: bool = False
    """Whether retraining starts from the champion's weights, if they fit, instead of from new ones."""
    baseline: Literal["auto", "none", "linear", "trees", "both"] = "auto"
    """Other models on the same rows to compare with: `linear`, `trees`, `both` or `none`; `auto`: both, if that takes seconds."""
    refit_on_all: bool = False
    """Whether to predict with weights retrained on all rows, for as many epochs as validation chose. Scores are of the first."""


class CheckpointSettings(Section):
    """How often checkpoints are written, and how many are kept."""

    every_seconds: float = Field(60.0, gt=0)
    """Seconds between checkpoints within an epoch. There is always one at its end."""
    keep: int | None = Field(None, ge=1)
    """How many of the last epochs keep their checkpoints, besides the best; None keeps all, so that shorter runs can reuse them."""


class ComputeSettings(Section):
    """Where the arithmetic runs."""

    device: str = Field("auto", pattern=DEVICE)
    """Where to train: `auto` (an accelerator where it pays, else the CPU), `cpu`, `cuda`, `cuda:N` or `mps`. The CPU scores."""
    when_missing: Literal["fail", "cpu"] | None = None
    """If the device cannot be used: `fail`, or train on the `cpu`. None is `fail` for a device that is named, `cpu` for `auto`."""
    deterministic: bool = True
    """Whether an accelerator uses only operations that give the same bits each time. A network may have some that cannot."""
    engine: Literal["eager", "compiled", "auto"] = "eager"
    """`eager`: the bits of plain PyTorch. `compiled`: faster, with other last bits. `auto`: compiled if the run is long enough."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the forward pass: `fp32`, or `bf16` by automatic mixed precision."""
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    """Precision of fp32 matrix products. Below `highest`, factors may be rounded to 3 digits, which is faster in wide networks."""
    num_threads: int | None = Field(None, ge=1)
    """CPU threads; None leaves PyTorch's choice. Another number may change the last bits."""


class PromotionSettings(Section):
    """When a retrained model becomes the champion."""

    mode: Literal["auto", "ask", "never"] = "auto"
    """`auto` promotes a better candidate; `ask` waits for a person's approval in the Prefect UI first; `never` only reports."""
    when_incomparable: Literal["keep", "ask", "promote"] = "keep"
    """If the champion needs what is gone or is written otherwise now: `keep` it, `ask` a person, or `promote` a good candidate."""
    score: Literal["accuracy", "log_likelihood", "brier", "balanced_accuracy", "macro_f1", "f1", "average_precision"] = "accuracy"
    """What to compare: accuracy, the log probability of the true class, 1 minus half the Brier score, or one for rare classes."""
    rule: Literal["better", "not_worse"] = "better"
    """`better`: the candidate must beat the champion. `not_worse`: it may be worse by less than `margin`, for fresher models."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """How sure it must be that the candidate meets the rule and beats the majority class."""
    min_effect: float = Field(0.0, ge=0)
    """By how much the candidate must beat the champion, with `confidence`."""
    margin: float = Field(0.01, ge=0)
    """By how much the candidate may be worse under the rule `not_worse`."""
    min_score: float | None = None
    """Lowest score that a candidate may have. A champion that falls below it has collapsed. None sets no limit."""
    max_drop: float = Field(0.05, ge=0)
    """Largest drop allowed in the share of right rows of a class or slice, or growth of a loss by share. Noise does not count."""
    slices: TextList = []
    """Columns of the table; all rows with the same value of one of them form a slice."""
    must_beat_baseline: bool = False
    """Whether a candidate that is worse than boosted trees or a linear model, by more than noise, is not promoted."""
    max_latency_ms: float | None = Field(None, gt=0)
    """Longest time to score one row, in milliseconds, on the machine that retrains; None sets no limit."""
    max_size_mb: float | None = Field(None, gt=0)
    """Largest file of weights, in megabytes; None sets no limit."""
    timeout_seconds: float = Field(86400.0, gt=0)
    """Seconds that `ask` waits before the candidate is rejected."""


class ScheduleSettings(Section):
    """What happens to scheduled runs that start late."""

    max_delay_seconds: float = Field(3600.0, gt=0)
    """A run that starts more than this many seconds late is skipped if a newer one is due."""


class StoreSettings(Section):
    """Where snapshots, checkpoints and models are kept."""

    url: Url = "refit-store"
    """A folder, or any fsspec URL."""
    trust: bool = False
    """Whether to call the factory of every version in the store; otherwise, only the one that `model.factory` names."""


class SettingsTree(Section):
    """The tree as flows take it: all settings of a run, none of them read from the environment."""

    name: str = Field("model", pattern=MODEL_NAME, max_length=MAX_NAME_LENGTH)
    """The model's name in the store: lower-case letters, digits, `-` and `_`."""
    preset: Literal["notebook", "table", "realmlp", "plain"] | None = None
    """Defaults of other settings: `notebook` for its table, `plain` beside data sets or networks of your own, else `table`."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seeds the split, the initial weights, shuffling and dropout."""
    data: DataSettings = DataSettings()
    loader: LoaderSettings = LoaderSettings()
    model: ModelSettings = ModelSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    training: TrainingSettings = TrainingSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    compute: ComputeSettings = ComputeSettings()
    promotion: PromotionSettings = PromotionSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    store: StoreSettings = StoreSettings()


class NothingGiven(SettingsTree):
    """The tree of a run without given settings: the machine that runs it fills in all of them, and a form shows none."""

    @model_serializer
    def _dump_nothing(self) -> dict[str, Any]:
        return {}


class Settings(SettingsTree, BaseSettings):
    """The tree as a run uses it: complete, and checked across sections."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_nested_delimiter="__", enable_decoding=False)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        *_: Any,
        **__: Any,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take only the passed values: `resolve_settings` reads the other sources itself, to know which one gave a value."""
        return (init_settings,)

    @model_validator(mode="after")
    def _agree(self) -> "Settings":
        data, optimizer = self.data, self.optimizer
        if self.model.options and self.model.factory is None:
            raise ValueError(
                f"model.options: expected none without a factory that takes them, found {list_names(self.model.options)};"
                " set model.factory, or drop them"
            )
        if data.options and data.factory is None:
            raise ValueError(
                f"data.options: expected none without a factory that takes them, found {list_names(data.options)};"
                " set data.factory, or drop them"
            )
        if data.factory is not None:
            _refuse_table_settings(data, self.promotion)
        if self.training.step is not None and (data.factory is None or self.training.loss is not None):
            if data.factory is None:
                raise ValueError(
                    "training.step: expected none for a table, which has no items of its own; set data.factory, or drop it"
                )
            raise ValueError("training.step: expected none, as training.loss is set; drop one of them")
        if self.training.class_weights is not None and (self.training.loss or self.training.step):
            raise ValueError("training.class_weights: expected none beside a loss or a step of its own; drop one of them")
        if self.training.label_smoothing and _has_own_loss(self.training):
            raise ValueError(
                "training.label_smoothing: expected 0 beside class weights, a loss or a step of its own; drop one of them"
            )
        if self.training.regularization != "constant" and self.compute.engine == "compiled":
            raise ValueError(
                "compute.engine: expected `eager` or `auto`, as compiled steps hold dropout and weight decay fast and"
                f" training.regularization is {self.training.regularization}, found `compiled`; change one of them"
            )
        quantiles = self.training.quantiles
        if 0.5 not in quantiles or quantiles != sorted({*quantiles}):
            raise ValueError(
                f"training.quantiles: expected ascending numbers with 0.5, which is predicted, found {quantiles}; change them"
            )
        if self.training.loss == "quantile" and data.factory is not None:
            raise ValueError("training.loss: expected no `quantile` beside data.factory, as it is of tables; name your own loss")
        for name in self.training.metrics:
            if not re.match(FACTORY, name):
                raise ValueError(f"training.metrics: expected `package.module:function`, found {name!r}; name one")
        if data.split == "time" and data.time_column is None:
            raise ValueError("data.time_column: expected a column to order rows by, as data.split is `time`, found none; name one")
        if data.split == "random" and data.time_column is not None:
            raise ValueError("data.time_column: expected none, as data.split is `random`; set data.split to `time`, or drop it")
        if data.test_source is not None and data.test:
            raise ValueError("data.test: expected none, as data.test_source gives the test rows; drop one of them")
        shares = [size for size in (data.val, data.test) if isinstance(size, float)]
        if sum(shares) >= 1:
            raise ValueError("data.val + data.test: expected less than 1, so that rows to train on are left; lower one")
        for name in ("val", "test", "window", "gap") if data.split == "random" else ():
            size = getattr(data, name)
            if isinstance(size, str) or (name in ("window", "gap") and size is not None):
                raise ValueError(f"data.{name}: only a `time` split orders rows by age, found {size}; set data.split to `time`")
        if data.window == 0:
            raise ValueError("data.window: expected rows to train on, found 0; `none` takes all")
        if data.split_by == "features" and data.group_column is not None:
            raise ValueError("data.split_by: expected `rows`, as data.group_column says which rows stay together; drop one of them")
        if self.promotion.must_beat_baseline and self.training.baseline == "none":
            raise ValueError(
                "promotion.must_beat_baseline: expected models to compare with, found none, as training.baseline is `none`;"
                " set that to `both`, or drop it"
            )
        if optimizer.momentum and optimizer.name not in ("sgd", "rmsprop"):
            raise ValueError(
                f"optimizer.momentum: only sgd and rmsprop have it, found {optimizer.name}; leave it 0, or take one of these"
            )
        highest = 0 if self.promotion.score == "log_likelihood" else 1
        if self.promotion.min_score is not None and self.promotion.min_score >= highest:
            raise ValueError(
                f"promotion.min_score: expected less than {highest}, the best {say_score(self.promotion.score)},"
                f" found {self.promotion.min_score:g}; lower it"
            )
        slices = self.promotion.slices
        twice = next((name for name in slices if slices.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"promotion.slices: expected each column once, found {twice!r} {slices.count(twice)} times; drop one")
        if self.promotion.min_effect and self.promotion.rule == "not_worse":
            raise ValueError("promotion.min_effect: expected 0, as promotion.rule is `not_worse`; leave it 0, or take `better`")
        return self


TABLE_SETTINGS = ("source", "test_source", "task", "features", "exclude", "kinds", "formats", "time_column", "group_column")


def _refuse_table_settings(data: DataSettings, promotion: PromotionSettings) -> None:
    """Raise ValueError for settings that only a table has, beside a data set of the user's own."""
    given = [name for name in TABLE_SETTINGS if getattr(data, name) != DataSettings.model_fields[name].default]
    if given or data.split != "random":
        raise ValueError(
            f"data.{(given or ['split'])[0]}: expected none beside data.factory, whose items have no columns; drop one of them"
        )
    if promotion.slices:
        raise ValueError("promotion.slices: expected none beside data.factory, whose items have no columns; drop them")
    for name in ("val", "test"):
        if isinstance(getattr(data, name), str | int) and getattr(data, name) != 0:
            raise ValueError(
                f"data.{name}: expected a share in [0, 1) beside data.factory, whose items are divided by what each holds, found"
                f" {getattr(data, name)}; name a share"
            )


def resolve_settings(
    given: Mapping[str, Any] | None = None,
    settings_file: Path | None = None,
    parameters: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[Settings, dict[str, str]]:
    """Merge all sources, strongest first: `parameters`, `given` (flags), environment, `.env`, the settings file, defaults.

    Args:
        given: A nested dictionary with only the values that were given, such as `{"optimizer": {"lr": 0.1}}`.
        settings_file: A TOML file; None takes `refit.toml` if it exists.
        parameters: Such dictionaries that a run was given, by what to call them, strongest first.

    Returns:
        The settings, and for each dotted name the source that its value came from.

    Raises:
        SettingsError: A name is unknown, a value is out of bounds, two settings contradict each other, or `settings_file` is
            missing or not TOML.
    """
    if settings_file is not None and not settings_file.is_file():
        raise SettingsError(f"--settings: expected a TOML file, found no file {settings_file}; check the path")
    toml_file = settings_file or SETTINGS_FILE
    try:
        toml_values = TomlConfigSettingsSource(Settings, toml_file)()
    except ValueError as error:
        raise SettingsError(f"{toml_file}: expected a TOML file, found {error}; correct that line") from error
    sources = {
        **(parameters or {}),
        "command line": given or {},
        "environment": _read_environment(EnvSettingsSource(Settings)),
        ".env": _read_environment(DotEnvSettingsSource(Settings, env_file=".env")),
        str(toml_file): toml_values,
    }
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, values in sources.items():
        _fill_in(merged, values, origins, origin)
    settings = _complete(merged, origins)
    return settings, {name: origins.get(name, "default") for name, _ in walk_settings(settings)}


def complete_settings(given: Mapping[str, Any]) -> Settings:
    """Complete given settings by the defaults alone, not by the environment or a file; raises as `resolve_settings` does."""
    merged, origins = dict[str, Any](), dict[str, str]()
    _fill_in(merged, given, origins, "given")
    return _complete(merged, origins)


def _complete(merged: dict[str, Any], origins: dict[str, str]) -> Settings:
    """Add the defaults to what is given, and their origins."""
    try:
        given_tree = SettingsTree(**merged)
        for name, (value, origin) in choose_defaults(given_tree).items():
            section, _, field = name.rpartition(".")
            part = merged.setdefault(section, {}) if section else merged
            if part.get(field) is None and name not in origins:
                part[field], origins[name] = value, origin
        return Settings(**merged)
    except ValidationError as error:
        raise SettingsError(*explain_validation(error, origins)) from error


def choose_defaults(tree: SettingsTree) -> dict[str, tuple[Any, str]]:
    """Choose, by dotted name, the defaults that depend on the data or on other given settings, and say where each comes from."""
    preset = tree.preset or choose_preset(tree)
    defaults = {name: (value, f"preset {preset}") for name, value in PRESETS[preset].items()}
    defaults["preset"] = preset, "default"
    if _has_own_loss(tree.training):
        defaults.pop("training.label_smoothing", None)
    if "loader.batch_size" not in defaults:
        defaults["loader.batch_size"] = None, f"default: {ROWS_OF_A_BATCH}"
    if tree.data.val == 0:
        defaults["training.patience"] = None, "default without validation rows"
    if tree.model.factory is not None:
        defaults["data.max_one_hot"] = None, "default for a network of your own"  # it need not know what a code is
    usual = defaults.get("optimizer.name", (OptimizerSettings().name,))[0]
    if tree.optimizer.name != usual and "name" in tree.optimizer.model_fields_set:
        defaults = {name: default for name, default in defaults.items() if not name.startswith("optimizer.")}
        if tree.optimizer.name == "sgd":
            defaults["optimizer.lr"] = LR_OF_SGD, "default for sgd"
    return defaults


def _has_own_loss(training: TrainingSettings) -> bool:
    return training.class_weights is not None or training.loss is not None or training.step is not None


def choose_preset(tree: SettingsTree) -> str:
    """Choose the defaults by what is trained."""
    if is_notebook_table(tree.data):
        return NOTEBOOK
    return "table" if tree.data.factory is None and tree.model.factory is None else "plain"


def is_notebook_table(data: DataSettings) -> bool:
    """Whether the data is the built-in table."""
    return data.source == NOTEBOOK and data.factory is None


def walk_settings(tree: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) for every leaf of the tree."""
    for field in type(tree).model_fields:
        value = getattr(tree, field)
        if isinstance(value, Section):
            yield from walk_settings(value, f"{prefix}{field}.")
        else:
            yield prefix + field, value


def is_model_name(text: str) -> bool:
    """Whether a model may have this name, which is also the name of a folder."""
    return re.match(MODEL_NAME, text) is not None and not text.endswith("\n") and len(text) <= MAX_NAME_LENGTH


def env_name(name: str) -> str:
    """The environment variable of a setting: `optimizer.lr` is `REFIT_OPTIMIZER__LR`."""
    return ENV_PREFIX + name.upper().replace(".", "__")


def explain_validation(error: ValidationError, origins: Mapping[str, str] | None = None) -> list[str]:
    """Write one line per mistake: the setting and its origin, what was expected, what was found, the nearest known name."""
    known = [name for name, _ in walk_settings(SettingsTree())]
    lines = []
    for mistake in error.errors():
        name = ".".join(part for part in mistake["loc"] if isinstance(part, str))
        origin = (origins or {}).get(name)
        where = f"{name} (from {origin})" if origin else name
        if mistake["type"] == "extra_forbidden":
            near = _find_near(name, known)
            hint = f"did you mean `{near}`?" if near else "`refit settings` lists them"
            lines.append(f"{where}: unknown setting; {hint}")
        elif mistake["type"] == "value_error":
            lines.append((f"{where}: " if name else "") + mistake["msg"].removeprefix("Value error, "))
        else:
            lines.append(f"{where}: expected {_describe_expected(mistake, name)}, found {mistake['input']!r}; change it")
    return lines


def _find_near(name: str, known: Sequence[str]) -> str | None:
    """Find the known setting that was meant: one whose last part is the initials, as in `learning_rate`, or a similar one."""
    section, _, last = name.rpartition(".")
    short = f"{section}." + "".join(word[:1] for word in last.split("_"))
    near = [short] if short in known else difflib.get_close_matches(name, known, n=1)
    return near[0] if near else None


def _describe_expected(mistake: ErrorDetails, name: str) -> str:
    """Say in words what a value should be, with its choices or bounds."""
    context, kind = mistake.get("ctx", {}), mistake["type"]
    if kind == "literal_error":
        return str(context["expected"])
    if context.get("pattern") in PATTERNS:
        return PATTERNS[context["pattern"]]
    if kind.startswith("bool"):
        return "true or false"
    if kind == "dict_type":
        example = {"data.kinds": '"zip": "category"', "data.formats": '"sold": "%d/%m/%Y"'}.get(name, '"width": 64')
        return f"names and values, such as `{{{example}}}`"
    if kind.startswith(("int", "float", "greater", "less", "finite")):
        field = _find_field(name)
        is_float = field is not None and float in (field.annotation, *get_args(field.annotation))
        bounds = _describe_bounds(field.metadata if field else ())
        bounds = bounds or " and ".join(f"{BOUNDS[sign]} {bound:g}" for sign, bound in context.items() if sign in BOUNDS)
        return ("a number" if is_float else "a whole number") + (f" of {bounds}" if bounds else "")
    return re.sub(r"^\w+ should (be )?", lambda match: "" if match[1] else "to ", mistake["msg"])


def _find_field(name: str) -> FieldInfo | None:
    """The field of a dotted name."""
    section: Any = SettingsTree
    *sections, last = name.split(".")
    for part in sections:
        field = section.model_fields.get(part) if isinstance(section, type) and issubclass(section, BaseModel) else None
        section = field.annotation if field else None
    return section.model_fields.get(last) if isinstance(section, type) and issubclass(section, BaseModel) else None


def _read_environment(source: EnvSettingsSource) -> dict[str, Any]:
    """Read the source's settings. Unknown `REFIT_` variables are kept, so that a misspelt one is refused."""
    values = {name: value for name, value in source().items() if name in Settings.model_fields}
    for variable, text in source.env_vars.items():
        section, *rest = variable.lower().removeprefix(ENV_PREFIX.lower()).split("__")
        if variable.lower().startswith(ENV_PREFIX.lower()) and section not in Settings.model_fields:
            values[".".join([section, *rest])] = text
    return values


def _fill_in(merged: dict[str, Any], weaker: Mapping[str, Any], origins: dict[str, str], origin: str, prefix: str = "") -> None:
    """Add to `merged` the values that only `weaker` has, and note their origin by dotted name; a setting may be a dictionary."""
    for key, value in weaker.items():
        if not prefix and isinstance(value, Mapping) and isinstance(merged.setdefault(key, {}), dict):
            _fill_in(merged[key], value, origins, origin, f"{prefix}{key}.")
        elif key not in merged:
            merged[key] = value
            origins[prefix + key] = origin
