"""The stages of the pipeline, with one module for each stage.

`STAGES` is the registry, in the order in which the stages run. A new stage needs a module here and an entry
in this registry. The plan, the store, the Prefect flows and the deployments are derived from the registry.
"""

from __future__ import annotations

from flows.engine.stage import Registry
from flows.stages.build_context import BUILD_CONTEXT
from flows.stages.check_gates import CHECK_GATES
from flows.stages.compare_seeds import COMPARE_SEEDS
from flows.stages.convert_model import CONVERT_MODEL
from flows.stages.evaluate import EVALUATE
from flows.stages.export import EXPORT
from flows.stages.finetune import FINETUNE_STRUCTURE, FINETUNE_TASK
from flows.stages.push import PUSH
from flows.stages.questions.make_questions import MAKE_QUESTIONS

STAGES: Registry = {
    stage.name: stage
    for stage in (
        MAKE_QUESTIONS,
        BUILD_CONTEXT,
        CONVERT_MODEL,
        FINETUNE_STRUCTURE,
        FINETUNE_TASK,
        EVALUATE,
        COMPARE_SEEDS,
        CHECK_GATES,
        EXPORT,
        PUSH,
    )
}
