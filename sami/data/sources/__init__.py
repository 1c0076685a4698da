"""Images on disk, each readable by number."""
