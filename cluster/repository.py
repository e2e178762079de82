"""Where the code lies: the folder that workers import from and that relative paths fall back to."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
