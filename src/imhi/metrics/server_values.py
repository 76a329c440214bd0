"""Values of many texts from one server of log-probabilities: several requests at once, none for what is known already.

What stands against a value is told apart.  A text that the server has none for costs that text alone, and so does one
that makes it fail each time; a server that serves no one ends the scoring, and what came until then is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from pathlib import Path

from imhi.errors import UserError
from imhi.metrics.base import digest_of
from imhi.metrics.gpt_templates import Template
from imhi.metrics.self_test import self_test
from imhi.metrics.server_logprobs import CompletionServer, GaveUp, TooLong, Unanswered, Unscorable
from imhi.metrics.value_journal import KeptValue, ValueJournal
from imhi.talk import say

__all__ = ["REQUESTS", "Case", "ServerValues"]

# Requests under way at once.
REQUESTS = 8

# A text that is read, and the text that is scored after it.
Case = tuple[str, str]


class ServerValues:
    """A server's log-probabilities of texts in a template; the server is tested before the first of them.

    Parameters
    ----------
    server : its client.
    template : what stands around the two texts.
    metric : the metric's name, for messages.
    """

    def __init__(self, server: CompletionServer, template: Template, *, metric: str):
        self.server, self.metric = server, metric
        self._template = template
        self._tested = False
        self._from_journal = 0

    @property
    def facts(self) -> dict[str, object]:
        """Of the last run: which server, requests made again, values that an interrupted run had kept."""
        return {"server": self.server.name, "retries": self.server.retries, "from_journal": self._from_journal}

    def run(
        self, cases: list[Case], keep: Callable[[Case, float, int], object], journal_path: Path | None
    ) -> tuple[int, dict[Case, str]]:
        """Tell ``keep(case, nats, tokens)`` of every case that has a value.

        Parameters
        ----------
        journal_path : of the values that came before, which are not asked for, and of those that come; None: nowhere.

        Returns
        -------
        How many cases were cut to fit the model, and why some have no value, in words that hold nothing of the texts.

        Raises
        ------
        UserError
            The server fails its test, or gives no values any more.
        """
        with ValueJournal(journal_path) as journal:
            kept = {case: value for case in cases if (value := journal.values.get(self._asked(case)))}
            self._from_journal = len(kept)
            if kept:
                say(f"{self.metric}: {len(kept)} of {len(cases)} texts have their value from before ({journal_path})")
            for case, value in kept.items():
                keep(case, value.nats, value.tokens)
            cut, lacking = sum(value.cut for value in kept.values()), {}
            left = [case for case in cases if case not in kept]
            if not left:
                return cut, {}
            try:
                if not self._tested:
                    self_test(self.server)
                    self._tested = True
                with closing(self._outcomes(left, journal)) as outcomes:
                    for case, outcome in outcomes:
                        if isinstance(outcome, KeptValue):
                            keep(case, outcome.nats, outcome.tokens)
                            cut += outcome.cut
                        else:
                            lacking[case] = outcome
            except Unanswered as error:
                told = f"{self.metric}: {self.server.name} gives no values any more ({error}); "
                remedy = f"those it gave are kept in {journal_path}, and the same command goes on"
                raise UserError(told + (remedy if journal_path else "score again"), code=1) from None
            finally:
                self.server.close()
        return cut, lacking

    def _outcomes(self, cases: list[Case], journal: ValueJournal) -> Generator[tuple[Case, KeptValue | str]]:
        """Each case with its value, or why it has none, as they come.  Raises Unanswered where no other will have one."""

        def ask(case: Case) -> KeptValue:
            value = self._ask(case)
            # Here, where nothing can come between a value that was paid for and the file.
            journal.add(self._asked(case), value)
            return value

        pool = ThreadPoolExecutor(REQUESTS, thread_name_prefix=self.metric)
        waiting = {pool.submit(ask, case): case for case in cases}
        given_up = 0
        try:
            for answered in as_completed(waiting):
                try:
                    outcome: KeptValue | str = answered.result()
                    given_up = 0
                except Unscorable as error:
                    outcome, given_up = str(error), 0
                except GaveUp as error:
                    outcome, given_up = str(error), given_up + 1
                    # One text may make a server fail each time; as many as this in a row hardly do.
                    if given_up == REQUESTS:
                        raise
                yield waiting[answered], outcome
        finally:
            self.server.stop()
            if under_way := sum(future.running() for future in waiting):
                say(f"{self.metric}: waiting for {under_way} requests under way (Ctrl-C drops them)")
            try:
                pool.shutdown(cancel_futures=True)
            except BaseException:
                self.server.drop()
                raise

    def _asked(self, case: Case) -> str:
        """What stands for a case in a journal."""
        from imhi import __version__

        return digest_of([__version__, self.server.model, self._template.digest, *case])

    def _ask(self, case: Case) -> KeptValue:
        """A case's value; a server tells only that a text is too long."""
        given, scored = case
        while True:
            before = self._template.before(given)
            try:
                return KeptValue(*self.server.nats(before + scored, len(before)), (given, scored) != case)
            except TooLong:
                # A quarter at a time from where it may be missed: the beginning of what is read, then the end.
                if given:
                    given = given[max(64, len(given) // 4) :]
                elif len(scored) > 64:
                    scored = scored[: -max(64, len(scored) // 4)]
                else:
                    raise
