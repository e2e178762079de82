"""its_hub 1.2.0 from PyPI, unchanged, against vLLM's OpenAI server; our PRM through an adapter.

Its own client, step generation, searches and selection. The adapter scores with the reward of
the last step and reuses what the PRM has computed, which its own adapter for vLLM does not.
"""

import math
from collections.abc import Sequence
from typing import Any

from its_hub.api import AbstractOutcomeRewardModel, AbstractProcessRewardModel
from its_hub.core.algorithms.beam_search import BeamSearch
from its_hub.core.algorithms.bon import BestOfN
from its_hub.core.algorithms.particle_gibbs import ParticleFiltering
from its_hub.core.lms.openai_lm import OpenAICompatibleLanguageModel
from its_hub.core.lms.step_generation import StepGeneration
from its_hub.core.orchestrator import LMOrchestrator

from benchmarks.peers.engines import Engines
from benchmarks.peers.measured import Candidate, Found, MeteredPRM, Task, side_by_side, steps_of
from search.problem import Problem
from search.protocols import PRMPath

BOX = "\\boxed"


class StepRewards(AbstractProcessRewardModel):
    """The PRM as its step-wise searches ask it: whole texts so far, one score each."""

    def __init__(self, prm: MeteredPRM, delimiter: str) -> None:
        self._prm, self._delimiter = prm, delimiter

    def score(self, prompt_or_messages: Any, steps: list[str]) -> list[float]:
        raise NotImplementedError("the searches run here only ask asynchronously")

    async def ascore(self, prompt_or_messages: Any, steps: list[str]) -> list[float]:
        """The reward of each text's last step; 0.5 for a text without any."""
        problem = str(prompt_or_messages)
        cut = [steps_of(text, self._delimiter) for text in steps]
        paths = [PRMPath(problem, each, BOX not in each[-1]) for each in cut if each]
        rewards = iter(await self._prm.score(paths))
        return [next(rewards).reward if each else 0.5 for each in cut]


class SolutionRewards(AbstractOutcomeRewardModel):
    """The PRM as its best of N asks it: conversations that end with a whole solution."""

    def __init__(self, rewards: StepRewards) -> None:
        self._rewards = rewards

    def score(self, messages: Any, **_: Any) -> list[float]:
        raise NotImplementedError("the searches run here only ask asynchronously")

    async def ascore(
        self, messages: Any, orchestrator: Any = None, **_: Any
    ) -> list[float] | float:
        """One score for each conversation."""
        problem = messages[0][0].content
        return await self._rewards.ascore(problem, [chat[-1].content for chat in messages])


async def run(task: Task, engines: Engines) -> list[Found]:
    """All problems at once."""
    async with _client(task, engines) as client:
        algorithm = _algorithm(task, engines)

        async def search(problem: Problem) -> Sequence[Candidate]:
            result = await algorithm.ainfer(
                client, problem.text, task.config.n, return_response_only=False
            )
            texts = [response["content"] or "" for response in result.responses]
            return [Candidate(*pair) for pair in zip(texts, _scores(result), strict=True)]

        return await side_by_side(task.problems, search)


def _client(task: Task, engines: Engines) -> Any:
    """Its client sends no seed, so its draws are the server's own."""
    assert engines.server is not None
    limits, whole = task.config.limits, task.config.strategy == "best_of_n"
    return OpenAICompatibleLanguageModel(
        endpoint=f"{engines.server.address}/v1",
        api_key="none",
        model_name=engines.server.model,
        temperature=task.config.sampling.temperature,
        max_completion_tokens=limits.max_solution_tokens if whole else limits.max_step_tokens,
    )


def _algorithm(task: Task, engines: Engines) -> Any:
    config = task.config
    delimiter = config.sampling.delimiter
    rewards = StepRewards(MeteredPRM(engines.prm.score, task.meter), delimiter)
    # It stops a path when max_steps are written before the step at hand, so one is taken off.
    steps = StepGeneration(
        max_steps=config.limits.max_steps - 1,
        step_token=delimiter,
        stop_token=BOX,
        temperature=config.sampling.temperature,
    )
    match config.strategy:
        case "best_of_n":
            return BestOfN(SolutionRewards(rewards), LMOrchestrator(max_concurrency=-1))
        case "beam":
            return BeamSearch(steps, rewards, beam_width=config.keep)
        case "particle_filter":
            return ParticleFiltering(steps, rewards)
    raise ValueError(f"its_hub has no search that stands for {config.strategy!r}")


def _scores(result: Any) -> list[float]:
    """What it ranks by; the log weights of particles as the rewards they were made of."""
    if hasattr(result, "log_weights_lst"):
        return [1.0 / (1.0 + math.exp(-weight)) for weight in result.log_weights_lst]
    return [float(score) for score in result.scores]
