"""What keeps the text of an answer from being run as code by the libraries that grade it.

Some scorers of reasoning-gym hand an answer to `eval`, or to SymPy's parser, which is `eval`
too. Invariant: in a process where `guard_scorers` was called, they evaluate literals, arithmetic
and known functions, and nothing else. `without_side_effects` is a second line behind that, not a
sandbox: what starts processes, connects or changes files is refused while a library grades.
"""

import ast
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import ModuleType
from typing import Any

# fmt: off
_FUNCTIONS = frozenset((
    "abs", "acos", "acosh", "acot", "asin", "asinh", "atan", "atanh", "cbrt", "cos", "cosh",
    "cot", "coth", "csc", "exp", "factorial", "ln", "log", "sec", "sign", "sin", "sinh", "sqrt",
    "tan", "tanh", "Abs", "Rational",
))
# fmt: on
_ARITHMETIC = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop)
_NUMBERS = (int, float, complex)
# fmt: off
_REFUSED_EVENTS = frozenset((
    "ctypes.dlopen", "ctypes.dlsym", "os.chmod", "os.chown", "os.exec", "os.fork", "os.forkpty",
    "os.kill", "os.killpg", "os.link", "os.mkdir", "os.posix_spawn", "os.remove", "os.rename",
    "os.rmdir", "os.spawn", "os.symlink", "os.system", "os.truncate", "pty.spawn", "shutil.move",
    "shutil.rmtree", "socket.bind", "socket.connect", "socket.sendto", "subprocess.Popen",
    "webbrowser.open",
))
# fmt: on
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC
_guarded = [False]


def literal_value(text: str, *_: Any) -> Any:
    """What `eval` gives for numbers, strings, lists and arithmetic; raises ValueError for more."""
    return _value(_parsed(text).body)


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value):
            return value
        case ast.List(items) | ast.Tuple(items):
            return [_value(item) for item in items]
        case ast.UnaryOp(sign, operand):
            return _of(_UNARY, sign)(_number(operand))
        case ast.BinOp(left, sign, right):
            return _of(_BINARY, sign)(_number(left), _number(right))
    raise ValueError("only literals and arithmetic are evaluated")


def _number(node: ast.expr) -> Any:
    value = _value(node)
    if not isinstance(value, _NUMBERS):
        raise ValueError("only numbers are calculated with")
    return value


_UNARY: dict[type, Callable[[Any], Any]] = {
    ast.UAdd: lambda a: +a,
    ast.USub: lambda a: -a,
    ast.Invert: lambda a: ~a,
}
_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.FloorDiv: lambda a, b: a // b,
    ast.Mod: lambda a, b: a % b,
    ast.LShift: lambda a, b: a << b,
    ast.RShift: lambda a, b: a >> b,
    ast.BitAnd: lambda a, b: a & b,
    ast.BitOr: lambda a, b: a | b,
    ast.BitXor: lambda a, b: a ^ b,
}


def _of(operations: dict[type, Callable[..., Any]], sign: ast.AST) -> Callable[..., Any]:
    if type(sign) not in operations:
        raise ValueError(f"{type(sign).__name__} is not evaluated")
    return operations[type(sign)]


def is_formula(text: str) -> bool:
    """Whether a text is arithmetic over numbers, names and known functions, and no other code."""
    try:
        return all(_in_formula(node) for node in ast.walk(_parsed(text)))
    except ValueError:
        return False


def _in_formula(node: ast.AST) -> bool:
    match node:
        case ast.Constant(value):
            return isinstance(value, _NUMBERS)
        case ast.Name(name):
            return not name.startswith("_")
        case ast.Call(ast.Name(name), _, keywords):
            return name in _FUNCTIONS and not keywords
    return isinstance(node, (*_ARITHMETIC, ast.expr_context))


def _parsed(text: str) -> ast.Expression:
    try:
        return ast.parse(text.strip(), mode="eval")
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError("this is no expression") from error


def guard_scorers(is_hostile: Callable[[str], bool]) -> None:
    """Gives the modules of reasoning-gym, all imported, an `eval` and a parser that run no code."""
    import sympy

    parse = sympy.parse_expr

    def parse_formula(text: str, *arguments: Any, **options: Any) -> Any:
        if is_hostile(text) or not is_formula(text):
            raise ValueError("only formulas are read")
        return parse(text, *arguments, **options)

    sympy.parse_expr = parse_formula
    for name, module in list(sys.modules.items()):
        if name.startswith("reasoning_gym.") and isinstance(module, ModuleType):
            module.__dict__["eval"] = literal_value
            if module.__dict__.get("parse_expr") is parse:
                module.__dict__["parse_expr"] = parse_formula


@lru_cache(maxsize=1)
def install_refusals() -> None:
    """Adds the second line to this process, for good; it does nothing until it is entered."""
    sys.addaudithook(_refuse)


@contextmanager
def without_side_effects() -> Iterator[None]:
    """Refuses, inside, what starts processes, connects or changes files: PermissionError."""
    _guarded[0] = True
    try:
        yield
    finally:
        _guarded[0] = False


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if _guarded[0] and (event in _REFUSED_EVENTS or (event == "open" and _writes(*arguments))):
        raise PermissionError(f"grading must not do this: {event}")


def _writes(_: object, mode: object, flags: object) -> bool:
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & _WRITES)
