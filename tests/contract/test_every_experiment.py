"""What every experiment keeps: its promises are typed, its files are short, its smoke run learns.

The shapes of an experiment's parameters are in SLUG.txt beside this file; after a change that is
meant, BIGR_REGENERATE=1 python -m pytest tests/contract writes them anew.
"""

from __future__ import annotations

import checks
import pytest

from bigr_jax import registry


# The slug comes first, so that one experiment is done before the next begins.
@pytest.mark.parametrize(
    ("slug", "check"), [(slug, check) for slug in registry.names() for check in checks.CHECKS]
)
def test_an_experiment_keeps(slug: str, check: str) -> None:
    checks.CHECKS[check](slug)
