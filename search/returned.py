"""What a policy or a PRM returned, looked at before anything is built on it.

An engine may be of another version, or broken by its own weights: what it returns is foreign.
"""

import math
from numbers import Integral, Real

from search.protocols import Completion, Score, StopReason
from search.token_ids import BYTES_PER_TOKEN


def completion_fault(step: object) -> str:
    """What keeps this from being a step, in words; empty if nothing does."""
    if not isinstance(step, Completion):
        return f"a {type(step).__name__} for a step"
    if not isinstance(step.token_ids, bytes) or len(step.token_ids) % BYTES_PER_TOKEN:
        return "token ids that are not packed"
    if not isinstance(step.logprob, Real):
        return f"the log-probability {step.logprob!r}"
    if not isinstance(step.stop_reason, StopReason):
        return f"the stop reason {step.stop_reason!r}"
    return _text_fault(step.text)


def _text_fault(text: object) -> str:
    if not isinstance(text, str):
        return f"a {type(text).__name__} for a text"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "half a Unicode character pair"
    return ""


def score_fault(score: object) -> str:
    """What keeps this from being a score, in words; empty if nothing does."""
    if not isinstance(score, Score):
        return f"a {type(score).__name__} for a reward"
    if not isinstance(score.reward, Real) or not math.isfinite(score.reward):
        return f"the reward {score.reward}"
    if not 0.0 <= score.reward <= 1.0:
        return f"the reward {score.reward}"
    tokens = (score.tokens_computed, score.tokens_minimal)
    if not all(isinstance(count, Integral) and count >= 0 for count in tokens):
        return f"{tokens[0]} and {tokens[1]} tokens"
    return ""
