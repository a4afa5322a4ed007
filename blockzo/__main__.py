"""`python -m blockzo` is `blockzo`."""

from blockzo.cli import main

main()
