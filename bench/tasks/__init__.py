"""One module per task. A task is a function of a model and images; `TASKS` names them all."""

from mcbeit.bench.tasks import (
    detection,
    finetune,
    knn,
    linear,
    logreg,
    probe_sweep,
    retrieval,
    robustness,
    segmentation,
    segmentation_knn,
    segmentation_linear,
)
from mcbeit.bench.tasks.task import BenchTask

TASKS: dict[str, BenchTask] = {
    module.TASK.name: module.TASK
    for module in (
        knn,
        linear,
        logreg,
        retrieval,
        robustness,
        probe_sweep,
        finetune,
        segmentation_knn,
        segmentation_linear,
        segmentation,
        detection,
    )
}
