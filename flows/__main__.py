"""`python -m flows` is `gauntlet`."""

from flows.command import main

main()
