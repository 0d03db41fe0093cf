"""``python -m ringtmp NAME ...``: run one of the commands in `ringtmp.commands`."""

import pkgutil
import runpy
import sys

from ringtmp import commands


def main() -> None:
    """Run the command that the first argument names, as ``python -m`` would."""
    names = sorted(module.name for module in pkgutil.iter_modules(commands.__path__))
    if len(sys.argv) < 2 or sys.argv[1] not in names:
        given = f"got {sys.argv[1]!r}" if len(sys.argv) > 1 else "got none"
        print(f"error: command: expected one of {', '.join(names)}, {given}", file=sys.stderr)
        sys.exit(2)
    name = sys.argv.pop(1)
    runpy.run_module(f"ringtmp.commands.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
