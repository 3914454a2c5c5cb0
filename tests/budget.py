"""What each test file costs, printed after every run: programs compiled and seconds. A file above its budget fails.

A program is counted whenever JAX asks its compiler for one, also where the answer comes from a cache on disk, so that
the number does not depend on what ran on this machine before. Seconds are printed, never judged.
"""

from collections import Counter

import jax
import pytest

#: Programs that the tests of one file may compile in the default run.
BUDGET = 150
#: Files that need more, and why.
EXCEPTIONS: dict[str, int] = {}

_PROGRAM = "/jax/core/compile/backend_compile_duration"


class Programs:
    """Counts the programs that this process compiles from now on."""

    def __init__(self) -> None:
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._heard)

    def _heard(self, event: str, duration: float, **_) -> None:
        self.count += event == _PROGRAM


class Costs:
    """The plugin; with pytest-xdist the workers count, and the controller adds up and prints."""

    def __init__(self) -> None:
        self._compiled = Programs()
        self._before = 0
        self._programs: Counter[str] = Counter()
        self._seconds: Counter[str] = Counter()

    def pytest_runtest_logstart(self, nodeid, location):
        self._before = self._compiled.count

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        report.programs = self._compiled.count - self._before
        report.slow = item.get_closest_marker("slow") is not None
        self._before = self._compiled.count
        return report

    def pytest_runtest_logreport(self, report):
        file = report.nodeid.partition("::")[0]
        self._seconds[file] += report.duration
        if not getattr(report, "slow", True):  # a process that died reports less
            self._programs[file] += report.programs

    def _above(self) -> list[str]:
        return [
            f"{file}: {n} programs compiled, its budget is {limit}"
            for file, n in sorted(self._programs.items())
            if n > (limit := EXCEPTIONS.get(file, BUDGET))
        ]

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session, exitstatus):
        if exitstatus == pytest.ExitCode.OK and self._above():
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        write = terminalreporter.write_line
        terminalreporter.section("programs compiled and seconds, by file")
        for file, seconds in self._seconds.most_common():
            write(f"{self._programs[file]:6d} {seconds:8.1f} s  {file}")
        total = f"{self._programs.total()} programs, {self._seconds.total():.0f} s of tests"
        write(f"{total} in {len(self._seconds)} files")
        for line in self._above():
            write(f"FAILED {line}", red=True)
