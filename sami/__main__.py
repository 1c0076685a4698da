"""python -m sami: the commands with a line each."""

import difflib
import sys

from sami.commands import COMMANDS, overview

if __name__ == "__main__":
    if words := [word for word in sys.argv[1:] if not word.startswith("-")]:
        near = difflib.get_close_matches(words[0], COMMANDS, n=1, cutoff=0.5)
        hint = f"python -m sami.{near[0]}" if near else "one of these"
        print(f"python -m sami takes no arguments; did you mean {hint}?\n", file=sys.stderr)
    print(overview())
    sys.exit(2 if words else 0)
