"""The commands that README and documentation show: found, parsed by the real command line, run.

``python -m scenarios.docs_commands`` runs them all on tiny inputs and prints a table of what came of each. A command
is a line of an indented or fenced block that begins with a program's name; a backslash continues it, ``#`` begins a
comment, and ``…`` stands for the arguments of the last command of that name on the page.
"""

from scenarios.docs_commands.found import Command, commands, pages, parsed

__all__ = ["Command", "commands", "pages", "parsed"]
