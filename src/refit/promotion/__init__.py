"""Whether to retrain, and whether a candidate is better than the champion."""
