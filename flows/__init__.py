"""What is started or scheduled: order and conditions only."""

import os

# Prefect reads it on import. A server that it starts for a notebook first creates its database; 20 seconds can be too few for that.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
