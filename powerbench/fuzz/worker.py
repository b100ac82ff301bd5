"""The process in which random problems run: requests come in as JSON lines, and each is answered by one.

`python -m powerbench.fuzz.worker`. What others print goes to standard error. After an error that costs the device the
process ends; whoever started it starts another.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import torch

from powerbench.fuzz.check import check
from powerbench.fuzz.problem import parse

DEVICE_LOST = 3  # exit status


def hello() -> dict[str, Any]:
    """What the problems run on."""
    found = {"torch": torch.__version__, "device": "cpu"}
    if torch.cuda.is_available():
        found["device"] = torch.cuda.get_device_name()
    if "triton" in sys.modules:
        found["triton"] = sys.modules["triton"].__version__
    return found


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The line of one problem: that of `check`, or status failed and the exception."""
    start = time.perf_counter()
    device = torch.device(request["device"])
    try:
        reply = check(parse(request["problem"]), device, request["backend"])
    except Exception as error:  # whatever it is, the problem's line says so
        first = str(error).strip().splitlines()[:1]
        reply = {"status": "failed", "message": " ".join([f"{type(error).__name__}:", *first])}
    reply["lost"] = device.type == "cuda" and not _device_answers()
    return {**reply, "problem": request["problem"], "seconds": round(time.perf_counter() - start, 3)}


def _device_answers() -> bool:
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # others run on it too
        torch.zeros(1, device="cuda").item()
    except RuntimeError:
        return False
    return True


def main() -> None:
    """Until standard input ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(1)  # the workers share the cores

    def send(reply: dict[str, Any]) -> None:
        print(json.dumps(reply), file=replies, flush=True)

    send(hello())
    for line in sys.stdin:
        reply = answer(json.loads(line))
        send(reply)
        if reply["lost"]:
            os._exit(DEVICE_LOST)  # without the cleaning up, which would wait for the device


if __name__ == "__main__":
    main()
