"""python -m sami: the commands with a line each."""

from sami.commands import overview

if __name__ == "__main__":
    print(overview())
