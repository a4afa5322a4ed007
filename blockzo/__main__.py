"""`python -m blockzo` is `blockzo`."""

from blockzo.cli.main import main

main()
