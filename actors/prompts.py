"""Prompt styles as data: what stands around a problem before the policy begins to write.

Pure. Invariant: a style says all that a prompt depends on but the problem and the model's own
chat template, so a prompt is rendered once and a partial solution is continued by its token ids.
"""

from dataclasses import dataclass

PROBLEM = "{problem}"


@dataclass(frozen=True, slots=True)
class PromptStyle:
    """The parts of a prompt; an empty part is left out.

    `system` is the system message of the chat; `instruction` follows the problem in the user's
    turn; `opening` is what the answer begins with, added where the chat template does not write
    it. `template` takes the place of the chat template: the whole prompt as written, special
    tokens included, with `{problem}` once.
    """

    system: str = ""
    instruction: str = ""
    opening: str = ""
    template: str = ""


_BOXED = "Please reason step by step, and put your final answer within \\boxed{}."

# The layout of search-and-learn's prompt for Llama in other words: an answer in one go if it
# is short, else "## Step k" headings with blank lines between, and its closing sentence as
# published. Give the published text as `system_prompt` of `chat` to repeat its numbers exactly.
_LLAMA_STEPS = r"""Solve the math problem below clearly and without detours.

- If it takes one or two steps, answer briefly.

- If it takes three steps or more, write it in this form:

## Step 1: [What this step does]
[Short explanation and calculation]

## Step 2: [What this step does]
[Short explanation and calculation]

...

In both cases end with this sentence:

Therefore, the final answer is: $\boxed{answer}$. I hope it is correct.

where [answer] is only the number or expression that solves the problem."""

CHAT, TEMPLATE = "chat", "template"
PROMPT_STYLES = {
    CHAT: PromptStyle(),
    "llama_steps": PromptStyle(system=_LLAMA_STEPS),
    # Model cards of Qwen2.5-Math and Qwen2.5: this sentence as the system message.
    "qwen_boxed": PromptStyle(system=_BOXED),
    # Model card of DeepSeek-R1: no system message, and an answer that begins with <think>.
    "r1": PromptStyle(instruction=_BOXED, opening="<think>\n"),
    TEMPLATE: PromptStyle(template=PROBLEM),
}
