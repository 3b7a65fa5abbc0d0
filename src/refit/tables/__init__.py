"""One maker of examples: tables of numbers, dates and categories, from files to frozen tensors."""

import os

# polars returns freed memory to the system after 100 ms, not only at the next read; at once would double the time of all work on a
# table. This must be set before polars is loaded, and is added to the present value, as a process that has loaded polars passes
# polars' own setting on to the processes that it starts.
_inherited = os.environ.get("_RJEM_MALLOC_CONF")
os.environ["_RJEM_MALLOC_CONF"] = ",".join(filter(None, [_inherited, "dirty_decay_ms:100,muzzy_decay_ms:100"]))
