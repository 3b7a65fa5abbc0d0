"""Imports the user's own functions, by the names that settings give them, and checks their options."""

import contextlib
import hashlib
import importlib
import inspect
import marshal
import sys
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

from refit.code import SESSION, digest_user_code, importing_from_here, session_digests
from refit.errors import SettingsError
from refit.runtime.devices import putting_defaults_back
from refit.texts import list_names

_given: dict[str, Callable[..., Any]] = {}
"""Objects of this session, by the names that settings give them."""
_imported: dict[str, str] = {}
"""The modules of users that this process has imported, with their digests at that time."""


def import_anew(functions: Mapping[str, str | None]) -> None:
    """Import the modules of a user's functions as their files are now.

    Python alone would keep what it imported first for the life of a process, which may be a notebook's.

    Args:
        functions: `package.module:function` by the setting that names it.

    Raises:
        SettingsError: As `import_function`, or a source cannot be read.
    """
    digests = {
        own.removeprefix("code."): digest
        for setting, name in functions.items()
        for own, digest in digest_user_code(name, setting).items()
        if own.startswith("code.")
    }
    if any(_imported.get(own, digest) != digest for own, digest in digests.items()):
        for own in _imported:  # all, as any of them may have imported the changed one
            sys.modules.pop(own, None)
        _imported.clear()
    _imported.update(digests)
    for setting, name in functions.items():
        if name is not None:
            import_function(name, setting)


def give(function: Callable[..., Any], name: str) -> str:
    """Make a function or class of this session known by a name, which is that of its module if it can be imported from there.

    Args:
        function: What settings are to name.
        name: Its name if it cannot be imported: `session:` and this.
    """
    module, own = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if module not in (None, "__main__") and own.isidentifier():
        with contextlib.suppress(SettingsError):
            found = f"{module}:{own}"
            digest_user_code(found)
            if import_function(found, name) is function:
                return found
    given = f"{SESSION}:{name}"
    _given[given] = function
    session_digests[given] = _digest_object(function)
    return given


def _digest_object(function: Callable[..., Any]) -> str:
    """SHA-256 of the code of a function, or of those of a class."""
    parts = vars(function).values() if isinstance(function, type) else [function]
    codes = [part.__code__ for part in parts if hasattr(part, "__code__")]
    return hashlib.sha256(b"".join(marshal.dumps(code.replace(co_filename="", co_firstlineno=1)) for code in codes)).hexdigest()


def import_function(name: str, setting: str) -> Callable[..., Any]:
    """Import `package.module:function`, which a setting names.

    Raises:
        SettingsError: There is no such module or function, or the module fails on import.
    """
    if name in _given:
        return _given[name]
    module_name, function_name = name.split(":")
    if module_name == SESSION:
        raise SettingsError(
            f"{setting}: expected the object that `refit.train` was given in a session, found another process; put it into a"
            " module, and name it as package.module:function"
        )
    try:
        with importing_from_here(), putting_defaults_back():
            function: Callable[..., Any] = getattr(importlib.import_module(module_name), function_name)
    except Exception as error:
        raise SettingsError(
            f"{setting}: expected a function that can be imported, found {name!r}: {type(error).__name__}: {error}; "
            "give package.module:function, from the working directory or installed"
        ) from error
    return function


def convert_options(function: Callable[..., Any], name: str, options: Mapping[str, Any], setting: str) -> dict[str, Any]:
    """Return the options of a function, converted to the types that it is annotated with.

    Raises:
        SettingsError: The function takes no argument of the name of an option, or one of another type.
    """
    try:
        parameters, hints = inspect.signature(function).parameters, get_type_hints(function)
    except (TypeError, ValueError, NameError):
        return dict(options)
    takes_all = any(it.kind is it.VAR_KEYWORD for it in parameters.values())
    unknown = [option for option in options if option not in parameters and not takes_all]
    if unknown:
        raise SettingsError(
            f"{setting}: expected arguments that {name} takes, which has {list_names(parameters)}, found {list_names(unknown)};"
            " correct the name"
        )
    checked = {}
    for option, value in options.items():
        try:
            checked[option] = TypeAdapter(hints[option]).validate_python(value) if option in hints else value
        except PydanticSchemaGenerationError:  # of a type that only the function knows
            checked[option] = value
        except ValidationError as error:
            expected, reason = getattr(hints[option], "__name__", hints[option]), error.errors()[0]["msg"]
            raise SettingsError(
                f"{setting}.{option}: expected {expected}, as {name} is annotated, found {value!r}: {reason}; change it"
            ) from error
    return checked
