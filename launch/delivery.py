"""Telling MLflow what lies in an outbox, in the background, for as long as it takes.

Owns the thread that delivers, what is tried again and what is refused for good. A server that is
away holds up nothing and loses nothing: messages stay on disk until it is back. Refuses to know
what the messages mean.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.outbox import Figures, Outbox
from launch.store import StoreError, Unreachable, connect, require_usable

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

AT_ONCE = 50  # messages with figures in one request
FIGURES_A_CALL = 1000  # MLflow's limit
LONGEST_PAUSE = 30.0  # seconds between two tries
# What MLflow says of a message that it would not take another time either. A missing permission is
# not among them: an operator can grant it while the run goes on.
_FOR_GOOD = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE")


class Delivery:
    """Delivers an outbox to the run `run_id` of the store at a complete `uri`.

    A figure of a step that the run already holds (steps replayed after a restart) is dropped, so
    every step appears once.

    Raises StoreError where there is no such run; a store that does not answer is waited for.
    """

    def __init__(self, uri: str, run_id: str, outbox: Outbox):
        self.refused: list[str] = []
        """Why messages were refused for good."""
        self._uri, self._run_id, self._outbox = uri, run_id, outbox
        self._client: MlflowClient | None = None
        self._last_step: dict[str, int] = {}
        self._problem = ""
        self._changed, self._stop = threading.Condition(), False
        try:
            self._attach()
        except Unreachable as away:
            self._say_once(away)
        self._thread = threading.Thread(target=self._loop, name="mlflow-delivery", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Something was put into the outbox."""
        with self._changed:
            self._changed.notify_all()

    def wait(self, seconds: float) -> int:
        """Wait until the outbox is empty, at most so long; returns how many messages are left."""
        end = time.monotonic() + seconds
        while (left := self._outbox.waiting()) and time.monotonic() < end:
            with self._changed:
                self._changed.notify_all()
                self._changed.wait(0.05 if not self._problem else 1.0)
        return left

    def close(self) -> None:
        """End the thread after the request that is under way."""
        self._stop = True
        self.wake()
        self._thread.join(timeout=5.0)

    def _loop(self) -> None:
        pause = 0.0
        while not self._stop:
            problem = self._pass()
            if problem is None:
                self._say_back()
                pause = 0.0
            else:
                self._say_once(problem)
                pause = min(LONGEST_PAUSE, max(1.0, 2 * pause))
            self._rest(pause)

    def _rest(self, pause: float) -> None:
        """Until there is something to do, and no less than `pause` seconds."""
        end = time.monotonic() + pause
        with self._changed:
            self._changed.notify_all()
            while not self._stop and (pause or not self._outbox.waiting()):
                left = end - time.monotonic()
                if pause and left <= 0:
                    return
                self._changed.wait(left if pause else None)

    def _pass(self) -> Exception | None:
        """Deliver what there is; what stopped it. Files that cannot be stored hold up no figures,
        and figures no files."""
        try:
            self._attach()
        except Exception as error:  # of MLflow, of its database driver, of the network
            return error
        problem = None
        for lane in (self._figures, self._files):
            try:
                lane()
            except Exception as error:  # artifact stores raise what their libraries raise
                problem = problem or error
        return problem

    def _attach(self) -> None:
        """Find the run, and the last step of each of its figures."""
        if self._client is not None:
            if self._problem:
                require_usable(
                    self._uri
                )  # quick to say that nothing answers, where MLflow tries long
            return
        client = connect(self._uri)
        self._last_step = _last_steps(client, self._uri, self._run_id)
        client.update_run(self._run_id, status="RUNNING")
        self._client = client

    def _figures(self) -> None:
        while not self._stop and (messages := self._outbox.figures(AT_ONCE)):
            try:
                self._send(messages)
            except Exception as error:
                if not _is_for_good(error):
                    raise
                for message in messages:  # find the one that is at fault
                    self._send_or_refuse(message)

    def _send_or_refuse(self, message: Figures) -> None:
        try:
            self._send([message])
        except Exception as error:
            if not _is_for_good(error):
                raise
            self._refuse(message.path, error)

    def _send(self, messages: Sequence[Figures]) -> None:
        from mlflow.entities import Metric

        assert self._client is not None
        last, rows = dict(self._last_step), []
        for message in messages:
            new = {k: v for k, v in message.values.items() if message.step > last.get(k, -1)}
            last |= dict.fromkeys(new, message.step)
            rows += [Metric(k, v, message.milliseconds, message.step) for k, v in new.items()]
        for start in range(0, len(rows), FIGURES_A_CALL):
            # Sent twice, as after an answer that was lost, a row with its own time stays one row.
            self._client.log_batch(self._run_id, metrics=rows[start : start + FIGURES_A_CALL])
        self._last_step = last
        for message in messages:
            self._outbox.done(message.path)

    def _files(self) -> None:
        assert self._client is not None
        for folder in self._outbox.files():
            if self._stop:
                return
            try:
                self._client.log_artifacts(self._run_id, str(folder))
            except Exception as error:
                if not _is_for_good(error):
                    raise
                self._refuse(folder, error)
            else:
                self._outbox.done(folder)

    def _refuse(self, path: Path, error: Exception) -> None:
        self.refused.append(str(error))  # first: who waits looks as soon as nothing is left
        self._outbox.refuse(path)

    def _say_once(self, problem: Exception) -> None:
        if not self._problem:
            print(
                f"MLflow at {self._uri} takes nothing now; the run goes on, what it tells is kept "
                f"in {self._outbox.folder} and delivered later ({_first_line(problem)})",
                flush=True,
            )
        self._problem = _first_line(problem)

    def _say_back(self) -> None:
        if self._problem:
            print(f"MLflow at {self._uri} is back: all is delivered", flush=True)
        self._problem = ""


def _last_steps(client: MlflowClient, uri: str, run_id: str) -> dict[str, int]:
    try:
        run = client.get_run(run_id)
    except Exception as error:
        if not _is_for_good(error):
            raise Unreachable(f"MLflow at {uri} did not answer: {error}") from error
        raise StoreError(f"no run {run_id} in {uri}: {error}") from error
    return {metric.key: metric.step for metric in run.data.to_proto().metrics}


def _is_for_good(error: Any) -> bool:
    return getattr(error, "error_code", None) in _FOR_GOOD


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
