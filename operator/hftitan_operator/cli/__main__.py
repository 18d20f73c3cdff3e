"""`python -m hftitan_operator.cli` is the `hftitan` script."""

from hftitan_operator.cli.main import main

main()
