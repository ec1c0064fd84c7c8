"""A compact GRPO learner in torch: warm-up on correct answers, then group-relative updates.

Source: DeepSeekMath (GRPO) for the advantage, DAPO for the asymmetric clip and the token-mean loss.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from explorer_mq.demo.model import EOS, PAD
from explorer_mq.demo.sorting import question

WARM_UP_LOSS = 1.2
_WARM_UP_STEPS = 200
_WARM_UP_BATCH = 64
_INNER_STEPS = 3
_CLIP = (0.8, 1.28)
_FLOOR = 0.1


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one update saw.

    ``exact`` is the share of exact answers; ``logprob_max_abs_diff`` how far the recorded
    log-probabilities are from this model's own, None unless it is the policy that sampled.
    """

    reward: float
    exact: float
    loss: float
    logprob_max_abs_diff: float | None


class Learner:
    """Owns the model and its optimizer."""

    def __init__(self, model_dir: Path, *, seed: int, steps: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(1)
        torch.manual_seed(seed)
        self._torch = torch
        self._steps = steps
        self._rng = random.Random(seed)  # noqa: S311 - not for secrets
        self._tokenizer: Any = AutoTokenizer.from_pretrained(str(model_dir))
        self.model: Any = AutoModelForCausalLM.from_pretrained(str(model_dir), dtype=torch.float32)
        self._optimizer: Any = None

    def warm_up(self) -> int:
        """Teach the format on correct answers until the loss is low enough to explore from."""
        torch = self._torch
        optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=2e-3, weight_decay=0, betas=(0.9, 0.95)
        )
        average: float | None = None
        done = 0
        while done < _WARM_UP_STEPS and (average is None or average > WARM_UP_LOSS):
            tokens, mask = self._examples()
            loss = -(self._logprobs(tokens) * mask).sum() / mask.sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
            value = float(loss)
            average = value if average is None else 0.8 * average + 0.2 * value
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=1e-3, weight_decay=0, betas=(0.9, 0.95)
        )
        return done

    def step(self, arrays: dict[str, NDArray[Any]], *, number: int, on_policy: bool) -> StepReport:
        """One GRPO update from a packed batch; ``task`` in ``arrays`` tells the groups."""
        torch = self._torch
        rewards = arrays["reward"]
        report_reward = float(rewards.mean())
        exact = float((rewards == 1.0).mean())
        advantage = group_advantages(rewards, arrays["task"])
        kept = np.flatnonzero(advantage)
        if not len(kept):
            return StepReport(report_reward, exact, 0.0, None)
        tokens, mask, old = self._padded(arrays, kept)
        weight = torch.from_numpy(advantage[kept].astype(np.float32))[:, None]
        share = max(_FLOOR, 1 - number / self._steps)
        for group in self._optimizer.param_groups:
            group["lr"] = 1e-3 * share
        difference, value = 0.0, 0.0
        for inner in range(_INNER_STEPS):
            now = self._logprobs(tokens)
            if inner == 0:
                difference = float(((now.detach() - old).abs() * mask).max())
            ratio = (now - old).exp()
            gain = torch.min(ratio * weight, ratio.clamp(*_CLIP) * weight)
            loss = -(gain * mask).sum() / mask.sum()
            self._optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self._optimizer.step()
            value = float(loss)
        return StepReport(report_reward, exact, value, difference if on_policy else None)

    def _logprobs(self, tokens: Any) -> Any:
        """Log-probability of each token after the first, [B, L - 1]."""
        logits = self.model(tokens).logits[:, :-1].float()
        chosen = tokens[:, 1:, None]
        return self._torch.log_softmax(logits, -1).gather(-1, chosen)[..., 0]

    def _examples(self) -> tuple[Any, Any]:
        rows: list[tuple[list[int], int]] = []
        for _ in range(_WARM_UP_BATCH):
            prompt, answer = question(self._rng)
            text = self._tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False
            )
            start = self._tokenizer.encode(text, add_special_tokens=False)
            end = [*self._tokenizer.encode(answer, add_special_tokens=False), EOS]
            rows.append((start + end, len(start)))
        width = max(len(row) for row, _ in rows)
        tokens = np.full((len(rows), width), PAD, np.int64)
        mask = np.zeros((len(rows), width), np.float32)
        for index, (row, prompt_length) in enumerate(rows):
            tokens[index, : len(row)] = row
            mask[index, prompt_length : len(row)] = 1
        return self._torch.from_numpy(tokens), self._torch.from_numpy(mask[:, 1:])

    def _padded(
        self, arrays: dict[str, NDArray[Any]], kept: NDArray[np.int64]
    ) -> tuple[Any, Any, Any]:
        """Tokens [B, L], response mask and recorded log-probabilities [B, L - 1]."""
        cu, starts = arrays["cu_seqlens"], arrays["prompt_length"]
        old_cu = arrays["logprobs.cu_seqlens"]
        width = int(np.diff(cu)[kept].max())
        tokens = np.full((len(kept), width), PAD, np.int64)
        mask = np.zeros((len(kept), width), np.float32)
        old = np.zeros((len(kept), width), np.float32)
        for row, sample in enumerate(kept):
            size, start = int(cu[sample + 1] - cu[sample]), int(starts[sample])
            tokens[row, :size] = arrays["tokens"][cu[sample] : cu[sample + 1]]
            mask[row, start:size] = 1
            old[row, start:size] = arrays["logprobs"][old_cu[sample] : old_cu[sample + 1]]
        make = self._torch.from_numpy
        return make(tokens), make(mask[:, 1:]), make(old[:, 1:])


def group_advantages(rewards: NDArray[Any], groups: NDArray[Any]) -> NDArray[np.float64]:
    """``(reward - group mean) / (group std + 1e-4)``; exactly 0 in groups of one reward."""
    found = np.zeros(len(rewards))
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        values = rewards[members].astype(np.float64)
        if values.std() > 1e-6:
            found[members] = (values - values.mean()) / (values.std(ddof=1) + 1e-4)
    return found
