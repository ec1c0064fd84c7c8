"""How often properties are tried when thousands of mutants are to be killed (``make mutation``)."""

from __future__ import annotations

from hypothesis import Phase, settings

# A mutant is dead at the first failure; the smallest example of it interests nobody.
settings.register_profile(
    "mutation",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=30,
    phases=[Phase.explicit, Phase.generate],
)
