"""The demo's trainer process: batches from the run, GRPO, weights back. Events are JSON lines."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from explorer_mq.demo.grpo import Learner
from explorer_mq.demo.model import write_tiny_model
from explorer_mq.trainer.sync import SyncTrainerClient


def main(run: str, url: str, model_dir: Path, seed: int, steps: int) -> None:
    """Make the model, warm it up as version 1, then train one step per batch."""
    write_tiny_model(model_dir, seed=seed)
    say("model")
    learner = Learner(model_dir, seed=seed, steps=steps)
    done = learner.warm_up()
    with SyncTrainerClient(run=run, url=url, name="demo") as client:
        version = 1
        client.publish_weights(learner.model.state_dict(), version)
        say("ready", warm_up_steps=done)
        for number, batch in enumerate(client.batches()):
            started = time.monotonic()
            arrays = batch.arrays()
            sampled = (arrays["policy_version_start"], arrays["policy_version_end"])
            on_policy = bool((sampled[0] == version).all() and (sampled[1] == version).all())
            report = learner.step(arrays, number=number, on_policy=on_policy)
            version += 1
            client.publish_weights(learner.model.state_dict(), version)
            batch.ack()
            say(
                "step",
                batch=batch.batch_id,
                version=version,
                staleness=int(version - 1 - sampled[0].min()),
                train_s=time.monotonic() - started,
                **count(arrays, batch.manifest.runs),
                **asdict(report),
            )
            if number + 1 == steps:
                return


def count(arrays: dict[str, NDArray[Any]], runs: int) -> dict[str, int]:
    """Experiences of a batch, how many runs are missing, how many came twice."""
    pairs = np.stack([arrays["task"], arrays["run"]], axis=1)
    distinct = len(np.unique(pairs, axis=0))
    tokens = int(arrays["logprobs.cu_seqlens"][-1])
    return {
        "experiences": len(pairs),
        "lost": runs - distinct,
        "duplicates": len(pairs) - distinct,
        "tokens": tokens,
    }


def say(event: str, **fields: Any) -> None:
    """One event for the parent process."""
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
