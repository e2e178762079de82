"""Experiments: recipes, data sets, the driver, result tables, curves, reports, commands."""
