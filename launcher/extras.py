"""Commands around the program itself: shell completion, and unpacking the one file when an image is built."""

from __future__ import annotations

import sys

import click
from click.shell_completion import get_completion_class

from launcher import exits, ourselves


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a shell's completion script, to be sourced: `eval "$(lwsrun completion bash)"`."""
    from launcher.cli import lwsrun

    maker = get_completion_class(shell)
    assert maker is not None
    click.echo(maker(lwsrun, {}, "lwsrun", "_LWSRUN_COMPLETE").source())


@click.command()
@click.argument("directory", metavar="[DIR]", required=False)
def unpack(directory: str | None) -> None:
    """Unpack the one file into DIR (/opt/lwsrun) for every user, so that its first start does not have to.

    For the build of an image. Where DIR is another one, set LWSRUN_EXTRACT_DIR to it in the image.
    """
    # The one file does this before it has anything to import this from (onefile/boot.py): here there is none.
    click.echo(f"lwsrun: nothing to unpack: this is {ourselves.describe()}", err=True)
    sys.exit(exits.CONFIG)
