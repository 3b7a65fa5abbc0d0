"""From files to frozen tensors: `sources` reads, `schema` types, `splits` divides, `preprocessing` fits, `dataset` does it all."""

import os

# Memory that polars is done with goes back to the system at once, not when something else is read. To be set before it is loaded.
os.environ.setdefault("_RJEM_MALLOC_CONF", "dirty_decay_ms:0,muzzy_decay_ms:0")
