"""`python -m bigr_jax`: the same as the command `bigr`."""

from bigr_jax.cli.main import main

raise SystemExit(main())
