"""One module per task. A task is a function of a model and images; `TASKS` names them all."""

from mcbeit.bench.tasks import finetune, knn, linear, logreg, probe_sweep, retrieval
from mcbeit.bench.tasks.task import BenchTask

TASKS: dict[str, BenchTask] = {
    task.name: task for task in (knn.TASK, linear.TASK, logreg.TASK, retrieval.TASK, probe_sweep.TASK, finetune.TASK)
}
