"""Pure tensor functions: torch only, no state, no files."""
