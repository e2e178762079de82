"""Reading the final answer off a solution's text."""

import re

_TOKENS = re.compile(r"\\boxed\{|\\.|[{}]", re.DOTALL)
_OPENING = "\\boxed{"
_PLAIN_BRACE = -1


def boxed_answer(text: str) -> str:
    """The content of the last complete `\\boxed{...}`, or an empty string.

    Braces may nest; an escaped brace does not count. A box that is never closed is ignored.
    One pass over the text, so that a model that repeats itself costs no more than its length.
    """
    open_braces: list[int] = []
    last, content = -1, ""
    for token in _TOKENS.finditer(text):
        match token.group():
            case "{":
                open_braces.append(_PLAIN_BRACE)
            case "}":
                start = open_braces.pop() if open_braces else _PLAIN_BRACE
                if start > last:
                    last, content = start, text[start : token.start()]
            case opening if opening == _OPENING:
                open_braces.append(token.end())
    return content.strip()
