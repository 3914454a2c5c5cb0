"""Windows of records: what a stream shuffles and a sampler sees at a time, and their batches one by one.

The classes are grain's datasets; `jaxemb.data.batches` imports this file when it makes some.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import grain

from jaxemb.data.files import Record
from jaxemb.data.streams import State, Stream, StreamReader


class Window(NamedTuple):
    """Records of a stream that follow each other.

    Attributes:
      records: these.
      first: the number of the first in the stream.
      epoch: how often the stream has been read before.
      number: of the window in its epoch.
    """

    records: Sequence[Record]
    first: int
    epoch: int
    number: int


class Windows(grain.IterDataset[Window]):
    """A stream's records, `size` at a time, over some epochs (None for no end).

    Worker processes share its windows: each reads all records and passes over the windows of the others.
    """

    def __init__(self, stream: Stream, size: int, epochs: int | None):
        super().__init__()
        self.stream, self.size, self.epochs = stream, size, epochs
        self.turn = slice(0, None, 1)

    def set_slice(self, sl: slice, sequential_slice: bool = False) -> None:
        """Takes every `sl.step`-th window from number `sl.start` on."""
        self.turn = sl

    def __iter__(self) -> grain.DatasetIterator[Window]:
        return _WindowsIterator(self)

    def __str__(self) -> str:
        return f"Windows({self.stream.name})"


class _WindowsIterator(grain.DatasetIterator[Window]):
    def __init__(self, windows: Windows):
        super().__init__()
        self._of = windows
        self._reader = StreamReader(windows.stream)
        self._epoch, self._number, self._passed = 0, 0, 0  # windows passed over all epochs

    def __next__(self) -> Window:
        while True:
            window, turn = self._read(), self._passed % self._of.turn.step
            self._passed += 1
            if turn == self._of.turn.start:
                return window

    def _read(self) -> Window:
        while self._of.epochs is None or self._epoch < self._of.epochs:
            first = self._reader.count
            if records := list(itertools.islice(self._reader, self._of.size)):
                self._number += 1
                return Window(records, first, self._epoch, self._number - 1)
            if not self._reader.count:
                raise ValueError(f"{self._of.stream.name} has no records")
            self._reader = StreamReader(self._of.stream)
            self._epoch, self._number = self._epoch + 1, 0
        raise StopIteration

    def get_state(self) -> State:
        place = {"epoch": self._epoch, "number": self._number, "passed": self._passed}
        return {**place, "reader": self._reader.get_state()}

    def set_state(self, state: State) -> None:
        self._epoch, self._number, self._passed = state["epoch"], state["number"], state["passed"]
        self._reader = StreamReader(self._of.stream)
        self._reader.set_state(state["reader"])

    def __str__(self) -> str:
        return str(self._of)


class _Whole(grain.experimental.FlatMapTransform):
    """Takes a sequence apart."""

    def flat_map(self, element: Sequence) -> Sequence:
        return element


def one_by_one(sequences: grain.IterDataset[Sequence[Any]], workers: int) -> grain.IterDataset[Any]:
    """The elements of sequences that make them when asked: in `workers` processes, or in the thread that takes them."""
    if workers:
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1)
        sequences = sequences.map(list).mp_prefetch(options)
    return grain.experimental.FlatMapIterDataset(sequences, _Whole())
