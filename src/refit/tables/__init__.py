"""One maker of examples: tables of numbers, dates and categories, from files to frozen tensors."""

import os

# Memory that polars is done with goes back to the system soon, not when something else is read; at once would take as long as all
# else that is done to a table. To be set before polars is loaded, and added to what is there, as a process that has loaded it hands
# polars' own setting down to those that it starts.
_inherited = os.environ.get("_RJEM_MALLOC_CONF")
os.environ["_RJEM_MALLOC_CONF"] = ",".join(filter(None, [_inherited, "dirty_decay_ms:100,muzzy_decay_ms:100"]))
