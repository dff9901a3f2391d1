"""MMLU: English exam questions of 57 subjects with four choices (Hendrycks et al., 2021).

Prompt: a sentence that names the subject, the first five questions of the subject's dev part with their letters, the question with its
choices under A to D, and ``Answer:``. The likeliest letter counts. Scorer: multiple_choice (the harness's ``acc``).
"""

from __future__ import annotations

from luthier.core.task import Task
from luthier.tasks._benchmark import Benchmark, build_task
from luthier.tasks._letters import ExamConfig, read_letters
from luthier.tasks._source import Source

SOURCE = Source(
    paper="Hendrycks et al. (2021), Measuring Massive Multitask Language Understanding, arXiv:2009.03300",
    licence="MIT",
    fields="question, choices (4), answer (index from 0 or letter), subject",
    hub="hub:cais/mmlu",
    matches="mmlu (num_fewshot=5)",
)
_SUBJECTS = """
    abstract_algebra anatomy astronomy business_ethics clinical_knowledge college_biology college_chemistry
    college_computer_science college_mathematics college_medicine college_physics computer_security conceptual_physics
    econometrics electrical_engineering elementary_mathematics formal_logic global_facts high_school_biology
    high_school_chemistry high_school_computer_science high_school_european_history high_school_geography
    high_school_government_and_politics high_school_macroeconomics high_school_mathematics high_school_microeconomics
    high_school_physics high_school_psychology high_school_statistics high_school_us_history high_school_world_history
    human_aging human_sexuality international_law jurisprudence logical_fallacies machine_learning management marketing
    medical_genetics miscellaneous moral_disputes moral_scenarios nutrition philosophy prehistory professional_accounting
    professional_law professional_medicine professional_psychology public_relations security_studies sociology
    us_foreign_policy virology world_religions
"""
SUBJECTS = tuple(_SUBJECTS.split())


Config = ExamConfig


def define(config: Config) -> Benchmark:
    """How rows become questions."""
    return Benchmark(
        name="mmlu",
        kind="choice",
        source=SOURCE,
        read=lambda row: read_letters(row, "Answer:"),
        scorers=(("multiple_choice", {}),),
        pool="dev",
        folder="all",
        sampler="first",
        description=_description,
        slices=("subject",),
        subjects=SUBJECTS,
    )


def build(config: Config) -> Task:
    """The task. Raises InputError or DataError."""
    return build_task(define(config), config)


def _description(subject: str) -> str:
    return f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"
