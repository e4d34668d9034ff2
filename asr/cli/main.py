"""The command ``asr``: one module a verb, imported when the verb is called."""

from __future__ import annotations

import errno
import functools
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points, version
from typing import Annotated, Any

import typer

from asr.cli.console import abandon_stdout, say
from lm.errors import Interrupted, VocativeError

FAILED, UNUSABLE, INTERRUPTED = 1, 2, 130
NO_MEMORY = ("allocate memory", "out of memory")
"""What torch says of it, in errors of several kinds."""


@dataclass(frozen=True)
class Verb:
    """A verb: the function of its own name in ``module``, ``asr.cli.<name>`` if empty; its line in the overview.

    Where ``parts`` names some, the verb is a group of them: the functions of these names in the module.
    """

    name: str
    help: str
    module: str = ""
    parts: tuple[str, ...] = ()

    def load(self, part: str = "") -> Callable[..., Any]:
        """Import the verb or a part of it; it may return an exit code."""
        function: Callable[..., Any] = getattr(
            import_module(self.module or f"asr.cli.{self.name}"), part or self.name
        )
        return function


VERBS = (
    Verb("transcribe", "Turn recordings into text, with lists of names if you have them."),
    Verb("tune", "Find the weights of language models and lists on transcribed recordings."),
    Verb("stream", "Turn a recording into text while it goes on."),
    Verb("score", "Compare transcripts with references: word errors, names found, names made up."),
    Verb("adapt", "Teach a model the words of a text, without recordings."),
    Verb("classes", "Show what a model makes of each entry of a list of names."),
    Verb("info", "Show what a model folder holds."),
    Verb("lm", "Language models: perplexity on a text.", parts=("score",)),
)

PLUGINS = "vocative.verbs"
"""Entry points of verbs that live in packages built on this one."""

OVERVIEW = """Speech recognition that gets the names right.

Examples:

\b
  asr transcribe call.wav --model exp/model
  asr transcribe calls/ --model exp/model --entities contacts.yaml --out results
  asr classes contacts.yaml --model exp/model
  asr train egs/an4/conf/cfnt.yaml --corpus corpora/an4
  asr transcribe --help

Exit codes: 0 all done, 1 some failed, 2 the call cannot be used, 130 interrupted.
"""


def main() -> None:
    """Run the command with the arguments of the process."""
    for name in ("stdout", "stderr"):  # None where the caller closed them
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  to the end
    argv = sys.argv[1:]
    if "--debug" in argv:
        # Users add it to the end of the line that failed; it belongs to the command, not to the verb.
        argv = ["--debug", *(word for word in argv if word != "--debug")]
    build_app(argv)(args=argv, prog_name="asr")


def build_app(argv: Sequence[str]) -> typer.Typer:
    """The command for one call: only the verb that ``argv`` names is imported."""
    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(help=OVERVIEW)(_common_options)
    called = next((word for word in argv if not word.startswith("-")), "")
    for verb in (*VERBS, *(entry.load() for entry in entry_points(group=PLUGINS))):
        if verb.name == called and verb.parts:
            group = typer.Typer(no_args_is_help=True, help=verb.help)
            group.callback()(_group)
            for part in verb.parts:
                group.command(part, no_args_is_help=True)(_guard(verb, "--debug" in argv, part))
            app.add_typer(group, name=verb.name)
        elif verb.name == called:
            app.command(verb.name, short_help=verb.help, no_args_is_help=True)(
                _guard(verb, "--debug" in argv)
            )
        else:
            app.command(verb.name, help=verb.help)(_not_called)
    return app


def _group() -> None:
    """A verb that is a group has nothing to do before its part."""


def _not_called() -> None:
    raise AssertionError("the call named another verb")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vocative {version('vocative')}")
        raise typer.Exit


def _common_options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; goes anywhere on the line.")
    ] = False,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options of the command itself; ``build_app`` and the callback have acted on them already."""


def _guard(verb: Verb, debug: bool, part: str = "") -> Callable[..., None]:
    """The verb's function with every way it can end turned into one line and an exit code."""
    function = verb.load(part)

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            code = function(*args, **kwargs)
        except (typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt:
            say("interrupted; run the same command again to go on")
            code = INTERRUPTED
        except Exception as error:
            if type(error).__module__.split(".")[0] in ("typer", "click"):
                raise
            if debug:
                traceback.print_exc()
            code = _explain(error)
        if isinstance(code, int) and code:
            raise typer.Exit(code)

    return run


def _explain(error: Exception) -> int:
    """Say what happened in one line (two for a bug); returns the exit code."""
    if isinstance(error, VocativeError):
        say(f"error: {error}")
        return INTERRUPTED if isinstance(error, Interrupted) else UNUSABLE
    if isinstance(error, BrokenPipeError):
        abandon_stdout()
        return FAILED
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        abandon_stdout()
        say(f"error: the disk of {error.filename or 'the output'} is full; free some space and run again")
        return FAILED
    if isinstance(error, OSError) and error.filename is not None:
        say(f"error: {error.filename}: {error.strerror}; check the path and what may be done there")
        return UNUSABLE
    if isinstance(error, MemoryError) or any(sign in str(error) for sign in NO_MEMORY):
        say("error: not enough memory; lower --batch-s, search.beam or what else is large in the call")
        return FAILED
    say(
        "error: this is a bug in Vocative, or a case it does not know; run again with --debug and report the "
        "traceback and the command to whoever gave you Vocative"
    )
    say(f"{type(error).__name__}: {error}")
    return FAILED


if __name__ == "__main__":
    main()
