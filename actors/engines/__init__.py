"""Engines: what computes inside a replica. One entry a name; imports wait until it is used."""

import contextlib
from collections.abc import Iterator
from typing import Protocol

from actors.garbage import uncollected
from actors.spec import ModelFacts, ModelSpec
from actors.wire import ExpandItem, ScoreItem
from search.errors import RecipeError
from search.protocols import Expansion, Score


class PolicyEngine(Protocol):
    """Computes expansions; may be awaited many times at once."""

    def facts(self) -> ModelFacts: ...

    def check_health(self) -> None:
        """Raises what broke the engine, if anything did."""

    async def expand(self, item: ExpandItem) -> Expansion: ...


class PRMEngine(Protocol):
    """Computes scores; may be awaited many times at once."""

    def facts(self) -> ModelFacts: ...

    def check_health(self) -> None:
        """Raises what broke the engine, if anything did."""

    async def score(self, item: ScoreItem) -> Score: ...


def load_policy_engine(spec: ModelSpec) -> PolicyEngine:
    """The engine named by the recipe, with its model loaded."""
    if spec.engine == "transformers":
        with uncollected(), _without_scipy():
            from actors.engines.transformers_policy import TransformersPolicy

        return TransformersPolicy(spec)
    if spec.engine == "vllm":
        with _installed_vllm():
            from actors.engines.vllm import VllmPolicy

        return VllmPolicy(spec)
    if spec.engine == "fake":
        from actors.engines.fake import FakePolicy

        return FakePolicy(spec)
    raise RecipeError(f"unknown policy engine {spec.engine!r}: use transformers, vllm or fake")


def load_prm_engine(spec: ModelSpec) -> PRMEngine:
    """The engine named by the recipe, with its model loaded."""
    if spec.engine == "transformers":
        with uncollected(), _without_scipy():
            from actors.engines.transformers_prm import TransformersPRM

        return TransformersPRM(spec)
    if spec.engine == "vllm":
        with _installed_vllm():
            from actors.engines.vllm_prm import VllmPRM

        return VllmPRM(spec)
    if spec.engine == "fake":
        from actors.engines.fake import FakePRM

        return FakePRM(spec)
    raise RecipeError(f"unknown PRM engine {spec.engine!r}: use transformers, vllm or fake")


@contextlib.contextmanager
def _without_scipy() -> Iterator[None]:
    """transformers imports it for losses of object detectors: 0.3 s of 4, and of no use here."""
    from unittest.mock import patch  # not with the driver, which knows engines too

    import transformers.utils

    with patch.object(transformers.utils, "is_scipy_available", lambda: False, create=True):
        yield


@contextlib.contextmanager
def _installed_vllm() -> Iterator[None]:
    """Says what to install if importing an engine on vLLM fails."""
    from actors.engines.vllm_start import MISSING

    try:
        yield
    except ImportError as error:
        raise RecipeError(f"{MISSING} ({error})") from error
