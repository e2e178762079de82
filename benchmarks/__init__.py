"""Measurements. Each prints ratios and spread from one run, because machines are noisy."""
