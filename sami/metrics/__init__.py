"""Metrics over all ranks: feature agreement, k-NN accuracy, IoU of prompted masks."""
