from collections.abc import Callable, Iterator
from typing import Any, TypedDict

__version__: str

class ShardwrightError(Exception):
    """What shardwright could not do, in the command line's words."""

class AnswerIsNo(ShardwrightError):
    """The answer is no: it does not fit, does not verify, is no plan."""

class UsageError(ShardwrightError):
    """Wrong usage."""

class BadInput(ShardwrightError):
    """A file that cannot be believed, or is not there."""

class EnvironmentFailed(ShardwrightError):
    """The environment failed: no memory, no device, a disk."""

class Report(TypedDict):
    bytes: int
    seconds: float
    verified_tensors: int | None
    files: str

def call(arguments: list[str]) -> str:
    """Runs a command of the program, given as its arguments, and returns what it prints."""

def engine_tensors(
    plan: str, engine: str, rank: int, adapted: str, checkpoint: str | None = None, stages: list[int] | None = None
) -> str:
    """Writes the plan of what an engine's ranks hold, and returns the engine's tensors on a rank as JSON. `stages` are the layers of each
    pipeline stage, where the engine was told how many."""

class Tensor:
    """A tensor that lies in a rank's memory."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def device(self) -> str: ...
    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...

class Loading(Iterator[Tensor]):
    """A rank that is being loaded: its tensors in the order in which they are ready."""

    def __init__(
        self,
        plan: str,
        rank: int,
        checkpoint: str | None = None,
        device: str = "auto",
        verify: str = "full",
        io: str = "auto",
        threads: int = 0,
        rendezvous: str | None = None,
        into: dict[str, Any] | None = None,
        all_reduce: Callable[[bytearray, str], None] | None = None,
        patience: int | None = None,
    ) -> None: ...
    def __next__(self) -> Tensor: ...
    @property
    def bytes(self) -> int: ...
    @property
    def report(self) -> Report | None: ...
    def stop(self) -> None: ...
