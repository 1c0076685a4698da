"""Numbers of a table: tensors in, floats out."""
