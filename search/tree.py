"""A search tree as columns, and the solutions it ends with.

Invariants: a parent stands before its children; a node's id names its subtree and the choices
that lead to it ("3:0.2": subtree 3, child 0, its child 2), so it depends on nothing but the
search's own rule: not on timing, machines, or how work was split. `ROOT` is the parent of
first steps.

A node takes about 60 bytes, its text, and 4 bytes a token for as long as steps may follow it.
"""

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from search.protocols import Completion, StopReason
from search.texts import Texts
from search.token_ids import count_ids

ROOT = -1
NOT_SCORED = float("nan")
STOP_REASONS = tuple(StopReason)
STEP_ENDS = (StopReason.DELIMITER, StopReason.LENGTH)


@dataclass(frozen=True, slots=True)
class Solution:
    """A path that counts towards N: its last node, and why it ended."""

    node: int
    stop_reason: StopReason


def _integers() -> "array[int]":
    return array("i")


def _floats() -> "array[float]":
    return array("d")


@dataclass(slots=True)
class Tree:
    """Columns indexed by node.

    `numbers`: which child of its parent a node is. `rewards`: NaN where a node was not scored.
    `stops`: places in `STOP_REASONS`. `token_ids`: of the nodes that steps may still follow.
    """

    parents: "array[int]" = field(default_factory=_integers)
    subtrees: "array[int]" = field(default_factory=_integers)
    numbers: "array[int]" = field(default_factory=_integers)
    depths: "array[int]" = field(default_factory=_integers)
    path_tokens: "array[int]" = field(default_factory=_integers)
    logprobs: "array[float]" = field(default_factory=_floats)
    rewards: "array[float]" = field(default_factory=_floats)
    prm_tokens: "array[int]" = field(default_factory=_integers)
    kept: bytearray = field(default_factory=bytearray)
    stops: bytearray = field(default_factory=bytearray)
    texts: Texts = field(default_factory=Texts)
    token_ids: dict[int, bytes] = field(default_factory=dict)
    solutions: list[Solution] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.parents)

    def add(self, parent: int, subtree: int, number: int, completion: Completion) -> int:
        """Appends child `number` of `parent` and returns its index."""
        node, tokens = len(self.parents), count_ids(completion.token_ids)
        self.texts.append(completion.text)
        self.parents.append(parent)
        self.subtrees.append(subtree)
        self.numbers.append(number)
        self.depths.append(self.depth(parent) + 1)
        self.path_tokens.append(self.tokens_so_far(parent) + tokens)
        self.logprobs.append(completion.logprob)
        self.rewards.append(NOT_SCORED)
        self.prm_tokens.append(0)
        self.kept.append(0)
        self.stops.append(STOP_REASONS.index(completion.stop_reason))
        if not self.ends_solution(node):
            self.token_ids[node] = completion.token_ids
        return node

    def node_id(self, node: int, subtree: int) -> str:
        """A node's id; the root of a subtree is "3:"."""
        return f"{subtree}:" + ".".join(str(self.numbers[step]) for step in self.path(node))

    def node_ids(self) -> list[str]:
        """The ids of all nodes."""
        ids: list[str] = []
        for parent, subtree, number in zip(self.parents, self.subtrees, self.numbers, strict=True):
            ids.append(f"{subtree}:{number}" if parent == ROOT else f"{ids[parent]}.{number}")
        return ids

    def depth(self, node: int) -> int:
        """Steps from the root, 0 at the root."""
        return 0 if node == ROOT else self.depths[node]

    def tokens_so_far(self, node: int) -> int:
        """Policy tokens on the path, prompt excluded."""
        return 0 if node == ROOT else self.path_tokens[node]

    def step_tokens(self, node: int) -> int:
        """Policy tokens of this step alone."""
        return self.path_tokens[node] - self.tokens_so_far(self.parents[node])

    def path(self, node: int) -> list[int]:
        """Nodes from the first step to `node`."""
        nodes = []
        while node != ROOT:
            nodes.append(node)
            node = self.parents[node]
        return nodes[::-1]

    def packed_ids(self, node: int) -> bytes:
        """Token ids of all steps on the path; raises KeyError if no step may follow it."""
        return b"".join(self.token_ids[step] for step in self.path(node))

    def forget_ids(self, nodes: Iterable[int]) -> None:
        """Drops the token ids of nodes that no step will follow any more."""
        for node in nodes:
            self.token_ids.pop(node, None)

    def scored_steps(self, node: int) -> list[float]:
        """Rewards on the path, without steps that were not scored."""
        rewards = (self.rewards[step] for step in self.path(node))
        return [reward for reward in rewards if reward == reward]

    def text(self, node: int) -> str:
        """The solution so far as the policy wrote it."""
        return self.texts.joined(self.path(node))

    def stop_reason(self, node: int) -> StopReason:
        """Why this step ended."""
        return STOP_REASONS[self.stops[node]]

    def ends_solution(self, node: int) -> bool:
        """Whether nothing may follow this node."""
        return self.stop_reason(node) not in STEP_ENDS

    def keep(self, nodes: Iterable[int], candidates: Iterable[int] = ()) -> None:
        """Marks the kept candidates and the steps to them; no step will follow the others."""
        for node in nodes:
            for step in self._not_kept(node):
                self.kept[step] = 1
        for node in candidates:
            self.forget_ids(self._not_kept(node))

    def _not_kept(self, node: int) -> Iterator[int]:
        """The last steps of a path, up to the first that is kept: one, if each step is chosen."""
        while node != ROOT and not self.kept[node]:
            yield node
            node = self.parents[node]

    def close(self, nodes: list[int]) -> None:
        """Counts these nodes as solutions; those that could go on are marked unfinished."""
        for node in nodes:
            ended = self.ends_solution(node)
            reason = self.stop_reason(node) if ended else StopReason.UNFINISHED
            self.solutions.append(Solution(node, reason))
