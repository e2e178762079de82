"""Reading the final answer off a solution's text."""

_OPENING = "\\boxed{"


def boxed_answer(text: str) -> str:
    """The content of the last complete `\\boxed{...}`, or an empty string.

    Braces may nest; an escaped brace does not count. A box that is never closed is ignored.
    """
    start = text.rfind(_OPENING)
    while start >= 0:
        content = _balanced(text, start + len(_OPENING))
        if content is not None:
            return content.strip()
        start = text.rfind(_OPENING, 0, start)
    return ""


def _balanced(text: str, start: int) -> str | None:
    depth, place = 1, start
    while place < len(text):
        character = text[place]
        if character == "\\":
            place += 2
            continue
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[start:place]
        place += 1
    return None
