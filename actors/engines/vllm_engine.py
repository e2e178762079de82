"""What the policy and the PRM on vLLM have in common: one engine a replica, and its end."""

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, TypeVar

from vllm.outputs import PoolingRequestOutput, RequestOutput

from actors.engines.vllm_start import engine_lost
from actors.spec import ModelSpec
from search.errors import PolicyError, PRMError

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

Output = TypeVar("Output", RequestOutput, PoolingRequestOutput)


class VllmEngine:
    """An engine that is under way, under the name of its deployment."""

    def __init__(self, spec: ModelSpec, engine: "AsyncLLM") -> None:
        self._spec, self._engine = spec, engine

    def check_health(self) -> None:
        """Raises if the engine has died; Serve then replaces the replica."""
        if self._engine.errored:
            raise engine_lost(self._spec, self._engine.dead_error)

    async def forget(self) -> None:
        """Empties the prefix cache, so that what is measured next starts cold."""
        await self._engine.reset_prefix_cache()

    def close(self) -> None:
        """Ends the engine's processes."""
        self._engine.shutdown()


async def last_output(
    outputs: AsyncGenerator[Output, None], border: type[PolicyError] | type[PRMError]
) -> Output:
    """The one output of a request; leaving early aborts it."""
    last: Output | None = None
    async for output in outputs:
        last = output
    if last is None:
        raise border("vLLM ended a request without an answer")
    return last
