"""An order as the trainer's loop carries it out: the tuning of a teacher is a run of its own. Pure."""

from fractions import Fraction

from bitnet_crds.data import Mixture
from bitnet_crds.objectives import CrossEntropy, Objectives
from bitnet_crds.optimizer import Optimizer
from bitnet_crds.plan import Plan, PlannedPhase, ledger_hash
from bitnet_crds.protocol import Order
from bitnet_crds.schedules import LambdaSchedule
from bitnet_crds.spec import BitNetRunSpec, Export, Model, Phase, Teacher
from bitnet_crds.tuning_plan import TuningPlan


def carried_out(order: Order) -> Order:
    """The order itself; of one that tunes the teacher, that of a run whose model is the teacher, in one phase
    of crossEntropy.

    Its folder, with its checkpoints, is `teacher-tuning` in the run's own. Its quantization says nothing: a
    teacher has none.
    """
    if order.purpose == "Train":
        return order
    spec, tuning = order.spec, order.plan.tuning
    assert spec.teacher is not None  # an order says so as it is read
    assert tuning is not None
    return Order(
        namespace=order.namespace,
        name=f"{order.name}/teacher-tuning",
        job=order.job,
        spec=_spec(spec, spec.teacher, tuning),
        plan=_plan(order.plan, tuning),
        scratch=order.scratch,
    )


def _spec(spec: BitNetRunSpec, teacher: Teacher, tuning: TuningPlan) -> BitNetRunSpec:
    objectives = Objectives(cross_entropy=CrossEntropy(weight=1.0))
    only = Phase(name="tuning", until=Fraction(1), objectives=objectives, workers=spec.phases[0].workers)
    return BitNetRunSpec(
        model=Model(from_=teacher.from_, revision=teacher.revision),
        data=spec.data.model_copy(update={"mixture": Mixture()}),
        budget=spec.budget.model_copy(update={"tokens": tuning.tokens}),
        optimizer=Optimizer(adam_learning_rate=tuning.learning_rate.peak),
        phases=(only,),
        workers=spec.workers,
        checkpoint=spec.checkpoint.model_copy(update={"inference_weights": False}),
        health=spec.health.model_copy(update={"plateau": None}),
        export=Export(formats=()),
        seed=spec.seed,
    )


def _plan(run: Plan, tuning: TuningPlan) -> Plan:
    planned = Plan(
        ledger_hash="",
        total_steps=tuning.steps,
        tokens=tuning.tokens,
        end_step=tuning.steps,
        sequence_length=run.sequence_length,
        global_batch_size=run.global_batch_size,
        phases=(
            PlannedPhase(
                name="tuning",
                first_step=0,
                end_step=tuning.steps,
                weights={"crossEntropy": 1.0},
                transition_steps=0,
                curve="Linear",
                mixture=tuning.mixture,
                teacher=False,
                shape=tuning.shape,
                auto=tuning.auto,
            ),
        ),
        learning_rate=tuning.learning_rate,
        quantization_lambda=LambdaSchedule(steps=0, curve="Linear"),
    )
    return planned.model_copy(update={"ledger_hash": ledger_hash(planned)})
