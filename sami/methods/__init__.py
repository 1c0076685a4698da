"""Objectives (LightningModules) and what watches over their training."""
