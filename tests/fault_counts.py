"""What came of the faults of `tests/faults`, printed after every run that tried some."""

from collections import Counter


class FaultCounts:
    """The plugin; tests record a count of every outcome as their property "faults"."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = {}

    def pytest_runtest_logreport(self, report):
        if report.when == "call":
            for name, counts in report.user_properties:
                if name == "faults":
                    self._counts[report.nodeid.removeprefix("tests/faults/")] = Counter(counts)

    def pytest_terminal_summary(self, terminalreporter):
        if not self._counts:
            return
        columns = list(dict.fromkeys(name for counts in self._counts.values() for name in counts))
        terminalreporter.section("faults")
        terminalreporter.write_line("  ".join(columns))
        total = sum(self._counts.values(), Counter())
        for name, counts in [*sorted(self._counts.items()), ("in all", total)]:
            numbers = "  ".join(f"{counts[column]:{len(column)}d}" for column in columns)
            terminalreporter.write_line(f"{numbers}  {name}")
