"""The study record: its events, its version and the names inside a run folder.

`study.jsonl` is the truth of a run: one JSON object a line, appended and never changed. Each line has an
`event` and a `time` (seconds since the epoch). Four events exist; readers keep but do not interpret others,
so that a record may grow without breaking older readers. A change that older readers would misread raises
`VERSION`, and they refuse it by name.

    study    the header: what is searched for, under which budget; the last one read counts
    session  one process working on the study: "started", then "finished" or "interrupted"; a killed process
             leaves no closing line
    trial    one candidate's state, with what became known at that moment; later fields win
    note     a line for the person watching

Non-finite numbers are written as null, because JSON has no others.
"""

from typing import Any, Literal, NotRequired, TypedDict

VERSION = 2
"""2: trials may be `paused` and `stopped`, and tell what they scored on the way (`rung`)."""

RECORD = "study.jsonl"
LOCK = ".lock"
SPACE = "space.yaml"
TRIALS = "trials"
METRICS = "metrics.jsonl"
SPEC = "spec.yaml"
FRONT = "front"
CHECKPOINT = "checkpoint.pt"

Direction = Literal["maximize", "minimize"]
State = Literal["running", "paused", "complete", "stopped", "failed", "infeasible", "duplicate"]

DIRECTIONS: tuple[str, ...] = ("maximize", "minimize")
STATES: tuple[str, ...] = (
    "running",
    "paused",
    "complete",
    "stopped",
    "failed",
    "infeasible",
    "duplicate",
)
SESSION_STATES: tuple[str, ...] = ("started", "finished", "interrupted")
NOTE_LEVELS: tuple[str, ...] = ("info", "warning", "error")


class StudyError(ValueError):
    """A record or run folder that cannot be used, said in one line for the person who asked for it."""


class StudyBusy(StudyError):
    """Another process is writing the run."""


class Layer(TypedDict):
    """One layer of a drawn layout; `repeat` is already unrolled."""

    glyph: str
    kind: str
    family: Literal["ssm", "attention", "channel", "other"]
    window: NotRequired[int]


class Parallel(TypedDict):
    """Branches that read the same input and are merged; each branch is a layout of its own."""

    kind: Literal["parallel"]
    branches: list[list[Any]]
    merge: str


Layout = list[Layer | Parallel]


class StudyEvent(TypedDict):
    """The header. An objective absent from `reference` has no agreed worst value (see `Study.reference`)."""

    event: Literal["study"]
    time: float
    version: int
    name: str
    space_hash: str
    objectives: dict[str, Direction]
    reference: dict[str, float]
    trials: int
    concurrency: int
    seed: int
    sampler: str
    scheduler: NotRequired[str]
    seeds: NotRequired[int]
    sources: list[str]
    budget: dict[str, float]


class SessionEvent(TypedDict):
    """A process began, or ended, its work on the study."""

    event: Literal["session"]
    time: float
    state: Literal["started", "finished", "interrupted"]
    pid: int


class Cause(TypedDict):
    """Why a trial failed; `step` is the optimiser step it reached, where there was one."""

    kind: str
    message: str
    step: NotRequired[int]


class Rung(TypedDict):
    """What a trial scored on the way. level: 0 is the lowest rung; share: of its training; tokens: so far."""

    level: int
    share: float
    tokens: int
    values: dict[str, float | None]


class TrialEvent(TypedDict):
    """One trial's state. `cost` holds counts and bytes, `seconds` the trial's own work.

    `hash` is that of the whole candidate (equal: trained once), `arch_hash` of its model, as `show` says it.
    `paused` trials wait at a rung and may go on; `stopped` ones never will: their `values` are those of
    their last rung, and they are on no front. A running trial's event with a `rung` went on from there.
    `spread` is the standard deviation of each value over the trial's seeds, where it has several. `retries`
    counts how often its worker was lost and it went on from its last checkpoint. `node` is Ray's id of the
    machine of a cluster that worked on it.

    `constraints` maps each broken constraint to its violation (> 0), as a share of the limit; `of` names the
    trial that a duplicate repeats.
    """

    event: Literal["trial"]
    time: float
    trial: str
    state: State
    params: NotRequired[dict[str, Any]]
    hash: NotRequired[str | None]
    arch_hash: NotRequired[str]
    layout: NotRequired[Layout]
    mixture: NotRequired[dict[str, float]]
    cost: NotRequired[dict[str, float]]
    values: NotRequired[dict[str, float | None]]
    metrics: NotRequired[dict[str, float | None]]
    spread: NotRequired[dict[str, float | None]]
    rung: NotRequired[Rung]
    retries: NotRequired[int]
    node: NotRequired[str]
    seconds: NotRequired[float]
    cause: NotRequired[Cause]
    constraints: NotRequired[dict[str, float]]
    of: NotRequired[str]


class NoteEvent(TypedDict):
    """A line for the person watching."""

    event: Literal["note"]
    time: float
    level: Literal["info", "warning", "error"]
    message: str


class MetricsLine(TypedDict):
    """One line of a trial's `metrics.jsonl`; the last one holds `evaluation` instead of a step."""

    time: NotRequired[float]
    step: NotRequired[int]
    steps: NotRequired[int]
    tokens: NotRequired[int]
    loss: NotRequired[float]
    losses: NotRequired[dict[str, float]]
    lr: NotRequired[float]
    seconds: NotRequired[float]
    evaluation: NotRequired[dict[str, Any]]


def check_event(event: dict[str, Any]) -> None:
    """Refuse an event of ours that lacks what its readers need. Events of unknown kinds pass.

    Raises:
        StudyError: the event has no kind, or a known kind with a missing or unknown entry.
    """
    kind = event.get("event")
    if not isinstance(kind, str):
        raise StudyError(f"event: expected a name such as 'trial', found {kind!r}")
    if kind == "study":
        _check_header(event)
    elif kind == "session":
        _check_member(event, "state", SESSION_STATES)
    elif kind == "note":
        _check_member(event, "level", NOTE_LEVELS)
    elif kind == "trial":
        _check_member(event, "state", STATES)
        if not isinstance(event.get("trial"), str) or not event["trial"]:
            raise StudyError(f"trial event: trial: expected the trial's id, found {event.get('trial')!r}")


def _check_header(event: dict[str, Any]) -> None:
    version = event.get("version")
    if not isinstance(version, int):
        raise StudyError(f"study event: version: expected a whole number, found {version!r}")
    if version > VERSION:
        raise StudyError(
            f"study event: version {version} was written by a newer archsearch; this one reads up to version "
            f"{VERSION}: upgrade archsearch to open this run"
        )
    objectives = event.get("objectives")
    if not isinstance(objectives, dict):
        raise StudyError(f"study event: objectives: expected a mapping, found {objectives!r}")
    for name, direction in objectives.items():
        if direction not in DIRECTIONS:
            raise StudyError(
                f"study event: objectives.{name}: expected one of {', '.join(DIRECTIONS)}, "
                f"found {direction!r}"
            )


def _check_member(event: dict[str, Any], key: str, allowed: tuple[str, ...]) -> None:
    if event.get(key) not in allowed:
        raise StudyError(
            f"{event['event']} event: {key}: expected one of {', '.join(allowed)}, found {event.get(key)!r}"
        )
