"""Masked-image pretraining of small ViTs against SAM's features (SAMI, arXiv:2312.00863)."""
