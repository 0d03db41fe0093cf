"""The directive ``settings``: lists of flags and TOML keys, made from the model that checks them.

    ```{settings} Ring
    ```

shows one group of the fields of `ringtmp.config.schema.RunConfig`. A group that no page shows is a warning (`check`).
"""

import re
import types
import typing
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

log = logging.getLogger(__name__)


def groups() -> list[str]:
    """Groups of settings, in the order of the model."""
    from ringtmp.config.schema import RunConfig

    return list(dict.fromkeys(field.json_schema_extra["group"] for field in RunConfig.model_fields.values()))


def values(key: str, annotation: Any) -> str:
    """What the setting `key` takes, in words: names of a registry, choices, or a kind of number."""
    from ringtmp.config.command_line import choices
    from ringtmp.config.schema import REGISTRIES

    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if key in REGISTRIES or origin is typing.Literal:
        return ", ".join(f"`{word}`" for word in choices(key, annotation))
    if origin is typing.Annotated:
        return f"{values(key, parts[0])} from {parts[1].metadata[0].ge}"
    if origin in (typing.Union, types.UnionType):
        return ", ".join(values(key, part) for part in parts if part is not type(None))
    if origin is list:
        return "list of tables"
    return {bool: "`on`, `off`", int: "integer", float: "number", str: "text"}.get(annotation, str(annotation))


def limits(field: Any) -> str:
    """Bounds of the values of a field of the model."""
    words = {"ge": "from {}", "gt": "above {}", "le": "up to {}", "lt": "below {}"}
    found = [
        text.format(f"{value:g}" if value < 1e6 else "2^63")
        for bound in field.metadata
        for name, text in words.items()
        if (value := getattr(bound, name, None)) is not None
    ]
    return " ".join(found)


def meaning(text: str) -> str:
    """The description `text` of a field as Markdown: flags, keys and commands as code."""
    text = re.sub(r"^on\|off(\|auto)?: ", "", text)  # the column before says it
    return re.sub(
        r"(\[\[\w+\]\]|--[a-z0-9]+(?:-[a-z0-9]+)*|python -m ringtmp \w+|ringtmp (?:bench|plan)\b)", r"`\1`", text
    )


def entries(group: str) -> str:
    """The settings of a group as a Markdown definition list."""
    from ringtmp.config.command_line import shown_default
    from ringtmp.config.schema import RunConfig

    lines = []
    for key, field in RunConfig.model_fields.items():
        if field.json_schema_extra["group"] != group:
            continue
        default = shown_default(field)
        takes = f"{values(key, field.annotation)} {limits(field)}".strip()
        takes += "" if default is None else f"; default `{default}`"
        lines += [f"`--{key.replace('_', '-')}` ({takes})", f": {meaning(field.description)}", ""]
    return "\n".join(lines)


class Settings(SphinxDirective):
    """The directive ``settings``."""

    optional_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """The list of one group."""
        from ringtmp.config import schema

        self.env.note_dependency(schema.__file__)
        (group,) = self.arguments
        if group not in groups():
            log.warning(
                "settings: expected one of %s, got %s", ", ".join(groups()), group, location=self.get_location()
            )
            return []
        if not hasattr(self.env, "settings_groups"):
            self.env.settings_groups = set()
        self.env.settings_groups.add(group)
        return self.parse_text_to_nodes(entries(group))


def check(app: Sphinx, env: Any) -> None:
    """Warn of each group of settings that no page shows."""
    for group in set(groups()) - getattr(env, "settings_groups", set()):
        log.warning("settings: no page shows the group %s", group)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("settings", Settings)
    app.connect("env-check-consistency", check)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": True}
