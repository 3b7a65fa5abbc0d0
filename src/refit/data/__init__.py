"""From files to frozen tensors: `sources` reads, `schema` types, `splits` divides, `preprocessing` fits, `dataset` does it all."""

import os

# Memory that polars is done with goes back to the system at once, not when something else is read. To be set before it is loaded.
# Added to what is there, as a process that has loaded polars hands polars' own setting down to those that it starts.
_inherited = os.environ.get("_RJEM_MALLOC_CONF")
os.environ["_RJEM_MALLOC_CONF"] = ",".join(filter(None, [_inherited, "dirty_decay_ms:0,muzzy_decay_ms:0"]))
