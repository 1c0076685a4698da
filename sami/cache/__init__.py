"""A teacher's targets on disk: written once, read in every epoch."""
