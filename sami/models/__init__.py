"""Networks: they know no file layout, no config and no trainer."""
