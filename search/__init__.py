"""What a search is: trees, strategies, seeds, budgets, votes.

Pure Python and asyncio. Nothing in this package imports ray, torch, vllm or transformers, so
every rule of a search can be tested without a cluster and without a model.
"""
