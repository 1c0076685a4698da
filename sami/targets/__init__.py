"""Targets computed once: planning, writing, checking and using a cache of what a teacher says."""
