"""A fleet whose engines are those of a broker, for a program in another environment than theirs."""

from __future__ import annotations

from collections.abc import Sequence

from modelswarms_fast.compat.client import BrokerError, Client
from modelswarms_fast.compat.fleet import Ids, Job
from modelswarms_fast.compat.models import Models
from modelswarms_fast.errors import InputError


class RemoteFleet:
    """Generates as `Fleet` does, by the broker at the socket that MODELSWARMS_SOCKET names.

    The broker reads models from their files, so weights that are held for a folder are written before it is asked.
    Settings of engines, such as the number type, are the broker's.

    Raises:
        InputError: from any method, the broker cannot be reached or cannot serve a model.
    """

    def __init__(self, models: Models) -> None:
        self._models, self._client = models, Client()

    def generate(
        self, jobs: Sequence[Job], devices: Sequence[int] = (0,), *, together: bool = False
    ) -> list[list[Ids]]:
        """The tokens that each job's model answers to each of its prompts, as `Fleet.generate`."""
        asked = []
        for job in jobs:
            folder = self._models.folder(job.model)
            self._models.write(folder)
            asked.append(
                {
                    "model": str(folder),
                    "prompts": list(job.prompts),
                    "max_tokens": job.max_tokens,
                    "samplings": [list(sampling) for sampling in job.samplings],
                }
            )
        try:
            found = self._client.generate(asked, tuple(devices), together)
        except BrokerError as error:
            raise InputError(str(error)) from error
        return [[one["ids"] for one in some] for some in found]

    def release(self) -> None:
        """End the broker's engines; a broker that is gone has none."""
        try:
            self._client.release()
        except BrokerError:
            self._client.close()
