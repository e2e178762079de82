"""vLLM in this process and nothing else: the upper limit of policy tokens a second.

Whole solutions, one request each, no steps; the PRM reads each finished solution once.
"""

import asyncio

from vllm import SamplingParams
from vllm.inputs.engine import tokens_input
from vllm.sampling_params import RequestOutputKind

from actors.engines.vllm import SEED_BITS
from actors.engines.vllm_engine import last_output
from benchmarks.peers.engines import Engines
from benchmarks.peers.measured import Candidate, Found, MeteredPRM, Task, side_by_side, steps_of
from search.errors import PolicyError
from search.problem import Problem
from search.protocols import PRMPath
from search.seeds import node_seed


async def run(task: Task, engines: Engines) -> list[Found]:
    """Best of N for all problems at once; what the engine cannot take waits in its queue."""

    async def search(problem: Problem) -> list[Candidate]:
        async with asyncio.TaskGroup() as tasks:
            samples = [
                tasks.create_task(_sample(task, engines, problem, place))
                for place in range(task.config.n)
            ]
        return [sample.result() for sample in samples]

    return await side_by_side(task.problems, search)


async def _sample(task: Task, engines: Engines, problem: Problem, place: int) -> Candidate:
    params = _sampling_params(task, sample_seed(task, problem, place))
    prompt = tokens_input(engines.policy._prompt_ids(problem.text))
    name = f"raw-{next(engines.policy._request_names)}"
    output = await last_output(engines.policy._engine.generate(prompt, params, name), PolicyError)
    [completion] = output.outputs
    task.meter.policy_tokens += len(completion.token_ids)
    return await scored(task, engines, problem, completion.text)


def _sampling_params(task: Task, seed: int) -> SamplingParams:
    config = task.config
    return SamplingParams(
        temperature=config.sampling.temperature,
        top_p=config.sampling.top_p,
        seed=seed,
        max_tokens=config.limits.max_solution_tokens,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def sample_seed(task: Task, problem: Problem, place: int) -> int:
    """The seed of one whole solution."""
    config = task.config
    return node_seed(config.run_seed, problem.problem_id, "whole", f"{place}:") & SEED_BITS


async def scored(task: Task, engines: Engines, problem: Problem, text: str) -> Candidate:
    """A finished solution with the reward of its last step."""
    steps = steps_of(text, task.config.sampling.delimiter)
    if not steps:
        return Candidate(text, 0.0)
    prm = MeteredPRM(engines.prm.score, task.meter)
    [score] = await prm.score([PRMPath(problem.text, steps)])
    return Candidate(text, score.reward)
