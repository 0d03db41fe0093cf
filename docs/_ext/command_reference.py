"""The directive ``commands``: the help page of each command, as the command prints it.

The flags of the trainers, which come from the settings, are left to the page of settings.
"""

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

TRAINERS = ("train", "serve")
WIDTH = 84  # columns of a help page here


def pages() -> dict[str, str]:
    """The help page of each command by its name; first, under "", that of `ringtmp` itself."""
    import click

    from ringtmp.__main__ import cli

    narrow = {"help_option_names": ["-h", "--help"], "terminal_width": WIDTH, "max_content_width": WIDTH}
    whole = click.Context(cli, info_name="ringtmp", **narrow)
    found = {"": cli.get_help(whole)}
    for name in cli.list_commands(whole):
        command = cli.get_command(whole, name)
        assert command is not None
        found[name] = command.get_help(click.Context(command, info_name=name, parent=whole, **narrow))
    return found


def without_settings(page: str, groups: list[str]) -> str:
    """A help page without the sections that are headed by one of `groups`."""
    kept, leave_out = [], False
    for line in page.splitlines():
        if line and not line.startswith(" "):
            leave_out = line.rstrip(":") in groups
        if not leave_out:
            kept.append(line)
    return "\n".join(kept)


class CommandPages(SphinxDirective):
    """The directive ``commands``."""

    def run(self) -> list[nodes.Node]:
        """A section for each command."""
        from settings_reference import groups

        text = []
        for name, page in pages().items():
            shown = without_settings(page, groups()) if name in TRAINERS else page
            text += [f"## {name}" if name else "", "", "```text", shown, "```", ""]
            if name in TRAINERS:
                text += ["And every flag of the [settings](settings.md).", ""]
        return self.parse_text_to_nodes("\n".join(text), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("commands", CommandPages)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
