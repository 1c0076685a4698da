"""Protocols of evaluation: `update` with what was found, `compute` the numbers by name."""
