"""The Grafana dashboard, and the names in its queries."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent.parent / "cluster" / "grafana" / "branchwise.json"
DASHBOARD: dict[str, Any] = json.loads(FILE.read_text())
# Of PromQL: words before a bracket are functions and aggregations, those in braces are labels.
_LABELS = re.compile(r"\{[^}]*\}|\[[^\]]*\]|\b(?:by|without|on)\s*\([^)]*\)")
_NAME = re.compile(r"\b[a-zA-Z_:][a-zA-Z0-9_:]*\b(?!\s*\()")
_KEYWORDS = {"by", "sum", "avg", "without", "on", "and", "or"}


def panels() -> list[dict[str, Any]]:
    """Those that draw something."""
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def queries() -> Iterator[str]:
    """Every PromQL expression of the panels."""
    yield from (target["expr"] for panel in panels() for target in panel["targets"])


def variables() -> dict[str, dict[str, Any]]:
    """The dashboard's variables by name."""
    return {each["name"]: each for each in DASHBOARD["templating"]["list"]}


def metrics_in(expression: str) -> set[str]:
    """The metrics that a PromQL expression names."""
    return set(_NAME.findall(_LABELS.sub(" ", expression))) - _KEYWORDS


def queried() -> set[str]:
    """The metrics in all queries and variables."""
    asked = (each["query"]["query"] for each in variables().values() if each["type"] == "query")
    of_variables = {re.fullmatch(r"label_values\((\w+), \w+\)", text)[1] for text in asked}  # type: ignore[index]
    return of_variables.union(*map(metrics_in, queries()))
