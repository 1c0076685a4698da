"""Speed and memory, beside the designs of the papers."""
