"""PRM families as data: how a solution is laid out for the PRM and how a reward is read off.

Invariant: nothing but this table tells families apart; `actors.prm_layout` and the engines read
its fields. A reward is read at one token a step, the one that ends it, by one of three formulas.
"""

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from actors.spec import ModelSpec
from search.errors import RecipeError

# The last bits of a reward differ with the batch it was computed in; tables must not.
REWARD_DECIMALS = 6
# An engine remembers so many rewards, and then starts anew.
REWARDS_KEPT = 1_000_000

CUSTOM = "custom"
SEARCH_AND_LEARN = "search-and-learn"

Layout = Literal["chat", "plain", "turns"]
Reading = Literal["classes", "token_pair", "value"]


@dataclasses.dataclass(frozen=True, slots=True)
class PRMFamily:
    """How a problem and its steps are written, and where and how a reward is read.

    `layout`: "chat" writes the problem as a user's message and all steps as the answer to it;
    "plain" writes the text of `problem` and then the steps; "turns" writes each step as a user's
    message (the first one after the text of `problem`) that is answered with `good`.
    `problem`: the problem's text; {problem} and {bos} (the tokenizer's first token) are filled in.
    `separator`: ends a step in "chat" and "plain"; the reward stands at its last token. In
    "turns" it stands at the last token before the answer.
    `between`: stands between a separator and the next step.
    `separator_inside`: what a separator in a step's own text becomes.
    `whole`: the separator can melt into its neighbours, so the text is tokenised as one; without
    it a step is tokenised alone. "turns" is always tokenised as one.
    `reading`: "classes" is the softmax over the head's classes at `reward_class`; "token_pair"
    the softmax over the logits of `good` and `bad` at good; "value" the sigmoid of the head.
    `empty_step`: whether search-and-learn scores an empty step after an unfinished text.
    """

    layout: Layout = "chat"
    reading: Reading = "classes"
    system_prompt: str = ""
    problem: str = "{problem}"
    separator: str = ""
    between: str = ""
    separator_inside: str = ""
    whole: bool = False
    reward_class: int = 1
    good: str = "+"
    bad: str = "-"
    empty_step: bool = True


# Model cards of RLHFlow/Llama3.1-8B-PRM-Mistral-Data and -Deepseek-Data, and math-rm/
# prm_evaluate.py of RLHFlow/RLHF-Reward-Modeling: user "problem step 1", assistant "+", user
# "step 2", ...; the logits that predict the assistant's "+", over "+" and "-".
_RLHFLOW = PRMFamily(layout="turns", reading="token_pair", problem="{problem} ", whole=True)

PRM_FAMILIES = {
    # Model card of Qwen/Qwen2.5-Math-PRM-7B (and -72B): steps joined by <extra_0>, one at the end.
    "qwen2.5-math-prm": PRMFamily(
        system_prompt="Please reason step by step, and put your final answer within \\boxed{}.",
        separator="<extra_0>",
    ),
    # SkyworkAI/skywork-o1-prm-inference, prepare_input: problem, line end, then each step and
    # the token of a line end. A line end in a step would end it, so it becomes a space.
    "skywork-o1-prm": PRMFamily(
        layout="plain",
        reading="value",
        problem="{bos}{problem}\n",
        separator="\n",
        separator_inside=" ",
    ),
    # Model card of peiyi9979/math-shepherd-mistral-7b-prm: "problem step 1 ки\nstep 2 ки".
    "math-shepherd": PRMFamily(
        layout="plain",
        reading="token_pair",
        problem="{problem} ",
        separator=" ки",
        between="\n",
        whole=True,
        empty_step=False,
    ),
    "rlhflow-mistral": _RLHFLOW,
    "rlhflow-deepseek": _RLHFLOW,
    # Model card of Gen-Verse/ReasonFlux-PRM-7B: as Qwen2.5-Math-PRM, without a system prompt.
    "reasonflux-prm": PRMFamily(separator="<extra_0>"),
    # Its fields stand in the recipe, under prm.options.family.
    CUSTOM: PRMFamily(),
}


def family_of(spec: ModelSpec) -> PRMFamily:
    """The family of a PRM; raises RecipeError in one line that names the key."""
    written = spec.options.get("family")
    if spec.family == CUSTOM:
        return _custom_family(written)
    if spec.family not in PRM_FAMILIES:
        raise RecipeError(f"prm.family: unknown PRM family {spec.family!r}{_near(spec.family)}")
    if written is not None:
        raise RecipeError("prm.options.family is for prm.family: custom; remove one of the two")
    return PRM_FAMILIES[spec.family]


def scores_empty_step(spec: ModelSpec, family: PRMFamily) -> bool:
    """Whether search-and-learn's rule for unfinished text is asked for, and differs."""
    compat = spec.options.get("compat")
    if compat not in (None, SEARCH_AND_LEARN):
        raise RecipeError(f"prm.options.compat: {compat!r} is not known: use {SEARCH_AND_LEARN}")
    return compat is not None and family.empty_step


def reward_of(family: PRMFamily, outputs: Sequence[float]) -> float:
    """The reward from what the head gave at a step's end: classes, (good, bad), or one value.

    Rounded to `REWARD_DECIMALS`; NaN where the head gave NaN.
    """
    if family.reading == "value":
        return round(_softmax((outputs[0], 0.0), 0), REWARD_DECIMALS)
    place = family.reward_class if family.reading == "classes" else 0
    return round(_softmax(outputs, place), REWARD_DECIMALS)


def _softmax(logits: Sequence[float], place: int) -> float:
    if any(map(math.isnan, logits)):
        return math.nan
    largest = max(logits)
    weights = [math.exp(logit - largest) for logit in logits]
    return weights[place] / sum(weights)


def _custom_family(written: Any) -> PRMFamily:
    if not isinstance(written, Mapping):
        raise RecipeError("prm.family: custom needs its fields in prm.options.family")
    for key, value in written.items():
        _check_field(str(key), value)
    family = PRMFamily(**written)
    _check_fields_together(family)
    return family


def _check_field(key: str, value: Any) -> None:
    at = f"prm.options.family.{key}"
    fields = {field.name: field for field in dataclasses.fields(PRMFamily)}
    if key == "system_prompt":
        raise RecipeError(f"{at}: write it as prm.system_prompt")
    if key not in fields:
        near = difflib.get_close_matches(key, fields, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(fields)}"
        raise RecipeError(f"{at} is not known: {hint}")
    kind = type(fields[key].default)
    if type(value) is not kind:
        raise RecipeError(f"{at} must be of type {kind.__name__}, not {type(value).__name__}")
    choices = {"layout": get_args(Layout), "reading": get_args(Reading)}.get(key)
    if choices and value not in choices:
        raise RecipeError(f"{at}: {value!r} is not known: use {', '.join(choices)}")


def _check_fields_together(family: PRMFamily) -> None:
    at = "prm.options.family"
    if "{problem}" not in family.problem:
        raise RecipeError(f"{at}.problem must contain {{problem}}")
    if family.layout != "turns" and not family.separator:
        raise RecipeError(f"{at}.separator must not be empty in the layout {family.layout}")
    if family.layout == "turns" and family.reading != "token_pair":
        raise RecipeError(f"{at}.reading must be token_pair in the layout turns")
    # Taking separators out of a step must come to an end.
    if set(family.separator.strip() or family.separator) & set(family.separator_inside):
        raise RecipeError(f"{at}.separator_inside must have no letter of the separator")
    if family.reward_class < 0:
        raise RecipeError(f"{at}.reward_class must not be negative")


def _near(name: str) -> str:
    near = difflib.get_close_matches(name, PRM_FAMILIES, n=1)
    return f": did you mean {near[0]!r}?" if near else f": use {', '.join(PRM_FAMILIES)}"
