"""Segmenting photos without a trainer."""
