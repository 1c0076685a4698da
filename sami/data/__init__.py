"""From files to batches: which sample comes when is a function of seed and position alone."""
