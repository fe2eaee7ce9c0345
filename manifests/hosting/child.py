"""The process of an operator's environment: one operator, which serves its parent. Started by `process`.

Imports what the contract of operators needs: numpy and annotated-types, and what the operator itself imports.
"""

import faulthandler
import importlib
import json
import logging
import os
import socket
import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from openuni.manifests.contracts import options
from openuni.manifests.hosting.messages import Received, describe, pack, unpack
from openuni.manifests.video.decoder.channel import Channel, Closed, Payload
from openuni.manifests.video.decoder.lifeline import end_with_parent


def find_class(module: str, name: str) -> Any:
    """A class that the parent names; its recipe is the user's."""
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


class Server:
    """Creates the operator and answers calls, one after the other."""

    def __init__(self, channel: Channel, module: str, name: str) -> None:
        self.channel, self.module, self.name = channel, module, name
        self.model: Any = None
        self.operator_of = lru_cache(maxsize=4)(self._operator)

    def run(self) -> None:
        """Answer until the parent is gone."""
        while True:
            message, fds = self.channel.receive()
            payload = Payload()
            try:
                answer = {"value": pack(self._call(message, Received(fds)), payload)}
                sent = payload.fds()
            except Exception as error:  # noqa: BLE001  # of any kind: it is raised in the parent
                answer, sent = {"error": describe(error)}, []
            try:
                self.channel.send(answer, sent)
            finally:
                for fd in sent:
                    os.close(fd)

    def _call(self, message: dict[str, Any], found: Received) -> Any:
        operator = self.operator_of(json.dumps(message["options"]))
        argument = unpack(message["argument"], found, find_class)
        if message["call"] == "load":
            self.model = operator.load(argument)
            return None
        if message["call"] == "run":
            return operator.run(self.model, argument)
        results: Sequence[Any] = operator.run_batch(self.model, argument)
        return list(results)

    def _operator(self, packed: str) -> Any:
        given = unpack(json.loads(packed), Received([]), find_class)
        return find_class(self.module, self.name)(**given)


def main() -> None:
    """Serve the parent that started this process."""
    given = json.loads(sys.argv[1])
    faulthandler.enable(sys.stderr)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    end_with_parent(given["lifeline"], group=True)
    sys.path.extend(given["roots"])
    options.options_are_checked()
    channel = Channel(socket.socket(fileno=given["connection"]))
    try:
        find_class(given["module"], given["class"])
    except Exception as error:  # noqa: BLE001  # the author's code ran, and may fail in any way
        channel.send({"error": describe(error)}, [])
        return
    channel.send({"ready": True, "python": list(sys.version_info[:3])}, [])
    try:
        Server(channel, given["module"], given["class"]).run()
    except Closed:
        return
