"""Where contestants run: engines in this process, vLLM's OpenAI server, replicas on Ray Serve.

Invariant: each kind is started at most once, only if a contestant needs it, and its caches are
empty before every measurement.
"""

import asyncio
import contextlib
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import aiohttp

from actors.engines import load_policy_engine, load_prm_engine
from actors.wire import ScoreItem
from benchmarks.peers.setting import Setting, server_arguments
from cluster.connect import connected
from cluster.deploy import deployed
from search.protocols import Score

START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 30.0
GENERATED = "vllm:generation_tokens_total"


class Place(StrEnum):
    """What a contestant needs to be running."""

    LOCAL = "in this process"
    SERVER = "OpenAI server"
    SERVE = "Ray Serve"


@dataclass(frozen=True, slots=True)
class Server:
    """vLLM's OpenAI server, by its address."""

    address: str
    model: str

    async def generated_tokens(self) -> int:
        """All policy tokens the server has ever sampled, as it says itself."""
        async with aiohttp.ClientSession() as session, session.get(self._at("metrics")) as reply:
            lines = (await reply.text()).splitlines()
        return int(sum(float(line.split()[-1]) for line in lines if line.startswith(GENERATED)))

    async def forget(self) -> None:
        """Empties the server's prefix cache."""
        route = self._at("reset_prefix_cache")
        async with aiohttp.ClientSession() as session, session.post(route) as reply:
            reply.raise_for_status()

    async def answers(self) -> bool:
        """Whether it is ready."""
        try:
            async with aiohttp.ClientSession() as session, session.get(self._at("health")) as reply:
                return reply.status == 200
        except aiohttp.ClientError:
            return False

    def _at(self, path: str) -> str:
        return f"{self.address}/{path}"


@dataclass(frozen=True, slots=True)
class Engines:
    """What is running; a part that no contestant needs is missing."""

    setting: Setting
    policy: Any = None
    prm: Any = None
    server: Server | None = None
    on_serve: bool = False

    async def forget(self) -> None:
        """Empties all caches."""
        for engine in (self.policy, self.prm, self.server):
            if engine is not None:
                await engine.forget()
        if self.on_serve:
            from ray import serve

            for role in ("policy", "prm"):
                await serve.get_app_handle(role).forget.remote()

    async def score_whole_path(self, item: ScoreItem) -> Score:
        """All tokens of a path computed again, as a PRM without a prefix cache does.

        The same vLLM engine, told not to read its cache; equal paths are not recognised.
        """
        from vllm import PoolingParams
        from vllm.inputs.engine import tokens_input

        from actors.engines.vllm_engine import last_output
        from actors.prm_families import reward_of
        from search.errors import PRMError

        layout, engine = self.prm._layout, self.prm._engine
        laid_out = layout.lay_out(item.path)
        params = PoolingParams(
            task="token_classify", use_activation=False, skip_reading_prefix_cache=True
        )
        name = f"whole-{next(self.prm._request_names)}"
        output = await last_output(
            engine.encode(tokens_input(laid_out.ids), params, name), PRMError
        )
        rows = output.outputs.data
        reward = reward_of(layout.family, rows[-1].double().tolist())
        return Score(reward, len(rows), laid_out.new_tokens)


@contextlib.asynccontextmanager
async def running(setting: Setting, places: Iterable[Place]) -> AsyncIterator[Engines]:
    """Starts what is needed and ends it, processes included."""
    wanted = set(places)
    async with contextlib.AsyncExitStack() as stack:
        server = policy = prm = None
        if Place.SERVER in wanted:
            server = await stack.enter_async_context(openai_server(setting))
        if wanted & {Place.LOCAL, Place.SERVER}:
            prm = load_prm_engine(setting.prm)
            stack.callback(prm.close)  # type: ignore[attr-defined]
        if Place.LOCAL in wanted:
            policy = load_policy_engine(setting.policy)
            stack.callback(policy.close)  # type: ignore[attr-defined]
        if Place.SERVE in wanted:
            stack.enter_context(connected(None))
            roles = {"prm": setting.prm, "policy": setting.policy}
            await asyncio.gather(
                *[await stack.enter_async_context(deployed(*role)) for role in roles.items()]
            )
        yield Engines(setting, policy, prm, server, Place.SERVE in wanted)


@contextlib.asynccontextmanager
async def openai_server(setting: Setting) -> AsyncIterator[Server]:
    """`vllm serve` as a child process on a free port; ended by its process id."""
    port = _free_port()
    arguments = server_arguments(setting.policy, port)
    # The route that empties the prefix cache is there in development mode only.
    environment = os.environ | {"VLLM_SERVER_DEV_MODE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    environment |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    module = ("-m", "vllm.entrypoints.openai.api_server")
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        with log.open("w") as output:
            child = await asyncio.create_subprocess_exec(
                sys.executable, *module, *arguments, stdout=output, stderr=output, env=environment
            )
        server = Server(f"http://127.0.0.1:{port}", setting.policy.name)
        try:
            await _ready(server, child, log)
            yield server
        finally:
            await _end(child)


async def _ready(server: Server, child: asyncio.subprocess.Process, log: Path) -> None:
    async with asyncio.timeout(START_TIMEOUT_S):
        while not await server.answers():
            if child.returncode is not None:
                raise RuntimeError(f"vLLM's server ended at its start:\n{_end_of(log)}")
            await asyncio.sleep(0.5)


def _end_of(log: Path) -> str:
    return log.read_text()[-2000:]


async def _end(child: asyncio.subprocess.Process) -> None:
    """Asked first, so that it ends its own engine process too."""
    if child.returncode is not None:
        return
    child.terminate()
    try:
        await asyncio.wait_for(child.wait(), STOP_TIMEOUT_S)
    except TimeoutError:
        child.kill()
        await child.wait()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
