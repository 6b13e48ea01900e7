"""A process that dies between claim and commit: the side effect is not run again, and the doubt is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

MODULE = """
import time
from pathlib import Path


def pay(order: int) -> str:
    with Path("paid.txt").open("a") as book:
        book.write(f"{order}\\n")
    if Path("slow").exists():
        time.sleep(60)
    return f"paid {order}"
"""
CONFIG = """
tools:
  - {name: pay, function: "shop_of_test:pay", idempotency: {ledger: true, key_from: [order]}, timeout_s: 100}
"""
CALL = [sys.executable, "-m", "penstock", "tools", "call", "pay", '{"order": 7}']


def call(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(CALL, cwd=folder, capture_output=True, text=True, check=False, timeout=30)


def test_row_b8_a_killed_call_is_unknown_and_not_run_again(tmp_path: Path) -> None:
    (tmp_path / "shop_of_test.py").write_text(MODULE)
    (tmp_path / "penstock.yaml").write_text(CONFIG)
    (tmp_path / "slow").touch()
    first = subprocess.Popen(CALL, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    paid = tmp_path / "paid.txt"
    for _ in range(300):
        if paid.exists() and paid.read_text():
            break
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate(timeout=10)
    (tmp_path / "slow").unlink()
    second = call(tmp_path)
    assert second.returncode == 1
    assert "outcome_unknown" in second.stderr
    assert paid.read_text() == "7\n"
