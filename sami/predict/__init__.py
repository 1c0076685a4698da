"""Inference: masks of images from point, box and mask prompts."""
