"""The names users of the reference look for are where they look for them, and importing is cheap."""

from __future__ import annotations

import subprocess
import sys

import explorer_mq

METHODS = {
    "RolloutCoordinator": (
        "prepare shutdown submit_batch finalize_train_batch finalize_eval_batch abort_batch "
        "process_experiences get_actor"
    ),
    "Scheduler": (
        "task_done_callback discard_completed_results start stop schedule dynamic_timeout "
        "drain_batch_payload_results get_payload_results get_statuses abort_batch has_step wait_all "
        "get_key_state get_runner_state get_all_state print_all_state get_actor"
    ),
}


def test_every_public_name_can_be_imported():
    for name in explorer_mq.__all__:
        assert getattr(explorer_mq, name) is not None


def test_classes_have_the_methods_of_the_reference():
    for name, methods in METHODS.items():
        missing = [one for one in methods.split() if not hasattr(getattr(explorer_mq, name), one)]
        assert missing == [], name


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, explorer_mq; "
        "print([m for m in ('torch', 'vllm', 'nats', 'numpy', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
