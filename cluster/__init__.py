"""Machines: connecting to Ray, deploying models, placing work units."""
