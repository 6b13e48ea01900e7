"""A real LLM engine without a download: llama.cpp's own server on a model that `tiny_gguf` writes.

python -m tests.rig.tiny_llm [PORT]
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import signal
import sys
import tempfile
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.rig import serving, tiny_gguf

MODEL = "tiny-random"
READY = "READY "
ENDING = {signal.SIGTERM, signal.SIGINT}


@dataclass(frozen=True, slots=True)
class TinyLlm:
    """A running server: its OpenAI base URL (ending in `/v1`) and port."""

    base_url: str
    port: int
    process: serving.Process
    model: str = MODEL

    def log(self) -> str:
        """What llama.cpp has logged so far; holds `cancel task` for each client that left."""
        return self.process.stderr()


@contextlib.contextmanager
def serve_tiny() -> Generator[TinyLlm]:
    """Runs the server in a child process on a free port of the loopback."""
    with serving.running([sys.executable, "-m", "tests.rig.tiny_llm"], ready=READY) as process:
        address = process.stdout().split(READY, 1)[1].split()[0]
        yield TinyLlm(base_url=f"{address}/v1", port=int(address.rpartition(":")[2]), process=process)


def model_file() -> Path:
    """The model, written once per content of the script that writes it."""
    script = Path(tiny_gguf.__file__).read_bytes()
    path = Path(tempfile.gettempdir(), f"penstock-tiny-{hashlib.sha256(script).hexdigest()[:16]}.gguf")
    if not path.exists():
        # Two test runs may write at once: each writes its own file, the last one to finish names it.
        draft = path.with_suffix(f".{os.getpid()}")
        tiny_gguf.write_gguf(draft)
        draft.replace(path)
    return path


def serve(model: Path, port: int) -> None:
    """Serves the model in this process until SIGTERM or SIGINT; port 0 takes a free one."""
    # Imported late: it loads llama.cpp, which only the child process needs.
    xllamacpp: Any = importlib.import_module("xllamacpp")
    # Before its threads start, so that they inherit it and no signal ends one of them.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.model_alias = {MODEL}
    params.hostnames = [serving.HOST]
    params.port = port
    params.n_ctx = tiny_gguf.CONTEXT
    params.n_parallel = 2
    params.n_predict = 256
    params.cpuparams.n_threads = 1
    params.warmup = False
    params.use_jinja = True
    server = xllamacpp.Server(params)
    sys.stdout.write(f"{READY}{server.listening_address} \n")
    sys.stdout.flush()
    signal.sigwait(ENDING)


if __name__ == "__main__":
    serve(model_file(), int(sys.argv[1]) if len(sys.argv) > 1 else 0)
