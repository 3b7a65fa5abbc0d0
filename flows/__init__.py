"""What is started or scheduled: order and conditions only."""

import os

# Prefect reads it on import. A server that it starts for a notebook first makes its database, for which 20 seconds can be too few.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
