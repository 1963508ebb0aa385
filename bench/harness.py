"""`mcbeit bench run`: tasks x models x images, each result written as soon as it is there."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field

from mcbeit.atomic import write_json
from mcbeit.bench.data import BenchData, forget_opened
from mcbeit.bench.features import FeatureCache
from mcbeit.bench.model import KIND_NAMES, BenchModel, kind_of
from mcbeit.bench.published import check_reproduces
from mcbeit.bench.result import SUFFIX, DataFacts, Preset, Result, Split, TaskFacts, read_result, run_id, write_result
from mcbeit.bench.served_crew import probe
from mcbeit.bench.tasks import TASKS
from mcbeit.bench.tasks.task import BenchTask, Outcome, TaskConfig
from mcbeit.config import Seed, UserPath, override, validate
from mcbeit.embed_task import StreamConfig
from mcbeit.errors import BenchError, ConfigError
from mcbeit.file_hash import file_hash
from mcbeit.ray_cluster import Scale
from mcbeit.runfolder import environment
from mcbeit.served_encoder import ServedEncoder
from mcbeit.stop import StopRequest

LIMITS: dict[Preset, int | None] = {"smoke": 500, "short": 10000, "paper": None}  # images per split


class BenchConfig(StreamConfig):
    """What `key=value` may set, beside the settings of each task."""

    limit: int | None = Field(None, ge=2)  # images per split; default: 500 of smoke, 10,000 of short, all of paper
    seed: Seed = 0  # of the images that a limit leaves, and of every task that draws
    cache: UserPath | None = None  # the folder of vectors; default: OUT/features
    reproduces: str | None = None  # the published model that the weights are, as in `mcbeit bench ls --published`
    workers: int | None = Field(None, ge=1)  # processes of Ray that embed
    gpus_per_worker: float | None = Field(None, ge=0)
    address: str | None = None  # of a Ray cluster

    @property
    def scale(self) -> Scale | None:
        """How Ray is used; None: not at all."""
        if self.workers is None:
            return None
        return Scale(self.workers, self.workers, self.gpus_per_worker, self.address)


@dataclass(frozen=True)
class Asked:
    """One task with its settings."""

    task: BenchTask
    config: TaskConfig
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """A whole command, checked before anything is measured."""

    asked: tuple[Asked, ...]
    models: tuple[str, ...]
    data: tuple[BenchData, ...]
    preset: Preset
    config: BenchConfig
    out: Path


def make_plan(
    tasks: Sequence[str],
    models: Sequence[str],
    data: Sequence[str],
    *,
    preset: Preset,
    out: Path,
    assignments: Sequence[str] = (),
) -> Plan:
    """Check a command. Raises ConfigError or BenchError with what is wrong with it."""
    names = [name.strip() for text in tasks for name in text.split(",") if name.strip()]
    if not names:
        raise ConfigError(f"-t names no task; tasks: {', '.join(TASKS)}")
    if unknown := [name for name in names if name not in TASKS]:
        raise ConfigError(f"there is no task '{unknown[0]}'; tasks: {', '.join(TASKS)}")
    sections = {name: [one for one in assignments if one.startswith(f"{name}.")] for name in TASKS}
    if idle := [name for name, found in sections.items() if found and name not in names]:
        raise ConfigError(f"'{sections[idle[0]][0]}' sets the task {idle[0]}, which is not asked for; add -t {idle[0]}")
    own = [one for one in assignments if not any(one in found for found in sections.values())]
    config = validate(BenchConfig, override({}, own), origin="the command line")
    asked = tuple(_ask(TASKS[name], preset, config.seed, sections[name]) for name in dict.fromkeys(names))
    if config.reproduces is not None:
        check_reproduces(config.reproduces)
    for model in models:
        check_possible(model, asked)
    limit = LIMITS[preset] if config.limit is None else config.limit
    if config.limit is not None and (whole := [one.task.name for one in asked if one.task.images == "retrieval"]):
        raise ConfigError(
            f"limit={config.limit} would take right answers out of the gallery of {whole[0]}; leave it out, or measure "
            "a smaller set of images"
        )
    sets = tuple(BenchData.parse(one, limit=limit, seed=config.seed, channels=config.data.channels) for one in data)
    if twice := [one.name for one in sets if sum(one.name == other.name for other in sets) > 1]:
        raise ConfigError(f"--data names '{twice[0]}' twice; give every set of images its own name")
    return Plan(asked, tuple(dict.fromkeys(models)), sets, preset, config, out)


def _ask(task: BenchTask, preset: Preset, seed: int, assignments: Sequence[str]) -> Asked:
    plain = [one.removeprefix(f"{task.name}.") for one in assignments]
    values = override({"seed": seed, **task.presets[preset]}, plain)
    return Asked(task, validate(task.config, values, origin=f"the task {task.name}"), tuple(assignments))


def check_possible(model: str, asked: Sequence[Asked]) -> None:
    """Raise BenchError if a task needs what a model of this kind does not give."""
    kind = kind_of(model)
    if kind == "torch":
        return
    if refused := [one.task.name for one in asked if one.task.needs == "weights" or one.config.needs_weights]:
        hints = {one.task.name: f" with {one.config.needs_weights}" for one in asked if one.config.needs_weights}
        possible = [f"{name}{hints.get(name, '')}" for name, task in TASKS.items() if task.needs == "embedding"]
        raise BenchError(
            f"{', '.join(refused)}: not possible with '{model}', {KIND_NAMES[kind]}, as weights are needed; possible: "
            f"{', '.join(possible)}"
        )


def run(
    plan: Plan, *, resume: bool, stop: StopRequest, tell: Callable[[str], None] = lambda text: None
) -> Iterator[Result]:
    """Measure; each result is on the disk when it is given.

    With `resume` results that are there are given as they are. Raises BenchError if one is in the way otherwise,
    Interrupted if `stop` was asked for.
    """
    forget_opened()
    folder = Path(plan.config.cache) if plan.config.cache else plan.out / "features"
    cache = FeatureCache(folder, plan.config.scale, stop)
    for source in plan.models:
        model = BenchModel(source, plan.config, cache, plan.config.reproduces, plan.out)
        for data in plan.data:
            is_probed = False
            for asked in plan.asked:
                one = Measurement(plan, asked, model, data)
                if (found := one.stored(resume=resume)) is not None:
                    yield found
                    continue
                if model.kind == "served" and not is_probed and isinstance(model.encoder, ServedEncoder):
                    least = probe(model.encoder, one.data.open(asked.task.splits[-1]))
                    tell(f"{source}: files and their pixels give the same vectors (least cosine {least:.6f})")
                    is_probed = True
                tell(f"{asked.task.name} on {data.name}: {source}")
                yield one.measure()


class Measurement:
    """One task of one model on one set of images."""

    def __init__(self, plan: Plan, asked: Asked, model: BenchModel, data: BenchData) -> None:
        self.asked, self.model, self.folder = asked, model, plan.out / "results"
        self.data = data = data.taken_for(asked.task.images)
        self.manifests = {name: model.cache.manifest(data, name) for name in asked.task.splits}
        others = asked.config.other_images(data)
        self.manifests |= {name: model.cache.whole_manifest(other) for name, other in others.items()}
        self.task_facts = TaskFacts(
            name=asked.task.name,
            version=asked.task.version,
            preset=plan.preset,
            overrides=asked.overrides,
            protocol=asked.config.described(),
            limit=data.limit,
        )
        self.model_facts = model.facts()
        self.name = run_id(self.task_facts, self.model_facts, data.name, self.manifests)

    def stored(self, *, resume: bool) -> Result | None:
        """The result, if it is there; what its model reproduces is as it is said now.

        Raises BenchError if it should not be there.
        """
        path = self.folder / f"{self.name}{SUFFIX}"
        if not path.exists():
            return None
        if not resume:
            raise BenchError(f"'{path}' is there already: go on with --resume, or choose another -o")
        found, said = read_result(path), self.model_facts.reproduces
        if said not in (None, found.model.reproduces):
            found = found.model_copy(update={"model": found.model.model_copy(update={"reproduces": said})})
            write_result(self.folder, found)
        return found

    def measure(self) -> Result:
        """Measure, and write the result."""
        outcome = self.asked.task.run(self.model, self.data, self.asked.config)
        facts = DataFacts(
            name=self.data.name,
            place=self.data.place,
            seed=self.data.seed,
            layout=self.data.layout,
            classes=self.data.classes,
            splits={name: Split(manifest=self.manifests[name], used=outcome.used[name]) for name in self.manifests},
        )
        result = Result(
            task=self.task_facts,
            model=self.model_facts,
            data=facts,
            seeds=(self.asked.config.seed,),
            primary=outcome.primary,
            metrics=outcome.metrics,
            per_class=outcome.per_class,
            confusion=outcome.confusion,
            curves=outcome.curves,
            grids=outcome.grids,
            answers=outcome.answers,
            remarks=outcome.remarks,
            seconds=outcome.seconds,
            images_per_second=outcome.images_per_second,
            finished_at=datetime.now(UTC).isoformat(),
            environment=environment(self.asked.config.seed),
            artifacts=self._write_pictures(outcome),
        )
        write_result(self.folder, result)
        return result

    def _write_pictures(self, outcome: Outcome) -> dict[str, str]:
        if not outcome.pictures:
            return {}
        path = self.folder / "pictures" / f"{self.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, outcome.pictures)
        return {f"pictures/{path.name}": file_hash(path)}
