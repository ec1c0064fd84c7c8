"""Rows the model gets right about as often as it should, by what it got right before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from explorer_mq.settings.section import Section
from explorer_mq.tasksets.protocol import Source
from explorer_mq.tasksets.selectors.arguments import check_count, features, parse
from explorer_mq.tasksets.selectors.pass_rates import PassRates
from explorer_mq_schemas.errors import ConfigError


class DifficultyArguments(Section):
    """Arguments of ``difficulty_based``."""

    feature_keys: tuple[str, ...] = Field(
        description="two keys: the row's pass rate with a weaker and with a stronger model"
    )
    m: float = Field(default=16, gt=0, description="runs that one observation counts for")
    lamb: float = Field(default=0.2, ge=0, le=1, description="share of the past that is forgotten")
    rho: float = Field(
        default=0.2, ge=0, le=1, description="weight of what the other rows' rewards suggest"
    )
    target_reward: float = Field(default=1.0, description="pass rate looked for")
    tau: float = Field(default=1.0, ge=0, description="temperature of the choice; 0 takes the best")
    do_sample: bool = Field(
        default=False, description="draw pass rates from the posterior instead of its mean"
    )


class DifficultyBased:
    """Rows whose predicted pass rate is close to ``target_reward``.

    ``score = -|target_reward - predicted pass rate|``. With ``tau`` 0 the best scores, equal ones
    in the order of the rows; else drawn one after the other, none twice, with probabilities
    ``softmax(score / tau)``: adding Gumbel noise to the logits and taking the highest is that draw
    (Kool et al. 2019, arXiv:1903.06059). The noise is seeded by seed + position.

    Source: DifficultyBasedSelector of Trinity-RFT; its draw is torch's, ours needs no torch.
    """

    def __init__(self, source: Source, *, seed: int, args: Mapping[str, Any]) -> None:
        given = parse(DifficultyArguments, args)
        if len(given.feature_keys) != 2:
            raise ConfigError(
                "selector_args.feature_keys: exactly 2 keys are needed, a weaker and a stronger "
                f"model's pass rate; got {list(given.feature_keys)}"
            )
        self._given = given
        self._seed = seed
        self._rates = PassRates(
            features(source, given.feature_keys), m=given.m, lamb=given.lamb, rho=given.rho
        )

    def select(self, position: int, count: int) -> list[int]:
        """The best ``count`` different rows, or drawn ones."""
        given = self._given
        check_count(len(self._rates), count)
        generator = np.random.default_rng(self._seed + position)
        rates = self._rates.sample(generator) if given.do_sample else self._rates.mean()
        scores: NDArray[np.float64] = -np.abs(given.target_reward - rates)
        if given.tau > 0:
            scores = scores / given.tau + generator.gumbel(size=len(scores))
        best: list[int] = np.argsort(-scores, kind="stable")[:count].tolist()
        return best

    def feedback(self, numbers: Sequence[int], values: Sequence[float]) -> None:
        """Learn from the mean rewards of rows."""
        self._rates.observe(numbers, values)

    def state_dict(self) -> dict[str, Any]:
        """The posterior of every row."""
        return self._rates.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up posteriors."""
        self._rates.load_state_dict(state)
