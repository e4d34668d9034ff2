"""``python -m recipes CONFIG --workdir DIR``: run a recipe, or part of it; the same as ``asr train``."""

from __future__ import annotations

import os
import sys

# Two threaded processes on few cores spin against each other otherwise; must be set before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import typer

from lm.errors import VocativeError
from recipes.command import train


def main() -> None:
    """Run; what is wrong with the call is told in one line, exit code 2, a failed stage likewise with 1."""
    try:
        typer.run(train)
    except VocativeError as error:
        from lm.errors import ConfigError

        print(f"recipes: error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except OSError as error:
        print(f"recipes: error: {error}; expected files that can be read and written", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
