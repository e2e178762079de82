"""A search tree as columns, and the solutions it ends with.

Invariants: a parent stands before its children; a node's id names its subtree and the choices
that lead to it ("3:0.2": subtree 3, child 0, its child 2), so it depends on nothing but the
search's own rule: not on timing, machines, or how work was split. `ROOT` is the parent of
first steps.
"""

from array import array
from dataclasses import dataclass, field

from search.protocols import Completion, StopReason
from search.token_ids import count_ids

ROOT = -1
NOT_SCORED = float("nan")


@dataclass(frozen=True, slots=True)
class Solution:
    """A path that counts towards N: its last node, and why it ended."""

    node: int
    stop_reason: StopReason


@dataclass(slots=True)
class Tree:
    """Columns indexed by node; `rewards` holds NaN where a node was not scored."""

    parents: "array[int]" = field(default_factory=lambda: array("i"))
    subtrees: "array[int]" = field(default_factory=lambda: array("i"))
    depths: "array[int]" = field(default_factory=lambda: array("i"))
    path_tokens: "array[int]" = field(default_factory=lambda: array("i"))
    logprobs: "array[float]" = field(default_factory=lambda: array("d"))
    rewards: "array[float]" = field(default_factory=lambda: array("d"))
    prm_tokens: "array[int]" = field(default_factory=lambda: array("i"))
    kept: bytearray = field(default_factory=bytearray)
    texts: list[str] = field(default_factory=list)
    token_ids: list[bytes] = field(default_factory=list)
    stop_reasons: list[StopReason] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    solutions: list[Solution] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.parents)

    def add(self, parent: int, subtree: int, child: int, completion: Completion) -> int:
        """Appends a child of `parent` and returns its index."""
        self.parents.append(parent)
        self.subtrees.append(subtree)
        self.depths.append(self.depth(parent) + 1)
        tokens = count_ids(completion.token_ids)
        self.path_tokens.append(self.tokens_so_far(parent) + tokens)
        self.logprobs.append(completion.logprob)
        self.rewards.append(NOT_SCORED)
        self.prm_tokens.append(0)
        self.kept.append(0)
        self.texts.append(completion.text)
        self.token_ids.append(completion.token_ids)
        self.stop_reasons.append(completion.stop_reason)
        self.places.append(f"{self.node_id(parent, subtree)}{'.' if parent != ROOT else ''}{child}")
        return len(self.parents) - 1

    def node_id(self, node: int, subtree: int) -> str:
        """A node's id; the root of a subtree is "3:"."""
        return f"{subtree}:" if node == ROOT else self.places[node]

    def depth(self, node: int) -> int:
        """Steps from the root, 0 at the root."""
        return 0 if node == ROOT else self.depths[node]

    def tokens_so_far(self, node: int) -> int:
        """Policy tokens on the path, prompt excluded."""
        return 0 if node == ROOT else self.path_tokens[node]

    def path(self, node: int) -> list[int]:
        """Nodes from the first step to `node`."""
        nodes = []
        while node != ROOT:
            nodes.append(node)
            node = self.parents[node]
        return nodes[::-1]

    def packed_ids(self, node: int) -> bytes:
        """Token ids of all steps on the path."""
        return b"".join(self.token_ids[step] for step in self.path(node))

    def scored_steps(self, node: int) -> list[float]:
        """Rewards on the path, without steps that were not scored."""
        rewards = (self.rewards[step] for step in self.path(node))
        return [reward for reward in rewards if reward == reward]

    def text(self, node: int) -> str:
        """The solution so far as the policy wrote it."""
        return "".join(self.texts[step] for step in self.path(node))

    def ends_solution(self, node: int) -> bool:
        """Whether nothing may follow this node."""
        return self.stop_reasons[node] not in (StopReason.DELIMITER, StopReason.LENGTH)

    def keep(self, node: int) -> None:
        """Marks a node as chosen by the strategy."""
        self.kept[node] = 1

    def close(self, nodes: list[int]) -> None:
        """Counts these nodes as solutions; those that could go on are marked unfinished."""
        for node in nodes:
            ended = self.ends_solution(node)
            reason = self.stop_reasons[node] if ended else StopReason.UNFINISHED
            self.solutions.append(Solution(node, reason))
