"""The one cache policy: results are kept in the store under the key that the flow gives, and used only if their bytes are whole."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect.cache_policies import CachePolicy
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import FlowRunContext, TaskRunContext
from prefect.results import get_result_store
from prefect.serializers import JSONSerializer
from prefect.tasks import exponential_backoff
from pydantic import PrivateAttr

from refit.errors import StoreError, TrainingError
from refit.runs.results import load_usable_result, result_path
from refit.runtime.accelerators import is_short_of_memory
from refit.store.store import Store
from refit.undocumented import PlainKeys, pack_result, unpack_result

RECIPE_KEY = re.compile("[0-9a-f]{64}")


class _ByKey(CachePolicy):
    """A task's own parameter `key` is its cache key."""

    def compute_key(
        self,
        task_ctx: TaskRunContext,  # noqa: ARG002
        inputs: dict[str, Any],
        flow_parameters: dict[str, Any],  # noqa: ARG002
        **_: Any,
    ) -> str | None:
        return str(inputs["key"])


CACHED: dict[str, Any] = {
    "cache_policy": _ByKey(),
    "persist_result": True,
    "result_serializer": "json",
    "cache_result_in_memory": False,
}
"""Options of a task whose result is kept. Other tasks set `persist_result=False`, because our flows keep results by default."""


def _can_pass(_task: object, task_run: TaskRun, state: State[Any]) -> bool:
    """Whether trying again can help: after an I/O error, but not if a file is damaged; without memory of its own, once.

    The memory of an accelerator, or the accelerator itself, may be used by others who will have left it.
    """
    error = state.result(raise_on_failure=False)
    if isinstance(error, MemoryError):
        return task_run.run_count <= 1
    if is_short_of_memory(error.__cause__ if isinstance(error, TrainingError) else error):
        return True
    return isinstance(error.__cause__ if isinstance(error, StoreError) else error, OSError)


RETRIED: dict[str, Any] = {
    "retries": 3,
    "retry_delay_seconds": exponential_backoff(backoff_factor=1),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": _can_pass,
}
"""Options of a task that is retried after errors that can pass, with waits of about 1, 2 and 4 seconds."""


class _StoredResults(PlainKeys):
    """Prefect's results in the store, without Prefect's record around them, so that runs without Prefect find them too."""

    url: str
    is_refreshing: bool
    _checked: set[str] = PrivateAttr(default_factory=set)

    def read_path(self, path: str, **_: Any) -> bytes:  # type: ignore[override]
        """Return a result, if what it refers to is whole; anything raised here means that the task runs."""
        store = Store(self.url)
        if path not in self._checked:
            if self.is_refreshing or load_usable_result(path, store) is None:
                raise StoreError(f"no result of {path}")
            self._checked.add(path)
        result = JSONSerializer().loads(store.read(result_path(path)))
        return pack_result(result, path)

    def write_path(self, path: str, content: bytes, **_: Any) -> None:  # type: ignore[override]
        """Keep a result; exceptions, which come without a recipe's key, are left to Prefect's states."""
        if RECIPE_KEY.fullmatch(path):
            Store(self.url).write(result_path(path), unpack_result(content, path))
            self._checked.add(path)


def find_result(key: str) -> Any:
    """Return the result that the task run at work would find under a key, or None."""
    results = get_result_store()
    return results.read(key).result if results.exists(key) else None


def keep_result(key: str, result: Any) -> None:
    """Keep a result as if a task run with this key had returned it."""
    get_result_store().write(result, key)


@contextmanager
def results_in(store: Store, refresh: bool) -> Iterator[None]:
    """Keep results of the tasks that the running flow calls in `store`; with `refresh`, use none that are there already."""
    context = FlowRunContext.get()
    if context is None:
        raise RuntimeError("results_in: expected to be called in a flow run")
    storage = _StoredResults(url=store.url, is_refreshing=refresh)
    results = context.result_store.model_copy(update={"result_storage": storage})
    with context.model_copy(update={"result_store": results}):
        yield
