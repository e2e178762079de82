"""Plain asyncio against vLLM's OpenAI server, as one writes it in an afternoon; PRM in process.

Best of N asks for whole solutions by chat; the beam asks step by step for tokens after tokens, all
problems at once, each in lock step. A lost connection is tried again.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import stamina

from actors.engines.vllm import SEED_BITS
from benchmarks.peers import raw_engine
from benchmarks.peers.engines import Engines, Server
from benchmarks.peers.lock_step import LockStepGrowth, beam_search
from benchmarks.peers.measured import Candidate, Found, MeteredPRM, Task, side_by_side, timed
from search.problem import Problem
from search.protocols import Completion, Expansion, PolicyPath, Sampling, StopReason
from search.token_ids import pack_ids, unpack_ids

CONNECTIONS = 256
ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Client:
    """Posts JSON to the server over connections that are kept."""

    session: aiohttp.ClientSession
    server: Server

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The reply; raises aiohttp's errors when all attempts failed."""
        url = f"{self.server.address}/v1/{path}"
        async for attempt in stamina.retry_context(
            aiohttp.ClientConnectionError, attempts=ATTEMPTS
        ):
            with attempt:
                async with self.session.post(
                    url, json=body | {"model": self.server.model}
                ) as reply:
                    reply.raise_for_status()
                    found: dict[str, Any] = await reply.json()
        return found


@dataclass(frozen=True, slots=True)
class ServedPolicy:
    """`search.protocols.Policy` over the completions route, token ids in and out."""

    client: Client
    prompts: Any

    async def expand(
        self,
        path: PolicyPath,
        n: int,
        sampling: Sampling,
        max_tokens: int,
        seed: int,
        first: int = 0,
    ) -> Expansion:
        prefix = self.prompts(path.problem) + unpack_ids(path.token_ids)
        body = {
            "prompt": prefix,
            "n": n,
            "max_tokens": max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": (seed + first) & SEED_BITS,
            "stop": [sampling.delimiter],
            "include_stop_str_in_output": True,
            "return_token_ids": True,
        }
        choices = (await self.client.post("completions", body))["choices"]
        return Expansion(tuple(map(_completion, choices)), n * len(prefix), 0)


def _completion(choice: dict[str, Any]) -> Completion:
    ended_by_text = isinstance(choice["stop_reason"], str)
    end = StopReason.DELIMITER if ended_by_text else StopReason.EOS
    if choice["finish_reason"] == "length":
        end = StopReason.LENGTH
    return Completion(choice["text"], pack_ids(choice["token_ids"]), 0.0, end)


async def run(task: Task, engines: Engines) -> list[Found]:
    """Best of N or beam, all problems at once."""
    assert engines.server is not None
    connector = aiohttp.TCPConnector(limit=CONNECTIONS)
    async with aiohttp.ClientSession(connector=connector) as session:
        client = Client(session, engines.server)
        if task.config.strategy == "beam":
            return await _beams(task, engines, client)
        return await _best_of_n(task, engines, client)


async def _best_of_n(task: Task, engines: Engines, client: Client) -> list[Found]:
    async def search(problem: Problem) -> list[Candidate]:
        async with asyncio.TaskGroup() as tasks:
            samples = [
                tasks.create_task(_sample(task, engines, client, problem, place))
                for place in range(task.config.n)
            ]
        return [sample.result() for sample in samples]

    return await side_by_side(task.problems, search)


async def _sample(
    task: Task, engines: Engines, client: Client, problem: Problem, place: int
) -> Candidate:
    config = task.config
    body = {
        "messages": [{"role": "user", "content": problem.text}],
        "max_tokens": config.limits.max_solution_tokens,
        "temperature": config.sampling.temperature,
        "top_p": config.sampling.top_p,
        "seed": raw_engine.sample_seed(task, problem, place),
    }
    [choice] = (await client.post("chat/completions", body))["choices"]
    return await raw_engine.scored(task, engines, problem, choice["message"]["content"] or "")


async def _beams(task: Task, engines: Engines, client: Client) -> list[Found]:
    growths = _growths(task, engines, client)
    async with asyncio.TaskGroup() as tasks:
        found = [
            tasks.create_task(timed(growth.problem, beam_search(growth))) for growth in growths
        ]
    return [each.result() for each in found]


def _growths(task: Task, engines: Engines, client: Client) -> Sequence[LockStepGrowth]:
    from actors.engines.loading import load_tokenizer, render_prompt

    spec = engines.setting.policy
    tokenizer = load_tokenizer(spec)

    def prompt_ids(problem: str) -> list[int]:
        text = render_prompt(tokenizer, spec.prompt, problem)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    policy = ServedPolicy(client, prompt_ids)
    prm = MeteredPRM(engines.prm.score, task.meter)
    return [LockStepGrowth(problem, policy, prm, task.config) for problem in task.problems]
