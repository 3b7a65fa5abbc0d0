"""Commands about saved versions of a model."""

import json
import sys

from rich.markdown import Markdown
from rich.table import Table

from flows.terminal import COMPLETED, Given, SettingsFile, app, open_console, open_store
from refit import registry


@app.command
def models(*, given: Given = None, settings_file: SettingsFile = None) -> int:
    """List the saved versions of every model in the store.

    Args:
        given: The settings; only `store.url` counts.
        settings_file: A TOML file to read instead of `refit.toml`.
    """
    store = open_store(given, settings_file)
    table = Table("version", "created", "judged on", "accuracy", "loss", "weights")
    for name in registry.list_models(store):
        for number in registry.list_versions(store, name):
            folder = registry.version_folder(name, number)
            record, metrics = (json.loads(store.read(f"{folder}/{part}.json")) for part in ("version", "metrics"))
            split, scores = list(metrics.items())[-1]
            figures = (f"{scores['accuracy']:.4f}", f"{scores['loss']:.4f}")
            table.add_row(f"{name}@v{number}", record["created"], split, *figures, record["weights_digest"][:12])
    if not table.rows:
        print(f"no models in {store.url}", file=sys.stderr)
        return COMPLETED
    open_console().print(table)
    return COMPLETED


@app.command
def show(model: str, /, *, given: Given = None, settings_file: SettingsFile = None) -> int:
    """Print the card of a saved model.

    Args:
        model: `NAME` for the newest version, or `NAME@v1`.
        given: The settings; only `store.url` counts.
        settings_file: A TOML file to read instead of `refit.toml`.
    """
    store = open_store(given, settings_file)
    folder = registry.find_version(store, model)
    card = store.read(f"{folder}/card.md").decode()
    print(f"{store.location(folder)}\n")
    if sys.stdout.isatty():
        open_console().print(Markdown(card))
    else:
        print(card)
    return COMPLETED
