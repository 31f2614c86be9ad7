# SPDX-License-Identifier: GPL-2.0-only
"""Entry point: finds the command, and turns its result or exception into text and an exit code.

Commands raise exceptions; nothing below this module prints an error or calls `sys.exit`. Exit codes: 0 it worked,
1 it failed, 2 wrong usage, 3 this kernel or these privileges cannot do it, 128+N signal N ended it early. Commands that
run until a signal comes end with 0, see `process.until_stopped`.
"""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys
import traceback
from typing import Any, NoReturn

import click

from kmemwatch import __version__
from kmemwatch.cacheids import without_addresses
from kmemwatch.cli import process
from kmemwatch.cli.process import Terminated, raise_on_termination
from kmemwatch.errors import KmemwatchError, UnsupportedError, UsageError, shortage_of

DEBUG_VARIABLE = "KMEMWATCH_DEBUG"

COMMANDS = {
    "top": "Live view of caches, cgroups, dying cgroups and what pins them.",
    "serve": "Daemon that serves Prometheus metrics and JSON over HTTP.",
    "snapshot": "Measure for a while, then print all figures as JSON.",
    "events": "Print when cgroups come, go and take over slabs.",
    "record": "Append all figures to a file for `top --replay`.",
    "compare": "Compare two hosts, with and without the patch set.",
    "churn": "Make cgroups that die and leave kernel memory behind.",
    "doctor": "Say what this kernel can tell, what not, and why.",
}
"""Name -> one-line help. Its module is ``kmemwatch.cli.NAME``, which `CommandGroup` imports only when it is used."""


class CommandGroup(click.Group):
    """Finds commands by `COMMANDS`, so `--help` imports none of them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # click itself ends with another exit code and another exception in each of its versions.
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), err=True)
            ctx.exit(UsageError.exit_code)
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"kmemwatch.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def main(self, *args: Any, **extra: Any) -> NoReturn:
        """Run, report, and raise SystemExit with the exit code."""
        extra.update(prog_name=extra.get("prog_name") or "kmemwatch", standalone_mode=False)
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # a terminal without UTF-8 must not be an error
        try:
            with raise_on_termination():
                result = super().main(*args, **extra)
                sys.stdout.flush()  # a closed pipe must raise here, not at interpreter exit
            code = result if isinstance(result, int) else 0
        except BaseException as exc:  # noqa: BLE001 - the one boundary: everything becomes text and an exit code
            code = report(exc)
        process.finish()
        sys.exit(code)


@click.group(
    name="kmemwatch",
    cls=CommandGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with: sudo kmemwatch top. Without root: kmemwatch top --replay demo",
)
@click.version_option(__version__, "-V", "--version", message="kmemwatch %(version)s")
def cli() -> None:
    """Show which memory cgroups hold kernel memory, in which slab caches, and what pins dying ones."""


def main() -> NoReturn:
    """Console script."""
    process.prepare()
    cli.main()


def report(exc: BaseException) -> int:
    """Write one line and a hint to standard error; return the exit code."""
    cause = exc.__cause__ if isinstance(exc, click.Abort) and exc.__cause__ else exc
    if isinstance(cause, SystemExit):
        if cause.code == 1 and process.reader_is_gone():  # click exits so on a broken pipe; nothing else does
            return 0
        return cause.code if isinstance(cause.code, int) else int(cause.code is not None)
    if isinstance(cause, KeyboardInterrupt):
        return 128 + (cause.signum if isinstance(cause, Terminated) else signal.SIGINT)
    if isinstance(cause, BrokenPipeError) and process.reader_is_gone():
        return 0
    if os.environ.get(DEBUG_VARIABLE):
        process.say(*"".join(traceback.format_exception(cause)).splitlines())
    if isinstance(cause, KmemwatchError):
        return _say(str(cause), cause.hint, cause.exit_code)
    if isinstance(cause, click.UsageError):
        name = cause.ctx.command_path if cause.ctx else "kmemwatch"
        return _say(_as_clause(cause.format_message()), f"see {name} --help", UsageError.exit_code)
    if isinstance(cause, click.ClickException):
        return _say(cause.format_message(), None, cause.exit_code)
    return _report_other(cause)


def _report_other(cause: BaseException) -> int:
    """Errors of the environment in plain words; any other exception is a bug, and reported as one."""
    if isinstance(cause, process.OutputError):
        return _say(f"cannot write to standard output: {cause.why}", None, KmemwatchError.exit_code)
    if isinstance(cause, OSError) and str(cause.filename).startswith(("/proc/", "/sys/")):
        from kmemwatch.kernel.facts import why_unmounted  # only this error needs it

        if (unmounted := why_unmounted()) is not None:
            return _say(*unmounted, UnsupportedError.exit_code)
    short = shortage_of(cause)
    if short is not None:
        about = f"{cause.filename}: " if isinstance(cause, OSError) and cause.filename else ""
        return _say(f"{about}{short}", short.hint, short.exit_code)
    if isinstance(cause, RecursionError):
        return _say("the input is nested too deeply to be read", None, KmemwatchError.exit_code)
    text = without_addresses(f"internal error: {type(cause).__name__}: {cause}")
    return _say(text, f"set {DEBUG_VARIABLE}=1 for the traceback, and please report it", KmemwatchError.exit_code)


def _say(message: str, hint: str | None, code: int) -> int:
    lines = [f"kmemwatch: {' '.join(message.split())}"]
    if hint:
        lines.append(f"  hint: {' '.join(hint.split())}")
    process.say(*lines)  # where nobody reads it, the exit code remains
    return code


def _as_clause(text: str) -> str:
    """click's sentence in the form of kmemwatch's messages: after a colon, without a full stop."""
    return text[:1].lower() + text[1:].removesuffix(".")
