"""What the demo shows: a live table on a terminal, plain lines elsewhere; a picture at the end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

_EVERY = 10
_BAR = 30


class View:
    """Progress of the demo."""

    def __init__(self, steps: int, *, quiet: bool) -> None:
        from rich.console import Console
        from rich.live import Live

        self._steps = steps
        self._console = Console(quiet=quiet)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._is_live = self._console.is_terminal and not quiet
        self._rows: list[dict[str, Any]] = []
        if self._is_live:
            self._live.start()

    def say(self, text: str) -> None:
        """One line of news."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def show(self, row: dict[str, Any]) -> None:
        """The row of a finished step."""
        self._rows.append(row)
        if self._is_live:
            self._live.update(self._panel(row), refresh=True)
        elif row["step"] % _EVERY == 0 or row["step"] == self._steps:
            self.say(_line(row, self._steps))

    def close(self) -> None:
        """Give the terminal back."""
        if self._is_live:
            self._live.stop()

    def summary(self, result: dict[str, Any]) -> None:
        """The final table."""
        from rich.table import Table

        table = Table("figure", "value", title="explorer-mq demo")
        for name, value in result.items():
            table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
        self._console.print(table)

    def _panel(self, row: dict[str, Any]) -> Any:
        from rich.table import Table

        table = Table(title=f"step {row['step']}/{self._steps}", show_header=True)
        names = ("reward", "exact", "tokens_per_s", "policy_version", "staleness", "queued_slices")
        for name in names:
            table.add_column(name)
        table.add_row(*(_short(row[name]) for name in names))
        filled = int(row["reward"] * _BAR)
        table.caption = "reward " + "█" * filled + "░" * (_BAR - filled)
        return table


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Reward and share of exact answers over the steps."""
    import logging

    import matplotlib as mpl

    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    steps = [row["step"] for row in rows]
    axes.plot(steps, [row["reward"] for row in rows], label="mean sampled reward")
    axes.plot(steps, [row["exact"] for row in rows], label="share of exact answers", alpha=0.6)
    axes.set(xlabel="step", ylim=(0, 1), title="GRPO on sorting three digits")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _line(row: dict[str, Any], steps: int) -> str:
    return (
        f"step {row['step']:>3}/{steps}  reward {row['reward']:.3f}  exact {row['exact']:.3f}  "
        f"{row['tokens_per_s']:.0f} tok/s  policy {row['policy_version']}  "
        f"staleness {row['staleness']}  queue {row['queued_slices']}"
    )


def _short(value: float) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
