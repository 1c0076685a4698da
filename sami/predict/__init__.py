"""Segmenting images without a trainer."""
